"""Measure the coverage, width and score of prediction intervals, on simulated and real sweeps.

    uv run python -m experiments.benchmarks.law_coverage --sweeps=1000 --kind=simulated
    uv run python -m experiments.benchmarks.law_coverage --kind=real
    uv run python -m experiments.benchmarks.law_coverage --kind=bound

Each table compares three 95% intervals: the interval that assumes the form of the law, the default
interval, which includes uncertainty about the form, and a reference, the union of the intervals of
three windows (all rows, and the rows without the one or two smallest sizes, or the smallest quarter
and half of many rows). The interval score is the width plus 2 / 0.05 times the distance of the
measurement outside (Gneiting and Raftery 2007). Half-widths, scores and bias are in percent of the
measurement. Real sweeps predict expensive runs from cheap ones.

Results of 2026-11-29, numpy 2.4.6, scipy 1.17.1, with --sweeps=1000. Coverage in percent and width
relative to the interval that assumes the form, at 2, 4, 10 and 30 times the largest size:

    true form           form assumed        form included       relative width
    right form          95, 96, 94, 94      96, 98, 97, 98      1.17, 1.41, 1.69, 1.94
    fixed tokens        95, 95, 94, 94      97, 98, 98, 98      1.16, 1.39, 1.67, 1.93
    20 tokens per N     95, 95, 94, 94      96, 97, 96, 97      1.19, 1.43, 1.64, 1.80
    capped at 5th size  100, 100, 100, 100  100, 100, 100, 100  1.13, 1.28, 1.48, 1.72
    capped at 6th size  97, 74, 54, 47      100, 100, 100, 100  1.20, 1.43, 1.67, 1.91
    two powers          87, 62, 30, 10      95, 93, 89, 87      1.19, 1.45, 1.76, 2.06
    shifted power       99, 86, 49, 21      100, 99, 97, 94     1.18, 1.44, 1.73, 1.99
    steeper break       60, 10, 0, 0        96, 94, 94, 94      1.34, 1.74, 2.11, 2.43
    flatter break       78, 44, 11, 2       88, 74, 62, 54      1.15, 1.39, 1.69, 2.01

Real sweeps, 26 settings: coverage 80.7% if the form is assumed, 94.3% if its uncertainty is
included, 97.4% for the union; score 10.39, 8.99, 11.28; median half-width 3.03, 3.59, 4.24.
--kind=bound computes the smallest width that any method needs: 2.6 and 2.7 at 10x and 30x for the
flatter break, and 1.6 and 1.9 for a method that knows its direction. So none covers it at 1.3.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.common import cli, console, held_out_runs

_SWEEPS = flags.DEFINE_integer("sweeps", 200, "number of simulated sweeps per case")
_NOISE = flags.DEFINE_float("noise", 0.003, "standard deviation of the log loss of simulated runs")
_KIND = flags.DEFINE_enum(
    "kind", "all", ["all", "simulated", "real", "bound"], "sweeps to use, or bound of the width"
)
_CASES = flags.DEFINE_list("cases", None, "names of simulated cases; default: all")
_UNION = flags.DEFINE_bool("union", True, "compute the union of three windows, which is slower")
_DATA = flags.DEFINE_string("data", "notebooks/data", "folder with published/ and real_ladder/")

RESAMPLES = 400
LEVEL = 0.95
SIZES = np.geomspace(1e7, 1e9, 7)
DISTANCES = (2.0, 4.0, 10.0, 30.0)  # of the target, relative to the largest fitted size
BINS = (2.0, 6.0, 20.0, float("inf"))  # of the distance in compute of a held-out real run
METHODS = ("form assumed", "form included", "union of windows")
N_BOUND_SAMPLES = 500_000


def chinchilla_loss(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Return a loss with the exponents of Hoffmann et al. 2022."""
    return 1.69 + 406 * n**-0.34 + 410 * d**-0.28


CASES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "right form": lambda n: 1.8 + 400 * n**-0.34,
    "fixed tokens": lambda n: chinchilla_loss(n, np.full_like(n, 2e10)),
    "20 tokens per parameter": lambda n: chinchilla_loss(n, 20 * n),
    "tokens capped at the 5th size": lambda n: chinchilla_loss(n, 20 * np.minimum(n, SIZES[4])),
    "tokens capped at the 6th size": lambda n: chinchilla_loss(n, 20 * np.minimum(n, SIZES[5])),
    "two powers": lambda n: 1.5 + 40 * n**-0.2 + 3e4 * n**-0.65,
    "shifted power": lambda n: 1.8 + 400 * (n + 2e7) ** -0.34,
    "steeper break": lambda n: 1.5 + 120 * n**-0.25 * (1 + (n / 1e8) ** 2) ** -0.075,
    "flatter break": lambda n: 1.5 + 400 * n**-0.34 * (1 + (n / 1e8) ** 2) ** 0.06,
}


def main() -> int:
    """Print a table per simulated case, and the tables of the real sweeps."""
    if _KIND.value == "bound":
        for name in _CASES.value or ("two powers", "flatter break"):
            print(f"\n{name}, noise {_NOISE.value:.2%}: smallest relative width with the target")
            console.table(bound_widths(CASES[name], _NOISE.value))
        return 0
    if _KIND.value != "real":
        for name in _CASES.value or CASES:
            print(f"\n{name}, noise {_NOISE.value:.2%}, {_SWEEPS.value} sweeps")
            console.table(simulate_case(CASES[name], _SWEEPS.value, _NOISE.value))
    if _KIND.value != "simulated":
        tables = measure_real_sweeps(
            list(held_out_runs.read_settings(Path(_DATA.value), RESAMPLES))
        )
        titles = (
            "coverage / half-width / score of each setting",
            "pooled over settings of equal weight",
            "held-out runs by distance in compute from the largest fitted run",
        )
        for title, table in zip(titles, tables, strict=True):
            print(f"\nreal sweeps: {title}")
            console.table(table)
    return 0


def simulate_case(
    loss: Callable[[np.ndarray], np.ndarray], n_sweeps: int, noise: float
) -> list[dict]:
    """Return a row per method and distance for sweeps of seven sizes with the given loss."""
    from lm.laws.forms import power_laws

    targets = SIZES[-1] * np.array(DISTANCES)
    measures: dict[str, list] = {method: [] for method in METHODS[: 2 + _UNION.value]}
    errors = []
    for seed in range(n_sweeps):
        rng = np.random.default_rng(seed)
        losses = loss(SIZES) * np.exp(noise * rng.standard_normal(len(SIZES)))
        measured = loss(targets) * np.exp(noise * rng.standard_normal(len(targets)))
        rows = [
            {"name": f"run {i}", "params": n, "loss": y}
            for i, (n, y) in enumerate(zip(SIZES, losses, strict=True))
        ]
        fit = power_laws.power(rows, x="params", y="loss", bootstrap=RESAMPLES, seed=seed)
        value, bounds = _intervals(fit, [targets])
        errors.append(100 * (value / measured - 1))
        for method, (lo, hi) in bounds.items():
            measures[method].append(_measure(lo, hi, measured))
    bias = np.mean(errors, axis=0)
    means = {method: np.mean(values, axis=0) for method, values in measures.items()}
    return [
        {
            "interval": method,
            "distance": f"{distance:g}x",
            **_format_measures(coverage, half_width, score),
            "relative width": f"{half_width / means[METHODS[0]][1, k]:.2f}",
            "bias": f"{bias[k]:+.2f}",
        }
        for method in means
        for k, (distance, coverage, half_width, score) in enumerate(
            zip(DISTANCES, *means[method], strict=True)
        )
    ]


def _format_measures(coverage: float, half_width: float, score: float) -> dict[str, str]:
    """Return the columns of a table for the measures of an interval."""
    return {
        "coverage": f"{coverage:.1%}",
        "half-width": f"{half_width:.2f}",
        "score": f"{score:.2f}",
    }


def bound_widths(loss: Callable[[np.ndarray], np.ndarray], noise: float) -> list[dict]:
    """Return the smallest widths of intervals that cover the form and one known alternative.

    Each interval covers the form and the alternative in 90%, at 30x in 85%. Widths are means if the
    form is right, relative to the interval that assumes the form, for fits that are linear in the
    parameters. If the direction is unknown, the alternative is `loss` or its mirror image. Methods
    without this knowledge need wider intervals.
    """
    from lm.laws import diagnostics
    from lm.laws.forms import power_laws

    targets = SIZES[-1] * np.array(DISTANCES)
    rows = [{"name": f"{n}", "params": n, "loss": loss(n)} for n in SIZES]
    fit = power_laws.power(rows, x="params", y="loss", bootstrap=0)
    _, (jacobian, at_targets) = diagnostics.parameter_jacobian(fit, fit.x, [targets])
    errors = np.linalg.norm(at_targets @ np.linalg.pinv(jacobian), axis=1)
    biases = np.log(fit.predict(targets).value / loss(targets)) / noise / np.hypot(1, errors)
    bend = float(np.linalg.norm(diagnostics.residuals(fit, fit.y))) / noise
    n_spare = len(SIZES) - jacobian.shape[1]
    return [
        {
            "distance": f"{distance:g}x",
            "bias / standard error": f"{bias:.1f}",
            "bend of the rows / noise": f"{bend:.1f}",
            "direction known": f"{_bound_width(n_spare, bend, bias, coverage, False):.2f}",
            "direction unknown": f"{_bound_width(n_spare, bend, bias, coverage, True):.2f}",
        }
        for distance, bias, coverage in zip(DISTANCES, biases, (0.9, 0.9, 0.9, 0.85), strict=True)
    ]


def _bound_width(n_spare: int, bend: float, bias: float, target: float, is_mirrored: bool) -> float:
    """Return the smallest relative width for one alternative.

    The residuals have n_spare components of variance 1. The alternative adds `bend` to the first
    and -bias to the error of the prediction. A scale-free interval is |residuals| [lo(t), hi(t)],
    with t = first component / |residuals|. With Lagrange multipliers for both coverages, [lo, hi]
    maximizes the weighted coverage minus the width at each t.
    """
    from scipy import stats

    rng = np.random.default_rng(0)
    grid = np.linspace(-1.5 * bias - 3, 1.5 * bias + 3, 241)
    bins = [np.linspace(-1, 1, 25), np.concatenate([[-np.inf], grid, [np.inf]])]
    densities = []
    for first, error in ((0.0, 0.0), (bend, -bias)):
        z = rng.standard_normal((N_BOUND_SAMPLES, n_spare + 1)) + [
            first,
            *[0.0] * (n_spare - 1),
            error,
        ]
        length = np.linalg.norm(z[:, :-1], axis=1)
        counts = np.histogram2d(z[:, 0] / length, z[:, -1] / length, bins)[0]
        densities.append(counts / N_BOUND_SAMPLES)
    densities.append(densities[1][::-1, ::-1] if is_mirrored else densities[1])
    below = np.cumsum(densities, axis=2)[:, :, :-1]
    lo, hi = np.triu_indices(len(grid))
    covered = below[:, :, hi] - below[:, :, lo]  # [law, t, interval]
    width = densities[0].sum(1)[:, None] * (grid[hi] - grid[lo])
    best = np.inf
    for weight in np.geomspace(3, 300, 8):
        lowest, highest = 1e-2, 1e4
        for _ in range(12):
            middle = np.sqrt(lowest * highest)
            value = weight * covered[0] + middle * (covered[1] + covered[2]) - width
            chosen = np.arange(len(value)), value.argmax(1)
            coverages = [float(part[chosen].sum()) for part in covered]
            is_enough = min(coverages[1:]) >= target
            lowest, highest = (lowest, middle) if is_enough else (middle, highest)
            if is_enough and coverages[0] >= 0.9:
                best = min(best, float(width[chosen].sum()))
    return best / (2 * stats.t.ppf(0.5 + LEVEL / 2, n_spare) / np.sqrt(n_spare))


def _intervals(fit: Any, points: list[np.ndarray]) -> tuple[np.ndarray, dict[str, tuple]]:
    """Return the predicted values and {method: (lo, hi)} at the points."""
    predicted = fit.predict(*points)
    bounds = {
        METHODS[0]: (predicted.lo_if_form_right, predicted.hi_if_form_right),
        METHODS[1]: (predicted.lo, predicted.hi),
    }
    if _UNION.value:
        bounds[METHODS[2]] = _union_of_windows(fit, points, bounds[METHODS[0]])
    return predicted.value, bounds


def _union_of_windows(
    fit: Any, points: list[np.ndarray], bounds: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest lower and the largest upper bound of three windows of rows.

    bounds: those of the window of all rows.
    """
    order = np.argsort(np.prod(np.stack(fit.x), axis=0))
    lows, highs = [bounds[0]], [bounds[1]]
    for n in (1, 2) if fit.n <= 10 else (fit.n // 4, fit.n // 2):
        try:
            window = fit.refit([fit.data.rows[i] for i in order[n:]], bootstrap=RESAMPLES)
        except ValueError:
            continue  # The window does not determine the law.
        predicted = window.predict(*points)
        lows.append(predicted.lo_if_form_right)
        highs.append(predicted.hi_if_form_right)
    return np.nanmin(lows, axis=0), np.nanmax(highs, axis=0)


def _measure(lo: np.ndarray, hi: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Return coverage, half-width in percent, and interval score in percent, [3, points]."""
    missed = np.maximum(lo - measured, 0) + np.maximum(measured - hi, 0)
    score = hi - lo + 2 / (1 - LEVEL) * missed
    is_inside = (lo <= measured) & (measured <= hi)
    return np.stack([is_inside, 50 * (hi - lo) / measured, 100 * score / measured])


def measure_real_sweeps(settings: list[held_out_runs.Setting]) -> tuple[list[dict], ...]:
    """Return tables of the settings, of the means over settings, and by distance in compute."""
    lines: list[dict] = []
    measures: dict[str, list[np.ndarray]] = {method: [] for method in METHODS[: 2 + _UNION.value]}
    distances: list[np.ndarray] = []
    for setting in settings:
        fit = setting.fit_law(setting.fitted)
        columns = [fit.columns[letter] for letter in fit.inputs]
        points = [np.array([row[column] for row in setting.held_out]) for column in columns]
        measured = np.array([row[fit.columns[fit.output]] for row in setting.held_out])
        value, bounds = _intervals(fit, points)
        size, fitted_size = (np.prod(np.stack(inputs), axis=0) for inputs in (points, fit.x))
        distances.append(np.maximum(size / fitted_size.max(), 1.0))
        line = {
            "sweep": setting.sweep,
            "fitted": f"{setting.split}: {fit.n}",
            "held out": len(measured),
            "distance": f"{np.median(distances[-1]):.1f}x",
            "bias": f"{100 * np.mean(value / measured - 1):+.1f}",
        }
        for method, (lo, hi) in bounds.items():
            measures[method].append(_measure(lo, hi, measured))
            coverage, half_width, score = measures[method][-1].mean(1)
            line[method] = f"{coverage:.0%} / {half_width:.1f} / {score:.1f}"
        lines.append(line)
    return lines, _pool_settings(measures), _pool_runs(measures, np.concatenate(distances))


def _pool_settings(measures: dict[str, list[np.ndarray]]) -> list[dict]:
    """Return a row per method with the means over settings."""
    pooled = []
    for method, parts in measures.items():
        by_setting = np.stack([part.mean(1) for part in parts])
        coverage, half_width, score = by_setting.mean(0)
        pooled.append(
            {
                "interval": method,
                "settings": len(parts),
                **_format_measures(coverage, half_width, score),
                "coverage below 80%": int((by_setting[:, 0] < 0.8).sum()),
                "median half-width": f"{np.median(by_setting[:, 1]):.2f}",
            }
        )
    return pooled


def _pool_runs(measures: dict[str, list[np.ndarray]], distances: np.ndarray) -> list[dict]:
    """Return a row per method and bin of the distance with the means over held-out runs."""
    pooled = []
    for method, parts in measures.items():
        by_run = np.concatenate(parts, axis=1)
        for nearest, farthest in zip((0.0, *BINS[:-1]), BINS, strict=True):
            is_in_bin = (distances > nearest) & (distances <= farthest)
            pooled.append(
                {
                    "interval": method,
                    "distance": f"{max(nearest, 1):g}x to {farthest:g}x"
                    if np.isfinite(farthest)
                    else f"beyond {nearest:g}x",
                    "runs": int(is_in_bin.sum()),
                    **_format_measures(*by_run[:, is_in_bin].mean(1)),
                }
            )
    return pooled


if __name__ == "__main__":
    cli.run_main(main)
