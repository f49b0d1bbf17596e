"""IsoFLOP law (approach 2): the best size of each budget, and its growth with the budget.

Legend: C budget in FLOPs, N parameters, D tokens, x the varied quantity (N or D), x* the best x.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import fit, option_validation, run_table
from lm.laws.forms import isoflop_minima, log_linear

OPTIONS = (
    *("method", "budgets", "tolerance", "nearest", "log_loss", "edges", "points", "noise"),
    *("median", "weighted", "where", "mixed", "bootstrap", "resample", "seed", "reach"),
)


MAX_WEIGHT = 4.0  # largest weight of a budget, in units of the median weight


@dataclass(kw_only=True)
class IsoflopFit(fit.Fit):
    """Line through the minima of the budgets of an isoFLOP sweep."""

    budgets: list[isoflop_minima.BudgetMinimum]  # all budgets, ascending
    n_sweep_runs: int  # runs of the sweep; n is the number of budgets on the line
    exponents_without: dict[str, float]  # exponent of the line without this budget
    bootstrap_shift: tuple[float, float] | None = None  # mean of the resamples - fit, in logs


def isoflop(
    rows: run_table.Rows,
    x: str = "params.non_embedding",
    y: str = "eval.loss",
    c: str = "flops",
    **options: Any,
) -> IsoflopFit:
    """Fit x* = k C^exponent: the best x (parameters or tokens) of each budget, a line in logs.

    c: column of the FLOPs. A row belongs to a budget of the list `budgets` if its `c` is within the
    fraction `tolerance` of the budget. Without `budgets`, rows with values of `c` within
    `tolerance` form a budget. method="parabola" fits L by a parabola in log x, by least squares,
    and uses its vertex. `nearest` limits that fit to a number of runs around the best.
    method="akima" interpolates log L in log x, with the lowest L of repeated x. It uses the lowest
    of `points` grid points per gap (Porian et al. 2024, arXiv:2406.19146). The default,
    method="auto", uses Akima for the budgets at which the parabola is biased, because L is not
    symmetric: see `isoflop_minima.is_asymmetric`. log_loss selects log L or L; the default is log L
    for method="akima" only. A budget is excluded if it has fewer than three
    sizes, or if its parabola opens down. A budget with x* outside its sizes is also excluded,
    unless edges="keep".

    The ensemble adds noise to the runs of each budget. Its scale is that of the pooled residuals,
    or `noise` in units of the loss. resample="runs" draws runs within a budget instead. The
    ensemble is widened if the x* scatter around the line more than the noise explains. median=True
    uses the median of the resamples as x*. weighted=True weights budgets by 1 / var(log x*), at
    most MAX_WEIGHT times the median weight, and warns if one budget has half of the weight.

    Parameters: exponent, k; derived: log10_k. fit.budgets has an `isoflop_minima.BudgetMinimum` per
    budget, with its method, its weight and its draws of x*. fit.ensemble has the lines. Other
    options: where, mixed, bootstrap, seed, reach. Approach 2 is biased unless the two exponents of
    the loss are equal and the sizes are centered: prefer `chinchilla` if both are possible. Raises
    ValueError if fewer than two budgets have a minimum.
    """
    parsed = fit.parse_options("isoflop", options, isoflop_minima.IsoflopOptions(), OPTIONS)
    option_validation.check_columns(x=x, y=y, c=c)
    option_validation.check_choice("resample", parsed.resample, ("noise", "runs"))
    data = run_table.select_columns(rows, [x, c, y], None, parsed.where, mixed=parsed.mixed)
    groups = _group_by_budget(data.columns[c], parsed)
    budgets = [
        isoflop_minima.fit_budget(budget, data.columns[x][index], data.columns[y][index], parsed)
        for budget, index in groups
    ]
    _resample(budgets, parsed)
    excluded = _list_exclusions(data, budgets, groups, c, parsed)
    used = _select_used(budgets, excluded)
    if parsed.weighted:
        _set_weights(used)
    line = _fit_line(used, c, x, parsed)
    line.data.excluded[:] = excluded
    line.columns["L"] = y
    result = line.extend(IsoflopFit, budgets=budgets, n_sweep_runs=len(data), exponents_without={})
    if parsed.bootstrap:
        _widen(result, used)
    _find_influential_budget(result)
    _add_warnings(result, data)
    return result


def _select_used(
    budgets: list[isoflop_minima.BudgetMinimum], excluded: list[tuple[str, str]]
) -> list[isoflop_minima.BudgetMinimum]:
    """Return the budgets of the line. Raises ValueError for fewer than two."""
    used = [budget for budget in budgets if budget.is_used]
    if len(used) < 2:
        if budgets and all(len(np.unique(budget.log_x)) < 2 for budget in budgets):
            raise ValueError(
                "a minimum needs several sizes at one budget of compute, and none of the"
                f" {len(budgets)} budgets has two"
            )
        reasons = "; ".join(f"{name}: {reason}" for name, reason in excluded[:4])
        raise ValueError(
            "a line needs 2 budgets with a minimum inside their sizes, and these runs have"
            f" {len(used)} ({reasons})"
        )
    return used


def _list_exclusions(
    data: run_table.RunTable,
    budgets: list[isoflop_minima.BudgetMinimum],
    groups: list[tuple[float, np.ndarray]],
    c: str,
    options: isoflop_minima.IsoflopOptions,
) -> list[tuple[str, str]]:
    """Return (name, reason) of the excluded budgets, the largest first, and of excluded rows."""
    excluded = [
        (f"{budget.budget:.4g} FLOPs", budget.reason)
        for budget in reversed(budgets)
        if not budget.is_used
    ]
    excluded += data.excluded
    if options.budgets is not None:
        grouped = {int(i) for _, index in groups for i in index}
        names = [name for i, name in enumerate(data.names) if i not in grouped]
        excluded += [(name, f"{c} is at no budget") for name in names]
    return excluded


def _group_by_budget(
    c: np.ndarray, options: isoflop_minima.IsoflopOptions
) -> list[tuple[float, np.ndarray]]:
    """Return (budget, indices of its rows), ascending."""
    if options.budgets is None:
        order = np.argsort(c)
        cuts = np.flatnonzero(np.diff(c[order]) > options.tolerance * c[order][:-1]) + 1
        groups = np.split(order, cuts)
        return [(float(np.median(c[group])), np.sort(group)) for group in groups]
    levels = np.sort(np.asarray(options.budgets, float))
    nearest = np.abs(np.log(c[:, None] / levels)).argmin(1)
    is_near = np.abs(c / levels[nearest] - 1) <= options.tolerance
    return [
        (float(level), np.flatnonzero((nearest == i) & is_near)) for i, level in enumerate(levels)
    ]


def _resample(
    budgets: list[isoflop_minima.BudgetMinimum], options: isoflop_minima.IsoflopOptions
) -> None:
    """Set the resampled minima of each budget, its standard deviation, and whether it is used."""
    rng = np.random.default_rng((options.seed, 2))
    scale = isoflop_minima.pooled_noise(budgets) if options.noise is None else options.noise
    for budget in budgets:
        budget.resampled_x = isoflop_minima.bootstrap_minimum(budget, scale, options, rng)
        is_valid = np.isfinite(budget.resampled_x) & (budget.resampled_x > 0)
        if is_valid.sum() > 1:
            budget.log_x_sd = float(np.std(np.log(budget.resampled_x[is_valid])))
        if options.median and np.isfinite(budget.resampled_x).any():
            budget.x = float(np.nanmedian(budget.resampled_x))
        is_usable_edge = options.edges == "keep" and budget.opens_up and np.isfinite(budget.x)
        budget.is_used = bool(not budget.reason or is_usable_edge)


def _set_weights(used: list[isoflop_minima.BudgetMinimum]) -> None:
    """Set the weights of the budgets: 1 / var(log x*), bounded and with median 1.

    Without a bound, a budget whose minimum has a small error by chance decides the line.
    """
    variances = np.array([budget.log_x_sd**2 for budget in used])
    known = variances[np.isfinite(variances) & (variances > 0)]
    if not len(known):
        return
    for budget, variance in zip(used, variances, strict=True):
        if not np.isfinite(variance):
            continue  # a budget without draws has the weight of the median budget
        budget.weight = float(min(np.median(known) / max(variance, 1e-300), MAX_WEIGHT))


def _fit_line(
    used: list[isoflop_minima.BudgetMinimum], c: str, x: str, options: isoflop_minima.IsoflopOptions
) -> fit.Fit:
    """Fit the line through the minima."""
    optima = [
        {
            "name": f"{budget.budget:.4g}",
            c: budget.budget,
            x: budget.x,
            "weight": budget.weight,
        }
        for budget in used
    ]
    line_options = fit.FitOptions(
        weights="weight" if options.weighted else None,
        bootstrap=options.bootstrap,
        resample="noise",
        seed=options.seed,
        reach=options.reach,
    )
    return log_linear.fit_line(optima, c, x, "isoflop", line_options)


def _find_influential_budget(result: IsoflopFit) -> None:
    """Set the exponents without each budget, and warn of a budget that determines the exponent."""
    log_c, log_x = np.log(result.x[0]), np.log(result.y)
    if len(log_c) < 4:
        return
    without = {
        name: float(np.polyfit(np.delete(log_c, i), np.delete(log_x, i), 1)[0])
        for i, name in enumerate(result.data.names)
    }
    result.exponents_without = without
    best = result.params["exponent"]
    name = max(without, key=lambda k: abs(without[k] - best))
    lo, hi = result.interval("exponent") if result.ensemble else (best, best)
    if abs(without[name] - best) > 0.25 * (hi - lo) > 0:
        result.warnings.append(
            f"one budget decides: without {name} FLOPs the exponent is {without[name]:.3f}, not "
            f"{best:.3f}"
        )


def _add_warnings(result: IsoflopFit, data: run_table.RunTable) -> None:
    if result.n == 2:
        result.warnings.append(
            "two budgets determine a line without residuals: its interval has only the noise of "
            "the runs"
        )
    total = sum(budget.weight for budget in result.budgets if budget.is_used)
    for budget in result.budgets:
        if budget.is_used and result.n > 2 and budget.weight >= 0.5 * total:
            result.warnings.append(
                f"budget {budget.budget:.4g} has {budget.weight / total:.0%} of the weight: the"
                " line depends on its minimum"
            )
    n_groups = int(data.groups.max()) + 1
    if n_groups < len(data):
        result.warnings.append(
            f"{len(data)} rows share {n_groups} trunks or names: each budget is resampled "
            "separately, so the interval ignores the noise that rows of one trunk share"
        )


def _widen(result: IsoflopFit, used: list[isoflop_minima.BudgetMinimum]) -> None:
    """Set the ensemble to lines through the resampled minima, at least as wide as their scatter."""
    log_c = np.log(result.x[0])
    log_x = np.log(np.stack([budget.resampled_x for budget in used], 1))
    w = np.isfinite(log_x) * np.array([budget.weight for budget in used])
    log_x = np.nan_to_num(log_x)
    is_valid = (w > 0).sum(1) >= 2
    if is_valid.mean() < 0.5:
        result.warnings.append(
            "fewer than half of the resamples have two minima inside: the interval is that of the "
            "line"
        )
        return
    log_x, w = log_x[is_valid], w[is_valid]
    center, total = log_c.mean(), w.sum(1)
    t = log_c - center
    mean_t, mean_x = (w * t).sum(1) / total, (w * log_x).sum(1) / total
    spread = (w * (t - mean_t[:, None]) ** 2).sum(1)
    slope = (w * (t - mean_t[:, None]) * log_x).sum(1) / spread
    height = mean_x - slope * mean_t
    if np.std(slope) < 1e-12:
        return
    best = result.params["exponent"]
    best_height = np.log(result.params["k"]) + best * center
    of_line = result.ensemble.get("exponent")
    factor = 1.0
    if of_line is not None:
        factor = max(1.0, float(np.std(of_line) / np.std(slope)))
    slope = slope.mean() + factor * (slope - slope.mean())
    height = height.mean() + factor * (height - height.mean())
    result.bootstrap_shift = float(slope.mean() - best), float(height.mean() - best_height)
    log_k = height - slope * center
    result.ensemble = {"exponent": slope, "k": np.exp(log_k), "log10_k": log_k / np.log(10)}
    result.sigmas = None
    result.resampling = f"{len(slope)} resamples of the noise of runs" + (
        f", widened {factor:.2g} times to the scatter" if factor > 1 else ""
    )
