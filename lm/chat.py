"""Conversations as text with marks, read from JSON Lines; and which of their tokens are answers.

    text = render("chat", [Turn("Say it twice: ha", "haha")])    # ^A Say it twice: ha ^B haha ^C
    asked("chat", "Say it twice: ho")                            # ^A Say it twice: ho ^B
    weights(tokens_BS, tokenizer)                                # 1 where a target is of an answer

The marks are the control characters U+0001 (a user's turn), U+0002 (an answer) and U+0003 (its
end), written ^A, ^B, ^C above; what is said is stripped of them. A template is a row of TEMPLATES.

A line of a file is a prompt and its target, another form of task, or messages in turns. A task
without a name has its folder's:

    {"prompt": "...", "target": "...", "task": "rte", "category": "entailment"}
    {"src": "...", "tgt": "..."}                    or any other row of forms; its right answer
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

Tensor names end in their axes: B rows, S tokens of a row, T = S - 1 targets.
"""

import dataclasses
import hashlib
import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm import config, files, forms, tokens

USER, ANSWER, STOP = tokens.MARKS
# Name -> what stands around a prompt, and what follows an answer. Without marks all is learned.
TEMPLATES = {
    "chat":     (USER + "{}" + ANSWER,                            STOP),
    "question": (USER + "Question: {}\nAnswer: " + ANSWER,        STOP),
    "task":     (USER + "### Task\n{}\n### Result\n" + ANSWER,    STOP),
    "plain":    ("{}",                                            "\n"),
}  # fmt: skip
_STRIPPED = str.maketrans("", "", "\0" + tokens.MARKS)


class Turn(NamedTuple):
    prompt: str
    answer: str


class Example(NamedTuple):
    """A conversation of a file."""

    turns: list[Turn]
    task: str
    category: str
    where: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is taken of a file, and how it is written: see `parse`."""

    path: str
    template: str = "chat"
    only: frozenset[str] = frozenset()  # tasks or categories; all if empty
    without: frozenset[str] = frozenset()
    cap: int = 0  # examples a task, the same ones whatever else is taken; 0: all
    shots: int = 0  # examples of the same task before each, as turns of one conversation

    def takes(self, example: Example) -> bool:
        names = {example.task, example.category}
        return (not self.only or bool(names & self.only)) and not names & self.without


def parse(rest: str) -> Choice:
    """Of "PATH?template=chat&only=a,b&without=c&cap=100&shots=2", any of these or none."""
    path, _, options = rest.partition("?")
    known = {field.name: field for field in dataclasses.fields(Choice)[1:]}
    found = {}
    for option in options.split("&") if options else []:
        name, _, value = option.partition("=")
        where = f"chat:{rest}: {name}"
        if name not in known:
            raise ValueError(f"chat:{rest}: " + config.unknown(name, list(known)))
        if name == "template":
            if value not in TEMPLATES:
                raise ValueError(f"{where}={value} must be one of {', '.join(TEMPLATES)}")
            found[name] = value
        elif name in ("only", "without"):
            found[name] = frozenset(value.split(","))
        elif value.isdecimal():
            found[name] = int(value)
        else:
            raise ValueError(f"{where}={value} must be a whole number from 0 up")
    return Choice(path, **found)


def render(template: str, turns: Iterable[Turn]) -> str:
    """A conversation as the text that a model reads."""
    after = TEMPLATES[template][1]
    return "".join(f"{asked(template, turn.prompt)}{_said(turn.answer)}{after}" for turn in turns)


def asked(template: str, prompt: str) -> str:
    """A prompt as it stands before the answer."""
    before, _, behind = TEMPLATES[template][0].partition("{}")
    return f"{before}{_said(prompt)}{behind}"


def documents(rest: str, refuse: files.Refuse) -> Iterator[files.Document]:
    """The conversations of a source, in the order of its files."""
    choice = parse(rest)
    kept = _capped(choice) if choice.cap else None
    before: dict[str, list[Turn]] = {}
    for example in examples(choice, refuse):
        if not choice.takes(example) or (kept is not None and _digest(example) not in kept):
            continue
        shown = before.setdefault(example.task, [])
        text = render(choice.template, [*shown, *example.turns])
        yield files.Document(text, example.where)
        before[example.task] = [*shown, *example.turns][-choice.shots :] if choice.shots else []


def examples(choice: Choice, refuse: files.Refuse = files.stop) -> Iterator[Example]:
    """All conversations of the files, those included that `choice` does not take.

    refuse: told of a line that is none, and of an empty prompt or answer.
    """
    for path in files.matching(choice.path):
        for where, row in files.objects(path):
            try:
                task, category = row.get("task", path.parent.name), row.get("category", "")
                yield Example(_turns(row, where), str(task), str(category), where)
            except ValueError as error:
                refuse(str(error))


def names(rest: str) -> set[str]:
    """The tasks and categories that a source holds, after only= and without=."""
    choice = parse(rest)
    taken = (one for one in examples(choice, lambda _: None) if choice.takes(one))
    return {name for one in taken for name in (one.task, one.category) if name}


def matching(rest: str) -> list[Path]:
    """The files of a source."""
    return files.matching(parse(rest).path)


def weights(tokens_BS: np.ndarray, tokenizer: tokens.Tokenizer) -> np.ndarray:
    """float32 [B, T]: 1 for the targets of answers, their ends included; else 0.

    Each document follows an `end`, as in whole rows. One that does not begin with a user's turn is
    no conversation: all of it counts. An `end` after another is what fills a row up: 0.
    """
    assert tokenizer.marks is not None
    user, answer, stop = tokenizer.marks
    inputs_BT, targets_BT = tokens_BS[:, :-1], tokens_BS[:, 1:]
    specials = np.array([tokenizer.end, user, answer, stop])
    is_special_BT = np.isin(inputs_BT, specials)
    place_BT = np.where(is_special_BT, np.arange(inputs_BT.shape[1]), 0)
    last_BT = np.take_along_axis(inputs_BT, np.maximum.accumulate(place_BT, axis=1), axis=1)
    begins_BT = (last_BT == tokenizer.end) & np.isin(targets_BT, (user, tokenizer.end))
    learned_BT = ~np.isin(last_BT, (user, stop)) & ~(begins_BT & (inputs_BT == tokenizer.end))
    return learned_BT.astype(np.float32)


def _turns(row: dict, where: str) -> list[Turn]:
    if "messages" in row:
        turns = _of_messages(row["messages"], where)
    elif {"prompt", "target"} <= row.keys():
        turns = [Turn(row["prompt"], row["target"])]
    else:
        labels = [row["label_name"]] if "label_name" in row else []
        asked = forms.example(row, where, labels)
        answer = asked.answers[asked.right].removeprefix(" ")
        turns = [Turn(asked.prompts[asked.right], answer)]
    for turn in turns:
        for what, text in zip(Turn._fields, turn, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{where}: {what} is {type(text).__name__}, not text")
            if not _said(text).strip():
                raise ValueError(f"{where}: an empty {what}: fill it in, or data.broken='skip'")
    return turns


def _of_messages(messages, where: str) -> list[Turn]:
    """Users and assistants in turns; what a system says belongs to the first prompt."""
    try:
        said = [(one["role"], one["content"]) for one in messages]
    except (TypeError, KeyError):
        raise ValueError(f"{where}: each of messages has a role and content") from None
    system = [text for role, text in said if role == "system"]
    said = [(role, text) for role, text in said if role != "system"]
    roles = [role for role, _ in said]
    if not said or roles != ["user", "assistant"] * (len(said) // 2):
        raise ValueError(
            f"{where}: roles are {', '.join(roles) or 'none'}: user and assistant must take turns,"
            " and the assistant have the last word"
        )
    turns = [Turn(a[1], b[1]) for a, b in zip(said[::2], said[1::2], strict=True)]
    return [Turn("\n\n".join([*system, turns[0].prompt]), turns[0].answer), *turns[1:]]


def _capped(choice: Choice) -> set[bytes]:
    """The examples of each task whose hashes are smallest: of a larger cap they are a part."""
    smallest: dict[str, list[int]] = {}
    for example in examples(choice, lambda _: None):
        if choice.takes(example):
            heap = smallest.setdefault(example.task, [])
            number = -int.from_bytes(_digest(example), "big")
            (heapq.heappush if len(heap) < choice.cap else heapq.heappushpop)(heap, number)
    return {(-number).to_bytes(16, "big") for heap in smallest.values() for number in heap}


def _digest(example: Example) -> bytes:
    return hashlib.blake2b(repr(example[:2]).encode(errors="replace"), digest_size=16).digest()


def _said(text: str) -> str:
    """Text as it may stand between marks."""
    return files.newlines(text).translate(_STRIPPED)
