"""Tests of the formats of task lines: prompts, answers, aliases and the number of choices."""

import pytest

from lm.data.sources import example_formats

EXACT = {"question": "2+2?", "answer": "4"}


def parse(row, labels=None):
    return example_formats.parse_example(row, "a.jsonl line 1", labels)


def test_choices_of_each_format_have_their_chance():
    multiple = parse({"question": "q", "choices": ["a", "b", "c"], "answer": "2"})
    assert multiple.answers == (" a", " b", " c") and set(multiple.prompts) == {
        "Question: q\nAnswer:"
    }
    assert (multiple.right, multiple.chance) == (2, 1 / 3)
    contexts = parse({"context_options": ["x is", "y is "], "continuation": "b", "answer": 1})
    assert contexts.prompts == ("x is", "y is ") and contexts.answers == (" b", "b")
    assert (contexts.right, contexts.chance) == (1, 1 / 2)
    labels = parse({"text": "t", "label_name": "yes"}, ["no", "yes", "maybe"])
    assert labels.answers == (" no", " yes", " maybe") and labels.prompts == ("t\nLabel:",) * 3
    assert (labels.right, labels.chance, labels.has_fixed_choices) == (1, 1 / 3, True)
    pair = parse({"sentence_good": "He runs.", "sentence_bad": "He run."})
    assert (pair.prompts, pair.right, pair.chance) == (("", ""), 0, 0.5)


@pytest.mark.parametrize("value", ["four", ["four"], ["four", "IV"]])
def test_one_or_several_aliases_are_correct(value):
    example = parse(EXACT | {"aliases": value, "other_references": ["Four"]})
    names = [value] if isinstance(value, str) else value
    assert example.others == (*[f" {name}" for name in names], " Four")
    assert example.chance == 0 and example.answers == (" 4",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "choices": ["a"], "answer": 0}, "choices has 1 texts: .* at least 2"),
        ({"question": "q", "choices": ["a", 5], "answer": 0}, "choices contains a value"),
        ({"question": "q", "choices": "ab", "answer": 0}, "choices is str, not a list"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "answer=2 must be .* from 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "answer=True must be the index"),
        ({"question": "q", "choices": ["a", "b"], "answer": 0.5}, "answer=0.5 must be the index"),
        (EXACT | {"aliases": [" ", "x"]}, "an empty answer"),
        (EXACT | {"answer": "\n"}, "an empty answer"),
        (EXACT | {"answer": 4}, "answer is int, not text"),
        (EXACT | {"passage": "p", "story": "s"}, "has both passage and story"),
        (EXACT | {"continuation": "b"}, "continuation"),
        ({"text": "t"}, "has fields text; a task has one of: query, choices, answer; "),
    ],
)
def test_invalid_lines_are_refused_with_their_field(row, message):
    with pytest.raises(ValueError, match=f"a.jsonl line 1: .*{message}"):
        parse(row)


def test_passage_and_fields_of_each_exact_format_are_the_prompt():
    for row, prompt, answer in (
        (EXACT | {"passage": "p"}, "p\nQuestion: 2+2?\nAnswer:", " 4"),
        ({"src": "q", "tgt": "b"}, "q\n=>", " b"),
        ({"instruction": "i", "input": "q", "output": "b"}, "i\nq =>", " b"),
        ({"prompt": "q ", "target": "b"}, "q ", "b"),
        ({"context": "q", "continuation": "\tb"}, "q", "\tb"),
        ({"prompt": "def f():\n", "canonical_solution": "    b"}, "def f():\n", "    b"),
    ):
        example = parse(row)
        assert (example.prompts, example.answers) == ((prompt,), (answer,))
