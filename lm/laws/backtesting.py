"""Back-test, hold-out, and comparison of laws and of counting conventions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from lm.laws import comparability, fit, option_validation, prediction_intervals, run_table

DISTANCES = (2.0, 4.0, 10.0, 30.0, float("inf"))  # upper bounds of the bins of `by_distance`

# With many rows, a fit of the back-test has fewer starts, at least MIN_STARTS.
STARTS_TIMES_ROWS = 40_000
MIN_STARTS = 64


@dataclass
class BacktestScore:
    """Relative errors and interval coverage of a law on rows outside its fit."""

    # Each dict has trained_on, name, value, lo, hi, measured, error, and distance: the size of the
    # row relative to the largest fitted size (NaN for rows that have no order).
    predictions: list[dict[str, Any]] = field(default_factory=list)
    n_origins: int = 0  # number of fits
    reason: str = ""  # if there is no score

    @property
    def mean(self) -> float:
        """Mean absolute relative error of the held-out predictions."""
        return (
            float(np.mean([abs(p["error"]) for p in self.predictions]))
            if self.predictions
            else float("nan")
        )

    @property
    def worst(self) -> float:
        """Largest absolute relative error."""
        return (
            float(np.max([abs(p["error"]) for p in self.predictions]))
            if self.predictions
            else float("nan")
        )

    @property
    def coverage(self) -> float:
        """Fraction of held-out measurements inside their 95% interval (NaN without intervals)."""
        inside = [
            p["lo"] <= p["measured"] <= p["hi"] for p in self.predictions if np.isfinite(p["lo"])
        ]
        return float(np.mean(inside)) if inside else float("nan")

    @property
    def by_distance(self) -> list[dict[str, float]]:
        """Signed and absolute error, and coverage, by distance from the largest fitted size.

        Each dict has up_to (the largest distance of its rows), n, signed_error (the mean of
        predicted / measured - 1), mean_error and coverage.
        """
        table, nearest = [], 0.0
        for up_to in DISTANCES:
            rows = [p for p in self.predictions if nearest < p["distance"] <= up_to]
            if rows:
                part = BacktestScore(rows)
                signed_error = float(np.mean([p["error"] for p in rows]))
                line = {"up_to": up_to, "n": len(rows), "signed_error": signed_error}
                table.append(line | {"mean_error": part.mean, "coverage": part.coverage})
            nearest = up_to
        return table

    def __str__(self) -> str:
        if self.reason:
            return f"back-test: {self.reason}"
        inside = (
            f", {self.coverage:.0%} inside their 95% interval" if np.isfinite(self.coverage) else ""
        )
        return (
            f"back-test: {_count(len(self.predictions), 'held-out row')}, predicted by"
            f" {_count(self.n_origins, 'fit')} to other rows, "
            f"mean error {self.mean:.2%}, worst {self.worst:.2%}{inside}{self._describe_bias()}"
        )

    def _describe_bias(self) -> str:
        """Return the signed errors by distance as text, "" without distances."""
        bins = [
            f"{line['signed_error']:+.2%} "
            + (f"up to {line['up_to']:g}" if np.isfinite(line["up_to"]) else "beyond")
            for line in self.by_distance
        ]
        return f"; signed error {', '.join(bins)} times the fitted size" if bins else ""

    def to_dict(self) -> dict[str, Any]:
        """Return the score as JSON values."""
        numbers = {"mean": self.mean, "worst": self.worst, "coverage": self.coverage}
        numbers = {k: v if np.isfinite(v) else None for k, v in numbers.items()}
        rows = [
            {k: v if not isinstance(v, float) or np.isfinite(v) else None for k, v in p.items()}
            for p in self.predictions
        ]
        by_distance = [
            {k: v if np.isfinite(v) else None for k, v in line.items()} for line in self.by_distance
        ]
        return {
            "text": str(self),
            "origins": self.n_origins,
            **numbers,
            "by_distance": by_distance,
            "predictions": rows,
        }


def _count(n: int, noun: str) -> str:
    """Return a number with a noun in the singular or the plural."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def backtest(
    law_fit: fit.Fit,
    by: str | None = None,
    origins: int = 4,
    bootstrap: int = 200,
    falling: bool = False,
) -> BacktestScore:
    """Fit the law to the rows up to a level and predict all larger rows (rolling origin).

    A level is a value of the column `by`; the default is the product of the inputs of the law (N,
    N D, C ...). An origin needs more rows than parameters. Its fit excludes rows that share a
    group, such as a trunk run, with a larger row. If more than `origins` origins are possible, that
    number is chosen from the second half of the rows. falling=True ranks levels from the largest
    value to the smallest, for a law of the loss.
    """
    option_validation.check_option_values(
        {"origins": origins, "bootstrap": bootstrap, "falling": falling}
    )
    option_validation.check_optional_columns(by=by)
    fit.check_fits(law_fit=law_fit)
    if by is not None:
        run_table.check_columns_exist(law_fit.data.rows, [by])
    if law_fit.refit is None:
        return BacktestScore(
            reason="a law made of other laws, loaded or given has no back-test: fit its rows"
        )
    sizes = np.prod(np.stack(law_fit.x), axis=0)
    if by is not None:
        sizes = np.array([run_table.to_number(row.get(by)) for row in law_fit.data.rows])
    logs = np.round(np.log(1 / sizes if falling else sizes), 2)
    levels, level_of_row = np.unique(logs, return_inverse=True)
    level_of_group = law_fit.data.highest_in_group(level_of_row)
    score = BacktestScore()
    for k in _choose_origins(level_of_group, len(levels), len(law_fit.free), origins):
        try:
            rows = [law_fit.data.rows[i] for i in np.flatnonzero(level_of_group <= k)]
            max_starts = max(MIN_STARTS, STARTS_TIMES_ROWS // len(rows))
            part = law_fit.refit(rows, bootstrap=bootstrap, max_starts=max_starts)
            larger = np.flatnonzero(level_of_row > k)
            predictions = _predictions(part, law_fit.data, larger, law_fit.y, law_fit.x)
            distances = np.exp(logs[larger] - levels[k])
            predictions = [
                prediction | {"distance": float(distance)}
                for prediction, distance in zip(predictions, distances, strict=True)
            ]
        except ValueError:
            continue  # Too few rows for the law; the next origin has more.
        score.n_origins += 1
        score.predictions += predictions
    if not score.predictions:
        score.reason = (
            f"none possible, {len(levels)} levels of {law_fit.n} rows are too few for "
            f"{len(law_fit.free)} parameters"
        )
    return score


def _choose_origins(
    level_of_group: np.ndarray, n_levels: int, n_params: int, max_origins: int
) -> list[int]:
    """Return the levels up to which the law is fitted."""
    n_rows = [int((level_of_group <= k).sum()) for k in range(n_levels)]
    possible = [k for k in range(2, n_levels - 1) if n_rows[k] >= n_params + 1]
    if len(possible) <= max_origins:
        return possible
    late = [k for k in possible if n_rows[k] >= 0.5 * len(level_of_group)] or possible
    positions = np.linspace(0, len(late) - 1, max_origins + 2).round().astype(int)
    return [late[i] for i in np.unique(positions)[:-1]][:max_origins]


def holdout(
    law_fit: fit.Fit,
    rows: run_table.Rows,
    where: run_table.Where = None,
    mixed: bool = False,
) -> BacktestScore:
    """Return the errors of a fit, and the coverage of its intervals, on other rows.

    rows: rows outside the fit, with the columns of the law. where: inclusion rule, see
    run_table.select_columns. Raises ValueError for rows that are not comparable with the rows of
    the fit, unless mixed=True or the law was fitted with mixed=True.
    """
    option_validation.check_selection(where, mixed)
    fit.check_fits(law_fit=law_fit)
    columns = [law_fit.columns[letter] for letter in law_fit.inputs]
    output = law_fit.columns[law_fit.output]
    data = run_table.select_columns(rows, [*columns, output], None, where, mixed=True)
    may_differ = mixed or law_fit.data.mixed or ()
    if may_differ is not True:
        together = [*law_fit.data.rows, *data.rows]
        comparability.check_comparable(together, range(len(together)), may_differ, columns)
    inputs = [data.columns[column] for column in columns]
    predictions = _predictions(law_fit, data, np.arange(len(data)), data.columns[output], inputs)
    return BacktestScore(predictions, n_origins=1)


def _predictions(
    law_fit: fit.Fit,
    data: run_table.RunTable,
    index: np.ndarray,
    measured: np.ndarray,
    inputs: list[np.ndarray],
) -> list[dict[str, Any]]:
    """Return a prediction, with the measured value and the relative error, per row of index."""
    predicted = law_fit.predict(*[x[index] for x in inputs])
    transform = law_fit.output_transform
    actual = measured[index] if transform is None else transform(measured[index])
    return [
        {
            "trained_on": law_fit.n,
            "name": data.names[i],
            "value": float(value),
            "lo": float(lo),
            "hi": float(hi),
            "measured": float(y),
            "error": float(value / y - 1),
            "distance": float("nan"),
        }
        for i, value, lo, hi, y in zip(
            index, predicted.value, predicted.lo, predicted.hi, actual, strict=True
        )
    ]


@dataclass
class Comparison:
    """Table with one row per fit, printed with aligned columns."""

    rows: list[dict[str, Any]]
    fits: dict[str, fit.Fit] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.rows:
            return "nothing to compare"
        keys = list(dict.fromkeys(key for row in self.rows for key in row))
        cells = [
            [str(k) for k in keys],
            *[[_format_cell(row.get(k, "")) for k in keys] for row in self.rows],
        ]
        widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in cells
        )


def _format_cell(value: Any) -> str:
    if isinstance(value, tuple):
        return prediction_intervals.format_interval(*value).strip() or "none"
    if isinstance(value, float):
        return f"{value:.4g}" if np.isfinite(value) else "none"
    return str(value)


def compare_laws(
    candidates: Mapping[str, fit.Fit] | Sequence[fit.Fit], by: str | None = None
) -> Comparison:
    """Rank laws by their mean error on held-out larger levels (see `backtest`), best first.

    candidates: {name: fit}, or a list of fits. by: column of the levels. The table also has the
    error of each fit at its own rows. Do not rank by that error: it rewards overfitting. A law
    without a back-test is last.
    """
    if not isinstance(candidates, Mapping | list | tuple):
        raise ValueError(f"candidates={candidates!r} must be a list or a dict of fits")
    given = dict(candidates) if isinstance(candidates, Mapping) else dict(enumerate(candidates))
    fit.check_fits(**{f"candidates[{name!r}]": law_fit for name, law_fit in given.items()})
    if not isinstance(candidates, Mapping):
        candidates = {f"{law_fit.law} {i}": law_fit for i, law_fit in enumerate(candidates)}
    rows = []
    for name, law_fit in candidates.items():
        score = law_fit.score if by is None else None
        score = backtest(law_fit, by) if score is None else score
        rows.append(
            {
                "form": name,
                "parameters": len(law_fit.free),
                "n": law_fit.n,
                "fit error": law_fit.mare,
                "held-out error": score.mean,
                "worst": score.worst,
                "coverage": score.coverage,
            }
        )
    rows.sort(
        key=lambda row: row["held-out error"] if np.isfinite(row["held-out error"]) else np.inf
    )
    return Comparison(rows, dict(candidates))


def compare_conventions(
    law: Callable[..., fit.Fit], rows: run_table.Rows, by: str | None = None, **choices: Any
) -> Comparison:
    """Fit a law under several counting conventions: definitions of N, D, C or of the loss.

    A keyword with a list as value is varied. All other keywords are passed to the law. `by` is a
    column that names the convention of each row: the rows of each value are fitted separately.
    Example: `compare_conventions(isoflop, rows, x=["params.total", "params.non_embedding"])`.
    """
    if not callable(law):
        raise ValueError(f"law={law!r} must be a law, such as laws.power")
    rows = run_table.to_rows(rows)
    if by is not None:
        run_table.check_columns_exist(rows, [by])
    empty = [k for k, v in choices.items() if v == []]
    if empty:
        raise ValueError(f"{empty[0]}=[] must have the conventions to compare: pass two or more")
    varied = {k: v for k, v in choices.items() if isinstance(v, list)}
    constant = {k: v for k, v in choices.items() if k not in varied}
    groups = {"": rows}
    if by is not None:
        groups = {
            str(value): [row for row in rows if row.get(by) == value]
            for value in dict.fromkeys(row.get(by) for row in rows)
        }
    lines, fits = [], {}
    for value, group in groups.items():
        for point in product(*varied.values()):
            label = {by: value} if by else {}
            label |= dict(zip(varied, map(str, point), strict=True))
            law_fit = law(group, **constant, **dict(zip(varied, point, strict=True)))
            fits[", ".join(label.values())] = law_fit
            line: dict[str, Any] = dict(label)
            for name, number in {**law_fit.params, **law_fit.derived}.items():
                line[name] = number
                if name in law_fit.ensemble:
                    line[f"{name} 95%"] = law_fit.interval(name)
            lines.append({**line, "n": law_fit.n})
    return Comparison(lines, fits)
