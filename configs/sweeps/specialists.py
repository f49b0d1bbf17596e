"""Compare specialists with a fine-tuned or prompted generalist, at equal data and at equal compute.

    uv run python -m experiments.sweep --sweep=configs/sweeps/specialists.py:my/tasks

my/tasks contains one folder per task with train.jsonl.gz and test.jsonl.gz: translation (src, tgt),
autocompletion and arithmetic (context, continuation), classification (text, label_name). The sweep
uses the tasks of TASKS that exist there, and synthetic tasks without a folder. For each size:

- A generalist trains on Python's documentation and code. It is evaluated with 0 and 2 examples in
  the prompt, and fine-tuned on all tasks at once.
- For each task and number of examples, the generalist is fine-tuned on the task, and a model trains
  on the task from scratch for as many steps. With the most examples, another model trains from
  scratch for as many FLOPs as pre-training and fine-tuning together.

All runs except the generalist before fine-tuning stop when the held-out loss rises.
notebooks/07_transfer.ipynb plots quality against examples, and the compute saved.

Hardware and time: about twenty minutes on two idle CPU cores.
"""

import pathlib
from collections.abc import Iterator

from configs import base
from lm.config import model_sizes, schema
from lm.data.sources import readers

SIZES = ("10K", "25K", "60K")
TASKS = (
    *("translate_en_fr_tatoeba", "translate_en_de_multi30k"),
    *("autocomplete_text", "autocomplete_code", "sst2", "arithmetic"),
)
SYNTHETIC = ("translate", "sort", "addition?digits=2")
EXAMPLES = (125, 1_250, 12_500)  # examples per task; a fifth of them is held out
PRETRAINING, STEPS = 1_200_000, 300  # tokens of the generalist; maximum steps per task


def get_sweep(folder: str = ""):
    """Yield the generalists and specialists for a folder of tasks."""
    task_names = [name for name in TASKS if folder and pathlib.Path(folder, name).is_dir()]
    tasks = {name: f"file:{folder}/{name}?n=100&generate=0" for name in task_names}
    tasks = tasks or {name.partition("?")[0]: name for name in SYNTHETIC}
    sources = {
        name: [_source(folder, task, n) for n in _example_counts(folder, name)]
        for name, task in tasks.items()
    }
    all_sources = {task_sources[-1]: 1.0 for task_sources in sources.values()}
    chat = {name: _add_parameters(task, "template=chat") for name, task in tasks.items()}
    for size in SIZES:
        general = base.get_config(size)
        general.name = f"specialists/{size}-general"
        general.steps = model_sizes.steps_for_budget(general, tokens=PRETRAINING)
        prompted = [_add_parameters(task, f"shots={k}") for task in tasks.values() for k in (0, 2)]
        yield _with_tasks(general, prompted)
        instructed = _tuned(size, "instructed", all_sources, STEPS * len(sources))
        instructed.start.run = general.name
        yield _with_tasks(instructed, list(chat.values()))
        for name, task_sources in sources.items():
            for i, source in enumerate(task_sources):
                tuned = _tuned(size, f"{name}-{i}-tuned", {source: 1.0}, STEPS)
                tuned.start.run = general.name
                yield _with_tasks(tuned, [chat[name]])
                max_steps = {"alone": STEPS}
                if source == task_sources[-1]:
                    max_steps["alone-same-flops"] = STEPS + general.steps
                for suffix, steps in max_steps.items():
                    alone = _tuned(size, f"{name}-{i}-{suffix}", {source: 1.0}, steps)
                    alone.optim.lr *= 2
                    yield _with_tasks(alone, [chat[name]])


def _example_counts(folder: str, name: str) -> Iterator[int]:
    """Yield numbers of examples that at least double. The last may exceed the size of the task."""
    train = pathlib.Path(folder, name, "train.jsonl.gz")
    total = sum(1 for _ in readers.read_json_lines(train)) if train.exists() else EXAMPLES[-1]
    yield from (n for n in EXAMPLES[:-1] if 2 * n <= total)
    yield EXAMPLES[-1]


def _source(folder: str, task: str, n: int) -> str:
    """Return the source of n training examples of a task; a synthetic one has about 20 bytes."""
    if task.startswith("file:"):
        name = pathlib.Path(task.partition("?")[0]).name
        return f"chat:{folder}/{name}/train.jsonl.gz?cap={n}"
    return f"tasks:{_add_parameters(task, f'megabytes={2e-5 * n:g}&template=chat')}"


def _tuned(size: str, name: str, sources: dict, steps: int) -> schema.Run:
    """Return a run on conversations that stops when its held-out loss rises."""
    run = base.get_config(size)
    run.name, run.steps = f"specialists/{size}-{name}", steps
    run.data.sources, run.data.heldout_fraction = dict(sources), 0.2
    run.data.packing, run.data.loss_on = "documents", "answers"
    run.optim.lr /= 2
    run.eval.interval = run.eval.task_interval = 30 * len(sources)
    run.eval.patience = 4
    return run


def _with_tasks(run: schema.Run, tasks: list[str]) -> schema.Run:
    """Set the evaluation tasks of a run, and return it."""
    run.eval.n_sequences, run.eval.n_completions = 128, 0
    run.eval.tasks = " ".join(tasks)
    return run


def _add_parameters(task: str, parameters: str) -> str:
    """Append parameters to the name of a task."""
    return f"{task}{'&' if '?' in task else '?'}{parameters}"
