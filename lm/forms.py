"""What a line of a task's file asks, by its fields: the first row of FORMS that it has.

example({"question": "2+2?", "answer": "4"}, "my.jsonl line 1").answers     # (" 4",)

query, choices, answer             one of several: `answer` is the place of the right one
question, choices, answer          the same, after "Question:"
context_options, continuation      which context goes before the continuation
src, tgt                           translation; more references in other_references
text, label_name                   classification into all labels of the file
prompt, canonical_solution         code completion
question, answer                   exact answer
instruction, input, output         exact answer
prompt, target                     exact answer
context, continuation              exact answer, last word, autocompletion; more in aliases
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Example:
    """Which of several (prompt, answer) is right; with one, its answer must be said exactly."""

    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    right: int = 0
    chance: float = 0.0  # of guessing
    others: tuple[str, ...] = ()  # answers as right as the right one


def example(row: dict, where: str, labels: list[str] | None = None) -> Example:
    """A line of a file by the first form whose fields it has; ValueError naming the line."""
    for fields, make in FORMS:
        if set(fields) <= set(row):
            try:
                found = make(row, labels or [])
                assert 0 <= found.right < len(found.answers)
                assert all(isinstance(one, str) and one for one in found.answers)
                assert all(isinstance(one, str) for one in found.prompts)
            except (AssertionError, TypeError, IndexError, ValueError, AttributeError):
                why = f"its {', '.join(fields)} are not what a task's are"
                raise ValueError(f"{where}: {why}") from None
            if not all(one.strip() for one in found.answers):
                raise ValueError(f"{where}: an empty answer: fill it in, or leave the line out")
            return found
    known = "; ".join(", ".join(fields) for fields, _ in FORMS)
    raise ValueError(f"{where}: has fields {', '.join(row)}; a task has one of: {known}")


def _choice(prompt: str, row: dict) -> Example:
    answers = tuple(_after(prompt, choice) for choice in row["choices"])
    return Example((prompt,) * len(answers), answers, int(row["answer"]), 1 / len(answers))


def _schema(row: dict, labels) -> Example:
    prompts = tuple(row["context_options"])
    answers = tuple(_after(prompt, row["continuation"]) for prompt in prompts)
    return Example(prompts, answers, int(row["answer"]), 1 / len(prompts))


def _label(row: dict, labels: list[str]) -> Example:
    prompt = f"{row['text']}\nLabel:"
    answers = tuple(f" {label}" for label in labels)
    right = labels.index(row["label_name"])
    return Example((prompt,) * len(answers), answers, right, 1 / len(labels))


def _exact(prompt: str, answer: str, others: list[str] | None = None) -> Example:
    said = tuple(_after(prompt, other) for other in others or ())
    return Example((prompt,), (_after(prompt, answer),), others=said)


def _after(prompt: str, answer: str) -> str:
    """An answer with the space that parts it from its prompt, unless one of them has its own."""
    return answer if prompt[-1:].isspace() or answer[:1].isspace() else f" {answer}"


def _translation(row: dict, labels) -> Example:
    return _exact(f"{row['src']}\n=>", row["tgt"], row.get("other_references"))


def _asked(row: dict) -> str:
    return f"Question: {row['question']}\nAnswer:"


# Fields that a line must have -> the example it is.
FORMS: list[tuple[tuple[str, ...], Callable[[dict, list[str]], Example]]] = [
    (("query", "choices", "answer"), lambda row, _: _choice(row["query"], row)),
    (("question", "choices", "answer"), lambda row, _: _choice(_asked(row), row)),
    (("context_options", "continuation", "answer"), _schema),
    (("src", "tgt"), _translation),
    (("text", "label_name"), _label),
    (("prompt", "canonical_solution"),
     lambda row, _: Example((row["prompt"],), (row["canonical_solution"],))),
    (("question", "answer"), lambda row, _: _exact(_asked(row), row["answer"])),
    (("instruction", "input", "output"),
     lambda row, _: _exact(f"{row['instruction']}\n{row['input']} =>", row["output"])),
    (("prompt", "target"), lambda row, _: _exact(row["prompt"], row["target"])),
    (("context", "continuation"),
     lambda row, _: _exact(row["context"], row["continuation"], row.get("aliases"))),
]  # fmt: skip
