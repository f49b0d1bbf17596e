"""Train five tiny sizes for a minute to test the setup.

    uv run python -m experiments.sweep --sweep=configs/sweeps/tiny.py

The argument is the number of training tokens of each run.

Hardware and time: about a minute on two CPU cores. The models learn little.
"""

from configs import base
from lm.config import model_sizes


def get_sweep(tokens: str = "100_000"):
    """Yield one run per size."""
    for size in ("10K", "15K", "25K", "40K", "60K"):
        run = base.get_config(size)
        run.name = f"tiny/{size}"
        run.steps = model_sizes.steps_for_budget(run, tokens=int(tokens))
        run.checkpoint_interval = 20
        run.eval.n_sequences, run.eval.n_completions = 64, 64
        run.is_prediction_target = size == "60K"
        yield run
