"""Formats of the lines of task files. The fields of a JSON line determine its format.

    parse_example({"question": "2+2?", "answer": "4"}, "my.jsonl line 1").answers     # (" 4",)

The first format of FORMATS whose fields are all in the line is used:

    query, choices, answer                  multiple choice; `answer` is the index of a choice
    question, choices, answer               multiple choice after "Question:"
    context_options, continuation, answer   choose the context that precedes the continuation
    src, tgt                                translation; other_references may have more references
    text, label_name                        classification into all labels of the file
    prompt, canonical_solution              code completion
    question, answer                        exact answer
    instruction, input, output              exact answer
    prompt, target                          exact answer
    context, continuation                   exact answer; the values of aliases are also correct
"""

import dataclasses
from collections.abc import Callable


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


def parse_example(row: dict, where: str, labels: list[str] | None = None) -> TaskExample:
    """Convert a JSON line into an example by the first matching format.

    `where` names the line in error messages. `labels` are all labels of the file, for the format
    (text, label_name). Raises ValueError if no format matches, a value has the wrong type, an index
    is out of range, or an answer is empty.
    """
    for fields, make in FORMATS:
        if set(fields) <= set(row):
            try:
                parsed = make(row, labels or [])
                assert 0 <= parsed.right < len(parsed.answers)
                assert all(isinstance(answer, str) and answer for answer in parsed.answers)
                assert all(isinstance(prompt, str) for prompt in parsed.prompts)
            except (AssertionError, TypeError, IndexError, ValueError, AttributeError):
                problem = f"its {', '.join(fields)} have the wrong type or are out of range"
                raise ValueError(f"{where}: {problem}: correct the line") from None
            if not all(answer.strip() for answer in parsed.answers):
                raise ValueError(f"{where}: an empty answer: fill it in, or delete the line")
            return parsed
    known = "; ".join(", ".join(fields) for fields, _ in FORMATS)
    raise ValueError(f"{where}: has fields {', '.join(row)}; a task has one of: {known}")


def _multiple_choice(prompt: str, row: dict) -> TaskExample:
    answers = tuple(_with_space(prompt, choice) for choice in row["choices"])
    return TaskExample((prompt,) * len(answers), answers, int(row["answer"]), 1 / len(answers))


def _context_choice(row: dict, labels) -> TaskExample:
    prompts = tuple(row["context_options"])
    answers = tuple(_with_space(prompt, row["continuation"]) for prompt in prompts)
    return TaskExample(prompts, answers, int(row["answer"]), 1 / len(prompts))


def _classification(row: dict, labels: list[str]) -> TaskExample:
    prompt = f"{row['text']}\nLabel:"
    answers = tuple(f" {label}" for label in labels)
    right = labels.index(row["label_name"])
    return TaskExample((prompt,) * len(answers), answers, right, 1 / len(labels))


def _exact_answer(prompt: str, answer: str, others: list[str] | None = None) -> TaskExample:
    alternatives = tuple(_with_space(prompt, other) for other in others or ())
    return TaskExample((prompt,), (_with_space(prompt, answer),), others=alternatives)


def _with_space(prompt: str, answer: str) -> str:
    """Return the answer, after a space if no whitespace separates prompt and answer."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}"


def _translation(row: dict, labels) -> TaskExample:
    return _exact_answer(f"{row['src']}\n=>", row["tgt"], row.get("other_references"))


def _question(row: dict) -> str:
    return f"Question: {row['question']}\nAnswer:"


# Required fields -> function of (line, labels) that makes the example.
FORMATS: list[tuple[tuple[str, ...], Callable[[dict, list[str]], TaskExample]]] = [
    (("query", "choices", "answer"), lambda row, _: _multiple_choice(row["query"], row)),
    (("question", "choices", "answer"), lambda row, _: _multiple_choice(_question(row), row)),
    (("context_options", "continuation", "answer"), _context_choice),
    (("src", "tgt"), _translation),
    (("text", "label_name"), _classification),
    (("prompt", "canonical_solution"),
     lambda row, _: TaskExample((row["prompt"],), (row["canonical_solution"],))),
    (("question", "answer"), lambda row, _: _exact_answer(_question(row), row["answer"])),
    (("instruction", "input", "output"),
     lambda row, _: _exact_answer(f"{row['instruction']}\n{row['input']} =>", row["output"])),
    (("prompt", "target"), lambda row, _: _exact_answer(row["prompt"], row["target"])),
    (("context", "continuation"),
     lambda row, _: _exact_answer(row["context"], row["continuation"], row.get("aliases"))),
]  # fmt: skip
