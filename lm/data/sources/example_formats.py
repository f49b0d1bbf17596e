"""Formats of the lines of task files. The fields of a JSON line determine its format.

    parse_example({"question": "2+2?", "answer": "4"}, "my.jsonl line 1").answers     # (" 4",)

The first format of FORMATS whose required fields are all in the line is used:

    query, choices, answer                  multiple choice; `answer` is the index of a choice
    question, choices, answer               multiple choice after "Question:"
    context_options, continuation, answer   choose the context that precedes the continuation
    sentence_good, sentence_bad             minimal pair: the first must be more probable; neither
                                            has a prompt, and no space is put before it
    src, tgt                                translation
    text, label_name                        classification into all labels of the task
    prompt, canonical_solution              code completion
    question, answer                        exact answer
    instruction, input, output              exact answer
    prompt, target                          exact answer
    context, continuation                   exact answer

Formats with a query or a question write the text of one of PASSAGES before it. The text or list of
texts in `aliases` or `other_references` is also correct in all formats without choices. A line is
rejected if it has a text field of another format that its own format does not use. Other fields,
such as an id, are ignored. `task`, `subject` and `category` name the task of a line.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import NamedTuple

PASSAGES = ("context", "passage", "paragraph", "article", "story", "background", "support")
ALIASES = ("aliases", "other_references")
TEXT_PARTS = ("text", "input_text", "output_text")  # types of parts of messages
TASK_FIELDS = ("task", "subject", "category")


@dataclasses.dataclass(frozen=True)
class TaskExample:
    """A task example: candidate (prompt, answer) pairs and the index of the correct pair.

    With a single pair, the model must produce the answer exactly.
    """

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    right: int = 0  # index of the correct pair
    chance: float = 0.0  # accuracy of a random guess
    others: tuple[str, ...] = ()  # other correct answers
    shots: str = ""  # solved examples at the beginning of each prompt
    has_fixed_choices: bool = False  # the choices are the labels of a classification
    group: str = ""  # member of a group of tasks: see tasks.py
    question: str = ""  # first prompt without solved examples and without a chat template


class Format(NamedTuple):
    """A format of task lines."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    make: Callable[[dict, list[str]], TaskExample]  # function of (line, labels)


def parse_example(row: dict, where: str, labels: list[str] | None = None) -> TaskExample:
    """Convert a JSON line into an example by the first matching format.

    `where` names the line in error messages. `labels` are all labels of the task, for the format
    (text, label_name). Raises ValueError if no format matches, a value has the wrong type, an index
    is out of range, an answer is empty, or a text field is not used.
    """
    for required, optional, make in FORMATS:
        if all(name in row for name in required):
            check_unused_fields(row, where, (*required, *optional))
            try:
                example = make(row, labels or [])
            except ValueError as error:
                raise ValueError(f"{where}: {error}: correct the line") from None
            if not all(answer.strip() for answer in (*example.answers, *example.others)):
                raise ValueError(f"{where}: an empty answer: fill it in, or delete the line")
            return example
    known = "; ".join(", ".join(entry.required) for entry in FORMATS)
    raise ValueError(f"{where}: has fields {', '.join(row)}; a task has one of: {known}")


def check_unused_fields(row: dict, where: str, used: tuple[str, ...]) -> None:
    """Raise ValueError if a line has a text field of another format. used: fields of its format."""
    # An absent value is often written as null or "".
    unused = [name for name in row if name in TEXT_FIELDS and name not in used and row[name]]
    if unused:
        raise ValueError(
            f"{where}: {', '.join(unused)} is not used by the format {', '.join(used)}: add it to"
            " a field of the format, or remove it"
        )


def task_names(row: dict) -> dict[str, str]:
    """Return the values of `task`, `subject` and `category` that a line has, by field."""
    return {name: str(row[name]) for name in TASK_FIELDS if row.get(name) is not None}


def label(row: dict) -> str:
    """Return the label of a classification line. Raises ValueError if it is no text or integer."""
    value = row["label_name"]
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise ValueError(f"label_name is {type(value).__name__}, not text")
    return str(value)


def message_pairs(messages, where: str) -> list[tuple[str, str]]:
    """Return the (user, assistant) pairs of messages. System text begins the next user message.

    messages: dicts with a role and a content, which is a text or a list of text parts. The content
    of a system message may be null. `where` names the line in error messages. Raises ValueError for
    another content, or roles in another order.
    """
    is_list = isinstance(messages, list) and all(isinstance(m, dict) for m in messages)
    if not is_list or any(not {"role", "content"} <= m.keys() for m in messages):
        raise ValueError(f"{where}: each of messages must have a role and content")
    roles = [str(message["role"]) for message in messages]
    contents, system = [], []
    for number, (role, message) in enumerate(zip(roles, messages, strict=True), 1):
        content = "" if role == "system" and message["content"] is None else message["content"]
        text = _content_text(content, f"{where}: message {number} ({role})")
        if role == "system":
            system += [text] if text else []
        else:
            contents.append("\n\n".join([*system, text]))
            system = []
    dialog = [role for role in roles if role != "system"]
    is_alternating = dialog == ["user", "assistant"] * (len(dialog) // 2)
    followers = {b for a, b in itertools.pairwise([*roles, "the end"]) if a == "system"}
    if not dialog or not is_alternating or followers - {"system", "user"}:
        raise ValueError(
            f"{where}: roles are {', '.join(roles) or 'none'}: user and assistant must alternate,"
            " the last message must have the role assistant, and user must follow system"
        )
    return list(zip(contents[::2], contents[1::2], strict=True))


def _content_text(content, where: str) -> str:
    """Return the text of the content of a message: a text, or a list of text parts."""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        is_text_part = isinstance(part, dict) and part.get("type", "text") in TEXT_PARTS
        text = part.get("text") if is_text_part else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"{where}: its content is {kind}, not text")
        texts.append(text)
    return "".join(texts)


def _text(row: dict, name: str) -> str:
    if not isinstance(row[name], str):
        raise ValueError(f"{name} is {type(row[name]).__name__}, not text")
    return row[name]


def _texts(row: dict, name: str, least: int = 1) -> list[str]:
    """Return the values of a list of texts. least: smallest number of texts that is allowed."""
    values = row[name]
    if not isinstance(values, list):
        raise ValueError(f"{name} is {type(values).__name__}, not a list of texts")
    if len(values) < least:
        raise ValueError(f"{name} has {len(values)} texts: it must have at least {least}")
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} contains a value that is not text")
    return values


def _aliases(row: dict) -> list[str]:
    """Return the other correct answers. A single text is one answer."""
    names = [name for name in ALIASES if row.get(name)]
    return [
        alias
        for name in names
        for alias in ([row[name]] if isinstance(row[name], str) else _texts(row, name))
    ]


def _index(row: dict, n: int) -> int:
    """Return the index of the correct choice of n."""
    value = row["answer"]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(value, str) and value.isdecimal():
        value, is_number = int(value), True
    if not is_number or value not in range(n):
        raise ValueError(f"answer={value!r} must be the index of a choice, from 0 to {n - 1}")
    return int(value)


def _multiple_choice(prompt: str, row: dict, labels: list[str]) -> TaskExample:
    answers = tuple(_with_space(prompt, choice) for choice in _texts(row, "choices", 2))
    right = _index(row, len(answers))
    return TaskExample((prompt,) * len(answers), answers, right, 1 / len(answers))


def _context_choice(row: dict, labels: list[str]) -> TaskExample:
    prompts, continuation = tuple(_texts(row, "context_options", 2)), _text(row, "continuation")
    answers = tuple(_with_space(prompt, continuation) for prompt in prompts)
    return TaskExample(prompts, answers, _index(row, len(prompts)), 1 / len(prompts))


def _minimal_pair(row: dict, labels: list[str]) -> TaskExample:
    sentences = _text(row, "sentence_good"), _text(row, "sentence_bad")
    return TaskExample(("", ""), sentences, 0, 0.5)


def _classification(row: dict, labels: list[str]) -> TaskExample:
    prompt = f"{_text(row, 'text')}\nLabel:"
    answers = tuple(f" {name}" for name in labels)
    right, n = labels.index(label(row)), len(labels)
    return TaskExample((prompt,) * n, answers, right, 1 / n, has_fixed_choices=True)


def _exact_answer(prompt: str, field: str, row: dict) -> TaskExample:
    aliases = tuple(_with_space(prompt, alias) for alias in _aliases(row))
    return TaskExample((prompt,), (_with_space(prompt, _text(row, field)),), others=aliases)


def _with_space(prompt: str, answer: str) -> str:
    """Return the answer, after a space if no whitespace separates prompt and answer."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}"


def _code(row: dict, labels: list[str]) -> TaskExample:
    return TaskExample((_text(row, "prompt"),), (_text(row, "canonical_solution"),))


def _query(row: dict) -> str:
    return _passage(row) + _text(row, "query")


def _question(row: dict) -> str:
    return f"{_passage(row)}Question: {_text(row, 'question')}\nAnswer:"


def _instruction(row: dict) -> str:
    return f"{_text(row, 'instruction')}\n{_text(row, 'input')} =>"


def _passage(row: dict) -> str:
    """Return the text that a question refers to, as a paragraph; "" if the line has none."""
    names = [name for name in PASSAGES if row.get(name)]
    if len(names) > 1:
        raise ValueError(f"has both {' and '.join(names)}")
    return f"{_text(row, names[0])}\n" if names else ""


FORMATS = [
    Format(("query", "choices", "answer"), PASSAGES,
           lambda row, labels: _multiple_choice(_query(row), row, labels)),
    Format(("question", "choices", "answer"), PASSAGES,
           lambda row, labels: _multiple_choice(_question(row), row, labels)),
    Format(("context_options", "continuation", "answer"), (), _context_choice),
    Format(("sentence_good", "sentence_bad"), (), _minimal_pair),
    Format(("src", "tgt"), ALIASES,
           lambda row, _: _exact_answer(f"{_text(row, 'src')}\n=>", "tgt", row)),
    Format(("text", "label_name"), (), _classification),
    Format(("prompt", "canonical_solution"), (), _code),
    Format(("question", "answer"), (*PASSAGES, *ALIASES),
           lambda row, _: _exact_answer(_question(row), "answer", row)),
    Format(("instruction", "input", "output"), ALIASES,
           lambda row, _: _exact_answer(_instruction(row), "output", row)),
    Format(("prompt", "target"), ALIASES,
           lambda row, _: _exact_answer(_text(row, "prompt"), "target", row)),
    Format(("context", "continuation"), ALIASES,
           lambda row, _: _exact_answer(_text(row, "context"), "continuation", row)),
]  # fmt: skip
# Fields that a format may use, except "text", which is often a second copy of the line.
TEXT_FIELDS = {*PASSAGES, *ALIASES, *(name for entry in FORMATS for name in entry.required)} - {
    "text"
}
