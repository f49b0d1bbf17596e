"""Eight learning rates of a size, the worse half stopped at half of the steps.

    uv run python -m experiments.sweep --sweep=configs/sweeps/rates.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/rates.py:10K:2    # at a quarter, too
    uv run python -m experiments.sweep --sweep=configs/sweeps/rates.py:10K:0    # none stopped

Four of eight come to their end, for three quarters of the steps of all (lm/halving.py). With a rung
at a quarter two do, for half of the steps, and at 10K the best is lost: at four times base's
learning rate it is fourth at both rungs (experiments/LOG.md). Without stopping, the same
evaluations are made, so that what a rung would have stopped can be looked at. About three minutes
on two busy CPU cores.
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
            run.halve = int(halve or 1)
            run.eval.every = run.steps // 4
            run.eval.n_sequences, run.eval.n_completions = 512, 0
            run.checkpoint_every = run.steps
            yield run
