"""Repeat the same run with other seeds to measure the noise between equal runs.

    uv run python -m experiments.sweep --sweep=configs/sweeps/seeds.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/seeds.py:10
    uv run python -m experiments.sweep --sweep=configs/sweeps/seeds.py --max_vmapped=5 # one program

A seed determines the initial weights and the order of the text. A difference between runs of other
sweeps means something only if it is larger than the differences between these seeds. Laws estimate
the noise from runs with equal inputs (lm/laws/estimation.py).

Hardware and time: two sizes, five seeds, about a minute on two idle CPU cores.
"""

from configs import base
from lm.config import model_sizes

SIZES = ("10K", "60K")


def get_sweep(n_seeds: str = "5"):
    """Yield one run per size and seed."""
    for size in SIZES:
        for seed in range(int(n_seeds)):
            run = base.get_config(size)
            run.name, run.seed = f"seeds/{size}-{seed}", seed
            run.steps = model_sizes.steps_for_budget(run, tokens=600_000)
            run.eval.n_sequences, run.eval.n_completions = 1024, 0
            run.checkpoint_interval = run.steps
            yield run
