"""Evaluation tasks: named lists of examples with prompts, candidate answers and the correct answer.

    task = tasks.load_task("addition?digits=2&shots=2&n=100")   # synthetic: see synthetic_tasks.py
    task = tasks.load_task("file:my/hellaswag?shots=2&n=500")   # folder or file of JSON Lines
    task = tasks.load_task("file:my/sets/*?n=100")              # group of folders: one mean
    task = tasks.load_task("pair:my/blimp?n=100")               # minimal pairs, per paradigm
    task.examples[0].prompts, task.examples[0].answers, task.examples[0].right

A folder contains test.jsonl (or valid.jsonl; .gz and .zst too), and train.jsonl for the shots. The
fields of a line determine its format: see lm/data/sources/example_formats.py. A list of tasks is
separated by white space. A name with a space is written in quotes: 'copy "file:my set?n=9"'.

A path with *, ? or [ ] is a group: each folder that matches is a member. The metrics of a group are
the means of the metrics of its members, each with the same weight (task_metrics.py).

pair:PATH is a file or a folder of minimal pairs (minimal_pairs/pair_files.py). It has results for
each paradigm and each phenomenon (minimal_pairs/pair_metrics.py), where file:PATH has one result.
Its fields are n (per paradigm), seed, split, only (paradigms or phenomena) and space (see there).

Fields of every task (default):
    shots      solved examples before each example (0)
    n          largest number of examples, of each member of a group (100 of a synthetic task, all
               of a file)
    seed       seed of the choice of examples (0)
    template   chat template: the task becomes a conversation
    generate   1: answers are also generated (0; 1 for translations and with `match`)
Fields of synthetic tasks: their parameters, and
    choices    number of candidate answers (1: the answer must be produced). Wrong candidates are
               answers of other examples. The chance accuracy is 1 / choices.
Fields of files:
    instruction
               a line before each prompt, such as Translate+to+German: + is a space
    split      name of the file (test)
    only       tasks, subjects or categories, separated by commas
    choices    select the tasks with at most this number of different answers; the model chooses
               among the answers of the task (default: all tasks; it must produce the answer)
    match      squad or number: rule that compares generated answers, see task_metrics.py

Shots of a synthetic task are instances that are not held out. Shots of a file are lines of
train.jsonl with the same task, subject or category. Labels of a classification are those of the
test and training lines of its task.
"""

import dataclasses
import difflib
import functools
import glob
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import field_names, value_checks
from lm.data.sources import chat, example_formats, synthetic_tasks, uri
from lm.evaluation.minimal_pairs import pair_files
from lm.evaluation.task_files import task_lines

MATCHES = ("strict", "squad", "number")
DEFAULT_SYNTHETIC_EXAMPLES = 100
MAX_LOADED = 16  # tasks that stay in memory
MAX_CHOICES = 1000  # of an example of a file
MAX_INSTANCES = 5000  # of a synthetic task; their generation takes a second
_FIELDS = {
    "shots": uri.count(uri.MAX_SHOTS),
    "n": uri.count(),
    "seed": uri.count(),
    "template": uri.choice(["", *chat.TEMPLATES]),
    "generate": uri.number(int, 0, 1),
}
_FILE_FIELDS = {
    "instruction": uri.sentence(),
    "split": uri.text("the name of a split"),
    "only": uri.names(),
    "choices": uri.number(int, 2, MAX_CHOICES),
    "match": uri.choice(MATCHES),
}
_PAIR_FIELDS = {name: (_FIELDS | _FILE_FIELDS)[name] for name in ("n", "seed", "split", "only")}
_PAIR_FIELDS["space"] = uri.number(int, 0, 1)

Example = example_formats.TaskExample


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Results of a simple method on the examples of a task: see baselines/task_baselines.py."""

    name: str
    points: np.ndarray  # float64 [n_examples]: accuracy on each example
    texts: list[str] | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: its examples and the way to evaluate them."""

    name: str
    examples: list[Example]
    generate: bool = False  # answers are also generated
    is_translation: bool = False
    is_pairs: bool = False  # minimal pairs with results per paradigm: the group of an example
    stop: str = "\n"  # stop string of generated answers
    match: str = "strict"  # rule that compares generated answers: one of MATCHES
    training_examples: Sequence[Example] = ()  # of classifications and translations
    baselines: tuple[Baseline, ...] = ()

    def select_examples(self, rows: Sequence[int]) -> "Task":
        """Return the task with some of its examples."""
        baselines = tuple(
            Baseline(b.name, b.points[list(rows)], b.texts and [b.texts[i] for i in rows])
            for b in self.baselines
        )
        examples = [self.examples[i] for i in rows]
        return dataclasses.replace(self, examples=examples, baselines=baselines)


def load_task(name: str) -> Task:
    """Load a task by name: see the module docstring.

    Raises ValueError for an unknown task, an unknown field, or a value that is not allowed.
    """
    kind, _ = uri.split_uri(name)
    if kind.startswith("pair:"):
        return _load_pairs(name)
    if kind.startswith("file:"):
        path, values = uri.parse_uri(name, _FIELDS | _FILE_FIELDS, "task ")
        value_checks.check_path("task", path)
        task = _load_files(name, Path(os.path.expanduser(path.removeprefix("file:"))), values)
    elif kind in synthetic_tasks.TASKS:
        fields = _FIELDS | synthetic_tasks.task_fields(kind) | {"choices": uri.count()}
        _, values = uri.parse_uri(name, fields, "task ")
        task = _synthetic_task(name, values)
    else:
        near = difflib.get_close_matches(kind[:200], synthetic_tasks.TASKS, n=1)
        suggestion = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"task {field_names.shorten(kind)} does not exist: {suggestion}Built-in"
            f" tasks are synthetic ({', '.join(synthetic_tasks.TASKS)}). Real tasks are"
            " file:FOLDER, pair:FOLDER, and those of lm/evaluation/lm_eval_harness.py"
        )
    match = values.get("match", "strict")
    should_generate = bool(values.get("generate", task.is_translation or match != "strict"))
    task = dataclasses.replace(task, generate=should_generate, match=match)
    task = _add_instruction(task, values.get("instruction", ""))
    return _apply_chat_template(task, values.get("template", ""))


def load_tasks(names: str, field: str = "eval.tasks") -> list[Task]:
    """Load the tasks of run.eval.tasks: names separated by white space, see the docstring above.

    field: field or flag that contains the names. A ValueError for an invalid name begins with it.
    """
    try:
        return [
            _load_unchanged(name, task_lines.file_versions(name)) for name in uri.split_names(names)
        ]
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


@functools.lru_cache(maxsize=MAX_LOADED)
def _load_unchanged(name: str, versions: tuple) -> Task:
    """Return a task that was loaded before if the versions of its files are equal.

    A sweep loads its tasks several times per run, and large tasks take seconds.
    """
    del versions
    return load_task(name)


def _synthetic_task(name: str, values: dict[str, Any]) -> Task:
    """Build a synthetic task: examples from held-out instances, shots from the other instances."""
    # The generator has no seed: it selects examples. The template is applied to the whole task.
    parameters = {key: value for key, value in values.items() if key not in ("seed", "template")}
    generator = synthetic_tasks.build_task(name, parameters)
    n_shots, n_choices = values.get("shots", 0), values.get("choices", 1)
    rng = np.random.default_rng((values.get("seed", 0), 2))
    n_examples = values.get("n") or DEFAULT_SYNTHETIC_EXAMPLES
    if n_examples * (1 + n_shots) > MAX_INSTANCES:
        raise ValueError(
            f"task {field_names.shorten(name)}: n={n_examples} examples with shots={n_shots} have"
            f" more than {MAX_INSTANCES} instances: lower n or shots"
        )
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
        _validate_shots(name, n_shots, len(shots), "instances that are not held out")
        prefix = "".join(f"{shot.prompt}{shot.answer}\n" for shot in shots)
        prompt, candidates, chance = prefix + instance.prompt, [instance.answer], instance.chance
        if n_choices > 1:
            others = [str(a) for a in rng.permutation(answers) if a != instance.answer]
            candidates, chance = [*candidates, *others[: n_choices - 1]], 1 / n_choices
        lines = tuple(f"{answer}\n" for answer in candidates)
        prompts, question = (prompt,) * len(lines), instance.prompt
        examples.append(Example(prompts, lines, 0, chance, shots=prefix, question=question))
    return Task(name, examples)


def _add_instruction(task: Task, instruction: str) -> Task:
    """Return the task with a line before each prompt, before its solved examples."""
    if not instruction:
        return task
    line = f"{instruction}\n"

    def instruct(example: Example) -> Example:
        prompts = tuple(line + prompt for prompt in example.prompts)
        return dataclasses.replace(example, prompts=prompts, shots=line + example.shots)

    examples = [instruct(example) for example in task.examples]
    training_examples = [instruct(example) for example in task.training_examples]
    return dataclasses.replace(task, examples=examples, training_examples=training_examples)


def _apply_chat_template(task: Task, template: str) -> Task:
    """Return the task as conversations in a chat template; "" returns it unchanged."""
    if not template:
        return task
    suffix = chat.TEMPLATES[template][1]

    @functools.cache  # the labels of a classification are the answers of all its examples
    def with_suffix(answers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(a.removeprefix(" ").removesuffix("\n") + suffix for a in answers)

    def render(example: Example) -> Example:
        texts = {p: chat.render_prompt(template, p) for p in dict.fromkeys(example.prompts)}
        return dataclasses.replace(
            example,
            prompts=tuple(texts[prompt] for prompt in example.prompts),
            answers=with_suffix(example.answers),
            others=with_suffix(example.others),
        )

    return dataclasses.replace(
        task,
        examples=[render(example) for example in task.examples],
        training_examples=[render(example) for example in task.training_examples],
        stop=suffix,
    )


def _load_pairs(name: str) -> Task:
    """Load minimal pairs. The group of an example is its phenomenon and paradigm."""
    path, values = uri.parse_uri(name, _PAIR_FIELDS, "task ")
    value_checks.check_path("task", path)
    if "#" in name:
        raise ValueError(f"task {name}: # separates the parts of its results: rename the folder")
    pairs = Path(os.path.expanduser(path.removeprefix("pair:")))
    return Task(name, pair_files.load_examples(name, pairs, values), is_pairs=True)


def _load_files(name: str, path: Path, values: dict[str, Any]) -> Task:
    """Load a file, a folder, or all folders and files that match a pattern, as members of a group.

    Raises ValueError if nothing matches, or a matching folder has no test.jsonl.
    """
    is_group = glob.has_magic(str(path)) and not path.exists()
    matches = [Path(match) for match in sorted(glob.glob(str(path)))] if is_group else [path]
    members = [member for member in matches if member.is_dir() or _is_task_file(member)]
    if is_group and not members:
        raise ValueError(f"task {name}: no folder matches {path}: correct the pattern")
    examples, training_examples, are_translations = [], [], []
    for member in members if is_group else matches:
        task = _load_set(name, member, values)
        if is_group:
            task = _with_group(task, member.name)
        examples += task.examples
        training_examples += task.training_examples
        are_translations.append(task.is_translation)
    return Task(name, examples, False, all(are_translations), training_examples=training_examples)


def _with_group(task: Task, group: str) -> Task:
    """Return the task with its examples as members of a group."""
    parts = {
        field: [dataclasses.replace(example, group=group) for example in getattr(task, field)]
        for field in ("examples", "training_examples")
    }
    return dataclasses.replace(task, **parts)


def _is_task_file(path: Path) -> bool:
    return path.is_file() and path.name.endswith(task_lines.SUFFIXES)


def _load_set(name: str, path: Path, values: dict[str, Any]) -> Task:
    """Return a file or folder as a task: the selected examples, and those for its baseline."""
    only, n_shots, seed = values.get("only"), values.get("shots", 0), values.get("seed", 0)
    file = path if path.is_file() else task_lines.split_file(name, path, values.get("split", ""))
    lines = task_lines.read_lines(file, only)
    if not lines:
        selection = f" of {','.join(sorted(only))}" if only else ""
        raise ValueError(f"task {name}: {file} has no examples{selection}: use another file")
    train_paths = [path / f"train{suffix}" for suffix in task_lines.SUFFIXES]
    train_files = [train for train in train_paths if train.exists()]
    has_labels = any("label_name" in line.row for line in lines)
    is_translation = all("tgt" in line.row for line in lines)
    has_baseline = has_labels or is_translation  # of the training lines
    has_training = bool(train_files) and (n_shots > 0 or has_baseline)
    train_lines = task_lines.read_lines(train_files[0], only) if has_training else []
    labels = task_lines.labels_by_task(name, [*lines, *train_lines])
    examples = task_lines.parse_lines(lines, labels)
    if limit := values.get("choices", 0):
        lines, examples = task_lines.choose_answers(name, lines, examples, limit)
    _validate_prompts(name, examples, values)
    pools: dict[str, list[task_lines.Line]] = {}
    for line in train_lines:
        pools.setdefault(line.task, []).append(line)
    selected = []
    order = np.random.default_rng((seed, 3)).permutation(len(examples))
    for i in order[: values.get("n") or None]:
        task_name = lines[i].task
        pool = pools.get(task_name, []) if n_shots else []
        order_of_pool = np.random.default_rng((seed, 4, int(i))).permutation(len(pool))
        solved = (task_lines.parse_line(pool[j], labels) for j in order_of_pool)
        # A training line may be equal to the example.
        others = (shot for shot in solved if shot.prompts != examples[i].prompts)
        shots = list(itertools.islice(others, n_shots))
        train_name = train_files[0] if train_files else f"{path}, which has no train.jsonl"
        suffix = f" of {task_name}" if task_name else ""
        _validate_shots(name, n_shots, len(shots), f"lines{suffix} in {train_name}")
        prefix = "".join(f"{e.prompts[e.right]}{e.answers[e.right]}\n\n" for e in shots)
        prompts = tuple(prefix + prompt for prompt in examples[i].prompts)
        selected.append(dataclasses.replace(examples[i], prompts=prompts, shots=prefix))
    training_examples = task_lines.parse_lines(train_lines, labels) if has_baseline else []
    return Task(name, selected, False, is_translation, training_examples=training_examples)


def _validate_prompts(name: str, examples: list[Example], values: dict[str, Any]) -> None:
    """Raise ValueError if a field needs one prompt per example, and an example has another number.

    Minimal pairs have no prompt. The candidates of a choice of contexts have different prompts.
    """
    no_prompt = any(not example.prompts[0] for example in examples)
    fields = [field for field in ("shots", "template", "instruction") if values.get(field)]
    if no_prompt and fields:
        raise ValueError(
            f"task {name}: minimal pairs have no prompt: remove {' and '.join(fields)}"
        )
    should_generate = values.get("generate", values.get("match", "strict") != "strict")
    if should_generate and (no_prompt or any(len(set(e.prompts)) > 1 for e in examples)):
        raise ValueError(
            f"task {name}: answers cannot be generated, because its examples have no prompt or"
            " several prompts: remove generate and match"
        )


def _validate_shots(name: str, n_shots: int, n_available: int, source: str) -> None:
    """Raise ValueError if there are fewer training examples than shots."""
    if n_available < n_shots:
        raise ValueError(
            f"task {name}: shots={n_shots} needs {n_shots} training examples, but there are"
            f" {n_available} {source}: use shots={n_available}"
        )
