"""Train three sizes at four token budgets with cooldown branches, and compare with separate runs.

    uv run python -m experiments.sweep --sweep=configs/sweeps/branches.py

Each size has one trunk run with constant learning rate and one cooldown branch per budget (Hägele
et al. 2024, arXiv:2405.18392). The smallest size is also trained from scratch for two budgets, with
three seeds. A branch and a separate run should agree within the noise of seeds: see
design.branch_agreement.

Hardware and time: about six minutes on two idle CPU cores.
"""

from configs import base
from lm.config import model_sizes
from lm.sweeps import design

SIZES = ("10K", "25K", "60K")
TOKENS = (300_000, 600_000, 1_200_000, 1_800_000)


def get_sweep():
    """Yield trunk runs and their cooldown branches, then the separate runs."""
    for size in SIZES:
        run = base.get_config(size)
        run.name, run.optim.warmup = f"branches/{size}", 0.02
        yield from design.cooldown_branches(run, TOKENS)
    for seed in (0, 1, 2):
        for tokens in (TOKENS[0], TOKENS[-1]):
            run = base.get_config(SIZES[0])
            run.name, run.seed = f"branches/alone-{seed}-{tokens / 1e6:g}M", seed
            run.steps, run.optim.schedule = model_sizes.steps_for_budget(run, tokens=tokens), "wsd"
            run.optim.warmup = 0.02 * TOKENS[-1] / tokens  # as many warm-up steps as the trunk
            yield run
