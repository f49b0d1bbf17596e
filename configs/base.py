"""Train a model of any size on the text that comes with Python. Other recipes start from this one.

    uv run python -m experiments.train --config=configs/base.py:100K

Hardware and time: the 100K model trains in about 20 seconds on two CPU cores.
"""

from lm.config import model_sizes, schema

TOKENS = 1_800_000  # equal for all sizes, so that runs differ in size only


def get_config(size: str = "100K") -> schema.Run:
    """Return the recipe for a size of model_sizes.LADDER or model_sizes.EXPERTS."""
    run = schema.Run(name=f"base-{size}")
    run.model = model_sizes.ladder_model(size)
    # Hidden matrices need a rate of 1 / width (Yang et al. 2022, arXiv:2203.03466, table 8).
    # The factor was tuned at widths 16, 48 and 96 (experiments/LOG.md).
    run.optim.lr = 0.5 / run.model.d_model
    run.steps = model_sizes.steps_for_budget(run, tokens=TOKENS)
    return run
