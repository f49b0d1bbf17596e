"""Train a model of any size on the text that comes with Python. Other recipes start from this one.

    uv run python -m experiments.train --config=configs/base.py:100K

Hardware and time: the 100K model trains in about 20 seconds on two CPU cores.
"""

from lm import sizes
from lm.config import Run

TOKENS = 1_800_000  # equal for all sizes, so that runs differ in size only


def get_config(size: str = "100K") -> Run:
    """Return the recipe for a size of sizes.LADDER or sizes.EXPERTS."""
    run = Run(name=f"base-{size}")
    run.model = sizes.model(size)
    run.optim.lr = 0.5 / run.model.d_model  # tuned at widths 16, 48 and 96 (experiments/LOG.md)
    run.steps = sizes.steps(run, tokens=TOKENS)
    return run
