"""Fit the irreducible loss E on a synthetic language with known entropy.

    uv run python -m experiments.sweep --sweep=configs/sweeps/known_entropy.py

No model can have a lower loss than the entropy of the language. On the held-out rows, this entropy
is eval.loss - eval.excess. It should be in the interval of E in L(N, D) = E + A/N^alpha +
B/D^beta, fitted by laws.chinchilla(records.load_runs("runs/known_entropy")). The runs have six
widths and four numbers of tokens, and differ in N and D only. The shortest run continues after the
first fall of the loss, and no text is repeated. experiments/LOG.md has the results.

Hardware and time: 90 million tokens, about 25 minutes on two busy CPU cores (planned).
"""

from configs import base
from lm.config import model_sizes

SOURCE = "synthetic:grammar?words=64&depth=2&megabytes=10"
WIDTHS = (8, 12, 16, 24, 32, 48)
TOKENS = (1_000_000, 2_000_000, 4_000_000, 8_000_000)


def get_sweep():
    """Yield one run per width and token budget."""
    for width in WIDTHS:
        for tokens in TOKENS:
            run = base.get_config("10K")
            run.name = f"known_entropy/{width}-{tokens / 1e6:g}M"
            run.model = model_sizes.ladder_model(
                "10K", d_model=width, d_head=width // 2, d_ff=3 * width
            )
            run.optim.lr = min(0.5 / width, 0.03)
            run.data.sources = {SOURCE: 1.0}
            run.steps = model_sizes.steps_for_budget(run, tokens=tokens)
            run.eval.n_sequences = 1024
            run.eval.n_completions = 0
            run.checkpoint_interval = run.steps
            yield run
