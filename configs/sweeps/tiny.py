"""Four sizes for a minute: to try the machinery, not to learn anything.

uv run python -m experiments.sweep --sweep=configs/sweeps/tiny.py
"""

from configs import base
from lm import sizes


def get_sweep(tokens: str = "100_000"):
    for size in ("10K", "15K", "25K", "40K", "60K"):
        run = base.get_config(size)
        run.name = f"tiny/{size}"
        run.steps = sizes.steps(run, tokens=int(tokens))
        run.checkpoint_every = 20
        run.eval.n_sequences, run.eval.n_completions = 64, 64
        run.predict = size == "60K"
        yield run
