"""Measure the value of repeated data: up to 16 epochs of three amounts of text.

    uv run python -m experiments.sweep --sweep=configs/sweeps/epochs.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/epochs.py:4_000_000

Three sizes train on three amounts of unique text. The argument is the largest number of training
tokens of a run.
laws.data_constrained(records.load_runs("runs/epochs")) fits how fast repeats lose their value
(Muennighoff et al. 2023, arXiv:2305.16264).

Hardware and time: 27 runs, about three minutes on two idle CPU cores. The second command trains on
four times as many tokens.
"""

from configs import base
from lm.config import model_sizes

SIZES = ("10K", "25K", "60K")
EPOCHS = (1, 2, 4, 8, 16)


def get_sweep(max_tokens: str = "1_048_576"):
    """Yield one run per size, amount of unique text and number of epochs."""
    n_tokens = int(max_tokens)
    for size in SIZES:
        for unique_tokens in (n_tokens // 16, n_tokens // 4, n_tokens):
            for epochs in EPOCHS:
                if unique_tokens * epochs <= n_tokens:
                    run = base.get_config(size)
                    run.name = f"epochs/{size}-{unique_tokens // 1024}Ki-x{epochs}"
                    run.data.unique_tokens = unique_tokens
                    run.steps = model_sizes.steps_for_budget(run, tokens=unique_tokens * epochs)
                    run.eval.n_sequences, run.eval.n_completions = 512, 0
                    run.checkpoint_interval = run.steps
                    yield run
