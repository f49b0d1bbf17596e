"""Parser of names with fields: values and one-line errors."""

import pytest

from lm.data.sources import uri

FIELDS = {
    "n": uri.count(),
    "kind": uri.choice(["a", "b"]),
    "only": uri.names(),
    "field": uri.text("the name of a field"),
    "length": uri.int_range(2, 10),
    "share": uri.number(float, 0, 1),
    "seed": uri.number(int, 0, 99),
    "line": uri.sentence(),
}


def test_fields_have_their_types():
    text = "copy?n=3&kind=b&only=x,y&field=body&length=2-5&share=0.5&seed=7"
    assert uri.parse_uri(text, FIELDS) == (
        "copy",
        {
            "n": 3,
            "kind": "b",
            "only": frozenset({"x", "y"}),
            "field": "body",
            "length": (2, 5),
            "share": 0.5,
            "seed": 7,
        },
    )
    assert uri.parse_uri("copy?length=4", FIELDS).values == {"length": (4, 4)}
    written = "copy?line=A+%26+B+%3D+%C3%BC&n=3"
    assert uri.parse_uri(written, FIELDS).values == {"line": "A & B = ü", "n": 3}


@pytest.mark.parametrize(
    "text, name, query",
    [
        ("copy", "copy", ""),
        ("a/?.jsonl", "a/?.jsonl", ""),
        ("a/?.jsonl?field=b", "a/?.jsonl", "field=b"),
        ("a?x=1?y=2", "a", "x=1?y=2"),
        ("a?field=", "a", "field="),
    ],
)
def test_glob_may_contain_question_marks(text, name, query):
    assert uri.split_uri(text) == (name, query)


@pytest.mark.parametrize(
    "text, names",
    [
        ("", []),
        (" copy?n=3\n sort ", ["copy?n=3", "sort"]),
        ('copy "file:my set?n=3"', ["copy", "file:my set?n=3"]),
        ("file:'my set'?n=3 copy", ["file:my set?n=3", "copy"]),
        ('"file:Bob\'s set"', ["file:Bob's set"]),
        ("file:C:\\my\\#1", ["file:C:\\my\\#1"]),
    ],
)
def test_quotes_protect_spaces_in_a_list_of_names(text, names):
    assert uri.split_names(text) == names


def test_open_quote_is_rejected():
    with pytest.raises(ValueError, match="file:my's: a quote is not closed"):
        uri.split_names("file:my's")


@pytest.mark.parametrize(
    "text, message",
    [
        ("copy?lenght=3", "lenght does not exist: did you mean length? The fields are n, kind"),
        ("copy?size=3", "task copy?size=3: size does not exist: use one of the fields n, kind"),
        ("copy?n=1&n=2", "n is given twice: remove one"),
        ("copy?only=", "only= must be names separated by commas"),
        ("copy?only=a,,b", "only=a,,b must be names separated by commas"),
        ("copy?length=5-", "length=5- must be a whole number, or a range"),
        ("copy?n=-1", "n=-1 must be a whole number from 0 to 2147483647"),
        ("copy?kind=c", "kind=c must be one of a, b"),
        ("copy?field=", "field= must be the name of a field"),
        ("copy?length=x", "length=x must be a whole number, or a range such as 2-3, from 2 to 10"),
        ("copy?length=5-3", "length=5-3 must be"),
        ("copy?length=1-3", "length=1-3 must be"),
        ("copy?share=nan", "share=nan must be a number from 0 to 1"),
        ("copy?line=%FF", "line=%FF must be a text with + for each space"),
        ("copy?seed=1.5", "seed=1.5 must be a whole number from 0 to 99"),
    ],
)
def test_error_names_text_field_value_and_allowed_values(text, message):
    with pytest.raises(ValueError) as error:
        uri.parse_uri(text, FIELDS, "task ")
    assert message in str(error.value) and str(error.value).startswith(f"task {text}: ")
    assert "\n" not in str(error.value)
