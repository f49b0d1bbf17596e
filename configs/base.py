"""The recipe that every run starts from: a rung of the ladder on the text that comes with Python.

    uv run python -m experiments.train --config=configs/base.py:100K

On two CPU cores the 100K model trains in about 20 seconds.
"""

from lm import sizes
from lm.config import Run

TOKENS = 1_800_000  # the same for every size, so that only the size differs


def get_config(size: str = "100K") -> Run:
    run = Run(name=f"base-{size}")
    run.model = sizes.model(size)
    run.optim.lr = 0.5 / run.model.d_model  # tuned at widths 16, 48 and 96 (experiments/LOG.md)
    run.steps = sizes.steps(run, tokens=TOKENS)
    return run
