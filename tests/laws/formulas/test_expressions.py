"""Tests of formulas as text."""

import numpy as np
import pytest

from lm.laws.formulas import expressions


def test_formula_is_evaluated_with_arrays():
    formula = expressions.parse_expression("E + A * N**-alpha + 1e-3 * exp(-D / 2)")
    assert formula.names == ("E", "A", "N", "alpha", "D")
    values = {"E": 1.0, "A": 2.0, "alpha": 0.5, "N": np.array([4.0, 16.0]), "D": 2.0}
    expected = 1 + 2 * np.array([0.5, 0.25]) + 1e-3 * np.exp(-1)
    np.testing.assert_allclose(formula.evaluate(values), expected)


def test_template_has_braces_around_parameters_only():
    formula = expressions.parse_expression("e + 1e-3 * N**-alpha * exp(f * c)")
    assert formula.template(["e", "alpha", "f", "c"]) == "{e} + 1e-3 N^-{alpha} exp({f} * {c})"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('ls')",
        "a.b",
        "a[0]",
        "(lambda: 1)()",
        "a if b else c",
        "True + a",
        "'text'",
        "exp(x, out=1)",
        "a @ b",
        "a < b",
    ],
)
def test_other_python_is_refused(text):
    with pytest.raises(ValueError, match="contains .*; allowed: numbers, names"):
        expressions.parse_expression(text)


def test_invalid_syntax_is_refused():
    with pytest.raises(ValueError, match="cannot be parsed"):
        expressions.parse_expression("E + A *")
