"""Eight learning rates of a size, the worse half stopped at a quarter and at half of the steps.

    uv run python -m experiments.sweep --sweep=configs/sweeps/rates.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/rates.py:10K,60K
    uv run python -m experiments.sweep --sweep=configs/sweeps/rates.py:10K,60K:0     # none stopped

Two of eight come to their end, for half of the steps of all (lm/halving.py). Without stopping, the
same evaluations are made, so that what a rung would have stopped can be looked at.
"""

from configs import base
from lm import sizes

SHARES = (0.125, 0.25, 0.5, 1, 2, 4, 8, 16)  # of base's learning rate


def get_sweep(ladder: str = "10K"):
    names, _, halve = ladder.partition(":")
    for size in names.split(","):
        for share in SHARES:
            run = base.get_config(size)
            run.optim.lr *= share
            run.name = f"rates/{size}-x{share:g}"
            run.steps = sizes.steps(run, tokens=400_000)
            run.halve = int(halve or 2)
            run.eval.every = run.steps // 4
            run.eval.n_sequences, run.eval.n_completions = 512, 0
            run.checkpoint_every = run.steps
            yield run
