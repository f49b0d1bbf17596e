"""Formulas of laws as text: parsing, evaluation with arrays, and the formulas of the known laws.

    formula = expressions.parse_expression("E + A * N**-alpha")
    formula.evaluate({"E": 1.7, "A": 400.0, "alpha": 0.34, "N": 1e9})

A formula contains numbers, names, + - * / **, parentheses and the functions FUNCTIONS. It is
Python syntax, but it is never executed: each node is checked and evaluated here.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "minimum": np.minimum,
    "maximum": np.maximum,
}
OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
# Formulas of the laws with fixed inputs, by the name of the law.
FORMULAS = {
    "chinchilla": "E + A * N**-alpha + B * D**-beta",
    "overtrained": "E + A * N**-alpha + B * D**-alpha",
    "kaplan": "((N_c / N)**(alpha_N / alpha_D) + D_c / D)**alpha_D",
}
# Derived parameters of these laws.
DERIVED = {
    "chinchilla": {"a": "beta / (alpha + beta)", "b": "alpha / (alpha + beta)"},
    "overtrained": {"a": "A * 6**(alpha / 2)", "b": "B * 6**(alpha / 2)", "eta": "alpha / 2"},
    "kaplan": {"overfitting_exponent": "alpha_N / alpha_D"},
}


@dataclass(frozen=True)
class Expression:
    """Parsed formula: its text, its names in order of their first use, and its syntax tree."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """Return the value of the formula. `values` has a number or an array for each name."""
        with np.errstate(all="ignore"):
            return _evaluate(self.tree, values)

    def function_of(self, inputs: list[str]) -> Callable[..., np.ndarray]:
        """Return the formula as a function (parameters, *inputs) -> value, an array."""

        def values(params: Mapping[str, Any], *points: Any) -> np.ndarray:
            arguments = {**params, **dict(zip(inputs, points, strict=True))}
            used = [np.shape(arguments[name]) for name in self.names]
            shape = np.broadcast_shapes(*used, *(np.shape(v) for v in points))
            return np.broadcast_to(np.asarray(self.evaluate(arguments), float), shape)

        return values

    def template(self, parameters: Mapping[str, Any] | list[str]) -> str:
        """Return the formula for display, with each parameter in braces: {E} + {A} N^-{alpha}."""
        text = re.sub(
            r"(?<![\w.])[A-Za-z_]\w*",
            lambda match: f"{{{match[0]}}}" if match[0] in parameters else match[0],
            self.text.replace("**", "^"),
        )
        return re.sub(r" \* (?!\{)", " ", text)


def parse_expression(text: str) -> Expression:
    """Parse a formula. Raises ValueError for invalid syntax and for other operations."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"formula {text!r} cannot be parsed: {error.msg}") from None
    names: dict[str, None] = {}
    for node in ast.walk(tree):
        _check_node(node, text)
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    name_nodes = [
        node for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in functions
    ]
    for node in sorted(name_nodes, key=lambda node: (node.lineno, node.col_offset)):
        names[node.id] = None
    return Expression(text.strip(), tuple(names), tree)


def _check_node(node: ast.AST, text: str) -> None:
    """Raise ValueError if a formula must not contain this node."""
    is_valid = isinstance(node, (ast.Name, ast.Load, ast.operator, ast.USub, ast.UAdd, ast.UnaryOp))
    if isinstance(node, ast.Constant):
        is_valid = isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
    elif isinstance(node, ast.BinOp):
        is_valid = type(node.op) in OPERATORS
    elif isinstance(node, ast.Call):
        is_valid = isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS
        is_valid = is_valid and not node.keywords
    if not is_valid:
        raise ValueError(
            f"formula {text!r} contains {type(node).__name__}; allowed: numbers, names, + - * / **"
            f" and the functions {', '.join(FUNCTIONS)}"
        )


def _evaluate(node: ast.AST, values: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return float(str(node.value))
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.UnaryOp):
        value = _evaluate(node.operand, values)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp):
        operate = OPERATORS[type(node.op)]
        return operate(_evaluate(node.left, values), _evaluate(node.right, values))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return FUNCTIONS[node.func.id](*(_evaluate(arg, values) for arg in node.args))
    raise ValueError(f"{type(node).__name__} cannot be evaluated")


def derived_parameters(law: str, params: Mapping[str, Any]) -> dict[str, float]:
    """Return the derived parameters of a law of DERIVED."""
    formulas = DERIVED.get(law, {})
    return {name: float(parse_expression(text).evaluate(params)) for name, text in formulas.items()}


def power_formula(inputs: list[str], parameters: Mapping[str, Any]) -> str:
    """Return the formula of a sum of power laws of the inputs, with E if it is a parameter."""
    terms = ["E"] if "E" in parameters else []
    names = zip(("A", "B", "C", "F"), ("alpha", "beta", "gamma", "zeta"), inputs, strict=False)
    for coefficient, exponent, letter in names:
        exponent = exponent if exponent in parameters else "alpha"
        terms.append(f"{coefficient} * {letter}**-{exponent}")
    return " + ".join(terms)


def line_formula(inputs: list[str]) -> str:
    """Return the formula of a line in logs: k * x**exponent * x2**exponent2."""
    exponents = ["exponent", *(f"exponent{i}" for i in range(2, len(inputs) + 1))]
    factors = [f"{letter}**{name}" for letter, name in zip(inputs, exponents, strict=True)]
    return " * ".join(["k", *factors])


def broken_power_formula(letter: str, n_breaks: int) -> str:
    """Return the broken power law of an input (see `published_laws.broken_power`)."""
    factors = [
        f"(1 + ({letter} / d{i})**(1 / f{i}))**(-c{i} * f{i})" for i in range(1, n_breaks + 1)
    ]
    return "a + " + " * ".join(["b", f"{letter}**-c0", *factors])
