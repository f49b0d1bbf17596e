"""Analysis of learning-rate transfer: best learning rate and activation scale against model shape.

    optima = lr_analysis.optimal_lr(records.load_runs("runs/lr_transfer"))
    lr_analysis.lr_exponents(optima, lr_analysis.WIDTH)    # exponents of the best rate with width
    rows = coordinate_check.measure_activations(run, batches, mesh)
    lr_analysis.activation_exponents(rows, "width")        # exponents of the activations

The learning rate is the config field optim.lr: the peak rate at the base shape. The parametrization
(model.parametrization, here also called rule) scales it for other shapes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lm.laws import run_table
from lm.runs import records

RATE, LOSS = "optim.lr", records.LOSS
RULE, WIDTH, DEPTH = "model.parametrization", "model.d_model", "model.n_layers"
GROUP_COLUMNS = (RULE, WIDTH, DEPTH)  # rows that are equal in these columns form a group
INTERVAL_LEVEL = 0.95


def share_base_shape(rows: Sequence[Mapping]) -> list[dict]:
    """Return the rows, with a copy of each run of the base shape for every parametrization.

    All parametrizations are equal at the base shape, where a sweep trains a single run for them.
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

    The two values are compared within runs that are equal in all other GROUP_COLUMNS.
    """
    others = [column for column in GROUP_COLUMNS if column != along]
    groups: dict[tuple, dict] = {}
    for row in rows:
        rates = groups.setdefault(tuple(row[column] for column in others), {})
        rates.setdefault(row[along], set()).add(row[RATE])
    return any(sum(len(group) > 2 for group in rates.values()) > 1 for rates in groups.values())


def optimal_lr(
    rows: Sequence[Mapping],
    by: Sequence[str] = GROUP_COLUMNS,
    y: str = LOSS,
    reach: float = 2.0,
    bootstrap: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """Fit the learning rate of least loss for each group of finished runs with equal columns `by`.

    Fit a parabola of log y in log2 of the rate, through the rates within `reach` doublings of the
    rate with the least mean loss. Each seed has its own intercept, because its initial weights and
    data change the loss at every rate. The interval comes from `bootstrap` resamples with normal
    noise, whose standard deviation is that of the residuals in all groups.

    Return a dict per group:

    the columns of `by`, "n_runs"
    "lr", "lo", "hi"     best rate and its interval. Without a minimum, "lr" is the rate with the
                         least mean loss, and "lo" and "hi" are NaN
    "loss"               loss at this rate
    "rate_range"         lowest and highest rate of the parabola
    "log2_lr_resamples"  array [bootstrap]
    "warning"            "" if the minimum is reliable
    """
    finished = [
        row for row in rows if row["status"] == "done" and np.isfinite(run_table.to_number(row[y]))
    ]
    groups: dict[tuple, list[Mapping]] = {}
    for row in finished:
        groups.setdefault(tuple(row[column] for column in by), []).append(row)
    optima = [_fit_parabola(groups[key], by, y, reach) for key in sorted(groups)]
    noise = _residual_sd(optima)
    rng = np.random.default_rng(seed)
    for optimum in optima:
        _add_interval(optimum, noise, bootstrap, rng)
    return optima


def _add_interval(optimum: dict, noise: float, bootstrap: int, rng: np.random.Generator) -> None:
    """Add the resamples, "lo" and "hi" to an optimum, and a warning if they are unreliable."""
    design, fitted = optimum.pop("design"), optimum.pop("fitted")
    residuals = optimum.pop("residuals")
    optimum["log2_lr_resamples"] = np.full(bootstrap, np.nan)
    if optimum["warning"]:
        return
    resamples = fitted + noise * rng.standard_normal((bootstrap, len(residuals)))
    *_, b, c = np.linalg.pinv(design) @ resamples.T
    low, high = np.log2(optimum["rate_range"])
    # A parabola that opens downward has its least value at one end of the range.
    edges = np.where(b + c * (low + high) > 0, low, high)
    vertex = -b / (2 * np.where(c > 0, c, 1.0))
    log2_lr = np.where(c > 0, np.clip(vertex, low, high), edges)
    optimum["log2_lr_resamples"] = log2_lr
    optimum["lo"], optimum["hi"] = (float(v) for v in 2 ** _interval(log2_lr))
    if not noise:
        optimum["warning"] = "the noise cannot be estimated from these runs: use more rates"
    elif optimum["lo"] <= optimum["rate_range"][0] or optimum["hi"] >= optimum["rate_range"][1]:
        optimum["warning"] = "the interval reaches the edge of the tested rates"


def lr_exponents(
    optima: Sequence[Mapping], along: str, by: Sequence[str] = GROUP_COLUMNS
) -> list[dict]:
    """Fit the exponent of the best learning rate against the column `along`.

    The exponent is the slope of log2 lr against log2 of the column. A constant best rate gives 0. A
    rate that halves when the column doubles gives -1. optima: result of `optimal_lr`. Optima with a
    warning are excluded. The others are weighted by their inverse variance. The interval comes from
    the resamples. It is wider if the optima scatter more than their own intervals explain.

    Return a dict for each combination of the other columns of `by` with at least two values of
    `along`. The dict has these columns, "along", "values" (of the used optima), "slope" with its
    interval "lo" and "hi", and "warnings". "slope" is NaN if fewer than two optima can be used.
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
    used = [optimum for optimum in optima if not optimum["warning"]]
    warnings = [f"{along}={o[along]}: {o['warning']}" for o in optima if o["warning"]]
    result = {"values": sorted(optimum[along] for optimum in used)}
    if len(used) < 2:
        warnings.append("a line needs two best rates")
        return result | {"slope": np.nan, "lo": np.nan, "hi": np.nan, "warnings": warnings}
    x = np.log2([run_table.to_number(optimum[along]) for optimum in used])
    resamples = np.stack([optimum["log2_lr_resamples"] for optimum in used], 1)
    rates = np.log2([optimum["lr"] for optimum in used])
    sd = np.maximum(resamples.std(0), 1e-6)
    weight = (1 / sd**2) / (1 / sd**2).sum()
    slope_weights = weight * (x - weight @ x) / (weight @ (x - weight @ x) ** 2)
    slope, mean_rate = float(slope_weights @ rates), float(weight @ rates)
    residuals = (rates - mean_rate - slope * (x - weight @ x)) / sd
    inflation = max(1.0, float(residuals @ residuals) / max(len(used) - 2, 1)) ** 0.5
    slopes = resamples @ slope_weights
    lo, hi = (float(v) for v in slope + inflation * _interval(slopes - slopes.mean()))
    if len(used) == 2:
        warnings.append("two shapes determine a line exactly and cannot test it")
    return result | {"slope": slope, "lo": lo, "hi": hi, "warnings": warnings}


def activation_exponents(rows: Sequence[Mapping], along: str) -> list[dict]:
    """Fit the exponents of activations against "width" or "depth".

    rows: result of coordinate_check.measure_activations. Return a dict per rule, step and part of
    the model: {"rule", "step", "part", "rms", "rms_se", "change", "change_se", "n"}. "rms" is the
    slope of the log scale against log `along`, and "change" that of the log change. Both are means
    over n seeds with standard errors. Errors are NaN for a single seed. Slopes are NaN if an
    activation does not change, as at step 0.
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


def _interval(values: np.ndarray) -> np.ndarray:
    """Return the bounds of the central INTERVAL_LEVEL of the values."""
    return np.quantile(values, [(1 - INTERVAL_LEVEL) / 2, (1 + INTERVAL_LEVEL) / 2])


def _fit_parabola(group: Sequence[Mapping], by: Sequence[str], y: str, reach: float) -> dict:
    """Fit the parabola of one group. Return its optimum without an interval, and the fit."""
    rates = sorted({run_table.to_number(row[RATE]) for row in group})
    means = [np.mean([row[y] for row in group if row[RATE] == rate]) for rate in rates]
    lowest = rates[int(np.argmin(means))]
    nearby = [row for row in group if abs(np.log2(row[RATE] / lowest)) <= reach + 1e-9]
    t, log_loss = np.log2([row[RATE] for row in nearby]), np.log([row[y] for row in nearby])
    seeds = sorted({row["seed"] for row in nearby})
    intercepts = [[float(row["seed"] == seed) for row in nearby] for seed in seeds]
    design = np.stack([*intercepts, t, t**2], 1)
    optimum = {column: group[0][column] for column in by} | {
        "n_runs": len(group),
        "lr": lowest,
        "lo": np.nan,
        "hi": np.nan,
        "loss": float(min(means)),
        "warning": "",
        "rate_range": (float(2 ** t.min()), float(2 ** t.max())),
        "design": design,
        "fitted": log_loss,
        "residuals": np.zeros_like(t),
    }
    if lowest in (rates[0], rates[-1]):
        side = "smallest" if lowest == rates[0] else "largest"
        return optimum | {"warning": f"the least loss is at the {side} rate, {lowest:g}"}
    coefficients = np.linalg.lstsq(design, log_loss, rcond=None)[0]
    fitted = design @ coefficients
    optimum |= {"fitted": fitted, "residuals": log_loss - fitted}
    a, (b, c) = float(coefficients[:-2].mean()), (float(v) for v in coefficients[-2:])
    if c <= 0 or not t.min() < -b / (2 * c) < t.max():
        return optimum | {"warning": "the parabola has no minimum within the tested rates"}
    return optimum | {"lr": float(2 ** (-b / (2 * c))), "loss": float(np.exp(a - b**2 / (4 * c)))}


def _residual_sd(optima: Sequence[Mapping]) -> float:
    """Return the standard deviation of log loss about the parabolas, 0 if it is unknown."""
    used = [optimum for optimum in optima if not optimum["warning"]]
    squares = sum(float(o["residuals"] @ o["residuals"]) for o in used)
    degrees = sum(max(o["design"].shape[0] - o["design"].shape[1], 0) for o in used)
    return float(np.sqrt(squares / degrees)) if degrees else 0.0
