"""Evaluation tasks: named lists of examples with prompts, candidate answers and the correct answer.

    task = load("addition?digits=2&shots=2&n=100")           # synthetic task: see families
    task = load("file:my/hellaswag?shots=2&n=500")           # folder or file of JSON Lines
    task.examples[0].prompts, task.examples[0].answers, task.examples[0].right

A folder contains test.jsonl (or valid.jsonl; .gz and .zst too), and train.jsonl for the shots. The
fields of a line determine its format: see forms.

Fields of every task:
    shots      solved examples before each example (0)
    n          number of examples (100 of a synthetic task, all of a file)
    seed       seed of the choice of examples (0)
    template   chat template: the task becomes a conversation
    generate   1: the model also writes its answers (0; 1 for translations)
Fields of synthetic tasks: their parameters, and
    choices    number of candidate answers; the wrong ones are answers of other examples, and chance
               is 1 / choices (1: the model must produce the answer)
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
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SYNTHETIC = 100  # default number of examples of a synthetic task
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
    """A task: its examples, and how the model answers them."""

    name: str
    examples: list[Example]
    generate: bool = False  # the model also writes its answers
    is_translation: bool = False
    stop: str = "\n"  # text that ends a written answer


def load_task(name: str) -> Task:
    """Load the task of a name.

    Raises ValueError for an unknown task, an unknown field, or a value that is not allowed.
    """
    kind, _ = uri.split_uri(name)
    if kind.startswith("file:"):
        path, values = uri.parse_uri(name, _FIELDS | _FILE_FIELDS, "task ")
        task = _from_files(name, Path(path.removeprefix("file:")).expanduser(), values)
    elif kind in synthetic_tasks.TASKS:
        fields = _FIELDS | synthetic_tasks.task_fields(kind) | {"choices": uri.count()}
        _, values = uri.parse_uri(name, fields, "task ")
        task = _from_family(name, values)
    else:
        raise ValueError(
            "task " + schema.suggest_names(kind, [*synthetic_tasks.TASKS, "file:FOLDER"])
        )
    should_generate = bool(values.get("generate", task.is_translation))
    task = dataclasses.replace(task, generate=should_generate)
    return _as_chat(task, values.get("template", ""))


def load_tasks(listed: str) -> list[Task]:
    """Load the tasks of run.eval.tasks: names separated by white space."""
    return [load_task(name) for name in listed.split()]


def _from_family(name: str, values: dict[str, Any]) -> Task:
    """Make the examples of a synthetic task from held-out instances, and shots from the others."""
    # The seed selects examples. The template applies to the whole task, shots included.
    parameters = {key: value for key, value in values.items() if key not in ("seed", "template")}
    family = synthetic_tasks.build_task(name, parameters)
    shots, n_choices = values.get("shots", 0), values.get("choices", 1)
    rng = np.random.default_rng((values.get("seed", 0), 2))
    instances = synthetic_tasks.sample_distinct(
        family, rng, heldout=True, n=values.get("n") or SYNTHETIC
    )
    if not instances:
        raise ValueError(f"task {name}: no instance is held out: raise the difficulty parameters")
    answers = sorted({instance.answer for instance in instances})
    if n_choices > len(answers):
        raise ValueError(
            f"task {name}: choices={n_choices} must be at most the {len(answers)} different answers"
        )
    examples = []
    for instance in instances:
        solved = synthetic_tasks.sample_distinct(family, rng, heldout=False, n=shots)
        prefix = "".join(f"{shot.prompt}{shot.answer}\n" for shot in solved)
        prompt, candidates, chance = prefix + instance.prompt, [instance.answer], instance.chance
        if n_choices > 1:
            others = [str(a) for a in rng.permutation(answers) if a != instance.answer]
            candidates, chance = [*candidates, *others[: n_choices - 1]], 1 / n_choices
        lines = tuple(f"{answer}\n" for answer in candidates)
        examples.append(Example((prompt,) * len(lines), lines, 0, chance))
    return Task(name, examples)


def _as_chat(task: Task, template: str) -> Task:
    """Return the task as a conversation in a chat template; "" returns it unchanged."""
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
    """Read the examples of a file or folder, choose n of them, and put shots before each."""
    only, shots, seed = values.get("only"), values.get("shots", 0), values.get("seed", 0)
    file = path if path.is_file() else _split_file(name, path, values.get("split", ""))
    rows = list(readers.read_json_lines(file))
    if only:
        rows = [
            (where, row) for where, row in rows if {row.get("task"), row.get("category")} & only
        ]
    if not rows:
        selection = f" of {','.join(sorted(only))}" if only else ""
        raise ValueError(f"task {name}: {file} has no examples{selection}: choose another file")
    labels = sorted({row["label_name"] for _, row in rows if "label_name" in row})
    examples = [example_formats.parse_example(row, where, labels) for where, row in rows]
    train = next((path / f"train{e}" for e in ENDINGS if (path / f"train{e}").exists()), None)
    train_rows = readers.read_json_lines(train) if train and shots else ()
    solved = [example_formats.parse_example(row, where, labels) for where, row in train_rows]
    chosen = []
    order = np.random.default_rng((seed, 3)).permutation(len(examples))
    for i in order[: values.get("n") or None]:
        pool = solved or examples
        draws = np.random.default_rng((seed, 4, int(i))).permutation(len(pool))[: shots + 1]
        # Without a training file, an example must not be its own shot.
        shown = [pool[j] for j in draws if solved or j != i][:shots]
        prefix = "".join(f"{e.prompts[e.right]}{e.answers[e.right]}\n\n" for e in shown)
        prompts = tuple(prefix + prompt for prompt in examples[i].prompts)
        chosen.append(dataclasses.replace(examples[i], prompts=prompts))
    return Task(name, chosen, is_translation="tgt" in rows[0][1])


def _split_file(name: str, folder: Path, split: str) -> Path:
    """Return the file of a split in a folder; without a split, test or else valid."""
    for stem in (split,) if split else SPLITS:
        for ending in ENDINGS:
            if (folder / f"{stem}{ending}").exists():
                return folder / f"{stem}{ending}"
    if folder.is_dir() and not split:
        inner = [p.parent.name for e in ENDINGS for p in folder.glob(f"*/test{e}")]
        known = ", ".join(sorted(inner)) or "none"
        raise ValueError(
            f"task {name}: {folder} has no test.jsonl; folders in it that have: {known}"
        )
    if not folder.is_dir():
        near = [f"file:{folder.parent / p.name}" for p in sorted(folder.parent.glob("*"))]
        raise ValueError("task " + schema.suggest_names(f"file:{folder}", near or ["file:FOLDER"]))
    raise ValueError(f"task {name}: {folder} has no {split}.jsonl: name another split")
