"""A specialist, or a generalist that is tuned or shown examples? At equal data and equal compute.

    uv run python -m experiments.sweep --sweep=configs/sweeps/specialists.py:my/tasks

my/tasks holds a folder a task with train.jsonl.gz and test.jsonl.gz: translations (src, tgt),
autocompletion and sums (context, continuation), classification (text, label_name), those of TASKS
that are there. For each size a generalist is trained on Python's docs and code; it is shown 0 and 2
examples, and tuned on all tasks at once. Then for each task and each number of examples it is tuned
on the task, and a model of the same size learns the task alone for as many steps; with the most
examples also for as many FLOPs as generalist and tuning take together. All stop once the held-out
loss rises. notebooks/transfer.ipynb draws quality against examples, and the compute saved.
Without a folder the tasks are synthetic. About twenty minutes on two idle CPU cores.
"""

import pathlib
from collections.abc import Iterator

from configs import base
from lm import files, sizes
from lm.config import Run

SIZES = ("10K", "25K", "60K")
TASKS = (
    *("translate_en_fr_tatoeba", "translate_en_de_multi30k"),
    *("autocomplete_text", "autocomplete_code", "sst2", "arithmetic"),
)
SYNTHETIC = ("translate", "sort", "addition?digits=2")
EXAMPLES = (125, 1_250, 12_500)  # of a task; a fifth of them is held out
PRETRAINING, STEPS = 1_200_000, 300  # tokens of the generalist; most steps on a task


def get_sweep(folder: str = ""):
    there = [name for name in TASKS if folder and pathlib.Path(folder, name).is_dir()]
    asked = {name: f"file:{folder}/{name}?n=100&generate=0" for name in there}
    asked = asked or {name.partition("?")[0]: name for name in SYNTHETIC}
    learned = {
        name: [_source(folder, task, n) for n in _amounts(folder, name)]
        for name, task in asked.items()
    }
    everything = {sources[-1]: 1.0 for sources in learned.values()}
    chat = {name: _with(task, "template=chat") for name, task in asked.items()}
    for size in SIZES:
        general = base.get_config(size)
        general.name = f"specialists/{size}-general"
        general.steps = sizes.steps(general, tokens=PRETRAINING)
        prompted = [_with(task, f"shots={k}") for task in asked.values() for k in (0, 2)]
        yield _set(general, prompted)
        instructed = _tuned(size, "instructed", everything, STEPS * len(learned))
        instructed.start.run = general.name
        yield _set(instructed, list(chat.values()))
        for name, amounts in learned.items():
            for place, source in enumerate(amounts):
                tuned = _tuned(size, f"{name}-{place}-tuned", {source: 1.0}, STEPS)
                tuned.start.run = general.name
                yield _set(tuned, [chat[name]])
                ways = {"alone": STEPS}
                if source == amounts[-1]:
                    ways["alone-same-flops"] = STEPS + general.steps
                for way, steps in ways.items():
                    alone = _tuned(size, f"{name}-{place}-{way}", {source: 1.0}, steps)
                    alone.optim.lr *= 2
                    yield _set(alone, [chat[name]])


def _amounts(folder: str, name: str) -> Iterator[int]:
    """Numbers of examples, each at least twice the one before; the last may be more than all."""
    train = pathlib.Path(folder, name, "train.jsonl.gz")
    total = sum(1 for _ in files.objects(train)) if train.exists() else EXAMPLES[-1]
    yield from (n for n in EXAMPLES[:-1] if 2 * n <= total)
    yield EXAMPLES[-1]


def _source(folder: str, task: str, n: int) -> str:
    """What n examples of a task are learned from; synthetic ones have about 20 bytes."""
    if task.startswith("file:"):
        name = pathlib.Path(task.partition("?")[0]).name
        return f"chat:{folder}/{name}/train.jsonl.gz?cap={n}"
    return f"tasks:{_with(task, f'megabytes={2e-5 * n:g}&template=chat')}"


def _tuned(size: str, name: str, sources: dict, steps: int) -> Run:
    run = base.get_config(size)
    run.name, run.steps = f"specialists/{size}-{name}", steps
    run.data.sources, run.data.heldout = dict(sources), 0.2
    run.data.rows, run.data.score = "whole", "answers"
    run.optim.lr /= 2
    run.eval.every = run.eval.tasks_every = 30 * len(sources)
    run.eval.patience = 4
    return run


def _set(run: Run, tasks: list[str]) -> Run:
    run.eval.n_sequences, run.eval.n_completions = 128, 0
    run.eval.tasks = " ".join(tasks)
    return run


def _with(task: str, dials: str) -> str:
    return f"{task}{'&' if '?' in task else '?'}{dials}"
