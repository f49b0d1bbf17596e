"""Trunks and branches: three sizes at four budgets for the price of the largest, and the check.

    uv run python -m experiments.sweep --sweep=configs/sweeps/branches.py

One trunk of constant learning rate a size, and cooldowns from it (Hägele et al. 2024,
arXiv:2405.18392). At the smallest size the runs "alone" are trained from the start for each budget:
branch and run alone should agree within the noise of seeds (kin.branch_agreement). Some six minutes
on two idle CPU cores.
"""

from configs import base
from lm import sizes

SIZES = ("10K", "25K", "60K")
TOKENS = (300_000, 600_000, 1_200_000, 1_800_000)


def get_sweep():
    for size in SIZES:
        run = base.get_config(size)
        run.name, run.optim.warmup = f"branches/{size}", 0.02
        yield from sizes.branches(run, TOKENS)
    for seed in (0, 1, 2):
        for tokens in (TOKENS[0], TOKENS[-1]):
            run = base.get_config(SIZES[0])
            run.name, run.seed = f"branches/alone-{seed}-{tokens / 1e6:g}M", seed
            run.steps, run.optim.schedule = sizes.steps(run, tokens=tokens), "wsd"
            run.optim.warmup = 0.02 * TOKENS[-1] / tokens  # as many steps as the trunk's
            yield run
