"""Equal compute, different sizes: where is the best size of a budget, and how does it grow?

    uv run python -m experiments.sweep --sweep=configs/sweeps/isoflop.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/isoflop.py:8e11,1.6e12,3.2e12,6.4e12

Approach 2 of Hoffmann et al. 2022 (arXiv:2203.15556). For each budget, in training FLOPs, every
rung of the ladder that sees between FEWEST and MOST tokens a parameter with it;
laws.isoflop(records.rows("runs/isoflop"), x="params.non_embedding") fits N* = k C^a, and
notebooks/isoflop.ipynb draws it. 18 runs, 1.7e13 FLOPs: some eight minutes on two idle CPU
cores.
"""

from configs import base
from lm import sizes

BUDGETS = "4e11,8e11,1.6e12"  # below 4e11 the best is smaller than the smallest rung
FEWEST, MOST = 2, 150  # tokens a parameter


def get_sweep(budgets: str = BUDGETS):
    for flops in map(float, budgets.split(",")):
        for size in sizes.LADDER:
            run = base.get_config(size)
            run.name = f"isoflop/{flops:.3g}-{size}".replace("+", "")
            run.steps = sizes.steps(run, flops=flops)
            run.eval.n_sequences, run.eval.n_completions = 1024, 0
            run.checkpoint_every = run.steps
            if FEWEST <= sizes.tokens(run) / sizes.counts(run.model)["total"] <= MOST:
                yield run
