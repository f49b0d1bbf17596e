"""Measure the coverage, width and score of prediction intervals, on simulated and real sweeps.

    uv run python -m experiments.benchmarks.law_coverage --sweeps=1000 --kind=simulated
    uv run python -m experiments.benchmarks.law_coverage --kind=real

Each table compares three 95% intervals: the interval that assumes the form of the law, the default
interval, which includes uncertainty about the form, and a reference, the union of the intervals of
three windows (all rows, and the rows without the one or two smallest sizes, or the smallest quarter
and half of many rows). The interval score is the width plus 2 / 0.05 times the distance of the
measurement outside (Gneiting and Raftery 2007). Half-widths, scores and bias are in percent of the
measurement. Real sweeps predict expensive runs from cheap ones.
"""

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments.common import cli, console

_SWEEPS = flags.DEFINE_integer("sweeps", 200, "number of simulated sweeps per case")
_NOISE = flags.DEFINE_float("noise", 0.003, "standard deviation of the log loss of simulated runs")
_KIND = flags.DEFINE_enum("kind", "all", ["all", "simulated", "real"], "sweeps to use")
_CASES = flags.DEFINE_list("cases", None, "names of simulated cases; default: all")
_UNION = flags.DEFINE_bool("union", True, "compute the union of three windows, which is slower")
_DATA = flags.DEFINE_string("data", "notebooks/data", "folder with published/ and real_ladder/")

RESAMPLES = 400
LEVEL = 0.95
SIZES = np.geomspace(1e7, 1e9, 7)
DISTANCES = (2.0, 4.0, 10.0, 30.0)  # of the target, relative to the largest fitted size
BINS = (2.0, 6.0, 20.0, float("inf"))  # of the distance in compute of a held-out real run
METHODS = ("form assumed", "form included", "union of windows")
TASKS = ("mmlu_bpb", "hellaswag_bpb", "arc_challenge_bpb", "openbookqa_bpb")


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
    "broken, steeper": lambda n: 1.5 + 120 * n**-0.25 * (1 + (n / 1e8) ** 2) ** -0.075,
    "broken, flatter": lambda n: 1.5 + 400 * n**-0.34 * (1 + (n / 1e8) ** 2) ** 0.06,
}


class Setting(NamedTuple):
    """Real runs: a law, the fitted rows, and the held-out rows, more expensive than these."""

    sweep: str
    split: str
    fit_law: Callable[[list[dict]], Any]
    fitted: list[dict]
    held_out: list[dict]


def main() -> int:
    """Print a table per simulated case, and the tables of the real sweeps."""
    if _KIND.value != "real":
        for name in _CASES.value or CASES:
            print(f"\n{name}, noise {_NOISE.value:.2%}, {_SWEEPS.value} sweeps")
            console.table(simulate_case(CASES[name], _SWEEPS.value, _NOISE.value))
    if _KIND.value != "simulated":
        lines, pooled = measure_real_sweeps(list(real_settings(Path(_DATA.value))))
        print("\nreal sweeps: coverage / half-width / interval score of each setting")
        console.table(lines)
        console.table(pooled)
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
    lines = []
    for method, values in measures.items():
        means = np.mean(values, axis=0)
        for k, distance in enumerate(DISTANCES):
            lines.append(
                {
                    "interval": method,
                    "distance": f"{distance:g}x",
                    "coverage": f"{means[0, k]:.1%}",
                    "half-width": f"{means[1, k]:.2f}",
                    "score": f"{means[2, k]:.1f}",
                    "bias": f"{bias[k]:+.2f}",
                }
            )
    return lines


def _intervals(fit: Any, points: list[np.ndarray]) -> tuple[np.ndarray, dict[str, tuple]]:
    """Return the predicted values and {method: (lo, hi)} at the points."""
    predicted = fit.predict(*points)
    bounds = {
        METHODS[0]: (predicted.lo_if_form_right, predicted.hi_if_form_right),
        METHODS[1]: (predicted.lo, predicted.hi),
    }
    if _UNION.value:
        bounds[METHODS[2]] = _union_of_windows(fit, points)
    return predicted.value, bounds


def _union_of_windows(fit: Any, points: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest lower and the largest upper bound of three windows of rows."""
    order = np.argsort(np.prod(np.stack(fit.x), axis=0))
    n_dropped = (0, 1, 2) if fit.n <= 10 else (0, fit.n // 4, fit.n // 2)
    lows, highs = [], []
    for n in n_dropped:
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


def real_settings(data: Path) -> Iterator[Setting]:
    """Yield the splits of published sweeps into fitted and more expensive held-out runs."""
    import lm
    from lm.laws.forms import power_laws

    def joint_law(y: str) -> Callable[[list[dict]], Any]:
        columns = {"n": "params", "d": "tokens", "y": y}
        return lambda rows: power_laws.chinchilla(rows, **columns, bootstrap=RESAMPLES)

    def law_of(x: str) -> Callable[[list[dict]], Any]:
        return lambda rows: power_laws.power(rows, x=x, y="loss", bootstrap=RESAMPLES)

    runs = [row for row in _read_rows(data / "published/chinchilla-epoch.csv") if row["in_fit"]]
    for column, limits in (("flops", (3e19, 1e20, 3e20, 1e21)), ("params", (4.5e8, 1e9, 2.5e9))):
        for limit in limits:
            split = f"{column} < {limit:g}"
            yield _split("Chinchilla", split, joint_law("loss"), runs, column, limit)
    budgets = sorted({row["isoflop_budget"] for row in runs if row["isoflop_budget"] != ""})
    best = [
        min((r for r in runs if r["isoflop_budget"] == budget), key=lambda row: row["loss"])
        for budget in budgets
    ]
    best = [
        {"name": f"{b:g}", "flops": b, "loss": r["loss"]}
        for b, r in zip(budgets, best, strict=True)
    ]
    for n_fitted in (5, 6, 7):
        split = f"best of {n_fitted} budgets"
        yield Setting("Chinchilla", split, law_of("flops"), best[:n_fitted], best[n_fitted:])
    rows = _read_rows(data / "published/olmo-ladder.csv")
    ladder = [row for row in rows if row["split"] == "train" and row["is_final"]]
    targets = [row for row in rows if row["split"] == "target" and row["is_final"]]
    for y in ("c4_loss", *TASKS):
        law = joint_law(y)
        yield _split(f"OLMo {y}", "params < 1e9", law, [*ladder, *targets], "params", 1e9)
        yield Setting(f"OLMo {y}", "16 models", law, ladder, targets)
    branches = [row for row in lm.load_runs(data / "real_ladder") if row["status"] == "done"]
    for tokens in ("1.25M", "2.5M"):
        columns = {"params": "params.non_embedding", "loss": "eval.loss"}
        branch_rows = [
            {"name": row["name"]} | {k: float(row[c]) for k, c in columns.items()}
            for row in branches
            if row["name"].endswith(f"-{tokens}")
        ]
        for limit in (3e5, 8e5, 2e6):
            split = f"params < {limit:g}"
            yield _split(f"ladder {tokens}", split, law_of("params"), branch_rows, "params", limit)


def _split(
    sweep: str,
    split: str,
    fit_law: Callable[[list[dict]], Any],
    rows: list[dict],
    column: str,
    limit: float,
) -> Setting:
    """Return the setting that fits the rows below the limit of a column."""
    fitted = [row for row in rows if row[column] < limit]
    held_out = [row for row in rows if row[column] >= limit]
    return Setting(sweep, split, fit_law, fitted, held_out)


def _read_rows(path: Path) -> list[dict]:
    """Read a CSV file. Cells that are numbers become floats."""
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return [{key: _parse_cell(value) for key, value in row.items()} for row in rows]


def _parse_cell(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def measure_real_sweeps(settings: list[Setting]) -> tuple[list[dict], list[dict]]:
    """Return a table of the settings, and the pooled measures by distance in compute."""
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
    return lines, _pool(measures, distances)


def _pool(measures: dict[str, list[np.ndarray]], distances: list[np.ndarray]) -> list[dict]:
    """Return the means over settings, and over held-out runs by their distance in compute."""
    pooled = []
    all_distances = np.concatenate(distances)
    for method, parts in measures.items():
        by_setting = np.stack([part.mean(1) for part in parts])
        line = {
            "interval": method,
            "settings": len(parts),
            "coverage": f"{by_setting[:, 0].mean():.1%}",
            "below 80%": int((by_setting[:, 0] < 0.8).sum()),
            "median half-width": f"{np.median(by_setting[:, 1]):.2f}",
            "mean score": f"{by_setting[:, 2].mean():.2f}",
        }
        coverage, nearest = np.concatenate(parts, axis=1)[0], 0.0
        for farthest in BINS:
            is_in_bin = (all_distances > nearest) & (all_distances <= farthest)
            name = f"{nearest:g}x to {farthest:g}x" if np.isfinite(farthest) else "beyond"
            line[name] = f"{coverage[is_in_bin].mean():.0%} of {is_in_bin.sum()}"
            nearest = farthest
        pooled.append(line)
    return pooled


if __name__ == "__main__":
    cli.run_main(main)
