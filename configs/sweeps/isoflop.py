"""Train different sizes with equal compute, and fit how the best size grows with compute.

    uv run python -m experiments.sweep --sweep=configs/sweeps/isoflop.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/isoflop.py:8e11,1.6e12,3.2e12,6.4e12

This is approach 2 of Hoffmann et al. 2022 (arXiv:2203.15556). The argument lists budgets in
training FLOPs. Each budget trains the sizes of the ladder with 2 to 150 tokens per parameter.
laws.isoflop(records.load_runs("runs/isoflop"), x="params.non_embedding") fits N* = k C^a, and
notebooks/05_compute_optimal.ipynb plots it.

Hardware and time: 18 runs, 1.7e13 FLOPs, about eight minutes on two idle CPU cores.
"""

from configs import base
from lm.config import model_sizes

BUDGETS = "4e11,8e11,1.6e12"  # below 4e11 the best size is smaller than the ladder
MIN_TOKENS_PER_PARAM, MAX_TOKENS_PER_PARAM = 2, 150


def get_sweep(budgets: str = BUDGETS):
    """Yield one run per budget and size."""
    for n_flops in map(float, budgets.split(",")):
        for size in model_sizes.LADDER:
            run = base.get_config(size)
            run.name = f"isoflop/{n_flops:.3g}-{size}".replace("+", "")
            run.steps = model_sizes.steps_for_budget(run, n_flops=n_flops)
            run.eval.n_sequences, run.eval.n_completions = 1024, 0
            run.checkpoint_interval = run.steps
            n_params = model_sizes.count_parameters(model_sizes.resolved_model(run))["total"]
            tokens_per_param = model_sizes.training_tokens(run) / n_params
            if MIN_TOKENS_PER_PARAM <= tokens_per_param <= MAX_TOKENS_PER_PARAM:
                yield run
