"""Train four sizes on copying, capitalizing, reversing and sorting words, and look for jumps.

    uv run python -m experiments.sweep --sweep=configs/sweeps/emergence.py

Answers have 3 to 6 letters and are evaluated at 16 points of training. An answer is correct only if
all its letters are. Exact-match accuracy can therefore jump where the probability of a letter rises
smoothly (Schaeffer et al. 2023, arXiv:2304.15004). Each task has words of one length, because
models of these sizes do not learn several lengths at once (experiments/LOG.md).
notebooks/06_abilities.ipynb plots the results.

Hardware and time: about four minutes on two idle CPU cores.
"""

from configs import base
from lm.config import model_sizes

SIZES = ("10K", "25K", "60K", "150K")
SKILLS = ("copy?length=4", "upper?length=6", "reverse?length=3", "sort?length=3")


def get_sweep():
    """Yield one run per size."""
    for size in SIZES:
        run = base.get_config(size)
        run.name = f"emergence/{size}"
        run.data.sources = {"tasks:" + "+".join(SKILLS): 1.0}
        run.steps = model_sizes.steps_for_budget(run, tokens=1_200_000)
        run.eval.n_sequences, run.eval.n_completions = 64, 0
        run.eval.tasks = " ".join(f"{skill}&n=200" for skill in SKILLS)
        run.eval.interval = run.eval.task_interval = run.steps // 16
        yield run
