"""Train eight sizes over a factor of 400 on six kinds of real text, with two token budgets.

    uv run python -m experiments.sweep --sweep=configs/sweeps/real_ladder.py:my/corpora
    uv run python -m experiments.sweep --sweep=configs/sweeps/real_ladder.py:my/corpora,my/tasks

Each size has one trunk run and one cooldown branch per budget (design.cooldown_branches). One size
has three seeds. The runs of the largest size start last, after their loss is predicted.
configs/ladder.py describes my/corpora. my/tasks contains one folder per task
(lm/evaluation/tasks.py); every branch evaluates the tasks of TASKS that exist there.

notebooks/data/real_ladder has the records of such a sweep.

Hardware and time: about an hour on two idle CPU cores.
"""

import pathlib

from configs import ladder
from lm.sweeps import design

SIZES = ("10K", "25K", "60K", "100K", "250K", "600K", "1.5M", "4M")
TOKENS = (1_250_000, 2_500_000)
SEEDS = {"60K": (0, 1, 2)}  # other sizes use seed 0
TASKS = (
    *("lambada", "piqa", "copa", "arc_easy", "openbookqa", "boolq", "winograd_wsc", "mmlu"),
    *("sst2", "subjectivity", "ag_news", "arithmetic", "autocomplete_text", "autocomplete_code"),
)
SYNTHETIC = (
    *("copy", "upper", "reverse", "sort", "recall", "addition", "translate"),
    *("brackets?depth=2", "brackets?depth=3", "brackets?depth=4"),
)


def get_sweep(folders: str = "data/corpora"):
    """Yield trunk runs and cooldown branches for "CORPORA,TASKS". TASKS is optional."""
    corpora, _, tasks = folders.partition(",")
    task_names = [name for name in TASKS if tasks and pathlib.Path(tasks, name).is_dir()]
    file_tasks = [f"file:{tasks}/{name}?n=100" for name in task_names]
    for size in SIZES:
        for seed in SEEDS.get(size, (0,)):
            run = ladder.get_config(f"{corpora},{size}")
            run.name = f"real_ladder/{size}" + f"-seed{seed}" * (seed > 0)
            run.seed, run.optim.warmup = seed, 0.02
            run.eval.n_sequences, run.eval.n_completions = 128, 512
            run.eval.tasks = " ".join([*SYNTHETIC, *file_tasks])
            trunk, *branches = design.cooldown_branches(run, TOKENS)
            trunk.eval.tasks, trunk.eval.n_completions = "", 0
            branches[-1].is_prediction_target = size == SIZES[-1]
            yield from (trunk, *branches)
