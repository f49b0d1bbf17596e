"""Train five sizes on five kinds of text, and compare the loss of each kind by size.

    uv run python -m experiments.sweep --sweep=configs/sweeps/mixture.py:my/corpora
    uv run python -m experiments.sweep --sweep=configs/sweeps/mixture.py:my/corpora,my/tasks

configs/mixture.py describes my/corpora. my/tasks contains one folder per task
(lm/evaluation/tasks.py). The runs evaluate up to 200 examples of each task of TASKS that exists
there. The vocabulary has 8192 tokens.

Hardware and time: about five minutes on two CPU cores.
"""

import pathlib

from configs import mixture
from lm.config import model_sizes

SIZES = ("10K", "25K", "40K", "60K", "150K")
TASKS = (
    *("lambada", "piqa", "copa", "arc_easy", "openbookqa", "boolq", "winograd_wsc", "mmlu"),
    *("sst2", "subjectivity", "ag_news", "arithmetic", "autocomplete_text", "autocomplete_code"),
)


def get_sweep(folders: str = "data/corpora"):
    """Yield one run per size for "CORPORA,TASKS". TASKS is optional."""
    corpora, _, tasks = folders.partition(",")
    task_names = [name for name in TASKS if tasks and pathlib.Path(tasks, name).is_dir()]
    for size in SIZES:
        run = mixture.get_config(corpora, size)
        run.name = f"mixture/{size}"
        run.steps = model_sizes.steps_for_budget(run, tokens=1_000_000)
        run.eval.tasks = " ".join(f"file:{tasks}/{name}?n=200" for name in task_names)
        run.is_prediction_target = size == SIZES[-1]
        yield run
