"""Tune learning rate, batch size and weight decay at three sizes and three token budgets.

    uv run python -m experiments.sweep --sweep=configs/sweeps/tune.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/tune.py:my/corpora    # ladder.py

lm.laws.hyperparameters(lm.load_runs("runs/tune")) fits the best values as functions of size and
tokens. notebooks/data/tune has the records of this sweep, so law:notebooks/data/tune needs no
training. The design is sparse: 17 runs per size and budget around a center, not a full grid. The
center of the batch size grows with the tokens. On CPU, vmapped runs of 10K cost 0.83 to 0.91 of
separate ones (experiments/LOG.md), so the command trains one run after the other. The records in
notebooks/data/tune are those of vmapped runs (--max_vmapped=11).

Hardware and time: 153 runs, about half an hour on two idle CPU cores.
"""

from configs import base, ladder
from lm.config import model_sizes

SIZES = ("10K", "25K", "40K")
BATCH_SIZES = {150_000: 8, 500_000: 16, 1_500_000: 32}  # tokens -> rows of 128 tokens
WEIGHT_DECAY = 0.4
# Factors of learning rate, batch size and weight decay, as powers of two. The timescale of the
# weight decay depends on all three, so the middle learning rates have three weight decays.
GRID = (
    *((lr, 0, 0) for lr in (-2, -1, 0, 1, 2)),
    *((lr, 0, decay) for decay in (-2, 2) for lr in (-1, 0, 1)),
    *((lr, batch, 0) for batch in (-2, 2) for lr in (-1, 0, 1)),
)


def get_sweep(corpora: str = ""):
    """Yield the runs of each size and token budget, those of one batch size in succession."""
    for size in SIZES:
        for tokens, n_rows in BATCH_SIZES.items():
            for lr, batch, decay in sorted(GRID, key=lambda factors: factors[1]):
                run = ladder.get_config(f"{corpora},{size}") if corpora else base.get_config(size)
                run.data.batch_size = round(n_rows * 128 * 2.0**batch / run.data.seq_len)
                run.optim.lr *= 2.0**lr
                run.optim.weight_decay = WEIGHT_DECAY * 2.0**decay
                run.name = (
                    f"tune/{size}-{tokens / 1e6:g}M-lr{lr:+d}-batch{batch:+d}-decay{decay:+d}"
                )
                run.steps = model_sizes.steps_for_budget(run, tokens=tokens)
                run.eval.n_completions = 0
                run.checkpoint_interval = run.steps
                yield run
