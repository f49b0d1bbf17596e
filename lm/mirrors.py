"""Metrics for other people's viewers: TensorBoard event files, and Weights & Biases on request.

metrics.jsonl is the record; these are copies of it and are never read back.
"""

import importlib
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lm import config, records, storage

FLUSH_SECONDS = 30.0  # between what a viewer sees


def check(run: config.Run) -> None:
    """ValueError if the run asks for a viewer whose package is not there."""
    if run.wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError("wandb=True needs a package that is not here: uv sync --extra wandb")


def follow(
    run: config.Run, first_step: int, is_primary: bool = True
) -> tuple[Callable[[dict], None], Callable[[], None]]:
    """(write, close): write(row) copies the numbers of a metrics row at row["step"].

    Event files grow, so they come into a bucket once they are closed.
    """
    if not is_primary:
        return lambda row: None, lambda: None
    write_board, close_board = _board(records.folder(run) / "tensorboard", first_step)
    cloud = _wandb(run) if run.wandb else None

    def write(row: dict) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        write_board(row["step"], numbers)
        if cloud:
            cloud.log(numbers, step=row["step"])

    def close() -> None:
        close_board()
        if cloud:
            cloud.finish()

    return write, close


def _board(place: Path, first_step: int) -> tuple[Callable[[int, dict], None], Callable[[], None]]:
    """(write, close) of an event file whose steps from the first on replace those of older ones.

    Without tensorboardX's SummaryWriter: its thread ends on a full disk, and then its queue, once
    full, stops the training for ever. OSError here instead.
    """
    from tensorboardX.event_file_writer import EventsWriter  # most of lm does without it

    event_pb2 = importlib.import_module("tensorboardX.proto.event_pb2")  # names made as it loads
    summary_pb2 = importlib.import_module("tensorboardX.proto.summary_pb2")
    Event, Summary, SessionLog = event_pb2.Event, summary_pb2.Summary, event_pb2.SessionLog
    here = Path(tempfile.mkdtemp()) if storage.is_remote(place) else place
    here.mkdir(parents=True, exist_ok=True)
    file = EventsWriter(str(here / "events"), f".{time.time_ns()}")
    start = SessionLog(status=SessionLog.START)
    file.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))
    flushed = time.monotonic()

    def write(step: int, numbers: dict) -> None:
        nonlocal flushed
        values = [Summary.Value(tag=name, simple_value=n) for name, n in numbers.items()]
        summary = Summary(value=values)
        file.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - flushed > FLUSH_SECONDS:
            file.flush()
            flushed = time.monotonic()

    def close() -> None:
        file.close()
        if here != place:
            for path in here.iterdir():
                storage.write(place / path.name, path.read_bytes())
            shutil.rmtree(here)

    return write, close


def _wandb(run: config.Run):
    wandb = importlib.import_module("wandb")  # an extra
    return wandb.init(
        project=run.name.split("/")[0],
        name=run.name,
        id=run.name.replace("/", "-"),
        resume="allow",
        config=config.to_dict(run),
    )
