"""Five sizes on five kinds of text with a vocabulary of 8192: the loss of each kind, by size.

    uv run python -m experiments.sweep --sweep=configs/sweeps/mixture.py:my/corpora
    uv run python -m experiments.sweep --sweep=configs/sweeps/mixture.py:my/corpora,my/tasks

my/corpora as configs/mixture.py says; my/tasks holds a folder a task, as lm/tasks.py says, and up
to 200 examples of each of TASKS that is there are asked. On two CPU cores about five minutes.
"""

import pathlib

from configs import mixture
from lm import sizes

SIZES = ("10K", "25K", "40K", "60K", "150K")
TASKS = (
    *("lambada", "piqa", "copa", "arc_easy", "openbookqa", "boolq", "winograd_wsc", "mmlu"),
    *("sst2", "subjectivity", "ag_news", "arithmetic", "autocomplete_text", "autocomplete_code"),
)


def get_sweep(folders: str = "data/corpora"):
    corpora, _, tasks = folders.partition(",")
    there = [f"{tasks}/{name}" for name in TASKS if tasks and pathlib.Path(tasks, name).is_dir()]
    for size in SIZES:
        run = mixture.get_config(corpora, size)
        run.name = f"mixture/{size}"
        run.steps = sizes.steps(run, tokens=1_000_000)
        run.eval.tasks = " ".join(f"file:{folder}?n=200" for folder in there)
        run.predict = size == SIZES[-1]
        yield run
