"""A specialist, or a generalist that is tuned or shown examples? At equal data and equal compute.

    uv run python -m experiments.sweep --sweep=configs/sweeps/specialists.py:my/tasks

my/tasks holds a folder a task with train.jsonl.gz and test.jsonl.gz: translations (src, tgt) and
autocompletion (context, continuation), those of TASKS that are there. For each size a generalist
is trained on Python's docs and code; then for each task: it is shown 0 and 2 examples, it is tuned
on the task, it is tuned on all tasks at once, and a model of the same size learns the task alone,
both for the steps of tuning and for as many FLOPs as generalist and tuning took together.
Without a folder the tasks are synthetic. About fifteen minutes on two idle CPU cores.
"""

import pathlib

from configs import base
from lm import sizes
from lm.config import Run

SIZES = ("10K", "25K", "60K")
TASKS = (
    *("translate_en_fr_tatoeba", "translate_en_de_multi30k"),
    *("autocomplete_text", "autocomplete_code"),
)
SYNTHETIC = ("translate", "sort", "addition?digits=2")
PRETRAINING, STEPS = 1_200_000, 300  # tokens of the generalist; steps on a task


def get_sweep(folder: str = ""):
    there = [name for name in TASKS if folder and pathlib.Path(folder, name).is_dir()]
    if there:
        learned = {name: f"chat:{folder}/{name}/train.jsonl.gz?cap=20000" for name in there}
        asked = {name: f"file:{folder}/{name}?n=100&generate=0" for name in there}
    else:
        names = {name.partition("?")[0]: name for name in SYNTHETIC}
        learned = {k: f"tasks:{v}{_and(v)}template=chat" for k, v in names.items()}
        asked = names
    everything = {source: 1.0 for source in learned.values()}
    chat = {name: f"{task}{_and(task)}template=chat" for name, task in asked.items()}
    for size in SIZES:
        general = base.get_config(size)
        general.name = f"specialists/{size}-general"
        general.steps = sizes.steps(general, tokens=PRETRAINING)
        prompted = [f"{task}{_and(task)}shots={k}" for task in asked.values() for k in (0, 2)]
        yield _set(general, prompted)
        instructed = _tuned(size, "instructed", everything, STEPS * len(learned))
        instructed.start.run = general.name
        yield _set(instructed, list(chat.values()))
        for name, source in learned.items():
            tuned = _tuned(size, f"{name}-tuned", {source: 1.0}, STEPS)
            tuned.start.run = general.name
            yield _set(tuned, [chat[name]])
            for way, steps in (("same-steps", STEPS), ("same-flops", STEPS + general.steps)):
                alone = _tuned(size, f"{name}-{way}", {source: 1.0}, steps)
                alone.optim.lr *= 2
                yield _set(alone, [chat[name]])


def _tuned(size: str, name: str, sources: dict, steps: int) -> Run:
    run = base.get_config(size)
    run.name, run.steps = f"specialists/{size}-{name}", steps
    run.data.sources = dict(sources)
    run.data.rows, run.data.score = "whole", "answers"
    run.optim.lr /= 2
    return run


def _set(run: Run, tasks: list[str]) -> Run:
    run.eval.n_sequences, run.eval.n_completions = 128, 0
    run.eval.tasks = " ".join(tasks)
    return run


def _and(task: str) -> str:
    return "&" if "?" in task else "?"
