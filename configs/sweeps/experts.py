"""Compare dense models and mixtures of experts at equal active parameters and tokens.

    uv run python -m experiments.sweep --sweep=configs/sweeps/experts.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/experts.py:400_000

Three sizes, each dense and with 8 experts under two kinds of load balancing. Compare the held-out
loss against params.active_non_embedding. The argument is the number of training tokens.

Hardware and time: about eight minutes on two CPU cores.
"""

from configs import base, experts
from lm.config import model_sizes

SIZES = ("25K", "60K", "100K")


def get_sweep(tokens: str = "1_800_000"):
    """Yield a dense run and two mixtures of experts per size."""
    for size in SIZES:
        dense = base.get_config(size)
        dense.name = f"experts/{size}-dense"
        runs = [dense]
        for balance in ("loss", "bias"):
            run = experts.get_config(size)
            run.model.load_balancing = balance
            run.name = f"experts/{size}-{balance}"
            runs.append(run)
        for run in runs:
            run.steps = model_sizes.steps_for_budget(run, tokens=int(tokens))
            run.eval.n_sequences, run.eval.n_completions = 1024, 0
            yield run
