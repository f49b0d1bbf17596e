"""Metrics for other people's viewers: TensorBoard event files, and Weights & Biases on request.

metrics.jsonl is the record; these are copies of it and are never read back.
"""

import collections
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import math
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from lm.config import fields, flops, schema
from lm.data import dataset
from lm.model import attention
from lm.runs import filesystem, provenance, records

FLUSH_SECONDS = 30.0  # between what a viewer sees


def check_writers(run: schema.Run) -> None:
    """ValueError if the run asks for a viewer whose package is not there."""
    if run.wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError("wandb=True needs a package that is not here: uv sync --extra wandb")


def open_writers(
    run: schema.Run, first_step: int, is_primary: bool = True
) -> tuple[Callable[[dict], None], Callable[[], None]]:
    """(write, close): write(row) copies the numbers of a metrics row at row["step"].

    Event files grow, so they come into a bucket once they are closed.
    """
    if not is_primary:
        return lambda row: None, lambda: None
    write_board, close_board = _board(records.run_dir(run) / "tensorboard", first_step)
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
    here = Path(tempfile.mkdtemp()) if filesystem.is_remote(place) else place
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
                filesystem.write_file(place / path.name, path.read_bytes())
            shutil.rmtree(here)

    return write, close


def _wandb(run: schema.Run):
    wandb = importlib.import_module("wandb")  # an extra
    return wandb.init(
        project=run.name.split("/")[0],
        name=run.name,
        id=run.name.replace("/", "-"),
        resume="allow",
        config=schema.to_dict(run),
    )


# MERGED DOCSTRING of lm.ledger:
# """Compute the facts and metric rows of a run: counts, costs, speed, spikes, warnings."""


class RowTime:
    """Time of the steps since the last row of metrics.

    total: seconds of training over all sessions. A restored window may have steps of an earlier
    session, which n_steps does not count.
    """

    def __init__(self, total: float = 0.0):
        self.total, self.n_steps, self.seconds, self.waited = total, 0, 0.0, 0.0

    def add(self, n_steps: int, seconds: float, waited: float) -> None:
        """Count steps and their duration."""
        self.total += seconds
        self.n_steps += n_steps
        self.seconds += seconds
        self.waited += waited


def collect_run_facts(
    run: schema.Run, text: dataset.TokenDataset, device_mesh: jax.sharding.Mesh, peak: float
) -> dict:
    """Return the facts of a run, so that analysis need not rebuild it.

    peak: FLOP/s of the mesh in matrix products.
    """
    device = device_mesh.devices.flat[0]
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    facts = flops.run_facts(run) | {
        "config_hash": config_hash(run),
        "corpus.hash": text.hash,
        "unique_tokens": text.unique_tokens,
        "corpus.bytes_per_token": text.bytes_per_token,
        "host": platform.node(),
        "devices": device_mesh.size,
        "devices.kind": device.device_kind,
        "devices.mesh": dict(device_mesh.shape),
        "devices.cut": [
            run.optim.grad_accumulation_steps,
            run.model.loss_chunks,
            run.model.remat,
            run.mesh.rules,
        ],
        "devices.attention": attention.select_backend(run, device_mesh),
        "devices.peak_flops_per_second": peak,
        "versions.python": platform.python_version(),
        "code.version": provenance.package_version(),
        "code.commit": provenance.git_commit(),
    }
    facts |= {f"versions.{p}": importlib.metadata.version(p) for p in packages}
    facts |= {f"epochs.{source}": n for source, n in text.epochs(run.steps).items()}
    facts |= {f"floor.{source}": nats for source, (nats, _) in dataset.entropy_bounds(text).items()}
    for source, rows in dataset.packing_stats(text).items():
        facts |= {f"rows.{name}.{source}": value for name, value in rows.items()}
    return facts


def config_hash(run: schema.Run) -> str:
    """Return a hash of all fields that determine what the run learns."""
    knobs = {k: v for k, v in schema.flatten(run).items() if k not in records.EXECUTION_FIELDS}
    knobs = fields.for_hash(knobs, schema.Run)
    return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:16]


def step_metrics(
    run: schema.Run, text: dataset.TokenDataset, values: list[dict], done: int
) -> dict:
    """Return a metrics row: loss and gradient norm are means over the steps since the last row."""
    tokens = done * run.data.batch_size * run.data.seq_len
    loss, grad_norm = (_mean([m[name] for m in values]) for name in ("loss", "grad_norm"))
    return {
        "tokens": tokens,
        "flops": tokens * flops.flops_per_token(run.model, run.data.seq_len)["full"],
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / text.bytes_per_token,
        "grad_norm": grad_norm,
        "lr": float(values[-1]["lr"]),
        "epoch": max(text.epochs(done).values()),
    } | {name: _mean([m[name] for m in values]) for name in values[0] if "experts." in name}


def throughput(run: schema.Run, steps: int, seconds: float, peak: float) -> dict:
    """Return the throughput of the steps of a row, also as a share of the measured peak."""
    tokens_per_second = steps * run.data.batch_size * run.data.seq_len / seconds
    n_flops = tokens_per_second * flops.flops_per_token(run.model, run.data.seq_len)["full"]
    return {
        "tokens_per_second": tokens_per_second,
        "flops_per_second": n_flops,
        "peak_share": n_flops / peak,
    }


def find_spikes(recent: collections.deque, row: dict) -> list[str]:
    """Return the metrics that are 6 standard deviations above their last 20 rows.

    Append the row to `recent`.
    """
    names = []
    for name in ("loss", "grad_norm"):
        past = np.array([old[name] for old in recent])
        if len(past) >= 10 and row[name] > past.mean() + 6 * past.std():
            names.append(name)
    recent.append(row)
    return names


def quality_warning(run: schema.Run, evaluated: dict[int, dict], ends_at: int) -> str:
    """Return a warning of one line if the final loss is worse than a simple baseline, else "".

    The baselines are a uniform guess among all tokens and, for fine-tuning, the initial weights: a
    learning rate for one kind of text may be too high for another.
    """
    if ends_at not in evaluated:
        return ""
    loss, guess = float(evaluated[ends_at]["loss"]), math.log(run.model.vocab_size)
    started = float(evaluated[0]["loss"]) if run.start.run and 0 in evaluated else math.inf
    lowest, baseline = min((guess, "guessing"), (started, "the weights it started from"))
    if loss <= lowest:
        return ""
    return (
        f"held-out loss {loss:.3f} at the end, {lowest:.3f} by {baseline}: try a smaller optim.lr"
    )


def _mean(values: list) -> float:
    """Return the mean of the finite values: skipped updates have none."""
    numbers = np.array(values, np.float64)
    return float(np.mean(numbers[np.isfinite(numbers)]))
