"""Many small fits at once: one damped Newton method over a stack of starts or of resamples.

Legend: S problems solved side by side (starts or resamples), n rows, p parameters, K terms of a
sum. Every objective is a SUM over rows, never a mean: the mean of a Huber loss of 1e-3 is so flat
that an optimiser with absolute tolerances stops anywhere (the exponent of N* moved by .06 on
Chinchilla's runs).

An objective here is a function (theta_Sp, log_y, weights) -> value_S, gradient_Sp, hessian_Spp,
majoriser_Spp, where log_y is n or S x n numbers, and weights S x n numbers (the counts of a
resample) or None. The majoriser is the Gauss-Newton matrix with the weights of iteratively
reweighted least squares: always positive, good far away. The exact Hessian is good nearby.
`minimise` blends the two.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# What is summed over rows, with f the law and y the measured value. delta is in units of log y.
LOSSES = {
    "huber": "Huber(log f - log y, delta): r^2/2 within delta, else delta (|r| - delta/2)",
    "absolute": "|log f - log y|, least absolute deviations",
    "log_squares": "(log f - log y)^2",
    "squares": "(f - y)^2, of the loss itself",
}

DIAGONAL = 1e-3  # of the damping; more keeps steps from following a valley
EXACT = 1e-26  # a square of relative errors, a row, that is rounding

Objective = Callable[[np.ndarray, np.ndarray, np.ndarray | None], tuple[np.ndarray, ...]]


class Term(NamedTuple):
    """A term exp(X theta[columns] + offset) of a law that is a sum of such."""

    columns: list[int]
    X: np.ndarray  # n x len(columns)
    offset: np.ndarray  # n


class Minimum(NamedTuple):
    """Where S problems ended: theta (S x p), objective, scaled gradient norm, converged."""

    theta: np.ndarray
    value: np.ndarray
    gradient: np.ndarray
    converged: np.ndarray


def penalty(
    log_f: np.ndarray, log_y: np.ndarray, loss: str, delta: float
) -> tuple[np.ndarray, ...]:
    """The loss of each row and its first, second and majorising second derivative in log f."""
    if loss == "squares":
        f, y = np.exp(np.minimum(log_f, 300.0)), np.exp(log_y)
        r = f - y
        return r * r, 2 * r * f, 2 * f * (f + r), 2 * f * f
    r = log_f - log_y
    if loss == "log_squares":
        two = np.full_like(r, 2.0)
        return r * r, 2 * r, two, two
    size = np.abs(r)
    small = size <= delta
    unit = (
        1.0 if loss == "huber" else 1.0 / delta
    )  # absolute deviations: a Huber loss of tiny delta
    value = unit * np.where(small, 0.5 * r * r, delta * (size - 0.5 * delta))
    slope = unit * np.clip(r, -delta, delta)
    return value, slope, unit * small, unit * delta / np.maximum(size, delta)


def log_sum_exp(terms: Sequence[Term], n_params: int, loss: str, delta: float) -> Objective:
    """The objective of log f = log sum_k exp(X_k theta + offset_k), with exact derivatives.

    With p_k the share of term k, the gradient of log f is J = sum_k p_k X_k and its Hessian sum_k
    p_k X_k X_k^T - J J^T. X does not depend on theta, so each sum over rows is one matrix product.
    """
    pairs = [
        (k, m, (s.X[:, :, None] * t.X[:, None, :]).reshape(len(s.X), -1))
        for k, s in enumerate(terms)
        for m, t in enumerate(terms)
        if k <= m and s.columns and t.columns
    ]

    def objective(theta, log_y, weights):
        z = [theta[:, t.columns] @ t.X.T + t.offset for t in terms]
        top = np.maximum.reduce(z)
        shares = [np.exp(z_k - top) for z_k in z]
        total = sum(shares[1:], shares[0].copy())
        shares = [s / total for s in shares]
        value, slope, second, major = penalty(top + np.log(total), log_y, loss, delta)
        if weights is not None:
            value, slope = value * weights, slope * weights
            second, major = second * weights, major * weights
        gradient = np.zeros_like(theta)
        hessian = np.zeros((*theta.shape, n_params))
        majoriser = np.zeros_like(hessian)
        for term, share in zip(terms, shares, strict=True):
            gradient[:, term.columns] += (slope * share) @ term.X
        bent = second - slope
        for k, m, products in pairs:
            rows, columns = terms[k].columns, terms[m].columns
            both = shares[k] * shares[m]
            exact = bent * both + slope * shares[k] if k == m else bent * both
            for matrix, coefficient in ((hessian, exact), (majoriser, major * both)):
                block = (coefficient @ products).reshape(-1, len(rows), len(columns))
                matrix[:, np.array(rows)[:, None], columns] += block
                if k != m:
                    matrix[:, np.array(columns)[:, None], rows] += block.swapaxes(1, 2)
        return value.sum(1), gradient, hessian, majoriser

    return objective


def curve(log_f: Callable, loss: str, delta: float) -> Objective:
    """The objective of any law: log_f(theta) returns log f (S x n) and its Jacobian (S x n x p).

    The Hessian is the Gauss-Newton matrix for squares of logs, else a forward difference of the
    exact gradient.
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
        value, gradient, majoriser = slopes(theta, log_y, weights)
        if loss == "log_squares":
            return value, gradient, majoriser, majoriser
        step = 1e-6
        ahead = [slopes(theta + step * unit, log_y, weights)[1] for unit in np.eye(theta.shape[1])]
        hessian = (np.stack(ahead, axis=1) - gradient[:, None, :]) / step
        return value, gradient, 0.5 * (hessian + hessian.swapaxes(1, 2)), majoriser

    return objective


def minimise(
    objective: Objective,
    theta: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    log_y: np.ndarray,
    weights: np.ndarray | None = None,
    iterations: int = 200,
    tolerance: float = 1e-11,
    rows_at_once: int = 40_000,
) -> Minimum:
    """Minimise S problems at once from theta (S x p) within a box; log_y is n or S x n.

    Each problem leaves the stack when the decrease that its Newton step promises is below
    `tolerance` times its objective. Problems run in blocks that fit the processor's cache.
    """
    block = max(8, rows_at_once // log_y.shape[-1])
    parts = []
    for start in range(0, len(theta), block):
        chosen = slice(start, start + block)
        y = log_y if log_y.ndim == 1 else log_y[chosen]
        w = None if weights is None else weights[chosen]
        parts.append(_descend(objective, theta[chosen], lower, upper, y, w, iterations, tolerance))
    return Minimum(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _descend(objective, theta, lower, upper, log_y, weights, iterations, tolerance) -> Minimum:
    theta = np.clip(theta, lower, upper)
    with np.errstate(all="ignore"):
        value, gradient, hessian, majoriser = objective(theta, log_y, weights)
    damping = np.ones(len(theta))
    converged = np.zeros(len(theta), bool)
    alive = np.isfinite(value)
    identity = np.eye(theta.shape[1])
    for _ in range(iterations):
        a = np.flatnonzero(alive)
        if len(a) == 0:
            break
        g, at = gradient[a], theta[a]
        # A parameter on its bound whose gradient points outwards is held there.
        held = ((at <= lower) & (g > 0)) | ((at >= upper) & (g < 0))
        g = np.where(held, 0.0, g)
        scale = np.einsum("spp->sp", majoriser[a])
        ridge = 1e-10 * scale.max(1, keepdims=True) + 1e-300
        matrix = hessian[a] + damping[a, None, None] * (
            majoriser[a] + DIAGONAL * (scale + ridge)[:, :, None] * identity
        )
        free = ~held
        matrix = np.where(
            free[:, :, None] & free[:, None, :], matrix, identity * (scale + ridge)[:, :, None]
        )
        step = _solve(matrix, g)
        promise = -0.5 * np.einsum("sp,sp->s", step, g)
        downhill = promise > 0
        with np.errstate(all="ignore"):
            trial = np.clip(at + np.where(downhill[:, None], step, 0.0), lower, upper)
            y, w = log_y if log_y.ndim == 1 else log_y[a], None if weights is None else weights[a]
            new = objective(trial, y, w)
        better = downhill & (new[0] < value[a]) & np.isfinite(new[1]).all(1)
        done = (np.abs(promise) <= tolerance * value[a] + EXACT * log_y.shape[-1]) & (
            damping[a] < 1e3
        )
        took = a[better]
        theta[took] = trial[better]
        for old, fresh in zip((value, gradient, hessian, majoriser), new, strict=True):
            old[took] = fresh[better]
        damping[a] = np.where(better, np.maximum(damping[a] * 0.2, 1e-9), damping[a] * 6.0)
        converged[a[done]] = True
        alive[a[done | (damping[a] > 1e12)]] = False
    held = ((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0))
    norm = np.abs(np.where(held, 0.0, gradient)).max(1) / (value + 1e-12)
    return Minimum(theta, value, norm, converged)


def _solve(matrix: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """-matrix^-1 gradient; a singular matrix gives a step of zero, which raises the damping."""
    try:
        return -np.linalg.solve(matrix, gradient[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        step = np.zeros_like(gradient)
        for i, (m, g) in enumerate(zip(matrix, gradient, strict=True)):
            if np.isfinite(m).all() and np.linalg.matrix_rank(m) == len(g):
                step[i] = -np.linalg.solve(m, g)
        return step
