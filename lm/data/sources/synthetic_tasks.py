"""Synthetic tasks of adjustable difficulty with known chance accuracy.

    task = parse_task("addition?digits=2-3")           # a parameter is a number or a range
    sample_instance(task, np.random.default_rng(0))    # Instance("add 636+511=", "1147", 0.001)
    tasks = parse_tasks("copy?length=4+sort")
    next(task_documents(tasks))                        # training text: "copy lrvq=lrvq\n..."

    copy, reverse, upper, sort   length   copy, reverse, capitalize or sort letters
    compose    length            two of reverse, upper and sort, the right one first, as in
                                 "upper sort dab=ABD"
    apply      order, spelling, length   one of six orders of the letters (keep, back, left, right,
                                 swap, tail) in one of four spellings (plain, upper, next, before):
                                 "back upper dab=BAD"; both parameters are indices from 0
    recall     length            pairs of a letter and a digit; the answer is the digit of a letter
    follow     length, steps     arrows between letters; the answer follows `steps` arrows
    brackets   depth             close the open brackets
    addition   digits            sum of two numbers
    modular    modulus, terms    sum modulo `modulus`
    translate  words, lexicon    invented language: other words, verb first, adjectives last

A training document has LINES instances, one per line. With template=NAME (chat.py), a document is
one instance, written as a conversation.

The fraction HELDOUT of all instances is in no training document. The hash of the prompt selects the
held-out instances, and evaluation tasks use only these. Chance is the accuracy of the best guess
without the question. Such a guess is any order of the shown letters for a rearrangement, and any
shown value for `recall` and `follow`.
"""

import dataclasses
import hashlib
import math
import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from lm.config import field_names
from lm.data.sources import chat, uri

HELDOUT = 0.2
LINES = 8  # instances per document
PAIRS = {"(": ")", "[": "]", "{": "}"}
AZ = string.ascii_lowercase
LETTERS, DIGITS = np.array(list(string.ascii_lowercase)), np.array(list(string.digits))


class Instance(NamedTuple):
    """A prompt and its answer."""

    prompt: str
    answer: str
    chance: float  # accuracy of the best guess without the question


@dataclasses.dataclass(frozen=True)
class SyntheticTask:
    """A synthetic task with its parameters."""

    name: str  # the text that was parsed
    kind: str  # key of TASKS
    ranges: dict[str, tuple[int, int]]  # parameter -> (minimum, maximum)
    megabytes: float = 0.5  # size of the documents
    seed: int = 0  # seed of the documents; a list of tasks uses the seed of the first
    template: str = ""  # chat template; "" writes LINES instances per document as plain text


def parse_task(name: str) -> SyntheticTask:
    """Parse a name such as "copy?length=2-5&megabytes=2".

    Raises ValueError for an unknown task, an unknown field, or a value outside its limits.
    """
    fields = task_fields(_task_kind(name))
    fields |= {"megabytes": uri.number(float, 1e-6, 1e5), "seed": uri.count()}
    fields["template"] = uri.choice(["", *chat.TEMPLATES])
    return build_task(name, uri.parse_uri(name, fields, "task ").values)


def _task_kind(name: str) -> str:
    """Return the kind of a task name. Raises ValueError if it is not a key of TASKS."""
    kind, _ = uri.split_uri(name)
    if kind not in TASKS:
        raise ValueError("task " + field_names.suggest_names(kind, list(TASKS)))
    return kind


def task_fields(kind: str) -> dict[str, uri.Field]:
    """Return the fields of the parameters of this kind of task."""
    return {parameter: uri.int_range(*PARAMETER_LIMITS[parameter]) for parameter in TASKS[kind][1]}


def build_task(name: str, values: Mapping[str, Any]) -> SyntheticTask:
    """Build the task `name` from parsed field values. Absent fields get their defaults."""
    kind = _task_kind(name)
    defaults = TASKS[kind][1]
    ranges = {parameter: values.get(parameter, default) for parameter, default in defaults.items()}
    options = {key: values[key] for key in ("megabytes", "seed", "template") if key in values}
    return SyntheticTask(name, kind, ranges, **options)


def sample_instance(task: SyntheticTask, rng: np.random.Generator) -> Instance:
    """Sample one instance, held out or not, with parameters from the ranges of the task."""
    make, _ = TASKS[task.kind]
    parameters = {k: int(rng.integers(low, high + 1)) for k, (low, high) in task.ranges.items()}
    return make(rng, **parameters)


def is_heldout_instance(instance: Instance) -> bool:
    """Return True if no training document contains the instance.

    The result depends only on the prompt, so it is equal in every task, seed and process.
    """
    digest = hashlib.sha256(instance.prompt.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELDOUT * 2**64


def sample_distinct(
    task: SyntheticTask, rng: np.random.Generator, heldout: bool, n: int
) -> list[Instance]:
    """Sample up to n different instances, either all held out or all not held out.

    The list is shorter if the task has fewer instances.
    """
    instances: dict[str, Instance] = {}
    n_draws = 50 * min(n, 1000) + 10 * max(n - 1000, 0) + 200
    for _ in range(n_draws):
        if len(instances) == n:
            break
        instance = sample_instance(task, rng)
        if is_heldout_instance(instance) == heldout:
            instances[instance.prompt] = instance
    return list(instances.values())


def parse_tasks(names: str) -> list[SyntheticTask]:
    """Parse names separated by "+". The name "all" means all tasks except compose and apply.

    Raises ValueError for an invalid name.
    """
    kinds = "+".join(kind for kind in TASKS if kind not in ("compose", "apply"))
    return [parse_task(name) for name in (kinds if names == "all" else names).split("+")]


def overlapping_tasks(tasks: list[SyntheticTask], forbidden: str) -> list[str]:
    """Return the names in `forbidden` whose instances one of the tasks can sample.

    `forbidden` is separated by commas. Names that are not synthetic tasks are ignored.
    """
    names = [name for name in forbidden.split(",") if uri.split_uri(name)[0] in TASKS]
    return [
        forbidden_task.name
        for forbidden_task in map(parse_task, names)
        if any(_have_overlap(forbidden_task, task) for task in tasks)
    ]


def _have_overlap(a: SyntheticTask, b: SyntheticTask) -> bool:
    """Return True if both tasks are of one kind and the ranges of all their parameters overlap."""
    return a.kind == b.kind and all(
        low <= a.ranges[parameter][1] and a.ranges[parameter][0] <= high
        for parameter, (low, high) in b.ranges.items()
    )


def task_documents(tasks: list[SyntheticTask]) -> Iterator[str]:
    """Yield training documents, one per task in rotation, until all megabytes are written."""
    rng = np.random.default_rng((tasks[0].seed, 1))
    n_bytes_left, n_documents = sum(task.megabytes for task in tasks) * 1e6, 0
    while n_bytes_left > 0:
        task = tasks[n_documents % len(tasks)]
        instances = sample_distinct(task, rng, heldout=False, n=1 if task.template else LINES)
        if task.template:
            turns = [chat.Turn(instance.prompt, instance.answer) for instance in instances]
            text = chat.render_conversation(task.template, turns)
        else:
            text = "".join(f"{instance.prompt}{instance.answer}\n" for instance in instances)
        yield text
        n_bytes_left, n_documents = n_bytes_left - len(text), n_documents + 1


def _letters(rng, length: int) -> str:
    """Return different random letters."""
    return "".join(rng.permutation(LETTERS)[:length])


SKILLS: dict[str, Callable[[str], str]] = {
    "copy": lambda text: text,
    "reverse": lambda text: text[::-1],
    "upper": str.upper,
    "sort": lambda text: "".join(sorted(text)),
}


def _skill(name: str) -> Callable[..., Instance]:
    """Return a function that makes instances of a skill of SKILLS."""

    def make(rng, length: int) -> Instance:
        text = _letters(rng, length)
        return Instance(f"{name} {text}=", SKILLS[name](text), 1 / math.factorial(length))

    return make


def _compose(rng, length: int) -> Instance:
    first, second = (str(name) for name in rng.permutation(["reverse", "upper", "sort"])[:2])
    text = _letters(rng, length)
    answer = SKILLS[first](SKILLS[second](text))
    return Instance(f"{first} {second} {text}=", answer, 1 / math.factorial(length))


# Order of the letters, and spelling of each letter. The names occur in prompts.
ORDERS: dict[str, Callable[[str], str]] = {
    "keep": lambda text: text,
    "back": lambda text: text[::-1],
    "left": lambda text: text[1:] + text[:1],
    "right": lambda text: text[-1:] + text[:-1],
    "swap": lambda text: text[1::-1] + text[2:],
    "tail": lambda text: text[:-2] + text[:-3:-1],
}
SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "upper": str.upper,
    "next": lambda text: text.translate(str.maketrans(AZ, AZ[1:] + AZ[:1])),
    "before": lambda text: text.translate(str.maketrans(AZ, AZ[-1:] + AZ[:-1])),
}


def _apply(rng, order: int, spelling: int, length: int) -> Instance:
    order_name, spelling_name = list(ORDERS)[order], list(SPELLINGS)[spelling]
    text = _letters(rng, length)
    answer = SPELLINGS[spelling_name](ORDERS[order_name](text))
    return Instance(f"{order_name} {spelling_name} {text}=", answer, 1 / math.factorial(length))


def _recall(rng, length: int) -> Instance:
    keys, values = rng.permutation(LETTERS)[:length], rng.permutation(DIGITS)[:length]
    pairs, query = [k + v for k, v in zip(keys, values, strict=True)], int(rng.integers(length))
    return Instance(f"recall {' '.join(pairs)} {keys[query]}=", str(values[query]), 1 / length)


def _follow(rng, length: int, steps: int) -> Instance:
    # The arrows form a ring. Fewer steps than its length never return to the start.
    ring = rng.permutation(LETTERS)[:length]
    arrows = [f"{a}{b}" for a, b in zip(ring, np.roll(ring, -1), strict=True)]
    start, steps = int(rng.integers(length)), min(steps, length - 1)
    shown = " ".join(str(arrow) for arrow in rng.permutation(arrows))
    end = str(ring[(start + steps) % length])
    return Instance(f"follow {shown} {ring[start]}{steps}=", end, 1 / (length - 1))


def _brackets(rng, depth: int) -> Instance:
    text, opened = "", []
    while len(opened) < depth:
        if opened and rng.random() < 0.3:
            text += PAIRS[opened.pop()]
        opened.append(str(rng.choice(list(PAIRS))))
        text += opened[-1]
    answer = "".join(PAIRS[bracket] for bracket in reversed(opened))
    return Instance(f"close {text}=", answer, len(PAIRS) ** -depth)


def _addition(rng, digits: int) -> Instance:
    a, b = (int(n) for n in rng.integers(0, 10**digits, 2))
    return Instance(f"add {a}+{b}=", str(a + b), 10.0**-digits)  # the most likely sum is 99...9


def _modular(rng, modulus: int, terms: int) -> Instance:
    numbers = [int(n) for n in rng.integers(0, modulus, terms)]
    terms_text = "+".join(map(str, numbers))
    return Instance(f"mod{modulus} {terms_text}=", str(sum(numbers) % modulus), 1 / modulus)


def _translate(rng, words: int, lexicon: int) -> Instance:
    kinds = "ANVAN"[-words:]  # adjective, noun, verb, adjective, noun
    sentence = [(kind, int(rng.integers(lexicon))) for kind in kinds]
    translated = [word for word in sentence if word[0] == "V"]
    for position, word in enumerate(sentence):
        if word[0] == "N":
            has_adjective = kinds[position - 1 : position] == "A"
            translated += [word, sentence[position - 1]] if has_adjective else [word]
    source, target = (
        " ".join(WORDS[kind][language][i] for kind, i in text)
        for language, text in enumerate((sentence, translated))
    )
    return Instance(f"say {source}=", target, float(lexicon) ** -words)


def _lexicon() -> dict[str, tuple[list[str], list[str]]]:
    """Return, for each kind of word, 32 words of the source language and their translations."""
    rng = np.random.default_rng(7)
    words = [a + b + c for a in "bdgklmnprst" for b in "aeiou" for c in "dklmnrst"]
    words = [str(word) for word in rng.permutation(words)[: 6 * 32]]
    parts = [words[32 * i : 32 * i + 32] for i in range(6)]
    return {kind: (parts[2 * i], parts[2 * i + 1]) for i, kind in enumerate("ANV")}


WORDS = _lexicon()
# Kind -> function that makes an instance, and default ranges of its parameters. Models of 10^5
# parameters begin to learn at the defaults. Answers of a fixed length are far easier to learn.
TASKS: dict[str, tuple[Callable[..., Instance], dict[str, tuple[int, int]]]] = {
    "copy":      (_skill("copy"),    {"length": (3, 3)}),
    "reverse":   (_skill("reverse"), {"length": (3, 3)}),
    "upper":     (_skill("upper"),   {"length": (3, 3)}),
    "sort":      (_skill("sort"),    {"length": (3, 3)}),
    "compose":   (_compose,          {"length": (3, 3)}),
    "apply":     (_apply,            {"order": (0, 5), "spelling": (0, 3), "length": (3, 3)}),
    "recall":    (_recall,           {"length": (2, 2)}),
    "follow":    (_follow,           {"length": (3, 3), "steps": (1, 1)}),
    "brackets":  (_brackets,         {"depth": (1, 4)}),
    "addition":  (_addition,         {"digits": (1, 1)}),
    "modular":   (_modular,          {"modulus": (9, 9), "terms": (2, 2)}),
    "translate": (_translate,        {"words": (2, 2), "lexicon": (16, 16)}),
}  # fmt: skip
PARAMETER_LIMITS = {
    "order": (0, 5), "spelling": (0, 3),
    "length": (2, 10), "steps": (1, 9), "depth": (1, 20), "digits": (1, 15), "modulus": (2, 1000),
    "terms": (2, 10), "words": (1, 5), "lexicon": (2, 32),
}  # fmt: skip
