"""The same text again: what are tokens worth that were seen before?

    uv run python -m experiments.sweep --sweep=configs/sweeps/epochs.py

Three sizes on three amounts of unique text, up to sixteen times over, none longer than MOST tokens:
laws.data_constrained(records.rows("runs/epochs")) fits how fast repeats lose their worth
(Muennighoff et al. 2023, arXiv:2305.16264). 27 runs, about three minutes on two idle CPU cores;
:4_000_000 for four times the text.
"""

from configs import base
from lm import sizes

SIZES = ("10K", "25K", "60K")
EPOCHS = (1, 2, 4, 8, 16)


def get_sweep(most: str = "1_048_576"):
    for size in SIZES:
        for unique in (int(most) // 16, int(most) // 4, int(most)):
            for epochs in EPOCHS:
                if unique * epochs <= int(most):
                    run = base.get_config(size)
                    run.name = f"epochs/{size}-{unique // 1024}Ki-x{epochs}"
                    run.data.unique_tokens = unique
                    run.steps = sizes.steps(run, tokens=unique * epochs)
                    run.eval.n_sequences, run.eval.n_completions = 512, 0
                    run.checkpoint_every = run.steps
                    yield run
