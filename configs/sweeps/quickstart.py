"""Seven sizes on the same tokens: how held-out loss falls with the parameter count.

uv run python -m experiments.sweep --sweep=configs/sweeps/quickstart.py
"""

from configs import base

SIZES = ("10K", "25K", "60K", "100K", "150K", "250K", "600K")


def get_sweep():
    for size in SIZES:
        run = base.get_config(size)
        run.name = f"quickstart/{size}"
        run.eval.n_sequences = 1024
        run.predict = size == SIZES[-1]
        yield run
