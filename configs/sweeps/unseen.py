"""Measure how instruction tuning transfers to tasks outside the tuning set, against model size.

    uv run python -m experiments.sweep --sweep=configs/sweeps/unseen.py

A task combines an order of letters and a spelling: "back upper dab=BAD". Pre-training contains 19
of the 24 tasks as lines of text. Tuning contains 1 to 13 of these as conversations. All models are
then evaluated in conversations on two clusters that tuning never contains. The tasks of KNOWN were
in pre-training, and the tasks of NEW are in no text. The sizes of LEFT_OUT are also tuned with one
order of letters left out at a time, and evaluated on its tasks. notebooks/07_transfer.ipynb plots
the results.

Hardware and time: about eleven minutes on two idle CPU cores.
"""

from configs import base
from lm.config import model_sizes

SIZES = ("10K", "25K", "60K", "100K")
# Pairs (order, spelling) are indices into synthetic_tasks.ORDERS and SPELLINGS.
NEW = [(1, 1), (2, 2), (3, 3), (4, 1), (5, 2)]
KNOWN = [(1, 3), (2, 1), (3, 2), (4, 3), (5, 1)]
TUNED = [
    *[(1, 2), (2, 0), (0, 3), (3, 1), (4, 0), (2, 3), (0, 1)],
    *[(5, 0), (4, 2), (1, 0), (5, 3), (0, 2), (3, 0)],
]
CLUSTERS = (1, 4, 13)  # numbers of tasks of TUNED
LEFT_OUT = ("25K", "60K")  # sizes at which each order of TUNED is left out in turn
SEEDS = (0, 1)
CHAT = "&template=chat"


def task_name(pair: tuple[int, int]) -> str:
    """Return the name of a task."""
    return f"apply?order={pair[0]}&spelling={pair[1]}"


def training_source(pairs: list, parameters: str = "") -> str:
    """Return the source of training text for tasks."""
    return "tasks:" + "+".join(task_name(pair) + parameters for pair in pairs)


def eval_tasks(pairs: list, parameters: str = "") -> str:
    """Return the evaluation tasks as a value of eval.tasks."""
    return " ".join(task_name(pair) + parameters for pair in pairs)


def get_sweep():
    """Yield per size a pre-trained run, then its instruction-tuned runs."""
    for size in SIZES:
        parent = base.get_config(size)
        parent.name = f"unseen/{size}-pretrained"
        parent.data.sources = {training_source([*TUNED, *KNOWN, (0, 0)]): 0.9, "docs": 0.1}
        parent.data.forbidden_tasks = ",".join(map(task_name, NEW))
        parent.steps = model_sizes.steps_for_budget(parent, tokens=3_000_000)
        parent.eval.n_sequences, parent.eval.n_completions = 128, 0
        parent.eval.tasks = " ".join([eval_tasks(KNOWN + NEW), eval_tasks(KNOWN + NEW, CHAT)])
        yield parent
        for n in CLUSTERS:
            for seed in SEEDS:
                run = _tuned(size, f"{n}-clusters-{seed}", TUNED[:n], KNOWN + NEW)
                run.seed = seed
                run.eval.tasks = eval_tasks(TUNED[:n] + KNOWN + NEW, CHAT)
                yield run
        for order in sorted({order for order, _ in TUNED} if size in LEFT_OUT else ()):
            cluster = [pair for pair in TUNED if pair[0] == order]
            others = [pair for pair in TUNED if pair not in cluster]
            run = _tuned(size, f"without-{order}", others, [*cluster, *KNOWN, *NEW])
            run.eval.tasks = eval_tasks(cluster, CHAT)
            yield run


def _tuned(size: str, name: str, pairs: list, forbidden: list):
    """Return a run that tunes the pre-trained run of a size on tasks as conversations.

    The run is rejected if its text contains a task of `forbidden`.
    """
    run = base.get_config(size)
    run.name = f"unseen/{size}-{name}"
    run.start.run = f"unseen/{size}-pretrained"
    run.data.sources = {training_source(pairs, CHAT): 0.95, "docs": 0.05}
    run.data.forbidden_tasks = ",".join(map(task_name, forbidden))
    run.data.packing, run.data.loss_on = "documents", "answers"
    run.optim.lr /= 4
    run.steps = 200
    run.eval.n_sequences, run.eval.n_completions = 128, 0
    return run
