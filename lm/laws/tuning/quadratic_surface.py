"""Fit of a loss that is quadratic in the logs of the hyperparameters around its optimum.

    log L = intercept[cell] + 1/2 z^T H z,   z = x - F m

x are the logs of the hyperparameters of a run, F m the logs of their optimum, which is linear in
the features of the run (such as 1, log N and log D) with exponents m, and H the curvature, which is
positive definite and shared by all runs. A cell is the runs of one size, one token budget and one
seed; its intercept is the least loss of these runs.

Legend: n runs, h hyperparameters, p parameters (the exponents m, then the Cholesky factor of H with
the logs of its diagonal).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

USUAL_CURVATURE = 2 * 0.005 / np.log(2) ** 2  # loss + 0.5% at half or twice the best value
PRIOR_WIDTHS = 2.0  # standard deviation of a prior, in those of the tested values
N_NOISE_UPDATES = 3
MIN_NOISE = 1e-6  # of log L, so that exact data can be fitted


class SurfaceRows(NamedTuple):
    """The runs of a fit."""

    log_loss: np.ndarray  # [n]
    x: np.ndarray  # [n, h] logs of the hyperparameters
    features: Sequence[np.ndarray]  # per hyperparameter [n, number of its exponents]
    cells: np.ndarray  # [n] integers from 0

    @property
    def n_features(self) -> list[int]:
        """Number of exponents of each hyperparameter."""
        return [feature.shape[1] for feature in self.features]

    def select(self, is_included: np.ndarray) -> "SurfaceRows":
        """Return the runs of a mask [n]."""
        return SurfaceRows(
            self.log_loss[is_included],
            self.x[is_included],
            [f[is_included] for f in self.features],
            np.unique(self.cells[is_included], return_inverse=True)[1].ravel(),
        )


class Prior(NamedTuple):
    """Independent normal priors of the parameters. They matter where the runs determine little."""

    mean: np.ndarray  # [p]
    sd: np.ndarray  # [p]


class Surface(NamedTuple):
    """Fitted surface."""

    theta: np.ndarray  # [p]
    covariance: np.ndarray  # [p, p]
    sigma: float  # standard deviation of the residuals of log L
    degrees: int  # of freedom
    prior: Prior


def fit_surface(rows: SurfaceRows, names: Sequence[str]) -> Surface:
    """Fit the surface by least squares in log L, with weak priors (`weak_prior`).

    names: names of the hyperparameters in messages. Raises ValueError if the rows have too few runs
    per cell, or if the loss has no minimum along a hyperparameter.
    """
    from scipy import optimize  # its import takes longer than that of all laws

    n_cells = int(rows.cells.max()) + 1
    theta = _initial_values(rows, names)
    degrees = len(rows.log_loss) - len(theta) - n_cells
    if degrees < 1:
        raise ValueError(
            f"{len(rows.log_loss)} runs in {n_cells} groups of equal size, tokens, seed and batch"
            f" size do not determine {len(theta)} parameters: train more runs per group, with other"
            f" values of {', '.join(names)}"
        )
    prior = weak_prior(rows)
    sigma = _noise(theta, rows, degrees)
    for _ in range(N_NOISE_UPDATES):
        theta = refit_surface(rows, Surface(theta, np.empty(0), sigma, degrees, prior))
        sigma = _noise(theta, rows, degrees)
    solution = optimize.least_squares(_scaled_residuals, theta, args=(rows, sigma, prior))
    covariance = np.linalg.inv(solution.jac.T @ solution.jac)
    return Surface(solution.x, covariance, sigma, degrees, prior)


def refit_surface(rows: SurfaceRows, surface: Surface) -> np.ndarray:
    """Return the parameters [p] of a fit to other rows, with the noise and priors of a surface."""
    from scipy import optimize

    arguments = (rows, surface.sigma, surface.prior)
    return optimize.least_squares(_scaled_residuals, surface.theta, args=arguments).x


def weak_prior(rows: SurfaceRows) -> Prior:
    """Return priors: optima near the tested values, exponents of order 1, usual curvatures.

    The optimum of typical features has the mean and PRIOR_WIDTHS times the standard deviation of
    the tested logs. An exponent is 0 +- 1. Half or twice the best value usually increases the loss
    by 0.5%, up to a factor of about 50; interactions are 0 +- 0.1.
    """
    mean, sd = [], []
    for values, n_features in zip(rows.x.T, rows.n_features, strict=True):
        mean += [float(values.mean()), *[0.0] * (n_features - 1)]
        sd += [PRIOR_WIDTHS * float(values.std()), *[1.0] * (n_features - 1)]
    for j in range(rows.x.shape[1]):
        mean += [*[0.0] * j, 0.5 * np.log(USUAL_CURVATURE)]
        sd += [*[0.1] * j, 1.0]
    return Prior(np.array(mean), np.array(sd))


def exponents(theta: np.ndarray, n_features: Sequence[int]) -> list[np.ndarray]:
    """Return the exponents m of each hyperparameter."""
    return np.split(theta[: sum(n_features)], np.cumsum(n_features)[:-1])


def curvature(theta: np.ndarray, n_features: Sequence[int]) -> np.ndarray:
    """Return the curvature H [h, h] of log L."""
    h = len(n_features)
    factor = np.zeros((h, h))
    factor[np.tril_indices(h)] = theta[sum(n_features) :]
    diagonal = np.diag_indices(h)
    factor[diagonal] = np.exp(factor[diagonal])
    return factor @ factor.T


def distances(theta: np.ndarray, rows: SurfaceRows) -> np.ndarray:
    """Return z [n, h], the logs of the hyperparameters relative to their optimum."""
    m = exponents(theta, rows.n_features)
    return rows.x - np.stack([f @ e for f, e in zip(rows.features, m, strict=True)], 1)


def log_least_loss(theta: np.ndarray, rows: SurfaceRows) -> np.ndarray:
    """Return log L minus its excess over the optimum [n]."""
    z, matrix = distances(theta, rows), curvature(theta, rows.n_features)
    return rows.log_loss - 0.5 * np.einsum("nh,hk,nk->n", z, matrix, z)


def cell_optimum(theta: np.ndarray, rows: SurfaceRows) -> np.ndarray:
    """Return the optimum [h] of the rows of one cell relative to the law, for the curvature H.

    A hyperparameter that does not vary in the cell stays at the optimum of the law.
    """
    matrix, z = curvature(theta, rows.n_features), distances(theta, rows)
    least = log_least_loss(theta, rows)
    intercepts = np.eye(int(rows.cells.max()) + 1)[rows.cells]
    is_varied = np.ptp(z, axis=0) > 1e-9
    design = np.concatenate([intercepts, -(z @ matrix)[:, is_varied]], 1)
    coefficients = np.linalg.lstsq(design, least, rcond=1e-9)[0]
    optimum = np.zeros(z.shape[1])
    optimum[is_varied] = coefficients[intercepts.shape[1] :]
    return optimum


def _residuals(theta: np.ndarray, rows: SurfaceRows) -> np.ndarray:
    """Return log L minus the surface [n], with the best intercept of each cell."""
    return _center(log_least_loss(theta, rows), rows.cells)


def _noise(theta: np.ndarray, rows: SurfaceRows, degrees: int) -> float:
    """Return the standard deviation of the residuals."""
    residuals = _residuals(theta, rows)
    return max(float(np.sqrt(residuals @ residuals / degrees)), MIN_NOISE)


def _scaled_residuals(
    theta: np.ndarray, rows: SurfaceRows, sigma: float, prior: Prior
) -> np.ndarray:
    """Return the residuals of the rows and of the priors [n + p], in standard deviations."""
    of_prior = (theta - prior.mean) / prior.sd
    return np.concatenate([_residuals(theta, rows) / sigma, of_prior])


def _center(values: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Subtract from each value [n, ...] the mean of its cell."""
    counts = np.bincount(cells)
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, cells, values)
    shape = (-1,) + (1,) * (values.ndim - 1)
    return values - (sums / counts.reshape(shape))[cells]


def _initial_values(rows: SurfaceRows, names: Sequence[str]) -> np.ndarray:
    """Return parameters of the surface without interactions, which is a linear problem.

    Without interactions, log L = intercept + sum_j H_jj x_j^2 / 2 - H_jj x_j (F_j m_j).
    """
    columns = []
    for j, feature in enumerate(rows.features):
        columns += [0.5 * rows.x[:, j : j + 1] ** 2, -rows.x[:, j : j + 1] * feature]
    design = _center(np.concatenate(columns, 1), rows.cells)
    coefficients = np.linalg.lstsq(design, _center(rows.log_loss, rows.cells), rcond=1e-12)[0]
    start_exponents, diagonal, first = [], [], 0
    for name, feature in zip(names, rows.features, strict=True):
        height, products = (
            coefficients[first],
            coefficients[first + 1 : first + 1 + feature.shape[1]],
        )
        if height <= 0:
            raise ValueError(
                f"the loss has no minimum within the tested values of the {name}: train with"
                " smaller and larger values"
            )
        start_exponents.append(np.array(products) / height)
        diagonal.append(0.5 * np.log(height))
        first += 1 + feature.shape[1]
    factor = np.diag(diagonal)
    return np.concatenate([*start_exponents, factor[np.tril_indices(len(diagonal))]])
