"""Five sizes on five kinds of text with a vocabulary of 8192: the loss of each kind, by size.

    uv run python -m experiments.sweep --sweep=configs/sweeps/mixture.py:my/corpora

my/corpora as configs/mixture.py says. On two CPU cores about five minutes.
"""

from configs import mixture
from lm import sizes

SIZES = ("10K", "25K", "40K", "60K", "150K")


def get_sweep(folder: str = "data/corpora"):
    for size in SIZES:
        run = mixture.get_config(folder, size)
        run.name = f"mixture/{size}"
        run.steps = sizes.steps(run, tokens=1_000_000)
        run.predict = size == SIZES[-1]
        yield run
