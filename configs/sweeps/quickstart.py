"""Train seven sizes on the same tokens: held-out loss and task accuracy against parameters.

    uv run python -m experiments.sweep --sweep=configs/sweeps/quickstart.py

Two fifths of the text are synthetic tasks (lm/data/sources/synthetic_tasks.py). Evaluation examples
are never trained on. The largest run is predicted before it starts.

Hardware and time: four to six minutes on two CPU cores without AVX-512.
"""

from configs import base
from lm.config import model_sizes

TOKENS = 900_000  # of each size: half of those of base.py, so that the sweep takes minutes
SIZES = ("10K", "25K", "60K", "100K", "150K", "250K", "600K")
SKILLS = ("copy", "upper", "reverse", "sort", "recall", "brackets", "addition", "translate")
TASKS = (
    *("copy", "upper", "reverse", "sort", "recall", "addition", "translate"),
    *("brackets?depth=2", "brackets?depth=3", "brackets?depth=4"),
)


def get_sweep():
    """Yield one run per size."""
    for size in SIZES:
        run = base.get_config(size)
        run.name = f"quickstart/{size}"
        run.data.sources = {"code": 0.3, "docs": 0.3, "tasks:" + "+".join(SKILLS): 0.4}
        run.eval.n_sequences = 1024
        run.eval.tasks = " ".join(TASKS)
        run.steps = model_sizes.steps_for_budget(run, tokens=TOKENS)
        run.is_prediction_target = size == SIZES[-1]
        yield run
