"""Built-in text: code and docstrings of the Python installation."""

import ast
import functools
import inspect
import itertools
import sys

import numpy as np

from lm.data.sources import builtin


def test_code_has_programs_without_tests_in_a_fixed_order():
    programs = list(builtin.python_code())
    names = [name for name, _ in programs]
    assert len(names) == len(set(names))
    assert names == [name for name, _ in builtin.python_code()]
    assert {"json/decoder.py", "argparse.py"} <= set(names)
    assert not [name for name in names if "test" in name.split("/")[:-1] or "encodings" in name]
    assert 5e6 < sum(len(text) for _, text in programs) < 20e6


@functools.cache
def first_texts() -> list[str]:
    """Return the first 100 documents of docs."""
    return [text for _, text in itertools.islice(builtin.python_docs(), 100)]


def test_docs_are_mostly_words_in_sentences():
    texts = first_texts()
    words = " ".join(texts).split()
    assert len(words) > 10_000
    assert np.mean([word.strip(".,;:!?()\"'").isalpha() for word in words]) > 0.85
    assert np.mean([text[-1] in ".?!)" for text in texts]) == 1


def test_docs_contain_each_paragraph_once():
    paragraphs = [p for text in first_texts() for p in text.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))


def test_docs_read_only_the_listed_packages(monkeypatch):
    """A tenth of the files of the standard library, which are long to parse, is read."""
    monkeypatch.setattr(builtin, "PACKAGES", {"absl": "absl-py"})
    some_files = [*builtin._python_files()][::10]
    monkeypatch.setattr(builtin, "_python_files", lambda: iter(some_files))
    packages = {name.split("/")[0].removesuffix(".py") for name, _ in builtin.python_docs()}
    assert "absl" in packages and packages <= sys.stdlib_module_names | {"absl"}


def test_packages_are_located_without_importing_them():
    modules_before = set(sys.modules)
    assert any(name.startswith("optax/") for name, _ in builtin._packages_files())
    assert "optax" in modules_before or "optax" not in sys.modules


def test_text_is_truncated_at_a_file(monkeypatch):
    all_programs = list(builtin.python_code())
    monkeypatch.setattr(builtin, "MAX_CHARACTERS", 100_000)
    programs = list(builtin.python_code())
    assert programs == all_programs[: len(programs)]
    assert 0 < sum(len(text) for _, text in programs) <= 100_000


def test_paragraphs_contain_only_english():
    docstring = """Fit a line to the given points by least squares.

    The fit is that of :func:`~numpy.polyfit` with ``deg=1``, see the
    notes below for more.

    Parameters
    ----------
    x : array_like, shape (M,)
        Where the points lie, in any order at all.
    y : array_like

    >>> fit([1, 2], [3, 4])
    (1.0, 2.0)

        for x in points:
            total += x

    ====  =====
    a     1 2.
    ====  =====

    Values that lie outside are marked {out} and those inside are marked {in}.

    Maps b0_x and c1_y to d2_z and e3_w or f4_v.

    Args:
      lr: The learning rate of the very first step.
    """
    assert builtin.paragraphs(inspect.cleandoc(docstring)) == [
        "Fit a line to the given points by least squares.",
        "The fit is that of polyfit with deg=1, see the notes below for more.",
        "Where the points lie, in any order at all.",
        "The learning rate of the very first step.",
    ]


def test_parse_is_repeated_after_an_error_of_the_interpreter(monkeypatch):
    errors = [SystemError("AST constructor recursion depth mismatch")] * 2
    parse = ast.parse

    def fail_twice(text: str) -> ast.Module:
        if errors:
            raise errors.pop()
        return parse(text)

    monkeypatch.setattr(builtin.ast, "parse", fail_twice)
    monkeypatch.setattr(builtin.time, "sleep", lambda seconds: None)
    assert ast.unparse(builtin.parse_module("x = 1")) == "x = 1"
    assert not errors
