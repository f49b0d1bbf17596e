"""Envelope of learning curves: the run of lowest loss per budget (approach 1)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.laws import fit, option_validation, run_table
from lm.laws.forms import log_linear

OPTIONS = ("hull", "points", "edges", "where", "mixed", "bootstrap", "seed", "reach")
MIN_INTERIOR_RUNS = 4  # of an envelope; with fewer, single runs decide the exponent


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
    option_validation.check_columns(n=n, y=y, c=c, run=run)
    data = run_table.select_columns(rows, [n, c, y], run, parsed.where, mixed=parsed.mixed)
    log_c, log_n, log_y = (np.log(data.columns[column]) for column in (c, n, y))
    if np.ptp(log_y) < 1e-9:
        raise ValueError(
            f"{y} is {np.exp(log_y[0]):g} in every row: no run is best; pass rows with other losses"
        )
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
