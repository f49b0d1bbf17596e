"""The same run with other seeds: how far apart are results that should be equal?

    uv run python -m experiments.sweep --sweep=configs/sweeps/seeds.py
    uv run python -m experiments.sweep --sweep=configs/sweeps/seeds.py:10
    uv run python -m experiments.sweep --sweep=configs/sweeps/seeds.py --pack=5    # one program

A seed draws the weights and the order of the text. Differences between runs of other sweeps mean
something where they are larger than these; a law takes the noise of repeats from equal inputs
(lm/doubts.py). Two sizes, five seeds, about a minute on two idle CPU cores.
"""

from configs import base
from lm import sizes

SIZES = ("10K", "60K")


def get_sweep(n_seeds: str = "5"):
    for size in SIZES:
        for seed in range(int(n_seeds)):
            run = base.get_config(size)
            run.name, run.seed = f"seeds/{size}-{seed}", seed
            run.steps = sizes.steps(run, tokens=600_000)
            run.eval.n_sequences, run.eval.n_completions = 1024, 0
            run.checkpoint_every = run.steps
            yield run
