"""What is pre-training on English worth when code is learned? From scratch and fine-tuned.

    uv run python -m experiments.sweep --sweep=configs/sweeps/transfer.py

For each size a model is trained on docstrings; then, for each amount of code, one that starts from
it and one that starts at random, both until the held-out loss on code rises (Hernandez et al. 2021,
arXiv:2102.01293). notebooks/transfer.ipynb fits D_T = k D_F^a N^b. About ten minutes on two idle
CPU cores.
"""

from configs import base
from lm import sizes

SIZES = ("10K", "15K", "25K", "60K")
TOKENS = {8_192: 120, 32_768: 240, 131_072: 420, 327_680: 600}  # of code -> most steps
PRETRAINING = 1_800_000  # tokens of docstrings


def get_sweep():
    for size in SIZES:
        parent = base.get_config(size)
        parent.name = f"transfer/{size}-docs"
        parent.data.sources = {"docs": 1.0}
        parent.steps = sizes.steps(parent, tokens=PRETRAINING)
        parent.eval.n_sequences, parent.eval.n_completions = 256, 0
        yield parent
        for tokens, steps in TOKENS.items():
            for way in ("scratch", "tuned"):
                run = base.get_config(size)
                run.name = f"transfer/{size}-{tokens // 1024}Ki-{way}"
                run.data.sources = {"code": 1.0, "docs": 0.0}  # docs: to see what is forgotten
                run.data.unique_tokens = tokens
                run.steps = steps
                run.eval.every, run.eval.patience = steps // 12, 3
                run.eval.n_sequences, run.eval.n_completions = 256, 0
                if way == "tuned":
                    run.start.run = parent.name
                    run.optim.lr /= 2
                yield run
