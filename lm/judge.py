"""Fits judged by rows that they have not seen; forms and conventions side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from lm import fit as fits
from lm import table


@dataclass
class Score:
    """How well a law predicted rows that it had not seen: relative errors and coverage."""

    predictions: list[dict[str, Any]] = field(
        default_factory=list
    )  # trained_on, name, value, lo, hi, measured, error
    origins: int = 0
    reason: str = ""  # why there is no score

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
        """Share of the held-out measurements inside their 95% interval (NaN without intervals)."""
        inside = [
            p["lo"] <= p["measured"] <= p["hi"] for p in self.predictions if np.isfinite(p["lo"])
        ]
        return float(np.mean(inside)) if inside else float("nan")

    def __str__(self) -> str:
        if self.reason:
            return f"back-test: {self.reason}"
        inside = (
            f", {self.coverage:.0%} inside their 95% interval" if np.isfinite(self.coverage) else ""
        )
        return (
            f"back-test: {len(self.predictions)} held-out rows from {self.origins} origins, "
            f"mean error {self.mean:.2%}, worst {self.worst:.2%}{inside}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        numbers = {"mean": self.mean, "worst": self.worst, "coverage": self.coverage}
        numbers = {k: v if np.isfinite(v) else None for k, v in numbers.items()}
        rows = [
            {k: v if not isinstance(v, float) or np.isfinite(v) else None for k, v in p.items()}
            for p in self.predictions
        ]
        return {"text": str(self), "origins": self.origins, **numbers, "predictions": rows}


def backtest(
    fit: fits.Fit,
    by: str | None = None,
    origins: int = 4,
    bootstrap: int = 200,
    falling: bool = False,
) -> Score:
    """Rolling origin: fit the law on the rows up to a rung, predict every row above it.

    A rung is a value of the column `by`, by default the product of the law's inputs (N, N D, C...).
    Origins start where the rows outnumber the parameters; of many, `origins` are taken between half
    and nine tenths of the rows. falling=True ranks rungs from the largest value to the smallest (an
    ability's loss).
    """
    if fit.refit is None:
        return Score(reason="this law is made of others, see theirs")
    size = np.prod(np.stack(fit.x), axis=0)
    if by is not None:
        size = np.array([table.number(row.get(by)) for row in fit.data.rows])
    logs = np.round(np.log(1 / size if falling else size), 2)
    rungs, place = np.unique(logs, return_inverse=True)
    free = len(fit.free)
    enough = [k for k in range(2, len(rungs) - 1) if (place <= k).sum() >= free + 1]
    if len(enough) > origins:
        half = [k for k in enough if (place <= k).sum() >= 0.5 * fit.n] or enough
        enough = [
            half[i]
            for i in np.unique(np.linspace(0, len(half) - 1, origins + 2).round().astype(int))[:-1]
        ]
        enough = enough[:origins]
    score = Score()
    for k in enough:
        try:
            part = fit.refit(
                [fit.data.rows[i] for i in np.flatnonzero(place <= k)], bootstrap=bootstrap
            )
            found = _predictions(part, fit.data, np.flatnonzero(place > k), fit.y, fit.x)
        except ValueError:
            continue  # this origin cannot carry the law: the next, with more rows, may
        score.origins += 1
        score.predictions += found
    if not score.predictions:
        score.reason = (
            f"none possible, {len(rungs)} rungs of {fit.n} rows are too few for {free} parameters"
        )
    return score


def holdout(fit: fits.Fit, rows: table.Rows, where: table.Where = None) -> Score:
    """Errors of a fit, and coverage of its intervals, on rows that it has not seen.

    `where` chooses rows as in the laws. The score holds mean, worst, coverage and predictions.
    """
    columns = [fit.columns[letter] for letter in fit.inputs]
    output = fit.columns[fit.output]
    data = table.read(rows, [*columns, output], None, where)
    score = Score(origins=1)
    score.predictions = _predictions(
        fit, data, np.arange(len(data)), data.columns[output], [data.columns[k] for k in columns]
    )
    return score


def _predictions(fit, data, index, measured, inputs) -> list[dict[str, Any]]:
    found = fit.predict(*[x[index] for x in inputs])
    actual = measured[index] if fit.link is None else fit.link(measured[index])
    return [
        {
            "trained_on": fit.n,
            "name": data.names[i],
            "value": float(value),
            "lo": float(lo),
            "hi": float(hi),
            "measured": float(y),
            "error": float(value / y - 1),
        }
        for i, value, lo, hi, y in zip(index, found.value, found.lo, found.hi, actual, strict=True)
    ]


@dataclass
class Comparison:
    """Rows of a table, one a fit; `print` shows it."""

    rows: list[dict[str, Any]]
    found: dict[str, fits.Fit] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.rows:
            return "nothing to compare"
        keys = list(dict.fromkeys(key for row in self.rows for key in row))
        cells = [
            [str(k) for k in keys],
            *[[_cell(row.get(k, "")) for k in keys] for row in self.rows],
        ]
        widths = [max(len(line[i]) for line in cells) for i in range(len(keys))]
        return "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
            for line in cells
        )


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(f"{v:.4g}" for v in value) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def compare(
    candidates: Mapping[str, fits.Fit] | Sequence[fits.Fit], by: str | None = None
) -> Comparison:
    """Forms of a law, best first by mean error on held-out larger rungs (see `backtest`).

    The error of a fit on its own rows ranks nothing. A form without a back-test comes last.
    """
    if not isinstance(candidates, Mapping):
        candidates = {f"{fit.law} {i}": fit for i, fit in enumerate(candidates)}
    rows = []
    for name, fit in candidates.items():
        score = fit.score if by is None and fit.score is not None else backtest(fit, by)
        rows.append(
            {
                "form": name,
                "parameters": len(fit.free),
                "n": fit.n,
                "fit error": fit.mare,
                "held-out error": score.mean,
                "worst": score.worst,
                "coverage": score.coverage,
            }
        )
    rows.sort(
        key=lambda row: row["held-out error"] if np.isfinite(row["held-out error"]) else np.inf
    )
    return Comparison(rows, dict(candidates))


def conventions(
    law: Callable[..., fits.Fit], rows: table.Rows, by: str | None = None, **choices: Any
) -> Comparison:
    """The same law under several conventions: which N, which C, which loss. One line a convention.

    Every keyword whose value is a list is varied, all others are passed on:
    `conventions(laws.isoflop, rows, x=["params.total", "params.non_embedding"], c="flops",
    y="eval.loss")`. `by` names a column that already holds the convention (one set of rows a
    value).
    """
    rows = list(rows)
    varied = {k: v for k, v in choices.items() if isinstance(v, list)}
    steady = {k: v for k, v in choices.items() if k not in varied}
    groups = {"": rows}
    if by is not None:
        groups = {
            str(value): [r for r in rows if r.get(by) == value]
            for value in dict.fromkeys(r.get(by) for r in rows)
        }
    lines, found = [], {}
    for value, chosen in groups.items():
        for point in product(*varied.values()):
            label = {
                **({by: value} if by else {}),
                **dict(zip(varied, map(str, point), strict=True)),
            }
            fit = law(chosen, **steady, **dict(zip(varied, point, strict=True)))
            found[", ".join(label.values())] = fit
            line: dict[str, Any] = dict(label)
            for name, number in {**fit.params, **fit.derived}.items():
                line[name] = number
                if name in fit.ensemble:
                    line[f"{name} 95%"] = fit.interval(name)
            lines.append({**line, "n": fit.n})
    return Comparison(lines, found)
