"""Five sizes that learn nothing but to copy, turn and capitalise words: do abilities jump?

    uv run python -m experiments.sweep --sweep=configs/sweeps/emergence.py

Answers of 2 to 6 letters, asked at eight points of training: an answer is right only if all its
letters are, so its share can jump where the probability of a letter does not (Schaeffer et al.
2023, arXiv:2304.15004). notebooks/emergence.ipynb draws it. About three minutes on two CPU cores.
"""

from configs import base
from lm import sizes

SIZES = ("10K", "25K", "60K", "150K", "250K")
SKILLS = ("copy", "upper", "reverse")
LENGTHS = (2, 3, 4, 6)


def get_sweep():
    names = [f"{skill}?length={length}" for skill in SKILLS for length in LENGTHS]
    for size in SIZES:
        run = base.get_config(size)
        run.name = f"emergence/{size}"
        run.data.sources = {"tasks:" + "+".join(names): 1.0}
        run.steps = sizes.steps(run, tokens=1_200_000)
        run.eval.n_sequences, run.eval.n_completions = 128, 0
        run.eval.tasks = " ".join(names)
        run.eval.every = run.eval.tasks_every = run.steps // 8
        yield run
