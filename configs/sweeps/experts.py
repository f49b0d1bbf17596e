"""Dense against experts at equal active parameters and tokens: what do idle parameters give?

    uv run python -m experiments.sweep --sweep=configs/sweeps/experts.py

Three sizes, each dense and with 8 experts under either balance: held-out loss against
params.active_non_embedding. About eight minutes on two CPU cores; :400_000 tokens in place of 1.8
million for a first look.
"""

from configs import base, experts
from lm import sizes

SIZES = ("25K", "60K", "100K")


def get_sweep(tokens: str = "1_800_000"):
    for size in SIZES:
        dense = base.get_config(size)
        dense.name = f"experts/{size}-dense"
        runs = [dense]
        for balance in ("loss", "bias"):
            run = experts.get_config(size)
            run.model.balance = balance
            run.name = f"experts/{size}-{balance}"
            runs.append(run)
        for run in runs:
            run.steps = sizes.steps(run, tokens=int(tokens))
            run.eval.n_sequences, run.eval.n_completions = 1024, 0
            yield run
