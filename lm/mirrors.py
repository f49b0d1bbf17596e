"""Metrics for other people's viewers: TensorBoard event files, and Weights & Biases on request.

metrics.jsonl is the record; these are copies of it and are never read back.
"""

import importlib
import importlib.util
from collections.abc import Callable

from lm import config, records


def check(run: config.Run) -> None:
    """ValueError if the run asks for a viewer whose package is not there."""
    if run.wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError("wandb=True needs a package that is not here: uv sync --extra wandb")


def follow(run: config.Run, first_step: int) -> tuple[Callable[[dict], None], Callable[[], None]]:
    """(write, close): write(row) copies the numbers of a metrics row at row["step"]."""
    if not records.writes:
        return lambda row: None, lambda: None
    from tensorboardX import SummaryWriter  # imported here: most of lm does without it

    board = SummaryWriter(str(records.folder(run) / "tensorboard"), purge_step=first_step)
    cloud = _wandb(run) if run.wandb else None

    def write(row: dict) -> None:
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float)) and k != "step"}
        for name, value in numbers.items():
            board.add_scalar(name, value, row["step"])
        if cloud:
            cloud.log(numbers, step=row["step"])

    def close() -> None:
        board.close()
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
