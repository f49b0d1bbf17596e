"""Train six sizes at the same number of tokens per parameter.

    uv run python -m experiments.sweep --sweep=configs/sweeps/chinchilla.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/chinchilla.py:40

20 tokens per parameter is close to the optimum of Hoffmann et al. 2022 (arXiv:2203.15556). N and D
are proportional in this sweep. It therefore determines L(C), fitted by laws.power(rows, x="flops"),
but not the separate effects of N and D. The largest run is predicted before it starts.

Hardware and time: about two minutes on two idle CPU cores.
"""

from configs import base
from lm.config import model_sizes

SIZES = ("10K", "15K", "25K", "40K", "60K", "100K")


def get_sweep(tokens_per_param: str = "20"):
    """Yield one run per size."""
    for size in SIZES:
        run = base.get_config(size)
        run.name = f"chinchilla/{size}"
        run.steps = model_sizes.steps_for_budget(run, tokens_per_param=float(tokens_per_param))
        run.eval.n_sequences, run.eval.n_completions = 1024, 0
        run.checkpoint_interval = run.steps
        run.is_prediction_target = size == SIZES[-1]
        yield run
