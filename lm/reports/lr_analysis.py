"""Analysis of learning-rate transfer: best learning rate and activation scale against model shape.

    optima = lr_analysis.optimal_lr(records.load_runs("runs/lr_transfer"))  # a dict per
    parametrization and shape
    lr_analysis.lr_exponents(optima, "model.d_model")        # exponent of the best rate against
    width
    lr_analysis.activation_exponents(rows, "width")                 # activation exponents, of
    coordinate_check.measure_activations

The learning rate is the config field optim.lr, the rate at the base shape. The parametrization
scales it for other shapes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lm.laws import run_table
from lm.runs import records

RATE, LOSS = "optim.lr", records.LOSS
BY = ("model.parametrization", "model.d_model", "model.n_layers")
RULE, WIDTH, DEPTH = BY
LEVEL = 0.95  # level of the intervals


def share_base_shape(rows: Sequence[Mapping]) -> list[dict]:
    """Return the rows, with a copy of each run of the base shape for every parametrization.

    All parametrizations are equal at the base shape, so one run represents each of them.
    """
    is_base = [
        row[WIDTH] == row["model.base_width"] and row[DEPTH] == row["model.base_depth"]
        for row in rows
    ]
    pairs = list(zip(rows, is_base, strict=True))
    base_runs = {(row[RATE], row["seed"]): row for row, base in pairs if base}
    rules = sorted({row[RULE] for row in rows})
    copies = [dict(row) | {RULE: rule} for rule in rules for row in base_runs.values()]
    return [dict(row) for row, base in pairs if not base] + copies


def has_enough_rates(rows: Sequence[Mapping], along: str) -> bool:
    """Return True if at least two values of the column `along` have three learning rates each.

    The other columns of BY must be equal.
    """
    others = [column for column in BY if column != along]
    rates: dict[tuple, dict] = {}
    for row in rows:
        line = rates.setdefault(tuple(row[column] for column in others), {})
        line.setdefault(row[along], set()).add(row[RATE])
    return any(sum(len(values) > 2 for values in line.values()) > 1 for line in rates.values())


def optimal_lr(
    rows: Sequence[Mapping],
    by: Sequence[str] = BY,
    y: str = LOSS,
    reach: float = 2.0,
    bootstrap: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """Return the learning rate of least loss for each group of rows with equal columns `by`.

    Fit a parabola of log loss in log2 of the rate, through the rates within `reach` doublings of
    the rate with the least mean loss. Each seed has its own intercept, because its initial weights
    and data change the loss at every rate. The interval comes from resamples with noise, whose
    standard deviation is that of the residuals in all groups.

    A dict per group: the columns of `by`, "n" runs, "lr", "lo", "hi", "loss", "rates" (first and
    last of the parabola), "draws" (log2 lr of each resample) and "doubt" (a warning, or "" if the
    minimum is reliable).
    """
    finished = [
        row for row in rows if row["status"] == "done" and np.isfinite(run_table.to_number(row[y]))
    ]
    groups: dict[tuple, list[Mapping]] = {}
    for row in finished:
        groups.setdefault(tuple(row[column] for column in by), []).append(row)
    optima = [_parabola(groups[key], by, y, reach) for key in sorted(groups)]
    noise = _noise(optima)
    rng = np.random.default_rng(seed)
    for optimum in optima:
        _add_interval(optimum, noise, bootstrap, rng)
    return optima


def _add_interval(optimum: dict, noise: float, bootstrap: int, rng: np.random.Generator) -> None:
    """Add "draws", "lo" and "hi" to an optimum, and a warning if they are unreliable."""
    design, fitted = optimum.pop("design"), optimum.pop("fitted")
    residuals = optimum.pop("residuals")
    optimum["draws"] = np.full(bootstrap, np.nan)
    if optimum["doubt"]:
        return
    resamples = fitted + noise * rng.standard_normal((bootstrap, len(residuals)))
    *_, b, c = np.linalg.pinv(design) @ resamples.T
    low, high = np.log2(optimum["rates"])
    # A parabola that opens downward has its least value at one end of the range.
    edges = np.where(b + c * (low + high) > 0, low, high)
    vertex = -b / (2 * np.where(c > 0, c, 1.0))
    optimum["draws"] = np.where(c > 0, np.clip(vertex, low, high), edges)
    optimum["lo"], optimum["hi"] = (float(v) for v in 2 ** _quantiles(optimum["draws"]))
    if not noise:
        optimum["doubt"] = "the noise cannot be estimated from these runs: use more rates"
    elif optimum["lo"] <= optimum["rates"][0] or optimum["hi"] >= optimum["rates"][1]:
        optimum["doubt"] = "the interval reaches the edge of the tested rates"


def lr_exponents(optima: Sequence[Mapping], along: str, by: Sequence[str] = BY) -> list[dict]:
    """Return the exponent of the best learning rate against a column, with fixed other columns.

    The exponent is the slope of log2 lr* against log2 of the column: 0 if the best rate is
    constant, -1 if it halves per doubling. optima: result of `best`. Optima with a warning are
    excluded, the others are weighted by their inverse variance. The interval comes from the
    resamples and is widened if the optima scatter more than their intervals explain.

    A dict per line of at least two values: the other columns, "along", "values", "slope", "lo",
    "hi" and "doubts" (warnings).
    """
    others = [column for column in by if column != along]
    lines: dict[tuple, list[Mapping]] = {}
    for optimum in optima:
        lines.setdefault(tuple(optimum[column] for column in others), []).append(optimum)
    exponents = []
    for key in sorted(lines):
        if len({optimum[along] for optimum in lines[key]}) >= 2:
            columns = dict(zip(others, key, strict=True)) | {"along": along}
            exponents.append(columns | _exponent(lines[key], along))
    return exponents


def _exponent(optima: Sequence[Mapping], along: str) -> dict:
    """Return the weighted slope of log2 lr against log2 of the column, with its interval."""
    used = [optimum for optimum in optima if not optimum["doubt"]]
    doubts = [f"{along}={o[along]}: {o['doubt']}" for o in optima if o["doubt"]]
    result = {"values": sorted(optimum[along] for optimum in used)}
    if len(used) < 2:
        doubts.append("a line needs two best rates")
        return result | {"slope": np.nan, "lo": np.nan, "hi": np.nan, "doubts": doubts}
    x = np.log2([run_table.to_number(optimum[along]) for optimum in used])
    draws = np.stack([optimum["draws"] for optimum in used], 1)
    rates = np.log2([optimum["lr"] for optimum in used])
    sd = np.maximum(draws.std(0), 1e-6)
    weight = (1 / sd**2) / (1 / sd**2).sum()
    slope_weights = weight * (x - weight @ x) / (weight @ (x - weight @ x) ** 2)
    slope, mean_rate = float(slope_weights @ rates), float(weight @ rates)
    residuals = (rates - mean_rate - slope * (x - weight @ x)) / sd
    inflation = max(1.0, float(residuals @ residuals) / max(len(used) - 2, 1)) ** 0.5
    slopes = draws @ slope_weights
    lo, hi = (float(v) for v in slope + inflation * _quantiles(slopes - slopes.mean()))
    if len(used) == 2:
        doubts.append("a line through two shapes has no check")
    return result | {"slope": slope, "lo": lo, "hi": hi, "doubts": doubts}


def activation_exponents(rows: Sequence[Mapping], along: str) -> list[dict]:
    """Return exponents of activations against "width" or "depth", per rule, step and part.

    {"rule", "step", "part", "rms", "rms_se", "change", "change_se", "n"}: slopes of log scale
    against log `along`, means over n seeds with their standard errors. Errors are NaN for one seed,
    and exponents are NaN if an activation does not change, as at step 0.
    """
    exponents = []
    keys = {(row["rule"], row["step"], row["part"]) for row in rows}
    for rule, step, part in sorted(keys, key=str):
        subset = [r for r in rows if (r["rule"], r["step"], r["part"]) == (rule, step, part)]
        seeds = {row["seed"] for row in subset}
        exponent = {"rule": rule, "step": step, "part": part, "n": len(seeds)}
        for quantity in ("rms", "change"):
            slopes = [
                _slope([row for row in subset if row["seed"] == seed], along, quantity)
                for seed in seeds
            ]
            exponent[quantity] = float(np.mean(slopes))
            exponent[f"{quantity}_se"] = np.nan
            if len(slopes) > 1:
                error = np.std(slopes, ddof=1) / len(slopes) ** 0.5
                exponent[f"{quantity}_se"] = float(error)
        exponents.append(exponent)
    return exponents


def _slope(rows: Sequence[Mapping], x: str, y: str) -> float:
    """Return the slope of log y against log x, NaN if a value of y is not positive."""
    if min(row[y] for row in rows) <= 0:
        return np.nan
    logs = np.log([row[x] for row in rows]), np.log([row[y] for row in rows])
    return float(np.polyfit(*logs, 1)[0])


def _quantiles(draws: np.ndarray) -> np.ndarray:
    return np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])


def _parabola(group: Sequence[Mapping], by: Sequence[str], y: str, reach: float) -> dict:
    """Fit the parabola of one group. Return the optimum without an interval."""
    rates = sorted({run_table.to_number(row[RATE]) for row in group})
    means = [np.mean([row[y] for row in group if row[RATE] == rate]) for rate in rates]
    lowest = rates[int(np.argmin(means))]
    near = [row for row in group if abs(np.log2(row[RATE] / lowest)) <= reach + 1e-9]
    t, log_loss = np.log2([row[RATE] for row in near]), np.log([row[y] for row in near])
    seeds = sorted({row["seed"] for row in near})
    intercepts = [[float(row["seed"] == seed) for row in near] for seed in seeds]
    design = np.stack([*intercepts, t, t**2], 1)
    optimum = {column: group[0][column] for column in by} | {
        "n": len(group),
        "lr": lowest,
        "lo": np.nan,
        "hi": np.nan,
        "loss": float(min(means)),
        "doubt": "",
        "rates": (float(2 ** t.min()), float(2 ** t.max())),
        "design": design,
        "fitted": log_loss,
        "residuals": np.zeros_like(t),
    }
    if lowest in (rates[0], rates[-1]):
        side = "smallest" if lowest == rates[0] else "largest"
        return optimum | {"doubt": f"the least loss is at the {side} rate, {lowest:g}"}
    coefficients = np.linalg.lstsq(design, log_loss, rcond=None)[0]
    fitted = design @ coefficients
    optimum |= {"fitted": fitted, "residuals": log_loss - fitted}
    a, (b, c) = float(coefficients[:-2].mean()), (float(v) for v in coefficients[-2:])
    if c <= 0 or not t.min() < -b / (2 * c) < t.max():
        return optimum | {"doubt": "the parabola has no minimum within the tested rates"}
    return optimum | {"lr": float(2 ** (-b / (2 * c))), "loss": float(np.exp(a - b**2 / (4 * c)))}


def _noise(optima: Sequence[Mapping]) -> float:
    """Return the standard deviation of log loss about the parabolas, 0 if it is unknown."""
    used = [optimum for optimum in optima if not optimum["doubt"]]
    squares = sum(float(o["residuals"] @ o["residuals"]) for o in used)
    degrees = sum(max(o["design"].shape[0] - o["design"].shape[1], 0) for o in used)
    return float(np.sqrt(squares / degrees)) if degrees else 0.0
