"""Three sizes times four lengths on a language whose entropy is known: does the fitted E find it?

    uv run python -m experiments.sweep --sweep=configs/sweeps/known_entropy.py

No model gets below FLOOR on rows of 128 tokens, so E of L(N, D) = E + A/N^alpha + B/D^beta should
have it within its interval: laws.chinchilla(records.rows("runs/known_entropy")). About four
minutes on two CPU cores, and too small a grid: losses come within 0.04 of FLOOR, but depend on N
so little that the fit leaves alpha and E open, and warns of it (experiments/LOG.md).
"""

from configs import base
from lm import sizes

SOURCE = "synthetic:machine?states=16&memory=2&megabytes=8"
FLOOR = 1.867  # nats a token: data.load(run.data, 0).floors()
SIZES = ("10K", "25K", "60K")
TOKENS = (400_000, 800_000, 1_600_000, 3_200_000)


def get_sweep():
    for size in SIZES:
        for tokens in TOKENS:
            run = base.get_config(size)
            run.name = f"known_entropy/{size}-{tokens / 1e6:g}M"
            run.data.sources = {SOURCE: 1.0}
            run.steps = sizes.steps(run, tokens=tokens)
            run.eval.n_sequences = 1024
            run.eval.n_completions = 0
            yield run
