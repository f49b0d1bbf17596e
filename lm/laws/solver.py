"""Batched damped Newton method for many small fits: several starts, or several resamples.

Legend: S problems solved together (starts or resamples), n rows, p parameters, K terms of a sum.
Each objective is a SUM over rows. The mean of a Huber loss with delta 1e-3 is so flat that an
optimizer with absolute tolerances stops early (the exponent of N* changed by 0.06 on Chinchilla's
runs).

An objective is a function (theta_Sp, log_y, weights) -> value_S, gradient_Sp, hessian_Spp,
majorizer_Spp. log_y is [n] or [S, n]. weights are [S, n] (the counts of a resample) or None. The
majorizer is the Gauss-Newton matrix with the weights of iteratively reweighted least squares: it is
positive semidefinite and a good model far from the minimum. The exact Hessian is good near it.
`minimize` blends the two.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Each loss is the summand of a row: f is the law, y the measured value, delta in units of log y.
LOSSES = {
    "huber": "Huber(log f - log y, delta): r^2/2 within delta, else delta (|r| - delta/2)",
    "absolute": "|log f - log y|, least absolute deviations",
    "log_squares": "(log f - log y)^2",
    "squares": "(f - y)^2, of the loss itself",
}

DIAGONAL = 1e-3  # diagonal part of the damping; a larger one prevents steps along a valley
ROUNDING = 1e-26  # squared relative error per row that rounding explains
ROWS_PER_BLOCK = 40_000  # a block of problems fits the cache of the processor

Objective = Callable[[np.ndarray, np.ndarray, np.ndarray | None], tuple[np.ndarray, ...]]


class Term(NamedTuple):
    """Term exp(X theta[columns] + offset) of a law that is a sum of such terms."""

    columns: list[int]
    X: np.ndarray  # [n, len(columns)]
    offset: np.ndarray  # [n]


class Minimum(NamedTuple):
    """Minima of S problems: theta [S, p], objective, scaled gradient norm, converged."""

    theta: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    converged: np.ndarray


def penalty(
    log_f: np.ndarray, log_y: np.ndarray, loss: str, delta: float
) -> tuple[np.ndarray, ...]:
    """Return the loss of each row, and its first, second and majorizing derivative in log f."""
    if loss == "squares":
        f, y = np.exp(np.minimum(log_f, 300.0)), np.exp(log_y)
        r = f - y
        return r * r, 2 * r * f, 2 * f * (f + r), 2 * f * f
    r = log_f - log_y
    if loss == "log_squares":
        two = np.full_like(r, 2.0)
        return r * r, 2 * r, two, two
    magnitude = np.abs(r)
    is_small = magnitude <= delta
    # The absolute loss is a Huber loss with a small delta.
    unit = 1.0 if loss == "huber" else 1.0 / delta
    value = unit * np.where(is_small, 0.5 * r * r, delta * (magnitude - 0.5 * delta))
    slope = unit * np.clip(r, -delta, delta)
    return value, slope, unit * is_small, unit * delta / np.maximum(magnitude, delta)


def log_sum_exp(terms: Sequence[Term], n_params: int, loss: str, delta: float) -> Objective:
    """Return the objective of log f = log sum_k exp(X_k theta + offset_k), with exact derivatives.

    p_k is the fraction of term k in f. The gradient of log f is J = sum_k p_k X_k, and its Hessian
    is sum_k p_k X_k X_k^T - J J^T. X does not depend on theta, so each sum over rows is one matrix
    product.
    """
    pairs = [
        (k, m, (s.X[:, :, None] * t.X[:, None, :]).reshape(len(s.X), -1))
        for k, s in enumerate(terms)
        for m, t in enumerate(terms)
        if k <= m and s.columns and t.columns
    ]

    def objective(theta, log_y, weights):
        z = [theta[:, t.columns] @ t.X.T + t.offset for t in terms]
        largest = np.maximum.reduce(z)
        fractions = [np.exp(z_k - largest) for z_k in z]
        total = sum(fractions[1:], fractions[0].copy())
        fractions = [fraction / total for fraction in fractions]
        value, slope, second, major = penalty(largest + np.log(total), log_y, loss, delta)
        if weights is not None:
            value, slope = value * weights, slope * weights
            second, major = second * weights, major * weights
        gradient = np.zeros_like(theta)
        hessian = np.zeros((*theta.shape, n_params))
        majorizer = np.zeros_like(hessian)
        for term, fraction in zip(terms, fractions, strict=True):
            gradient[:, term.columns] += (slope * fraction) @ term.X
        curvature = second - slope
        for k, m, products in pairs:
            rows, columns = terms[k].columns, terms[m].columns
            product = fractions[k] * fractions[m]
            exact = curvature * product
            if k == m:
                exact = exact + slope * fractions[k]
            for matrix, coefficient in ((hessian, exact), (majorizer, major * product)):
                block = (coefficient @ products).reshape(-1, len(rows), len(columns))
                matrix[:, np.array(rows)[:, None], columns] += block
                if k != m:
                    matrix[:, np.array(columns)[:, None], rows] += block.swapaxes(1, 2)
        return value.sum(1), gradient, hessian, majorizer

    return objective


def curve(log_f: Callable, loss: str, delta: float) -> Objective:
    """Return the objective of a law log_f(theta) -> log f [S, n], its Jacobian [S, n, p].

    The Hessian is the Gauss-Newton matrix for squares of logs. For other losses it is a forward
    difference of the exact gradient.
    """

    def slopes(theta, log_y, weights):
        value, jacobian = log_f(theta)
        value, slope, _, major = penalty(value, log_y, loss, delta)
        w = 1.0 if weights is None else weights
        gradient = np.einsum("sn,snp->sp", slope * w, jacobian, optimize=True)
        return (
            (value * w).sum(1),
            gradient,
            (jacobian * (major * w)[:, :, None]).swapaxes(1, 2) @ jacobian,
        )

    def objective(theta, log_y, weights):
        value, gradient, majorizer = slopes(theta, log_y, weights)
        if loss == "log_squares":
            return value, gradient, majorizer, majorizer
        step = 1e-6
        ahead = [slopes(theta + step * unit, log_y, weights)[1] for unit in np.eye(theta.shape[1])]
        hessian = (np.stack(ahead, axis=1) - gradient[:, None, :]) / step
        return value, gradient, 0.5 * (hessian + hessian.swapaxes(1, 2)), majorizer

    return objective


def minimize(
    objective: Objective,
    theta: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    log_y: np.ndarray,
    weights: np.ndarray | None = None,
    iterations: int = 200,
    tolerance: float = 1e-11,
) -> Minimum:
    """Minimize S problems from theta [S, p] within bounds; log_y is [n] or [S, n].

    A problem is finished when the predicted decrease of its Newton step is below `tolerance` times
    its objective.
    """
    block = max(8, ROWS_PER_BLOCK // log_y.shape[-1])
    parts = []
    for start in range(0, len(theta), block):
        chosen = slice(start, start + block)
        y = log_y if log_y.ndim == 1 else log_y[chosen]
        w = None if weights is None else weights[chosen]
        parts.append(_descend(objective, theta[chosen], lower, upper, y, w, iterations, tolerance))
    return Minimum(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _descend(objective, theta, lower, upper, log_y, weights, iterations, tolerance) -> Minimum:
    """Take damped Newton steps until all problems are finished."""
    theta = np.clip(theta, lower, upper)
    with np.errstate(all="ignore"):
        value, gradient, hessian, majorizer = objective(theta, log_y, weights)
    damping = np.ones(len(theta))
    converged = np.zeros(len(theta), bool)
    is_active = np.isfinite(value)
    identity = np.eye(theta.shape[1])
    for _ in range(iterations):
        active = np.flatnonzero(is_active)
        if len(active) == 0:
            break
        g, current = gradient[active], theta[active]
        # A parameter at its bound with an outward gradient stays at its bound.
        is_fixed = ((current <= lower) & (g > 0)) | ((current >= upper) & (g < 0))
        g = np.where(is_fixed, 0.0, g)
        scale = np.einsum("spp->sp", majorizer[active])
        ridge = 1e-10 * scale.max(1, keepdims=True) + 1e-300
        matrix = hessian[active] + damping[active, None, None] * (
            majorizer[active] + DIAGONAL * (scale + ridge)[:, :, None] * identity
        )
        free = ~is_fixed
        matrix = np.where(
            free[:, :, None] & free[:, None, :], matrix, identity * (scale + ridge)[:, :, None]
        )
        step = _solve(matrix, g)
        decrease = -0.5 * np.einsum("sp,sp->s", step, g)
        downhill = decrease > 0
        with np.errstate(all="ignore"):
            trial = np.clip(current + np.where(downhill[:, None], step, 0.0), lower, upper)
            y = log_y if log_y.ndim == 1 else log_y[active]
            w = None if weights is None else weights[active]
            new = objective(trial, y, w)
        is_better = downhill & (new[0] < value[active]) & np.isfinite(new[1]).all(1)
        is_done = (np.abs(decrease) <= tolerance * value[active] + ROUNDING * log_y.shape[-1]) & (
            damping[active] < 1e3
        )
        improved = active[is_better]
        theta[improved] = trial[is_better]
        for array, update in zip((value, gradient, hessian, majorizer), new, strict=True):
            array[improved] = update[is_better]
        damping[active] = np.where(
            is_better, np.maximum(damping[active] * 0.2, 1e-9), damping[active] * 6.0
        )
        converged[active[is_done]] = True
        is_active[active[is_done | (damping[active] > 1e12)]] = False
    is_fixed = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
    norm = np.abs(np.where(is_fixed, 0.0, gradient)).max(1) / (value + 1e-12)
    return Minimum(theta, value, norm, converged)


def _solve(matrix: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Return -matrix^-1 gradient; zero for a singular matrix, which increases the damping."""
    try:
        return -np.linalg.solve(matrix, gradient[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        step = np.zeros_like(gradient)
        for i, (m, g) in enumerate(zip(matrix, gradient, strict=True)):
            if np.isfinite(m).all() and np.linalg.matrix_rank(m) == len(g):
                step[i] = -np.linalg.solve(m, g)
        return step
