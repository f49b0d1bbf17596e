"""Compare AdamW, Lion and Muon at equal FLOPs, each at five learning rates.

    uv run python -m experiments.sweep --sweep=configs/sweeps/optimizers.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/optimizers.py:10K,60K

Compare the lowest loss of each optimizer, and trust it only if both neighboring learning rates are
worse. Steps, tokens and FLOPs of the model are equal. The additional FLOPs of Muon's matrices are
not counted: 4% at width 16. Each learning rate has two seeds.

Hardware and time: about three minutes on two idle CPU cores.
"""

from configs import base
from lm.config import model_sizes

# Optimizer -> multiples of the learning rate of configs/base.py, a factor of two apart.
FACTORS = {
    "adamw": (0.5, 1, 2, 4, 8),
    "lion": (0.1, 0.2, 0.4, 0.8, 1.6),
    "muon": (0.5, 1, 2, 4, 8),
}


def get_sweep(sizes: str = "10K"):
    """Yield one run per size, optimizer, learning rate and seed for "SIZE,SIZE,..."."""
    for size in sizes.split(","):
        for name in ("adamw", "lion", "muon"):
            for factor in FACTORS[name]:
                for seed in (0, 1):
                    run = base.get_config(size)
                    run.optim.name, run.optim.lr = name, factor * run.optim.lr
                    run.name, run.seed = f"optimizers/{size}-{name}-x{factor:g}-{seed}", seed
                    run.steps = model_sizes.steps_for_budget(run, tokens=400_000)
                    run.eval.n_sequences, run.eval.n_completions = 1024, 0
                    run.checkpoint_interval = run.steps
                    yield run
