"""Compute-optimal frontier: the envelope of learning curves, and the best N and D of a budget.

Legend: C budget in FLOPs, N parameters, D tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import fit, run_table
from lm.laws.forms import log_linear

OPTIONS = ("hull", "points", "edges", "where", "mixed", "bootstrap", "seed", "reach")
MIN_INTERIOR_RUNS = 4  # of an envelope; with fewer, single runs decide the exponent
UNKNOWN_INTERVAL = (float("nan"), float("nan"))


@dataclass(frozen=True)
class EnvelopeOptions(fit.FitOptions):
    """Options of `envelope`, which describes them."""

    hull: str = "lower"
    points: int = 1500
    edges: str = "drop"


@dataclass
class Envelope:
    """Points of an envelope, ascending in FLOPs."""

    flops: np.ndarray
    best: np.ndarray  # size (or tokens) of the run with the lowest loss
    losses: np.ndarray
    owners: np.ndarray  # number of that run

    @property
    def coordinates(self) -> tuple[np.ndarray, np.ndarray]:
        """FLOPs and losses."""
        return self.flops, self.losses

    def take(self, index: np.ndarray) -> "Envelope":
        """Return the points at an index or a mask."""
        arrays = (self.flops, self.best, self.losses, self.owners)
        return Envelope(*(values[index] for values in arrays))


@dataclass(kw_only=True)
class EnvelopeFit(fit.Fit):
    """Line through the points of an envelope."""

    envelope: Envelope


def envelope(
    rows: run_table.Rows,
    n: str = "params.non_embedding",
    y: str = "eval.loss",
    c: str = "flops",
    run: str = "run",
    **options: Any,
) -> EnvelopeFit:
    """Fit N* = k C^exponent to learning curves: the run of lowest loss per budget (approach 1).

    Rows are evaluations during runs. n: column of the wanted quantity, such as parameters, tokens
    or tokens per parameter. y: column of the loss. c: column of the FLOPs so far. run: column of
    the run.

    hull="lower" takes the run with the lowest curve (linear in logs between evaluations) at
    `points` log-spaced budgets. hull="convex" takes the corners of the lower convex hull of all
    evaluations in logs, with decreasing loss. edges="drop" excludes budgets at which the smallest
    or the largest model is best, because the optimum may be outside the sweep. If `n` varies during
    a run, such as tokens, it excludes the first and the last run of the envelope.

    The intervals are those of resamples of whole runs, each with its own envelope at the same
    budgets. They are wide: in simulation (noise 0.3%), 95% intervals of the exponent covered 100%
    with a half-width of 0.09 for nine sizes, and 95% with 0.035 for 15. Approach 1 is biased:
    without noise, on the law of Hoffmann et al. with a = 0.452, nine sizes give 0.442, and 0.432
    with edges="keep". Prefer `power_laws.chinchilla` if its form fits the runs.

    Under a decaying schedule, an evaluation during a run has a higher loss than a run that ends
    there. Prefer a constant learning rate, or the final rows of runs of many lengths.

    Parameters: exponent, k; derived: log10_k. fit.envelope has the points. Other options: where,
    mixed, bootstrap, seed, reach. Raises ValueError for an envelope of fewer than four runs.
    """
    parsed = fit.parse_options("envelope", options, EnvelopeOptions(), OPTIONS)
    _check_choices(parsed)
    data = run_table.select_columns(rows, [n, c, y], run, parsed.where, mixed=parsed.mixed)
    log_c, log_n, log_y = (np.log(data.columns[column]) for column in (c, n, y))
    curves = LearningCurves(log_c, log_n, log_y, data.groups, parsed)
    points, edge_fraction = _points_of_line(curves, parsed)
    line = _fit_line(points, data, c, n, parsed)
    line.columns["L"] = y
    line.data.excluded[:] = data.excluded
    if parsed.bootstrap:
        _resample_runs(line, curves, parsed)
    if parsed.edges == "keep" and edge_fraction:
        line.warnings.append(
            f"{edge_fraction:.0%} of the envelope belongs to the smallest or largest model: the "
            "optimum may be outside the sweep"
        )
    flops, best, losses = (np.exp(logs) for logs in (points.flops, points.best, points.losses))
    return line.extend(EnvelopeFit, envelope=Envelope(flops, best, losses, points.owners))


class LearningCurves:
    """Learning curves of the runs of a sweep, in logs, and the envelopes of subsets of the runs."""

    def __init__(
        self,
        log_c: np.ndarray,
        log_n: np.ndarray,
        log_y: np.ndarray,
        groups: np.ndarray,
        options: EnvelopeOptions,
    ) -> None:
        self.rows = Envelope(log_c, log_n, log_y, groups)
        self.is_convex, self.edges = options.hull == "convex", options.edges
        of_runs = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
        self.size_ranges = np.array([(log_n[i].min(), log_n[i].max()) for i in of_runs])
        if self.is_convex:
            # The hull of a union is the hull of the hulls of its parts.
            self.hulls = [index[_lower_hull(log_c[index], log_y[index])] for index in of_runs]
            return
        self.budgets = np.linspace(log_c.min(), log_c.max(), options.points)
        self.losses = np.full((len(of_runs), options.points), np.inf)
        self.sizes = np.full_like(self.losses, np.nan)
        for g, index in enumerate(of_runs):
            index = index[np.argsort(log_c[index])]
            self.losses[g] = np.interp(self.budgets, log_c[index], log_y[index], np.inf, np.inf)
            self.sizes[g] = np.interp(self.budgets, log_c[index], log_n[index])

    def find_envelope(self, runs: np.ndarray) -> tuple[Envelope, np.ndarray]:
        """Return the envelope of the runs with these numbers, and which points are at its edges."""
        if self.is_convex:
            index = np.concatenate([self.hulls[g] for g in runs])
            corners = self.rows.take(index[_lower_hull(*self.rows.take(index).coordinates)])
        else:
            owners = runs[self.losses[runs].argmin(0)]
            columns = np.arange(len(self.budgets))
            lowest = self.losses[owners, columns]
            corners = Envelope(self.budgets, self.sizes[owners, columns], lowest, owners)
            corners = corners.take(np.isfinite(lowest))
        ranges = self.size_ranges[runs]
        if np.allclose(ranges[:, 0], ranges[:, 1]):
            smallest, largest = ranges.min() + 1e-9, ranges.max() - 1e-9
            return corners, (corners.best <= smallest) | (corners.best >= largest)
        return corners, np.isin(corners.owners, corners.owners[[0, -1]])


def _check_choices(options: EnvelopeOptions) -> None:
    """Raise ValueError for an unknown hull or rule of edges."""
    for name, allowed in (("hull", ("lower", "convex")), ("edges", ("drop", "keep"))):
        if getattr(options, name) not in allowed:
            raise ValueError(
                f"{name}={getattr(options, name)!r} is unknown; allowed: {', '.join(allowed)}"
            )


def _points_of_line(curves: LearningCurves, options: EnvelopeOptions) -> tuple[Envelope, float]:
    """Return the points of the envelope that the line uses, and the fraction at its edges.

    Raises ValueError if they belong to fewer than MIN_INTERIOR_RUNS runs.
    """
    corners, is_edge = curves.find_envelope(np.arange(len(curves.size_ranges)))
    points = corners.take(~is_edge) if options.edges == "drop" else corners
    n_owners = len(np.unique(points.owners))
    if n_owners < MIN_INTERIOR_RUNS:
        position = "inside the sweep" if options.edges == "drop" else "of the sweep"
        raise ValueError(
            f"the envelope has {n_owners} run(s) {position}: an exponent needs {MIN_INTERIOR_RUNS};"
            " add sizes between and beyond those of the sweep"
        )
    return points, float(is_edge.mean())


def _fit_line(
    logs: Envelope, data: run_table.RunTable, c: str, n: str, options: EnvelopeOptions
) -> fit.Fit:
    """Fit the line through the points of an envelope, given in logs."""
    points = [
        {
            "name": f"{data.names[int(np.flatnonzero(data.groups == g)[0])]} at {np.exp(v):.6g}",
            "run": int(g),
            c: float(np.exp(v)),
            n: float(np.exp(s)),
        }
        for v, s, g in zip(logs.flops, logs.best, logs.owners, strict=True)
    ]
    line_options = fit.FitOptions(group="run", bootstrap=0, seed=options.seed, reach=options.reach)
    return log_linear.fit_line(points, c, n, "envelope", line_options)


def _resample_runs(line: fit.Fit, curves: LearningCurves, options: EnvelopeOptions) -> None:
    """Set the ensemble of the line: lines through the envelopes of resampled runs.

    All envelopes cover the budgets of the line. Without a run at an edge, the next run is best at
    its budgets. The ensemble is reflected at the line (basic bootstrap): the bias of the coarser
    resamples corrects that of the envelope.
    """
    n_runs = len(curves.size_ranges)
    log_c = np.log(line.x[0])
    first, last, center = log_c.min() - 1e-9, log_c.max() + 1e-9, log_c.mean()
    rng = np.random.default_rng((options.seed, 0))
    draws = []
    for drawn in rng.integers(n_runs, size=(options.bootstrap, n_runs)):
        corners = curves.find_envelope(np.unique(drawn))[0]
        corners = corners.take((corners.flops >= first) & (corners.flops <= last))
        if len(np.unique(corners.owners)) >= 2:
            draws.append(np.polyfit(corners.flops - center, corners.best, 1))
    if len(draws) < 0.5 * options.bootstrap:
        line.warnings.append(
            "fewer than half of the resamples have an envelope of two runs: no intervals"
        )
        return
    exponent, height = np.array(draws).T
    best = line.params["exponent"]
    best_height = np.log(line.params["k"]) + best * center
    exponent, height = 2 * best - exponent, 2 * best_height - height
    log_k = height - exponent * center
    line.ensemble = {"exponent": exponent, "k": np.exp(log_k), "log10_k": log_k / np.log(10)}
    line.resampling = f"{len(draws)} resamples of runs, each with its own envelope"


def best_allocation_grid(
    law: fit.Fit, rows: run_table.Rows, flops, points: int = 400
) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, D) of lowest loss by a law of N and D for each budget in FLOPs.

    flops: budgets, [n]. Return two arrays [n]. points: number of sizes in the search. The FLOPs per
    token are those of the runs in `rows`, fitted by a quadratic in log N. They replace the 6 N of
    `allocation`, because the vocabulary is a large part of a small model. N is searched over the
    sizes of the rows and a factor of three beyond.
    """
    n, d, c = (
        np.log([run_table.to_number(row.get(k)) for row in rows])
        for k in (law.columns["N"], law.columns["D"], "flops")
    )
    per_token = np.polynomial.Polynomial.fit(n, c - d, min(2, len(np.unique(n)) - 1))
    grid = np.linspace(n.min() - np.log(3), n.max() + np.log(3), points)
    tokens = np.log(np.asarray(flops, float))[:, None] - per_token(grid)
    losses = np.asarray(law.values(law.params, np.exp(grid), np.exp(tokens)))
    index = losses.argmin(1)
    return np.exp(grid[index]), np.exp(tokens[np.arange(len(tokens)), index])


def _lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the corners of the lower convex hull in ascending x, as far as y decreases."""
    corners: list[int] = []
    for i in np.lexsort((y, x)):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (x[b] - x[a]) * (y[i] - y[a]) > (y[b] - y[a]) * (x[i] - x[a]):
                break
            corners.pop()
        corners.append(int(i))
    hull = np.array(corners)
    return hull[np.r_[True, np.diff(np.minimum.accumulate(y[hull])) < 0]]


@dataclass
class Allocation:
    """Best parameters and tokens of a budget, with intervals, and the loss of the law there."""

    flops: float
    n: float
    d: float
    n_interval: tuple[float, float]
    d_interval: tuple[float, float]
    loss: float
    note: str = ""

    @property
    def tokens_per_param(self) -> float:
        """D* / N*."""
        return self.d / self.n

    def __str__(self) -> str:
        return (
            f"C = {self.flops:.4g}: N* = {self.n:.4g}{fit.format_interval(*self.n_interval)}, "
            f"D* = {self.d:.4g}{fit.format_interval(*self.d_interval)}, "
            f"{self.tokens_per_param:.3g} tokens per parameter"
            + (f"; {self.note}" if self.note else "")
        )


def allocation(
    law: fit.Fit | Mapping[str, float],
    flops: float,
    flops_per_param_token: float = 6.0,
    unique_tokens: float | None = None,
    level: float = 0.95,
) -> Allocation:
    """Return the N and D of lowest loss for a budget C = k N D, by default with k = 6.

    law: a fit, or a dict of E, A, B, alpha, beta. A fit is of chinchilla, overtrained,
    data_constrained (with `unique_tokens`), isoflop or envelope. flops: budget C.
    flops_per_param_token: k. level: level of the intervals.

    For E + A N^-alpha + B D^-beta: N* = G (C/k)^(beta/(alpha+beta)), D* = (C/k) / N*, with G =
    (alpha A / (beta B))^(1/(alpha+beta)). Raises ValueError for a law of runs on one line of N and
    D, which does not determine N*.
    """
    product = float(flops) / flops_per_param_token
    if not product > 0:
        raise ValueError(f"flops={flops} must be a positive number")
    if isinstance(law, Mapping):
        n = float(_best_size(law, product))
        loss = (
            law.get("E", 0.0)
            + law["A"] * n ** -law["alpha"]
            + law["B"] * (product / n) ** -law.get("beta", law["alpha"])
        )
        return Allocation(
            float(flops), n, product / n, UNKNOWN_INTERVAL, UNKNOWN_INTERVAL, float(loss)
        )
    if law.law in ("isoflop", "envelope", "log_linear"):
        return _allocate_by_line(law, flops, product, level)
    if "B" not in law.params and law.law != "data_constrained":
        raise ValueError(
            f"{law.law} of {', '.join(law.inputs)} does not split a budget: fit chinchilla"
        )
    if law.max_off_line_factor is not None:
        raise ValueError(
            "all fitted runs lie on one line of N and D, so the best split is not known: vary the "
            "tokens per parameter"
        )
    sizes = _best_sizes(law, product, unique_tokens)
    n = float(sizes[0])
    percentiles = [50 * (1 - level), 50 * (1 + level)]
    draws = sizes[1:] if len(sizes) > 1 else np.array([np.nan])
    lo, hi = (float(v) for v in np.percentile(draws, percentiles))
    inputs = (n, product / n) if law.law != "data_constrained" else (n, product / n, unique_tokens)
    prediction = law.predict(*inputs, noise=False)
    return Allocation(
        float(flops),
        n,
        product / n,
        (lo, hi),
        (product / hi, product / lo),
        float(prediction.value),
        prediction.note,
    )


def _allocate_by_line(law: fit.Fit, flops: float, product: float, level: float) -> Allocation:
    """Return the allocation of a line of N* or D* against C."""
    best_x = law.predict(flops, level=level, noise=False)
    values = [best_x.value, best_x.lo, best_x.hi]
    is_of_tokens = law.output.startswith("D")
    n, n_lo, n_hi = [product / v for v in values] if is_of_tokens else values
    d_lo, d_hi = sorted((product / n_lo, product / n_hi))
    n_lo, n_hi = sorted((n_lo, n_hi))
    return Allocation(
        float(flops), n, product / n, (n_lo, n_hi), (d_lo, d_hi), float("nan"), best_x.note
    )


def _best_sizes(law: fit.Fit, product: float, unique_tokens: float | None) -> np.ndarray:
    """Return N* by the parameters of the law, followed by N* of each resample."""
    ensemble = {
        k: np.r_[law.params[k], law.ensemble.get(k, np.full(0, np.nan))]
        for k in law.params
        if k in law.ensemble or not law.ensemble
    }
    n_draws = len(next(iter(ensemble.values())))
    params = {k: ensemble.get(k, np.full(n_draws, law.params[k])) for k in law.params}
    if law.law != "data_constrained":
        return _best_size(params, product)
    if unique_tokens is None:
        raise ValueError("a data_constrained law needs unique_tokens= to allocate a budget")
    grid = np.geomspace(product**0.5 / 1e4, product**0.5 * 1e4, 4001)
    losses = law.values(
        {k: v[:, None] for k, v in params.items()},
        grid,
        product / grid,
        np.full_like(grid, unique_tokens),
    )
    return grid[np.asarray(losses).argmin(1)]


def _best_size(p: Mapping[str, Any], product: float) -> Any:
    alpha, beta = p["alpha"], p["beta"] if "beta" in p else p["alpha"]
    scale = (alpha * p["A"] / (beta * p["B"])) ** (1 / (alpha + beta))
    return scale * product ** (beta / (alpha + beta))
