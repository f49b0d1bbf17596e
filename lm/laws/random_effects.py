"""Noise of rows that share a trunk run: variances between and within groups, and their resamples.

Model: target_ij = law(x_ij) + u_i + e_ij. u_i is the noise of group i (a trunk run, or a run with
several rows), e_ij the own noise of row j. Both are Gaussian.

Legend: n rows, p parameters, G groups, B resamples.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

POOLING_LEVEL = 0.25  # F-test of the groups: above this p-value, the rows count as independent
RANK_TOLERANCE = 1e-8  # singular values below this fraction of the largest count as zero


@dataclass(frozen=True)
class Variances:
    """Variances between and within groups, by the moments of two sums of squares.

    Henderson (1953), method 3: the residuals are projected off the Jacobian of the law, and then
    off the Jacobian and the group means. The results therefore do not depend, to first order, on
    the loss that was minimized. E[between_squares] = between_degrees s_e^2 + trace s_u^2.
    """

    between_squares: float
    between_degrees: int
    within_squares: float
    within_degrees: int
    trace: float  # trace(Z' M Z); Z: indicators of the groups, M: projection off the Jacobian

    def split(
        self, between_chi: np.ndarray | float, within_chi: np.ndarray | float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the variances (s_u^2, s_e^2), with the sums of squares divided by the arguments.

        The degrees of freedom as arguments give the moment estimates. Chi-squared draws give draws
        from the generalized confidence distribution. Without degrees of freedom within groups, the
        noise counts as noise between groups, which gives the widest intervals. Groups that pass
        `has_group_noise` as independent rows have s_u^2 = 0 and one pooled sum of squares.
        """
        within_chi = np.asarray(within_chi, float)
        if not self.has_group_noise:
            pooled = (self.between_squares + self.within_squares) / (between_chi + within_chi)
            return np.zeros_like(pooled), pooled
        own = self.within_squares / within_chi if self.within_degrees else np.zeros_like(within_chi)
        if not self.between_degrees or self.trace <= 0:
            return np.zeros_like(own), own
        excess = self.between_squares / np.asarray(between_chi, float) - own
        return np.maximum(excess, 0.0) * self.between_degrees / self.trace, own

    @cached_property
    def has_group_noise(self) -> bool:
        """Return True unless an F-test finds the rows of a group as different as all rows.

        A preliminary test at this level is usual for variance components (Bancroft 1964). Without
        it, intervals of rows with only their own noise cover 99%.
        """
        if not self.between_degrees or not self.within_degrees or not self.within_squares:
            return True
        from scipy import special  # its import takes longer than that of all laws

        ratio = self.between_squares / self.between_degrees
        ratio /= self.within_squares / self.within_degrees
        return special.fdtrc(self.between_degrees, self.within_degrees, ratio) < POOLING_LEVEL

    @property
    def estimates(self) -> tuple[float, float]:
        """Moment estimates of (s_u^2, s_e^2)."""
        between, own = self.split(max(self.between_degrees, 1), max(self.within_degrees, 1))
        return float(between), float(own)


def estimate_variances(
    residuals: np.ndarray,
    jacobian: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None = None,
) -> Variances:
    """Return the variances of residuals [n] between and within groups.

    jacobian: derivative of the law by its parameters at each row, [n, p]. groups: integers [n].
    weights: weights of the rows with mean 1, [n]; the own noise of a row has variance s_e^2 /
    weight.
    """
    root = np.ones(len(residuals)) if weights is None else np.sqrt(weights)
    indicators = (groups[:, None] == np.arange(groups.max() + 1)) * root[:, None]
    residuals, jacobian = residuals * root, jacobian * root[:, None]
    law = _orthonormal_basis(jacobian)
    off_law = indicators - law @ (law.T @ indicators)
    means = _orthonormal_basis(off_law)
    rest = residuals - law @ (law.T @ residuals)
    total, between = float(rest @ rest), float(((means.T @ rest) ** 2).sum())
    return Variances(
        between_squares=between,
        between_degrees=means.shape[1],
        within_squares=max(total - between, 0.0),
        within_degrees=len(residuals) - law.shape[1] - means.shape[1],
        trace=float((off_law**2).sum()),
    )


def draw_noise(
    variances: Variances,
    groups: np.ndarray,
    weights: np.ndarray | None,
    bootstrap: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return noise of the rows [B, n], and the standard deviation of a new run per resample [B].

    Each resample draws both variances. A new run has the noise of a new trunk and its own.
    """
    between_chi = rng.chisquare(max(variances.between_degrees, 1), size=bootstrap)
    within_chi = rng.chisquare(max(variances.within_degrees, 1), size=bootstrap)
    between, own = variances.split(between_chi, within_chi)
    of_groups = rng.standard_normal((bootstrap, int(groups.max()) + 1))
    of_rows = rng.standard_normal((bootstrap, len(groups)))
    if weights is not None:
        of_rows = of_rows / np.sqrt(weights)
    noise = np.sqrt(between)[:, None] * of_groups[:, groups] + np.sqrt(own)[:, None] * of_rows
    return noise, np.sqrt(between + own)


def _orthonormal_basis(matrix: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis of the columns of a matrix, after they are scaled to length 1."""
    norms = np.linalg.norm(matrix, axis=0)
    columns = matrix[:, norms > 1e-12 * max(norms.max(initial=0.0), 1e-300)]
    if not columns.shape[1]:
        return np.zeros((len(matrix), 0))
    left, values, _ = np.linalg.svd(columns / np.linalg.norm(columns, axis=0), full_matrices=False)
    return left[:, values > RANK_TOLERANCE * values[0]]
