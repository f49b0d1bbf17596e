"""Fits as JSON files: parameters, draws, data, seed, version, and a hash of the data.

    law_fit.save("law.json")
    law_fit = laws.load_fit("law.json")      # predicts and prints like the saved fit

The file contains the right side of the law as a formula, see formulas/expressions.py, the columns
of the law, and the columns of the rows that describe their runs: settings, trunk run, corpus and
cost. A loaded fit has no refit: `profile` and a new back-test need the rows and the law. A law of
two steps is stored as its steps.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm.laws import backtesting, comparability, diagnostics, fit, form_uncertainty, run_table
from lm.laws.forms import downstream
from lm.laws.formulas import expressions
from lm.laws.reporting import checklist
from lm.runs import filesystem, provenance

FORMAT = 1
SPECIAL_FIELDS = (
    *("values", "refit", "backtester", "output_transform", "data", "expression"),
    *("form_sampler", "undetermined_at"),
)
MAX_FORMULA_ERROR = 1e-9  # relative, between the law and its formula at the rows of the fit
LINES = ("log_linear", "isoflop", "envelope", "transfer")
SUMS = ("power", "chinchilla", "overtrained", "one_step")
ACCURACY = {
    "x0": "b + a * 0.5 * (1 + tanh(0.5 * k * (L - x0)))",
    "gamma": "eps - k * exp(-gamma * L)",
}
BEST_UNIQUE_SIZE = (
    "minimum(N, (alpha * A / (beta * B))**(1 / (alpha + beta))"
    " * ((alpha * A / (beta * B))**(1 / (alpha + beta)) * minimum(U, D))**(beta / alpha))"
)


@dataclasses.dataclass(kw_only=True)
class SavedFit(fit.Fit):
    """Fit that was loaded from a file."""

    version: str  # of the package that fitted it
    data_hash: str  # of the rows, see `hash_data`


def save_fit(law_fit: fit.Fit, path: str | Path) -> None:
    """Write a fit to a JSON file. The suffix of the path must be .json.

    Raises ValueError for a law without a formula: a user-defined function, or a law that its
    formula does not reproduce.
    """
    file = _open(path)
    if file.suffix != ".json":
        raise ValueError(f"path={path} must end in .json: a fit is a JSON file")
    content = _to_content(law_fit)
    text = json.dumps(content, indent=1, allow_nan=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    except OSError as error:
        raise ValueError(f"path={path} cannot be written ({error}): pass another path") from error


def _open(path: Any) -> Path:
    """Return the path of a file. Raises ValueError for a value that is no path."""
    if not isinstance(path, str | Path) or not str(path):
        raise ValueError(f"path={path!r} must be the path of a JSON file, such as 'law.json'")
    return filesystem.open_path(path)


def _to_content(law_fit: fit.Fit) -> dict[str, Any]:
    """Return the JSON values of a fit."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": provenance.package_version(),
        "commit": provenance.git_commit(),
    }
    if isinstance(law_fit, downstream.TwoStepFit):
        return content | {"steps": [_to_content(s) for s in (law_fit.step1, law_fit.step2)]}
    score, sampler, flat = law_fit.score, law_fit.form_sampler, law_fit.undetermined_at
    is_flat = isinstance(flat, diagnostics.FlatDirections)
    return content | {
        "data_hash": hash_data(law_fit.data),
        "expression": _checked_formula(law_fit),
        "has_accuracy_output": law_fit.output_transform is not None,
        "has_form_uncertainty": sampler is not None,
        "row_weights": _encode(getattr(sampler, "keywords", {}).get("row_weights")),
        "flat_directions": _encode(dataclasses.asdict(flat)) if is_flat else None,
        "data": {
            "columns": {name: _encode(v) for name, v in law_fit.data.columns.items()},
            "names": law_fit.data.names,
            "groups": _encode(law_fit.data.groups),
            "excluded": [list(pair) for pair in law_fit.data.excluded],
            "mixed": _encode_mixed(law_fit.data.mixed),
            "run_columns": (run_columns := _encode_run_columns(law_fit.data.rows)),
            "run_columns_hash": _hash_text(json.dumps(run_columns)),
        },
        "score": None if score is None else _encode(dataclasses.asdict(score)),
        "fit": {
            entry.name: _encode(getattr(law_fit, entry.name))
            for entry in dataclasses.fields(fit.Fit)
            if entry.name not in SPECIAL_FIELDS
        },
    }


def load_fit(path: str | Path) -> fit.Fit:
    """Load a fit that `save_fit` has written: a SavedFit, or a law of two steps.

    Raises ValueError for a file that is not a fit, and for data that differ from their hash.
    """
    file = _open(path)
    try:
        content = json.loads(file.read_text())
        is_fit = content["format"] == FORMAT
    except OSError as error:
        raise ValueError(
            f"path={path} cannot be read or does not exist ({error.strerror}): pass a file that"
            " fit.save has written"
        ) from None
    except (ValueError, TypeError, KeyError):
        is_fit = False
    if not is_fit:
        raise ValueError(f"path={path} is not a fit of format {FORMAT}: write it with fit.save")
    if "steps" in content:
        return downstream.two_step(*(_from_content(step, path) for step in content["steps"]))
    return _from_content(content, path)


def _from_content(content: dict[str, Any], path: str | Path) -> SavedFit:
    """Return the fit of JSON values. Raises ValueError if its data differ from their hash."""
    stored = content["data"]
    columns = {name: np.asarray(_decode(v), float) for name, v in stored["columns"].items()}
    groups = np.asarray(_decode(stored["groups"]), int)
    excluded = [(name, reason) for name, reason in stored["excluded"]]
    # Files of version 0.2.0 have no columns of runs.
    run_columns = stored.get("run_columns", {})
    rows: list[Mapping] = [
        {"name": name}
        | {column: float(values[i]) for column, values in columns.items()}
        | {column: _decode(values[i]) for column, values in run_columns.items() if values[i] != []}
        for i, name in enumerate(stored["names"])
    ]
    mixed = stored.get("mixed", True)
    data = run_table.RunTable(columns, stored["names"], groups, rows, excluded, [], mixed)
    run_hash = stored.get("run_columns_hash", _hash_text(json.dumps(run_columns)))
    is_damaged = run_hash != _hash_text(json.dumps(run_columns))
    if is_damaged or hash_data(data) != content["data_hash"]:
        raise ValueError(f"path={path} is damaged: its data differ from their hash. Save it again.")
    known = {entry.name for entry in dataclasses.fields(fit.Fit)}
    details = {k: _decode(v) for k, v in content["fit"].items() if k in known}
    result = SavedFit(
        **details,
        data=data,
        values=expressions.parse_expression(content["expression"]).function_of(details["inputs"]),
        expression=content["expression"],
        version=content["version"],
        data_hash=content["data_hash"],
    )
    result.bounds = (float(result.bounds[0]), float(result.bounds[1]))
    if content["has_accuracy_output"]:
        chance = result.bounds[0]
        result.output_transform = lambda values: chance + (1 - chance) * np.exp(-values)
    if content["score"] is not None:
        score = backtesting.BacktestScore(**_decode(content["score"]))
        result.backtester = lambda law_fit: score
    if content["has_form_uncertainty"]:
        row_weights = _decode(content["row_weights"])
        result.form_sampler = functools.partial(
            form_uncertainty.sample_deviations, row_weights=row_weights
        )
    if content["flat_directions"] is not None:
        result.undetermined_at = diagnostics.FlatDirections(**_decode(content["flat_directions"]))
    return result


def hash_data(data: run_table.RunTable) -> str:
    """Return the SHA-256 of the names, columns and resampling groups of the rows of a fit."""
    digest = hashlib.sha256(json.dumps(data.names).encode())
    for name in sorted(data.columns):
        digest.update(name.encode())
        digest.update(np.asarray(data.columns[name], "<f8").tobytes())
    digest.update(np.asarray(data.groups, "<i8").tobytes())
    return digest.hexdigest()


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _encode_mixed(mixed: Any) -> bool | list[str]:
    return mixed if isinstance(mixed, bool) else sorted(mixed or ())


def _encode_run_columns(rows: list[Mapping]) -> dict[str, list]:
    """Return the values of the columns that describe runs, as JSON values; [] for no value."""
    description = {
        *("name", "run", "start.run", "start.restore", "tokens", "flops"),
        *(column for columns in comparability.PROPERTIES.values() for column in columns),
        *checklist.RECORDED_COLUMNS,
    }
    names = dict.fromkeys(column for row in rows for column in row if isinstance(column, str))
    return {
        name: [_encode_cell(row[name]) if name in row else [] for row in rows]
        for name in names
        if name in description or comparability.is_setting(name)
    }


def _encode_cell(value: Any) -> Any:
    """Return a cell as a JSON value: a number, a truth value, None, or its text."""
    value = value.item() if isinstance(value, np.generic) else value
    return _encode(value if value is None or isinstance(value, bool | int | float) else str(value))


def _checked_formula(law_fit: fit.Fit) -> str:
    """Return the formula of a law. Raises ValueError if it does not reproduce the law."""
    if law_fit.loss == "none":
        raise ValueError("a law with given coefficients has no rows and cannot be saved")
    text = _formula(law_fit)
    if not text:
        raise ValueError(f"{law_fit.law} has no formula as text and cannot be saved")
    values = expressions.parse_expression(text).function_of(law_fit.inputs)
    # The draws vary each parameter.
    draws = [{k: float(v[i]) for k, v in law_fit.ensemble.items() if len(v) > i} for i in range(3)]
    for params in [law_fit.params, *({**law_fit.params, **draw} for draw in draws)]:
        expected = np.asarray(law_fit.values(params, *law_fit.x), float)
        difference = np.abs(values(params, *law_fit.x) - expected)
        if not (difference <= MAX_FORMULA_ERROR * np.abs(expected)).all():
            raise ValueError(
                f"the formula {text!r} does not reproduce {law_fit.law}: it is not saved"
            )
    return text


def _formula(law_fit: fit.Fit) -> str:
    """Return the right side of a law as text, "" if it has none."""
    if law_fit.expression:
        return law_fit.expression
    if law_fit.law in SUMS:
        return expressions.power_formula(law_fit.inputs, law_fit.params)
    if law_fit.law in LINES:
        return expressions.line_formula(law_fit.inputs)
    if law_fit.law == "accuracy_from_loss":
        return ACCURACY["x0" if "x0" in law_fit.params else "gamma"]
    if law_fit.law == "data_constrained":
        return repeated_data_formula(law_fit.params)
    return ""


def repeated_data_formula(params: Mapping[str, float]) -> str:
    """Return the law of repeated data with these parameters. Without beta, it is alpha."""

    def effective(fresh: str, amount: str, constant: str) -> str:
        repeats = f"maximum({amount} / {fresh} - 1, 0)"
        return f"{fresh} * (1 - {constant} * expm1(-{repeats} / {constant}))"

    size = "N"
    if "R_N" in params:
        size = effective(f"({BEST_UNIQUE_SIZE})", "N", "R_N")
    tokens = effective("minimum(U, D)", "D", "R_D")
    text = f"E + A * ({size})**-alpha + B * ({tokens})**-beta"
    return text if "beta" in params else re.sub(r"\bbeta\b", "alpha", text)


def _encode(value: Any) -> Any:
    """Convert a field to JSON values. Arrays and non-finite numbers become objects."""
    if isinstance(value, np.ndarray):
        return {"array": [_encode(v) for v in value.tolist()]}
    if isinstance(value, Mapping):
        return {"map": {str(k): _encode(v) for k, v in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_encode(v) for v in value]
    if isinstance(value, np.generic):
        return _encode(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return {"number": repr(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a fit with a field of type {type(value).__name__} cannot be saved")


def _decode(value: Any) -> Any:
    """Return the field that `_encode` has converted."""
    if isinstance(value, list):
        return [_decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.array(_decode(value["array"]))
    if "number" in value:
        return float(value["number"])
    return {k: _decode(v) for k, v in value["map"].items()}
