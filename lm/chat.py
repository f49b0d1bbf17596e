"""Conversations: templates, readers of JSON Lines, and loss weights of the answers.

    text = render("chat", [Turn("Say it twice: ha", "haha")])    # ^A Say it twice: ha ^B haha ^C
    asked("chat", "Say it twice: ho")                            # ^A Say it twice: ho ^B
    weights(tokens_BS, tokenizer)                                # 1 for targets in an answer

The special tokens are the control characters U+0001 (start of a user turn), U+0002 (start of an
answer) and U+0003 (end of an answer), written ^A, ^B, ^C above. They are removed from prompts and
answers. TEMPLATES lists the templates.

A line of a file is a prompt with its target, a task line of another format (see forms), or a list
of messages. A task without a name gets the name of its folder:

    {"prompt": "...", "target": "...", "task": "rte", "category": "entailment"}
    {"src": "...", "tgt": "..."}                    any format of forms, with its correct answer
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

Axes: B rows, S tokens of a row, T = S - 1 targets.
"""

import dataclasses
import hashlib
import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm import files, forms, tokens, uri

USER, ANSWER, STOP = tokens.MARKS
# Name -> (format of the prompt, text after an answer). Text without special tokens is all learned.
TEMPLATES = {
    "chat":     (USER + "{}" + ANSWER,                            STOP),
    "question": (USER + "Question: {}\nAnswer: " + ANSWER,        STOP),
    "task":     (USER + "### Task\n{}\n### Result\n" + ANSWER,    STOP),
    "plain":    ("{}",                                            "\n"),
}  # fmt: skip
_REMOVE_SPECIAL = str.maketrans("", "", "\0" + tokens.MARKS)
_FIELDS = {
    "template": uri.choice(TEMPLATES),
    "only": uri.names(),
    "without": uri.names(),
    "cap": uri.count(),
    "shots": uri.count(),
}


class Turn(NamedTuple):
    """A prompt and its answer. Example hashes contain the names of this class and its fields."""

    prompt: str
    answer: str


class Example(NamedTuple):
    """A conversation of a file."""

    turns: list[Turn]
    task: str
    category: str
    where: str  # file and line


@dataclasses.dataclass(frozen=True)
class Choice:
    """A chat source: files, template, and which conversations are selected."""

    path: str
    template: str = "chat"
    only: frozenset[str] = frozenset()  # tasks or categories to select; empty selects all
    without: frozenset[str] = frozenset()  # tasks or categories to exclude
    cap: int = 0  # examples per task, the same ones for every selection; 0: all
    shots: int = 0  # earlier examples of the task that precede each example as turns

    def takes(self, example: Example) -> bool:
        """Return True if the conversation is selected by `only` and `without`."""
        names = {example.task, example.category}
        return (not self.only or bool(names & self.only)) and not names & self.without


def parse(rest: str) -> Choice:
    """Parse "PATH?template=chat&only=a,b&without=c&cap=100&shots=2". All fields are optional."""
    path, values = uri.parse_uri(rest, _FIELDS, "chat:")
    return Choice(path, **values)


def render(template: str, turns: Iterable[Turn]) -> str:
    """Return the text of a conversation."""
    suffix = TEMPLATES[template][1]
    return "".join(
        f"{asked(template, turn.prompt)}{_without_special(turn.answer)}{suffix}" for turn in turns
    )


def asked(template: str, prompt: str) -> str:
    """Return the text of a prompt, up to the start of the answer."""
    before, _, after = TEMPLATES[template][0].partition("{}")
    return f"{before}{_without_special(prompt)}{after}"


def documents(rest: str, refuse: files.Refuse) -> Iterator[files.Document]:
    """Yield the selected conversations of a source as documents, in file order."""
    choice = parse(rest)
    capped = _capped_digests(choice) if choice.cap else None
    earlier: dict[str, list[Turn]] = {}  # task -> turns of its last `shots` examples
    for example in examples(choice, refuse):
        if not choice.takes(example) or (capped is not None and _digest(example) not in capped):
            continue
        turns = [*earlier.get(example.task, []), *example.turns]
        yield files.Document(render(choice.template, turns), example.where)
        earlier[example.task] = turns[-choice.shots :] if choice.shots else []


def examples(choice: Choice, refuse: files.Refuse = files.stop) -> Iterator[Example]:
    """Yield all conversations of the files, including those that `choice` does not select.

    `refuse` is called for each line that is not a conversation or has an empty prompt or answer.
    """
    for path in files.matching(choice.path):
        for where, row in files.objects(path):
            try:
                task, category = row.get("task", path.parent.name), row.get("category", "")
                yield Example(_turns(row, where), str(task), str(category), where)
            except ValueError as error:
                refuse(str(error))


def names(rest: str) -> set[str]:
    """Return the tasks and categories of a source that its `only` and `without` select."""
    choice = parse(rest)
    selected = (e for e in examples(choice, lambda _: None) if choice.takes(e))
    return {name for example in selected for name in (example.task, example.category) if name}


def matching(rest: str) -> list[Path]:
    """Return the files of a source."""
    return files.matching(parse(rest).path)


def weights(tokens_BS: np.ndarray, tokenizer: tokens.Tokenizer) -> np.ndarray:
    """Return float32 [B, T]: 1 for targets in answers and their end tokens, else 0.

    Each document follows an `end` token, as in rows of whole documents. A document that does not
    start with a user turn is plain text: all its targets have weight 1. An `end` token after
    another is padding: weight 0.
    """
    assert tokenizer.marks is not None
    user, answer, stop = tokenizer.marks
    inputs_BT, targets_BT = tokens_BS[:, :-1], tokens_BS[:, 1:]
    specials = np.array([tokenizer.end, user, answer, stop])
    is_special_BT = np.isin(inputs_BT, specials)
    position_BT = np.where(is_special_BT, np.arange(inputs_BT.shape[1]), 0)
    # The last special token up to each input determines the part of the document.
    last_BT = np.take_along_axis(inputs_BT, np.maximum.accumulate(position_BT, axis=1), axis=1)
    starts_BT = (last_BT == tokenizer.end) & np.isin(targets_BT, (user, tokenizer.end))
    learned_BT = ~np.isin(last_BT, (user, stop)) & ~(starts_BT & (inputs_BT == tokenizer.end))
    return learned_BT.astype(np.float32)


def _turns(row: dict, where: str) -> list[Turn]:
    if "messages" in row:
        turns = _turns_of_messages(row["messages"], where)
    elif {"prompt", "target"} <= row.keys():
        turns = [Turn(row["prompt"], row["target"])]
    else:
        labels = [row["label_name"]] if "label_name" in row else []
        example = forms.example(row, where, labels)
        answer = example.answers[example.right].removeprefix(" ")
        turns = [Turn(example.prompts[example.right], answer)]
    for turn in turns:
        for field, text in zip(Turn._fields, turn, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{where}: {field} is {type(text).__name__}, not text")
            if not _without_special(text).strip():
                raise ValueError(f"{where}: an empty {field}: fill it in, or data.broken='skip'")
    return turns


def _turns_of_messages(messages, where: str) -> list[Turn]:
    """Pair user and assistant messages. System messages become part of the first prompt."""
    try:
        contents = [(message["role"], message["content"]) for message in messages]
    except (TypeError, KeyError):
        raise ValueError(f"{where}: each of messages must have a role and content") from None
    system = [text for role, text in contents if role == "system"]
    contents = [(role, text) for role, text in contents if role != "system"]
    roles = [role for role, _ in contents]
    if not contents or roles != ["user", "assistant"] * (len(contents) // 2):
        raise ValueError(
            f"{where}: roles are {', '.join(roles) or 'none'}: user and assistant must take turns,"
            " and the last message must be the assistant's"
        )
    pairs = zip(contents[::2], contents[1::2], strict=True)
    turns = [Turn(question[1], answer[1]) for question, answer in pairs]
    return [Turn("\n\n".join([*system, turns[0].prompt]), turns[0].answer), *turns[1:]]


def _capped_digests(choice: Choice) -> set[bytes]:
    """Return the hashes of the `cap` selected examples of each task with the smallest hashes.

    A smaller cap therefore selects a subset of a larger cap.
    """
    smallest: dict[str, list[int]] = {}
    for example in examples(choice, lambda _: None):
        if choice.takes(example):
            heap = smallest.setdefault(example.task, [])
            number = -int.from_bytes(_digest(example), "big")
            (heapq.heappush if len(heap) < choice.cap else heapq.heappushpop)(heap, number)
    return {(-number).to_bytes(16, "big") for heap in smallest.values() for number in heap}


def _digest(example: Example) -> bytes:
    return hashlib.blake2b(repr(example[:2]).encode(errors="replace"), digest_size=16).digest()


def _without_special(text: str) -> str:
    """Return the text with normalized newlines and without special tokens."""
    return files.newlines(text).translate(_REMOVE_SPECIAL)
