"""Experiment design: profile likelihood of a parameter, and the next runs to train.

Legend: B draws of the ensemble, m candidates. All values of a law are centered logs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm.laws import fit, option_validation
from lm.laws.design import measurement_design, run_cost

# `profile` needs the option `fixed`, which only these laws have.
PROFILED_LAWS = ("power", "chinchilla", "overtrained", "data_constrained")
N_CANDIDATES = {1: 60, 2: 24}  # per input of a law of one and of two inputs
N_CANDIDATES_OF_MORE = 10  # per input of a law of three and more inputs
MAX_EXCHANGES = 10  # passes over the runs of a proposed sweep
N_LISTED = 5  # candidates in the table of an advice


@dataclass
class Profile:
    """Objective for several values of a parameter, with the other parameters refitted."""

    name: str
    values: np.ndarray
    objective: np.ndarray
    best: float
    # 95% interval by likelihood ratio. A bound outside the grid is replaced by the end of the grid.
    interval: tuple[float, float]
    predictions: np.ndarray | None = None  # of the law at the inputs `at`, for each value
    refits: list[fit.Fit] = field(default_factory=list)

    @property
    def is_flat(self) -> bool:
        """Return True if the interval reaches an end of the grid: the parameter is undetermined."""
        return self.interval[0] <= self.values[0] or self.interval[1] >= self.values[-1]

    def __str__(self) -> str:
        text = (
            f"{self.name} = {self.best:.4g}, 95% by profile [{self.interval[0]:.4g}, "
            f"{self.interval[1]:.4g}]"
        )
        if self.is_flat:
            text += " (open: the objective is flat up to the end of the grid)"
        if self.predictions is not None:
            inside = (self.values >= self.interval[0]) & (self.values <= self.interval[1])
            shown = self.predictions[inside] if inside.any() else self.predictions
            text += f"; over it the prediction changes from {shown.min():.4g} to {shown.max():.4g}"
        return text


def profile(
    law_fit: fit.Fit,
    name: str,
    values: Sequence[float] | None = None,
    at: Sequence[float] | None = None,
) -> Profile:
    """Compute the profile likelihood of a parameter, such as E.

    values: grid of the parameter. The default grid covers the bootstrap interval and its
    surroundings. at: inputs of the law; the profile then has the prediction there for each value of
    the grid.

    S is the objective, n the number of rows, and p the number of free parameters. t is the 97.5%
    quantile of Student's distribution with n - p degrees of freedom. For least squares, the 95%
    region is S / S_min <= 1 + t^2 / (n - p). For Huber and absolute losses (Laplace noise), the
    region is 2 n log(S / S_min) <= 3.84.

    Raises ValueError for a law without the option `fixed`, for an unknown parameter, and for n <=
    p.
    """
    from scipy import special  # its import takes longer than that of all laws

    fit.check_fits(law_fit=law_fit)
    if law_fit.refit is None or law_fit.law not in PROFILED_LAWS:
        is_loaded = law_fit.law in PROFILED_LAWS
        reason = "is loaded or given, without a refit" if is_loaded else "cannot fix a parameter"
        raise ValueError(
            f"{law_fit.law} {reason}; profile accepts new fits of {', '.join(PROFILED_LAWS)}"
        )
    if name not in law_fit.free:
        raise ValueError(
            f"{law_fit.law} has no free parameter {name!r} to profile; known: "
            f"{', '.join(law_fit.free)}"
        )
    n_spare = law_fit.n - len(law_fit.free)
    if n_spare <= 0:
        raise ValueError(
            f"{law_fit.n} rows for {len(law_fit.free)} parameters have no profile: add runs"
        )
    if values is not None:
        option_validation.check_starts({name: values} if np.ndim(values) else {name: None})
    if at is not None and (not np.ndim(at) or len(at) != len(law_fit.inputs)):
        raise ValueError(f"at={at!r} must be a list of the inputs {', '.join(law_fit.inputs)}")
    best = law_fit.params[name]
    grid = np.sort(np.asarray(_default_grid(law_fit, name) if values is None else values, float))
    refits = _refit_along(law_fit, law_fit.refit, name, grid)
    objective = np.array([refit.objective for refit in refits])
    smallest = max(min(law_fit.objective, objective.min()), 1e-300)  # 0 for exact data
    ratio = np.maximum(objective / smallest, 1.0)
    if law_fit.loss in ("squares", "log_squares"):
        is_within = ratio <= 1 + special.stdtrit(n_spare, 0.975) ** 2 / n_spare
    else:
        is_within = 2 * law_fit.n * np.log(ratio) <= special.chdtri(1, 0.05)
    inside = grid[is_within]
    interval = (float(inside.min()), float(inside.max())) if len(inside) else (best, best)
    predictions = None
    if at is not None:
        predictions = np.array([float(refit.predict(*at).value) for refit in refits])
    return Profile(name, grid, objective, best, interval, predictions, refits)


def _default_grid(law_fit: fit.Fit, name: str) -> list[float]:
    """Return 21 values around the bootstrap interval."""
    best = law_fit.params[name]
    lo, hi = law_fit.intervals.get(name, (best / 1.5, best * 1.5))
    low = best / max((best / max(lo, 1e-12)) ** 2, 1.05)
    high = best * max((hi / best) ** 2, 1.05)
    halves = [np.geomspace(low, best, 11), np.geomspace(best, high, 11)]
    return np.unique(np.concatenate(halves)).tolist()


def _refit_along(
    law_fit: fit.Fit, refit: Callable[..., fit.Fit], name: str, grid: np.ndarray
) -> list[fit.Fit]:
    """Return refits with the parameter fixed at each value; each refit starts from its neighbor."""
    middle = int(np.searchsorted(grid, law_fit.params[name]).clip(0, len(grid) - 1))
    refits: dict[int, fit.Fit] = {}
    for path in (range(middle, len(grid)), range(middle - 1, -1, -1)):
        start = law_fit.params
        for i in path:
            fixed = {**law_fit.fixed, name: float(grid[i])}
            refits[i] = refit(None, fixed=fixed, bootstrap=0, starts=[start, law_fit.params])
            start = refits[i].params
    return [refits[i] for i in range(len(grid))]


@dataclass
class Advice:
    """Next runs to train: their inputs, their cost, and the expected gain in precision."""

    runs: list[dict[str, float]]  # inputs and flops of each proposed run
    flops: float  # of all proposed runs
    before: float  # standard deviation of the law at the target
    after: float  # its expectation after the proposed runs
    # The best single runs, ranked. Each has inputs, flops, after, and gain_per_flop: the removed
    # fraction of the variance at the target per FLOP.
    table: list[dict[str, float]]

    @property
    def inputs(self) -> dict[str, float]:
        """Inputs of the first proposed run."""
        return {name: value for name, value in self.runs[0].items() if name != "flops"}

    def __str__(self) -> str:
        texts = [
            ", ".join(f"{k} = {v:.3g}" for k, v in run.items() if k != "flops")
            + f", {run['flops']:.3g} FLOPs"
            for run in self.runs
        ]
        counts = {text: texts.count(text) for text in texts}
        shown = [text if n == 1 else f"{n} seeds of {text}" for text, n in counts.items()]
        title = "next run" if len(texts) == 1 else f"next {len(texts)} runs, {self.flops:.3g} FLOPs"
        gain = f" ({1 - self.after / self.before:.0%} less)" if self.before > 0 else ""
        return (
            f"{title}: {'; '.join(shown)}; the standard deviation of the prediction changes from"
            f" {self.before:.3g} to {self.after:.3g}{gain}"
        )


def advise(
    law_fit: fit.Fit,
    budget: float,
    target: float | Sequence[float] | Mapping[str, float],
    candidates: Sequence[Any] | None = None,
    cost: Callable[..., Any] | None = None,
    n_runs: int = 1,
    min_gain: float = 0.5,
) -> Advice:
    """Return the runs within the budget (FLOPs) that narrow the prediction at `target`.

    target: inputs of the law as a number, in the order of `law_fit.inputs`, or by name.
    candidates: list of such inputs. By default, candidates are a grid from the smallest fitted run
    to `law_fit.reach` times the largest, with the tokens per parameter of the fitted runs, and
    cheaper than the target. cost: function from the inputs to FLOPs. By default, it is computed
    from the rows of the fit, see `run_cost.cost_of_rows`.

    Over the ensemble, t is the law at the target and u the law at a candidate. A measurement of u
    with noise s leaves the expected variance var(t) - cov(t, u)^2 / (var(u) + s^2). The variance is
    that of a law of the right form.

    n_runs=1 ranks candidates by the removed variance per FLOP. Candidates that remove less than
    `min_gain` times the largest possible reduction are not ranked: the cheapest runs often remove
    the most per FLOP, and nearly nothing. min_gain=1 selects the largest reduction. n_runs=k
    proposes k runs with a sum of costs within the budget, by greedy selection and by exchanges of
    single runs until no exchange reduces the variance. Equal runs differ in their seed.

    Raises ValueError for a fit without bootstrap, for rows without FLOPs, and if no candidate is
    within the budget.
    """
    _check_request(law_fit, budget, cost, n_runs, min_gain)
    price = cost or run_cost.cost_of_rows(law_fit)
    at_target = law_fit.points([target] if np.isscalar(target) else _in_order(law_fit, target))
    points, flops = _affordable_points(law_fit, budget, n_runs, at_target, candidates, price)
    design = measurement_design.MeasurementDesign.of_fit(law_fit, at_target, points)
    reductions = design.reductions()
    ranks = np.where(reductions >= min_gain * reductions.max(), reductions / flops, -1 / flops)
    order = np.argsort(-ranks, kind="stable")
    chosen = [int(order[0])] if n_runs == 1 else _choose_runs(design, flops, n_runs, budget)
    before = float(np.std(law_fit.draws(*at_target, noise=False)))
    scale = before / np.sqrt(max(design.variance, 1e-300))
    after = scale * np.sqrt(np.maximum(design.variance - reductions, 0))
    gain_per_flop = reductions / max(design.variance, 1e-300) / flops
    candidate_rows = [
        {k: float(points[j, i]) for j, k in enumerate(law_fit.inputs)} | {"flops": float(flops[i])}
        for i in range(len(flops))
    ]
    table = [
        candidate_rows[i] | {"after": float(after[i]), "gain_per_flop": float(gain_per_flop[i])}
        for i in order[:N_LISTED]
    ]
    remaining = float(scale * np.sqrt(max(design.after(chosen).variance, 0.0)))
    runs = [candidate_rows[i] for i in chosen]
    return Advice(runs, float(flops[chosen].sum()), before, remaining, table)


def _check_request(law_fit: Any, budget: Any, cost: Any, n_runs: Any, min_gain: Any) -> None:
    """Raise ValueError for invalid arguments of `advise`."""
    fit.check_fits(law_fit=law_fit)
    if not law_fit.ensemble:
        raise ValueError("advise needs an ensemble: fit with bootstrap=1000")
    option_validation.check_positive(budget=budget)
    option_validation.check_option_values({"n_runs": n_runs, "min_gain": min_gain})
    if min_gain > 1:
        raise ValueError(f"min_gain={min_gain!r} must be a fraction between 0 and 1")
    if cost is not None and not callable(cost):
        raise ValueError(f"cost={cost!r} must be a function from the inputs to FLOPs, or None")


def _affordable_points(
    law_fit: fit.Fit,
    budget: float,
    n_runs: int,
    target: list[np.ndarray],
    candidates: Sequence[Any] | None,
    price: Callable[..., Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidates within the budget, [inputs, m], and their FLOPs, [m].

    Raises ValueError if the budget does not pay for n_runs of the cheapest candidate.
    """
    if candidates is None:
        points = _default_candidates(law_fit)
        flops = run_cost.price_points(price, points)
        is_below_target = flops < run_cost.price_points(price, np.stack(target)[:, None])
        points, flops = points[:, is_below_target], flops[is_below_target]
    else:
        if not isinstance(candidates, list | tuple | np.ndarray) or not len(candidates):
            raise ValueError(f"candidates={candidates!r} must be a list of inputs, or None")
        columns = [_in_order(law_fit, [p] if np.isscalar(p) else p) for p in candidates]
        if any(len(column) != len(law_fit.inputs) for column in columns):
            raise ValueError(
                f"candidates={candidates!r} must have {', '.join(law_fit.inputs)} for each run"
            )
        points = np.stack(law_fit.points([list(values) for values in zip(*columns, strict=True)]))
        flops = run_cost.price_points(price, points)
    if not len(flops):
        raise ValueError(
            f"target={[float(v) for v in target]} costs less than every candidate: pass a larger"
            " target"
        )
    if n_runs * flops.min() > budget * (1 + 1e-9):
        raise ValueError(
            f"budget={budget:g} FLOPs is below the cost of {n_runs} of the cheapest candidate"
            f" ({flops.min():g} FLOPs each): raise it"
        )
    is_affordable = flops <= budget * (1 + 1e-9)
    return points[:, is_affordable], flops[is_affordable]


def _in_order(law_fit: fit.Fit, target: Any) -> Any:
    """Return the inputs of a target in the order of the law. Raises ValueError for other names."""
    if not isinstance(target, Mapping):
        if not isinstance(target, list | tuple | np.ndarray):
            raise ValueError(
                f"target={target!r} must be a number, a list or a dict of"
                f" {', '.join(law_fit.inputs)}"
            )
        return target
    if set(target) != set(law_fit.inputs):
        raise ValueError(
            f"target={dict(target)} must have the inputs {', '.join(law_fit.inputs)} of the law"
        )
    return [target[letter] for letter in law_fit.inputs]


def _default_candidates(law_fit: fit.Fit) -> np.ndarray:
    """Return a grid of inputs [inputs, m], up to `reach` times the largest fitted run."""
    n = N_CANDIDATES.get(len(law_fit.inputs), N_CANDIDATES_OF_MORE)
    axes = [np.geomspace(x.min(), x.max() * law_fit.reach, n) for x in law_fit.x]
    points = np.stack([values.ravel() for values in np.meshgrid(*axes, indexing="ij")])
    if law_fit.inputs != ["N", "D"]:
        return points
    fitted_ratio, ratio = law_fit.x[1] / law_fit.x[0], points[1] / points[0]
    is_in_range = (ratio >= fitted_ratio.min()) & (ratio <= fitted_ratio.max())
    return points[:, is_in_range]


def _choose_runs(
    design: measurement_design.MeasurementDesign, flops: np.ndarray, n_runs: int, budget: float
) -> list[int]:
    """Return the indices of runs within the budget, the best of several searches.

    Each search starts from a different split of the budget over the runs.
    """
    limit = budget * (1 + 1e-9)
    searches = [
        _exchange_runs(design, flops, _choose_greedily(design, flops, n_runs, limit, share), limit)
        for share in dict.fromkeys((1.0, 0.5, 1 / n_runs))
    ]
    best = min(searches, key=lambda chosen: design.after(chosen).variance)
    return sorted(best, key=lambda i: flops[i])


def _choose_greedily(
    design: measurement_design.MeasurementDesign,
    flops: np.ndarray,
    n_runs: int,
    limit: float,
    share: float,
) -> list[int]:
    """Return runs chosen one after another, each within a share of the remaining budget."""
    chosen: list[int] = []
    for n_later in reversed(range(n_runs)):
        remaining = limit - flops[chosen].sum() - n_later * flops.min()
        reductions = design.after(chosen).reductions()
        is_allowed = flops <= max(share * remaining, flops.min())
        chosen.append(int(np.where(is_allowed, reductions, -1.0).argmax()))
    return chosen


def _exchange_runs(
    design: measurement_design.MeasurementDesign, flops: np.ndarray, chosen: list[int], limit: float
) -> list[int]:
    """Exchange single runs for better candidates until no exchange reduces the variance."""
    chosen = list(chosen)
    for _ in range(MAX_EXCHANGES):
        previous = list(chosen)
        for k in range(len(chosen)):
            others = chosen[:k] + chosen[k + 1 :]
            is_allowed = flops <= limit - flops[others].sum()
            reductions = np.where(is_allowed, design.after(others).reductions(), -1.0)
            if reductions.max() > reductions[chosen[k]] * (1 + 1e-9):
                chosen[k] = int(reductions.argmax())
        if chosen == previous:
            break
    return chosen
