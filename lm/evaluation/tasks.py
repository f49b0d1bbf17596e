"""Evaluation tasks: named lists of examples with prompts, candidate answers and the correct answer.

    task = tasks.load_task("addition?digits=2&shots=2&n=100")   # synthetic: see synthetic_tasks.py
    task = tasks.load_task("file:my/hellaswag?shots=2&n=500")   # folder or file of JSON Lines
    task.examples[0].prompts, task.examples[0].answers, task.examples[0].right

A folder contains test.jsonl (or valid.jsonl; .gz and .zst too), and train.jsonl for the shots. The
fields of a line determine its format: see lm/data/sources/example_formats.py.

Fields of every task (default):
    shots      solved examples before each example (0)
    n          number of examples (100 of a synthetic task, all of a file)
    seed       seed of the choice of examples (0)
    template   chat template: the task becomes a conversation
    generate   1: answers are also generated (0; 1 for translations)
Fields of synthetic tasks: their parameters, and
    choices    number of candidate answers (1: the answer must be produced). Wrong candidates are
               answers of other examples. The chance accuracy is 1 / choices.
Fields of files:
    split      name of the file (test)
    only       tasks or categories, separated by commas
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import schema
from lm.data.sources import chat, example_formats, readers, synthetic_tasks, uri

SPLITS = ("test", "valid")
SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
DEFAULT_SYNTHETIC_EXAMPLES = 100
_FIELDS = {
    "shots": uri.count(),
    "n": uri.count(),
    "seed": uri.count(),
    "template": uri.choice(["", *chat.TEMPLATES]),
    "generate": uri.count(),
}
_FILE_FIELDS = {"split": uri.text("the name of a split"), "only": uri.names()}


Example = example_formats.TaskExample


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: its examples and the way to evaluate them."""

    name: str
    examples: list[Example]
    generate: bool = False  # answers are also generated
    is_translation: bool = False
    stop: str = "\n"  # stop string of generated answers


def load_task(name: str) -> Task:
    """Load a task by name: see the module docstring.

    Raises ValueError for an unknown task, an unknown field, or a value that is not allowed.
    """
    kind, _ = uri.split_uri(name)
    if kind.startswith("file:"):
        path, values = uri.parse_uri(name, _FIELDS | _FILE_FIELDS, "task ")
        task = _from_files(name, Path(path.removeprefix("file:")).expanduser(), values)
    elif kind in synthetic_tasks.TASKS:
        fields = _FIELDS | synthetic_tasks.task_fields(kind) | {"choices": uri.count()}
        _, values = uri.parse_uri(name, fields, "task ")
        task = _synthetic_task(name, values)
    else:
        raise ValueError(
            "task " + schema.suggest_names(kind, [*synthetic_tasks.TASKS, "file:FOLDER"])
        )
    should_generate = bool(values.get("generate", task.is_translation))
    task = dataclasses.replace(task, generate=should_generate)
    return _apply_chat_template(task, values.get("template", ""))


def load_tasks(names: str) -> list[Task]:
    """Load the tasks of run.eval.tasks: names separated by white space."""
    return [load_task(name) for name in names.split()]


def _synthetic_task(name: str, values: dict[str, Any]) -> Task:
    """Build a synthetic task: examples from held-out instances, shots from the other instances."""
    # The generator has no seed: it selects examples. The template is applied to the whole task.
    parameters = {key: value for key, value in values.items() if key not in ("seed", "template")}
    generator = synthetic_tasks.build_task(name, parameters)
    n_shots, n_choices = values.get("shots", 0), values.get("choices", 1)
    rng = np.random.default_rng((values.get("seed", 0), 2))
    n_examples = values.get("n") or DEFAULT_SYNTHETIC_EXAMPLES
    instances = synthetic_tasks.sample_distinct(generator, rng, heldout=True, n=n_examples)
    if not instances:
        raise ValueError(f"task {name}: no instance is held out: raise the difficulty parameters")
    answers = sorted({instance.answer for instance in instances})
    if n_choices > len(answers):
        raise ValueError(
            f"task {name}: choices={n_choices} must be at most the {len(answers)} different answers"
        )
    examples = []
    for instance in instances:
        shots = synthetic_tasks.sample_distinct(generator, rng, heldout=False, n=n_shots)
        prefix = "".join(f"{shot.prompt}{shot.answer}\n" for shot in shots)
        prompt, candidates, chance = prefix + instance.prompt, [instance.answer], instance.chance
        if n_choices > 1:
            others = [str(a) for a in rng.permutation(answers) if a != instance.answer]
            candidates, chance = [*candidates, *others[: n_choices - 1]], 1 / n_choices
        lines = tuple(f"{answer}\n" for answer in candidates)
        examples.append(Example((prompt,) * len(lines), lines, 0, chance))
    return Task(name, examples)


def _apply_chat_template(task: Task, template: str) -> Task:
    """Return the task as conversations in a chat template; "" returns it unchanged."""
    if not template:
        return task
    suffix = chat.TEMPLATES[template][1]

    def with_suffix(answers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(a.removeprefix(" ").removesuffix("\n") + suffix for a in answers)

    examples = [
        dataclasses.replace(
            example,
            prompts=tuple(chat.render_prompt(template, prompt) for prompt in example.prompts),
            answers=with_suffix(example.answers),
            others=with_suffix(example.others),
        )
        for example in task.examples
    ]
    return dataclasses.replace(task, examples=examples, stop=suffix)


def _from_files(name: str, path: Path, values: dict[str, Any]) -> Task:
    """Read the examples of a file or folder, select n of them, and put shots before each."""
    only, n_shots, seed = values.get("only"), values.get("shots", 0), values.get("seed", 0)
    file = path if path.is_file() else _split_file(name, path, values.get("split", ""))
    rows = list(readers.read_json_lines(file))
    if only:
        rows = [
            (where, row) for where, row in rows if {row.get("task"), row.get("category")} & only
        ]
    if not rows:
        selection = f" of {','.join(sorted(only))}" if only else ""
        raise ValueError(f"task {name}: {file} has no examples{selection}: use another file")
    labels = sorted({row["label_name"] for _, row in rows if "label_name" in row})
    examples = [example_formats.parse_example(row, where, labels) for where, row in rows]
    train_files = [file for s in SUFFIXES if (file := path / f"train{s}").exists()]
    train_rows = readers.read_json_lines(train_files[0]) if train_files and n_shots else ()
    solved = [example_formats.parse_example(row, where, labels) for where, row in train_rows]
    selected = []
    order = np.random.default_rng((seed, 3)).permutation(len(examples))
    for i in order[: values.get("n") or None]:
        pool = solved or examples
        order_of_pool = np.random.default_rng((seed, 4, int(i))).permutation(len(pool))
        # Without a training file, an example must not be its own shot.
        candidates = [pool[j] for j in order_of_pool[: n_shots + 1] if solved or j != i]
        shots = candidates[:n_shots]
        prefix = "".join(f"{e.prompts[e.right]}{e.answers[e.right]}\n\n" for e in shots)
        prompts = tuple(prefix + prompt for prompt in examples[i].prompts)
        selected.append(dataclasses.replace(examples[i], prompts=prompts))
    return Task(name, selected, is_translation="tgt" in rows[0][1])


def _split_file(name: str, folder: Path, split: str) -> Path:
    """Return the file of a split in a folder. If split is "", use test, or valid without test.

    Raises ValueError if there is no such file or folder.
    """
    for stem in (split,) if split else SPLITS:
        for suffix in SUFFIXES:
            if (folder / f"{stem}{suffix}").exists():
                return folder / f"{stem}{suffix}"
    if folder.is_dir() and not split:
        subfolders = [p.parent.name for s in SUFFIXES for p in folder.glob(f"*/test{s}")]
        names = ", ".join(sorted(subfolders)) or "none"
        raise ValueError(
            f"task {name}: {folder} has no test.jsonl; subfolders that have it: {names}"
        )
    if not folder.is_dir():
        siblings = [f"file:{p}" for p in sorted(folder.parent.glob("*"))]
        raise ValueError(
            "task " + schema.suggest_names(f"file:{folder}", siblings or ["file:FOLDER"])
        )
    raise ValueError(f"task {name}: {folder} has no {split}.jsonl: use another split")
