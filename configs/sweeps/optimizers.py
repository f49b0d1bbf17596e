"""AdamW, Lion and Muon at equal FLOPs, each at five learning rates: which learns most?

    uv run python -m experiments.sweep --sweep=configs/sweeps/optimizers.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/optimizers.py:10K,60K

Compare the best of each, and trust it only where its neighbours on both sides are worse. Steps and
tokens are equal, and so are FLOPs of the model; what Muon spends on its matrices, by arithmetic 4%
more at width 16, is not counted. Two seeds a point. About three minutes on two idle CPU cores.
"""

from configs import base
from lm import sizes

# Learning rates as shares of base's, a factor of two apart.
RATES = {
    "adamw": (0.5, 1, 2, 4, 8),
    "lion": (0.1, 0.2, 0.4, 0.8, 1.6),
    "muon": (0.5, 1, 2, 4, 8),
}


def get_sweep(ladder: str = "10K"):
    for size in ladder.split(","):
        for name, shares in RATES.items():
            for share in shares:
                for seed in (0, 1):
                    run = base.get_config(size)
                    run.optim.name, run.optim.lr = name, share * run.optim.lr
                    run.name, run.seed = f"optimizers/{size}-{name}-x{share:g}-{seed}", seed
                    run.steps = sizes.steps(run, tokens=400_000)
                    run.eval.n_sequences, run.eval.n_completions = 1024, 0
                    run.checkpoint_every = run.steps
                    yield run
