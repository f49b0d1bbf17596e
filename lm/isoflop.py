"""IsoFLOP minima, approach 2: the best size of each budget, and how it grows with the budget.

Legend: C budget in FLOPs, N parameters, D tokens, x whichever of N and D is varied, x* its best
value.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm import fit, lines, minima, table


def isoflop(
    rows: table.Rows,
    x: str = "params.non_embedding",
    y: str = "eval.loss",
    c: str = "flops",
    method: str = "parabola",
    budgets: Sequence[float] | None = None,
    tolerance: float = 0.1,
    nearest: int | None = None,
    log_loss: bool | None = None,
    edges: str = "drop",
    points: int = 25,
    noise: float | None = None,
    median: bool = False,
    weighted: bool = False,
    where: table.Where = None,
    bootstrap: int = 1000,
    resample: str = "noise",
    seed: int = 0,
    reach: float = 10.0,
) -> fit.Fit:
    """x* = k C^exponent: the best x (parameters or tokens) of each budget, a line in logs.

    Rows belong to a budget when their `c` is within `tolerance` of it; `budgets` lists them, else
    equal values of `c` make one. Per budget, method="parabola" fits L by least squares as a
    parabola in log x (of the `nearest` runs around the best one, if given) and takes its vertex;
    method="akima" interpolates log L in log x (the lowest of repeated x) and takes the lowest of
    `points` grid points per gap (Porian et al. 2024, arXiv:2406.19146). log_loss says whether log L
    is used; by default for akima only. A budget is left out, and named in `excluded`, with fewer
    than three sizes, with a parabola that opens down, or with x* outside the sampled range
    (edges="keep" keeps those outside).

    The ensemble adds noise to each budget's runs (pooled residual scale, or `noise` in units of the
    loss, which akima needs unless parabolas can tell it) or draws runs within a budget
    (resample="runs"), and is widened where the x* scatter about the line more than that explains.
    median=True takes each x* as the median of its draws, weighted=True weights budgets by 1 /
    var(log x*). Parameters: exponent, k; derived log10_k. extra["budgets"] has a dict a budget:
    budget, n, x, loss, opens_up, inside, used, reason, sd, and its parabola c0 + c1 t + c2 t^2 as
    coefficients, with t = log x - middle. Approach 2 is biased unless the two exponents of the loss
    are equal and the grid is centred: prefer `chinchilla` where both can be had. Raises ValueError
    with under two budgets.
    """
    if (
        method not in ("parabola", "akima")
        or edges not in ("drop", "keep")
        or resample not in ("noise", "runs")
    ):
        raise ValueError(
            f"method={method!r}, edges={edges!r}, resample={resample!r}: known are parabola, "
            "akima; drop, keep; noise, runs"
        )
    data = table.read(rows, [x, c, y], None, where)
    in_log = method == "akima" if log_loss is None else log_loss
    found, excluded = [], list(data.excluded)
    for budget, index in _budgets(data.columns[c], budgets, tolerance):
        part = data.take(index)
        found.append(
            minima.minimum(
                budget, part.columns[x], part.columns[y], method, nearest, in_log, points
            )
        )
    if budgets is not None:
        taken = {
            int(i) for _, index in _budgets(data.columns[c], budgets, tolerance) for i in index
        }
        excluded += [
            (name, f"{c} is at no budget") for i, name in enumerate(data.names) if i not in taken
        ]
    rng = np.random.default_rng((seed, 2))
    scale = minima.pooled_noise(found) if noise is None else noise
    for one in found:
        one["stars"] = minima.resampled(
            one, scale, noise is not None, in_log, points, resample, bootstrap, rng
        )
        one["sd"] = (
            float(np.std(np.log(stars)))
            if len(stars := one["stars"][np.isfinite(one["stars"]) & (one["stars"] > 0)]) > 1
            else float("nan")
        )
        if median and np.isfinite(one["stars"]).any():
            one["x"] = float(np.nanmedian(one["stars"]))
        one["used"] = not one["reason"] or (
            edges == "keep" and one["opens_up"] and np.isfinite(one["x"])
        )
        if not one["used"]:
            excluded.insert(0, (f"{one['budget']:.4g} FLOPs", one["reason"]))
    used = [one for one in found if one["used"]]
    if len(used) < 2:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in excluded[:4])
        raise ValueError(
            f"only {len(used)} budgets have a minimum inside their sizes, a line needs 2 "
            f"({reasons})"
        )
    optima = [
        {"name": f"{one['budget']:.4g}", c: one["budget"], x: one["x"], "weight": 1.0}
        for one in used
    ]
    if weighted:
        for row, one in zip(optima, used, strict=True):
            row["weight"] = 1 / max(one["sd"], 1e-6) ** 2
    weights = "weight" if weighted else None
    result = lines.loglog(
        optima,
        c,
        x,
        weights,
        bootstrap=bootstrap,
        resample="noise",
        seed=seed,
        reach=reach,
        law="isoflop",
    )
    result.data.excluded[:] = excluded
    result.columns["L"] = y
    keep = (
        "budget",
        "n",
        "x",
        "loss",
        "opens_up",
        "inside",
        "used",
        "reason",
        "sd",
        "coefficients",
        "middle",
    )
    result.extra["budgets"] = [{key: one.get(key) for key in keep} for one in found]
    result.extra["n_runs"] = len(data)
    if bootstrap:
        _widen(result, used, weighted)
    _influence(result)
    if len(used) == 2:
        result.warnings.append(
            "two budgets make a line without a check: its interval knows only the runs' noise"
        )
    if (n_groups := int(data.groups.max()) + 1) < len(data):
        result.warnings.append(
            f"{len(data)} rows have {n_groups} trunks or names: each budget is resampled on its "
            "own, so the interval leaves out what they share"
        )
    return result


def _budgets(
    c: np.ndarray, budgets: Sequence[float] | None, tolerance: float
) -> list[tuple[float, np.ndarray]]:
    """(budget, its rows), rising; without a list, values within the tolerance are one."""
    if budgets is None:
        order = np.argsort(c)
        cuts = np.flatnonzero(np.diff(c[order]) > tolerance * c[order][:-1]) + 1
        groups = np.split(order, cuts)
        return [(float(np.median(c[group])), np.sort(group)) for group in groups]
    levels = np.sort(np.asarray(budgets, float))
    near = np.abs(np.log(c[:, None] / levels)).argmin(1)
    fits_in = np.abs(c / levels[near] - 1) <= tolerance
    return [(float(level), np.flatnonzero((near == i) & fits_in)) for i, level in enumerate(levels)]


def _influence(result: fit.Fit) -> None:
    """The exponent without each budget in turn; one budget that carries it is named."""
    log_c, log_x = np.log(result.x[0]), np.log(result.y)
    if len(log_c) < 4:
        return
    without = {
        name: float(np.polyfit(np.delete(log_c, i), np.delete(log_x, i), 1)[0])
        for i, name in enumerate(result.data.names)
    }
    result.extra["without"] = without
    best = result.params["exponent"]
    name = max(without, key=lambda k: abs(without[k] - best))
    lo, hi = result.interval("exponent") if result.ensemble else (best, best)
    if abs(without[name] - best) > 0.25 * (hi - lo) > 0:
        result.warnings.append(
            f"one budget decides: without {name} FLOPs the exponent is {without[name]:.3f}, not "
            f"{best:.3f}"
        )


def _widen(result: fit.Fit, used: list[dict[str, Any]], weighted: bool) -> None:
    """Lines through the resampled minima, at least as wide as their scatter about the line says."""
    log_c = np.log(result.x[0])
    stars = np.log(np.stack([one["stars"] for one in used], 1))
    w = np.isfinite(stars) * (
        np.array([1 / max(one["sd"], 1e-6) ** 2 for one in used]) if weighted else 1.0
    )
    stars = np.nan_to_num(stars)
    good = (w > 0).sum(1) >= 2
    if good.mean() < 0.5:
        result.warnings.append(
            "fewer than half of the resamples have two minima inside: the interval is the line's "
            "own"
        )
        return
    stars, w = stars[good], w[good]
    middle, total = log_c.mean(), w.sum(1)
    at = log_c - middle
    mean_c, mean_s = (w * at).sum(1) / total, (w * stars).sum(1) / total
    spread = (w * (at - mean_c[:, None]) ** 2).sum(1)
    slope = (w * (at - mean_c[:, None]) * stars).sum(1) / np.maximum(spread, 1e-12)
    height = mean_s - slope * mean_c
    best = result.params["exponent"]
    level = np.log(result.params["k"]) + best * middle
    lines = result.ensemble.get("exponent")
    widen = 1.0 if lines is None else max(1.0, float(np.std(lines) / max(np.std(slope), 1e-12)))
    if np.std(slope) < 1e-12:
        return
    slope, height = (
        slope.mean() + widen * (slope - slope.mean()),
        height.mean() + widen * (height - height.mean()),
    )
    result.extra["shift"] = float(slope.mean() - best), float(height.mean() - level)
    log_k = height - slope * middle
    result.ensemble = {"exponent": slope, "k": np.exp(log_k), "log10_k": log_k / np.log(10)}
    result.sigmas = None
    result.resampling = f"{len(slope)} resamples of runs' noise" + (
        f", widened {widen:.2g} times to the scatter" if widen > 1 else ""
    )
