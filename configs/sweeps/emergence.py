"""Four sizes that learn nothing but to copy, capitalise, turn and sort words: do abilities jump?

    uv run python -m experiments.sweep --sweep=configs/sweeps/emergence.py

Answers of 3 to 6 letters, asked at sixteen points of training: an answer is right only if all its
letters are, so its share can jump where the probability of a letter does not (Schaeffer et al.
2023, arXiv:2304.15004). Each skill has words of one length: of several at once, models of these
sizes learn none (experiments/LOG.md). notebooks/emergence.ipynb draws it. About four minutes on two
idle CPU cores.
"""

from configs import base
from lm import sizes

SIZES = ("10K", "25K", "60K", "150K")
SKILLS = ("copy?length=4", "upper?length=6", "reverse?length=3", "sort?length=3")


def get_sweep():
    for size in SIZES:
        run = base.get_config(size)
        run.name = f"emergence/{size}"
        run.data.sources = {"tasks:" + "+".join(SKILLS): 1.0}
        run.steps = sizes.steps(run, tokens=1_200_000)
        run.eval.n_sequences, run.eval.n_completions = 64, 0
        run.eval.tasks = " ".join(f"{skill}&n=200" for skill in SKILLS)
        run.eval.every = run.eval.tasks_every = run.steps // 16
        yield run
