"""Measure the value of pre-training on English for code: fine-tuned against from-scratch runs.

    uv run python -m experiments.sweep --sweep=configs/sweeps/transfer.py

For each size, a model trains on docstrings. For each amount of code, one run starts from this model
and one from random weights. Both stop when the held-out loss on code rises (Hernandez et al. 2021,
arXiv:2102.01293). notebooks/07_transfer.ipynb fits D_T = k D_F^a N^b.

Hardware and time: about ten minutes on two idle CPU cores.
"""

from configs import base
from lm.config import model_sizes

SIZES = ("10K", "15K", "25K", "60K")
TOKENS = {8_192: 120, 32_768: 240, 131_072: 420, 327_680: 600}  # tokens of code -> max steps
PRETRAINING = 1_800_000  # tokens of docstrings


def get_sweep():
    """Yield a pre-trained run per size, then its fine-tuned and scratch runs."""
    for size in SIZES:
        parent = base.get_config(size)
        parent.name = f"transfer/{size}-docs"
        parent.data.sources = {"docs": 1.0}
        parent.steps = model_sizes.steps_for_budget(parent, tokens=PRETRAINING)
        parent.eval.n_sequences, parent.eval.n_completions = 256, 0
        yield parent
        for tokens, steps in TOKENS.items():
            for start in ("scratch", "tuned"):
                run = base.get_config(size)
                run.name = f"transfer/{size}-{tokens // 1024}Ki-{start}"
                run.data.sources = {"code": 1.0, "docs": 0.0}  # docs measure forgetting
                run.data.unique_tokens = tokens
                run.steps = steps
                run.eval.interval, run.eval.patience = steps // 12, 3
                run.eval.n_sequences, run.eval.n_completions = 256, 0
                if start == "tuned":
                    run.start.run = parent.name
                    run.optim.lr /= 2
                yield run
