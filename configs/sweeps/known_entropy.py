"""Six sizes on a language whose entropy is known: does the fitted floor E find it?

    uv run python -m experiments.sweep --sweep=configs/sweeps/known_entropy.py

The floor of its rows of 128 tokens is 1.876 nats a token (facts.json: floor.SOURCE); the law of the
report should have it within the interval of E.
"""

from configs import base
from lm import sizes

SOURCE = "synthetic:machine?states=64&megabytes=8"
SIZES = ("10K", "15K", "25K", "40K", "60K", "100K")


def get_sweep(tokens: str = "1_500_000"):
    for size in SIZES:
        run = base.get_config(size)
        run.name = f"known_entropy/{size}"
        run.data.sources = {SOURCE: 1.0}
        run.steps = sizes.steps(run, tokens=int(tokens))
        run.eval.n_sequences = 1024
        run.predict = size == SIZES[-1]
        yield run
