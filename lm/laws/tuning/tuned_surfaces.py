"""Fit of the two surfaces behind the law of hyperparameters, and its check in each cell.

The first surface is the loss in the logs of the learning rate and the timescale, with an intercept
for each size, token budget, seed and batch size (a group). The second surface is this intercept as
a function of the log of the batch size. It uses the three batch sizes of a cell around the best.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.laws.tuning import optimum_parameters, quadratic_surface, tuned_runs

TITLES = {"lr": "learning rate", "batch": "batch size", "tau": "weight decay"}


class CellCheck(NamedTuple):
    """Check of the law at one size and one token budget.

    optimum: best hyperparameters of the runs of this cell, with the curvature of all runs.
    loss_increase: relative increase of the loss at the optimum of a law that is fitted without this
    cell. edges: hyperparameters whose optimum is outside the tested values.
    """

    n: float
    d: float
    n_runs: int
    optimum: dict[str, float]
    loss_increase: float
    edges: list[str]


class FittedSurfaces(NamedTuple):
    """Parameters of both surfaces, see `optimum_parameters`."""

    layout: optimum_parameters.Layout
    theta: np.ndarray  # [p]
    covariance: np.ndarray  # [p, p]
    jackknife: np.ndarray  # [number of cells, p]
    sigma: float  # of the first surface
    degrees: int  # of freedom, the smaller of both surfaces


class _BatchRows(NamedTuple):
    """Rows of the second surface, with their cells."""

    rows: quadratic_surface.SurfaceRows
    cell: np.ndarray


def fit_surfaces(runs: tuned_runs.TunedRuns, names: list[str]) -> FittedSurfaces:
    """Fit both surfaces, and fit them again without each cell."""
    inputs = optimum_parameters.log_inputs(runs.n, runs.d) | {"B": runs.hyperparameters["batch"]}
    centers = {x: float(logs.mean()) for x, logs in inputs.items()}
    layout = optimum_parameters.Layout(names, centers, float(np.exp(centers["B"])))
    rows = _rate_rows(runs, layout)
    rate = quadratic_surface.fit_surface(rows, [TITLES[name] for name in layout.rate_inputs])
    cells = range(runs.cell.max() + 1)
    rate_refits = [
        quadratic_surface.refit_surface(rows.select(runs.cell != cell), rate) for cell in cells
    ]
    if "batch" not in names:
        jackknife = np.stack(rate_refits)
        return FittedSurfaces(
            layout, rate.theta, rate.covariance, jackknife, rate.sigma, rate.degrees
        )
    batch_rows = _batch_rows(runs, rows, layout, rate.theta)
    batch = quadratic_surface.fit_surface(batch_rows.rows, [TITLES["batch"]])
    batch_refits = []
    for cell, theta in zip(cells, rate_refits, strict=True):
        others = _batch_rows(runs, rows, layout, theta)
        subset = others.rows.select(others.cell != cell)
        batch_refits.append(quadratic_surface.refit_surface(subset, batch))
    n_rate = layout.n_rate_parameters
    covariance = np.zeros((n_rate + len(batch.theta),) * 2)
    covariance[:n_rate, :n_rate], covariance[n_rate:, n_rate:] = rate.covariance, batch.covariance
    return FittedSurfaces(
        layout,
        np.concatenate([rate.theta, batch.theta]),
        covariance,
        np.concatenate([np.stack(rate_refits), np.stack(batch_refits)], 1),
        rate.sigma,
        min(rate.degrees, batch.degrees),
    )


def _rate_rows(
    runs: tuned_runs.TunedRuns, layout: optimum_parameters.Layout
) -> quadratic_surface.SurfaceRows:
    """Return the rows of the first surface, with centered features."""
    inputs = optimum_parameters.log_inputs(runs.n, runs.d) | {"B": runs.hyperparameters["batch"]}
    features = [
        _features(len(runs.n), [inputs[x] - layout.centers[x] for x in columns])
        for columns in layout.rate_inputs.values()
    ]
    x = np.stack([runs.hyperparameters[name] for name in layout.rate_inputs], 1)
    return quadratic_surface.SurfaceRows(runs.log_loss, x, features, runs.group)


def _batch_rows(
    runs: tuned_runs.TunedRuns,
    rows: quadratic_surface.SurfaceRows,
    layout: optimum_parameters.Layout,
    theta: np.ndarray,
) -> _BatchRows:
    """Return the least loss of each group as rows of the second surface.

    rows: of the first surface. theta: parameters of the first surface. A cell contributes its best
    batch size and both neighbors, or the next two if the best one is the smallest or the largest.
    """
    n_groups = int(runs.group.max()) + 1
    first_run = np.unique(runs.group, return_index=True)[1]
    least = np.bincount(runs.group, quadratic_surface.log_least_loss(theta, rows), n_groups)
    least /= np.bincount(runs.group, minlength=n_groups)
    log_batch, block = runs.hyperparameters["batch"][first_run], runs.cell_and_seed[first_run]
    is_used = np.zeros(n_groups, bool)
    for number in range(block.max() + 1):
        members = np.flatnonzero(block == number)
        members = members[np.argsort(log_batch[members])]
        middle = np.clip(np.argmin(least[members]), 1, max(len(members) - 2, 1))
        is_used[members[middle - 1 : middle + 2]] = True
    log_d = np.log(runs.d[first_run]) - layout.centers["D"]
    features = [_features(n_groups, [log_d])]
    surface_rows = quadratic_surface.SurfaceRows(least, log_batch[:, None], features, block)
    return _BatchRows(surface_rows.select(is_used), runs.cell[first_run][is_used])


def _features(n_rows: int, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return the features [n_rows, 1 + number of columns] of an optimum."""
    return np.stack([np.ones(n_rows), *columns], 1)


def check_cells(runs: tuned_runs.TunedRuns, fitted: FittedSurfaces) -> list[CellCheck]:
    """Compare the optimum of the runs of each cell with a law that is fitted without it."""
    return [_check_cell(runs, fitted, cell) for cell in range(runs.cell.max() + 1)]


def _check_cell(runs: tuned_runs.TunedRuns, fitted: FittedSurfaces, cell: int) -> CellCheck:
    """Compare the optimum of the runs of one cell with a law that is fitted without it."""
    layout, theta = fitted.layout, fitted.jackknife[cell]
    n_rate = layout.n_rate_parameters
    rows, is_in_cell = _rate_rows(runs, layout), runs.cell == cell
    subset = rows.select(is_in_cell)
    names = list(layout.rate_inputs)
    deviations = dict(
        zip(names, quadratic_surface.cell_optimum(theta[:n_rate], subset), strict=True)
    )
    n, d = float(runs.n[is_in_cell][0]), float(runs.d[is_in_cell][0])
    if "batch" in layout.names:
        batches = _batch_rows(runs, rows, layout, theta[:n_rate])
        batch_subset = batches.rows.select(batches.cell == cell)
        deviations["batch"] = quadratic_surface.cell_optimum(theta[n_rate:], batch_subset)[0]
    log_law = layout.log_optima(theta, n, d)
    log_best_batch = log_law.get("batch", 0.0) + deviations.get("batch", 0.0)
    batch_tokens = float(np.exp(log_best_batch)) if "batch" in layout.names else None
    shifted = layout.log_optima(theta, n, d, batch_tokens) | {"batch": log_law.get("batch", 0.0)}
    logs = {name: shifted[name] + deviations[name] for name in layout.names}
    tested = {name: runs.hyperparameters[name][is_in_cell] for name in layout.names}
    edges = [
        name
        for name, values in tested.items()
        if np.ptp(values) > 0 and not values.min() < logs[name] < values.max()
    ]
    deviation = np.array([deviations[name] for name in layout.names])
    return CellCheck(
        n=n,
        d=d,
        n_runs=int(is_in_cell.sum()),
        optimum={name: float(np.exp(log)) for name, log in logs.items()},
        loss_increase=float(np.expm1(0.5 * deviation @ layout.curvature(theta) @ deviation)),
        edges=edges,
    )
