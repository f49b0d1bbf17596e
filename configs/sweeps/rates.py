"""Train one model size with eight learning rates.

    uv run python -m experiments.sweep --sweep=configs/sweeps/rates.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/rates.py:10K,25K    # two sizes

All eight runs are trained to the end. Each run is evaluated four times, so that learning rates can
be compared before the end of their schedule. At 10K the learning rate with the lowest final loss is
the fourth best at a quarter and at half of the steps (experiments/LOG.md).

Hardware and time: about four minutes on two busy CPU cores.
"""

from configs import base
from lm.config import model_sizes

FACTORS = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)  # multiples of the learning rate of configs/base.py


def get_sweep(sizes: str = "10K"):
    """Yield one run per size and learning rate for "SIZE,SIZE,..."."""
    for size in sizes.split(","):
        for factor in FACTORS:
            run = base.get_config(size)
            run.optim.lr *= factor
            run.name = f"rates/{size}-x{factor:g}"
            run.steps = model_sizes.steps_for_budget(run, tokens=400_000)
            run.eval.interval = run.steps // 4
            run.eval.n_sequences, run.eval.n_completions = 512, 0
            run.checkpoint_interval = run.steps
            yield run
