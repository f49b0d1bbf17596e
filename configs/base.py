"""The recipe that every run starts from: a rung of the ladder on the text that comes with Python.

    uv run python -m experiments.train --config=configs/base.py:100K

On two CPU cores the 100K model trains in about 20 seconds.
"""

from lm import sizes
from lm.config import Run

BASE_WIDTH = 64  # where LEARNING_RATE was tuned
LEARNING_RATE = 8e-3


def get_config(size: str = "100K") -> Run:
    run = Run(name=f"base-{size}")
    run.model = sizes.model(size)
    run.optim.lr = LEARNING_RATE * (BASE_WIDTH / run.model.d_model) ** 0.5
    run.steps = sizes.steps(run, tokens=2_500_000)
    return run
