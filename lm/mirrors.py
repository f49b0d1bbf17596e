"""Metrics for other people's viewers: TensorBoard event files, and Weights & Biases on request.

metrics.jsonl is the record; these are copies of it and are never read back.
"""

import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lm import config, records, storage


def check(run: config.Run) -> None:
    """ValueError if the run asks for a viewer whose package is not there."""
    if run.wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError("wandb=True needs a package that is not here: uv sync --extra wandb")


def follow(run: config.Run, first_step: int) -> tuple[Callable[[dict], None], Callable[[], None]]:
    """(write, close): write(row) copies the numbers of a metrics row at row["step"].

    Event files grow, so they come into a bucket once they are closed.
    """
    from tensorboardX import SummaryWriter  # imported here: most of lm does without it

    place = records.folder(run) / "tensorboard"
    here = Path(tempfile.mkdtemp()) if storage.is_remote(place) else place
    board = SummaryWriter(str(here), purge_step=first_step)
    cloud = _wandb(run) if run.wandb else None

    def write(row: dict) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        for name, value in numbers.items():
            board.add_scalar(name, value, row["step"])
        if cloud:
            cloud.log(numbers, step=row["step"])

    def close() -> None:
        board.close()
        if here != place:
            for file in here.iterdir():
                storage.write(place / file.name, file.read_bytes())
            shutil.rmtree(here)
        if cloud:
            cloud.finish()

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
