"""Six sizes at the same number of tokens a parameter, each with its own length of training.

    uv run python -m experiments.sweep --sweep=configs/sweeps/chinchilla.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/chinchilla.py:40

Twenty is near the best of Hoffmann et al. 2022 (arXiv:2203.15556). On such a ladder N and D are on
one line, so it tells L(C), laws.power(rows, x="flops"), and not what either gives alone. The
largest is predicted before it starts. About two minutes on two idle CPU cores.
"""

from configs import base
from lm import sizes

SIZES = ("10K", "15K", "25K", "40K", "60K", "100K")


def get_sweep(tokens_per_param: str = "20"):
    for size in SIZES:
        run = base.get_config(size)
        run.name = f"chinchilla/{size}"
        run.steps = sizes.steps(run, tokens_per_param=float(tokens_per_param))
        run.eval.n_sequences, run.eval.n_completions = 1024, 0
        run.checkpoint_every = run.steps
        run.predict = size == SIZES[-1]
        yield run
