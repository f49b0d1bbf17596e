"""Noise of rows that share a trunk run: variances between and within groups, and their resamples.

Model: target_ij = law(x_ij) + u_i + e_ij. u_i is the noise of group i (a trunk run, or a run with
several rows), e_ij the own noise of row j. Both are Gaussian.

In simulation, default 95% intervals of `power_laws.chinchilla` that assume its form covered, for
the value of the law and for a new run of four times the largest size (150 sweeps per case, standard
error 1.8%):

    trunks x branches   noise of trunk, own    law   new run
     7 x 3              0.4%, 0.1%             97%   94%
     7 x 3              0,    0.4%             95%   96%
     7 x 3              0.1%, 0.2%             95%   93%
    12 x 5              0.4%, 0.1%             97%   97%
    12 x 5              0,    0.4%             97%   97%

Legend: n rows, p parameters, G groups, B resamples.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lm.laws import diagnostics, fit

POOLING_LEVEL = 0.25  # F-test of the groups: above this p-value, the rows count as independent
SHARED_NOISE_LEVEL = 1e-4  # p-value of the same test below which ungrouped rows have a warning
MIN_DEGREES = 3  # of freedom, between and within groups, for that warning


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
        noise counts as noise between groups, which gives the widest intervals. Without
        `has_group_noise`, s_u^2 is 0 and the sums of squares are pooled.
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
        """False if the F-test does not reject equal variances between and within groups.

        A preliminary test at this level is usual for variance components (Bancroft 1964). Without
        it, intervals of rows with only their own noise cover 99%.
        """
        if not self.between_degrees or not self.within_degrees or not self.within_squares:
            return True
        return self.p_value < POOLING_LEVEL

    @property
    def p_value(self) -> float:
        """p-value of the F-test that rows of a group differ as rows of different groups do."""
        from scipy import special  # its import takes longer than that of all laws

        ratio = self.between_squares / self.between_degrees
        ratio /= self.within_squares / self.within_degrees
        return float(special.fdtrc(self.between_degrees, self.within_degrees, ratio))

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

    The time grows as n p^2. The projection on the Jacobian J and the indicators Z of the groups is
    that on Z, the means of the groups, plus that on the part of J that is orthogonal to Z.
    """
    root = np.ones(len(residuals)) if weights is None else np.sqrt(weights)
    law = diagnostics.orthonormal_basis(jacobian * root[:, None])
    errors = diagnostics.remove_projection(residuals * root, law)
    lengths_G = np.bincount(groups, root**2)
    law_sums, error_sums = group_sums(law, groups, root), group_sums(errors, groups, root)
    means = law_sums / np.maximum(lengths_G, 1e-300)[:, None]
    off_groups = law - root[:, None] * means[groups]
    basis, scales, _ = np.linalg.svd(off_groups, full_matrices=False)
    basis = basis[:, scales > diagnostics.RANK_TOLERANCE]
    between = float((error_sums**2 / np.maximum(lengths_G, 1e-300)).sum())
    between += float(((basis.T @ errors) ** 2).sum())
    n_means = int((lengths_G > 0).sum()) + basis.shape[1]
    return Variances(
        between_squares=between,
        between_degrees=n_means - law.shape[1],
        within_squares=max(float(errors @ errors) - between, 0.0),
        within_degrees=len(residuals) - n_means,
        trace=max(float(lengths_G.sum() - (law_sums**2).sum()), 0.0),
    )


def group_sums(values: np.ndarray, groups: np.ndarray, root: np.ndarray) -> np.ndarray:
    """Return the sums over each group of values [n] or [n, k] times root [n]: [G] or [G, k]."""
    if values.ndim == 1:
        return np.bincount(groups, root * values)
    sums = [np.bincount(groups, root * column) for column in values.T]
    return np.stack(sums, -1) if sums else np.zeros((int(groups.max()) + 1, 0))


def describe_shared_noise(
    residuals: np.ndarray, jacobian: np.ndarray, inputs: dict[str, np.ndarray]
) -> str:
    """Return a warning if rows that count as independent share noise, or "".

    inputs: {letter: values [n]}. Checkpoints of a run, and branches of a trunk, have equal values
    of an input, usually N. Without their groups, 95% intervals of the law covered 50 to 60%.
    """
    for letter, values in inputs.items():
        groups = np.unique(values, return_inverse=True)[1].ravel()
        variances = estimate_variances(residuals, jacobian, groups)
        degrees = min(variances.between_degrees, variances.within_degrees)
        if degrees < MIN_DEGREES or not variances.within_squares:
            continue
        if variances.p_value < SHARED_NOISE_LEVEL:
            return (
                f"rows of equal {letter} have similar residuals (F-test, p ="
                f" {variances.p_value:.1g}): if they are checkpoints or branches of one run, pass"
                " group=, the column of the run. Otherwise the form may be wrong"
            )
    return ""


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
    group_effects = rng.standard_normal((bootstrap, int(groups.max()) + 1))
    residual_errors = rng.standard_normal((bootstrap, len(groups)))
    if weights is not None:
        residual_errors = residual_errors / np.sqrt(weights)
    noise = np.sqrt(between)[:, None] * group_effects[:, groups]
    noise = noise + np.sqrt(own)[:, None] * residual_errors
    return noise, np.sqrt(between + own)


def draw_group_noise(
    result: fit.Fit, weights: np.ndarray | None, bootstrap: int, rng: np.random.Generator
) -> np.ndarray:
    """Return noise [B, n] of the rows of a fit, and set the noise of a new run in the fit."""
    residuals = diagnostics.residuals(result, result.y)
    _, (jacobian,) = diagnostics.parameter_jacobian(result, result.x)
    groups = result.data.groups
    variances = estimate_variances(residuals, jacobian, groups, weights)
    result.sigma = float(np.sqrt(sum(variances.estimates)))
    noise, result.sigmas = draw_noise(variances, groups, weights, bootstrap, rng)
    return noise


def find_shared_noise(result: fit.Fit) -> list[str]:
    """Return a warning if rows without a group share noise: see `describe_shared_noise`."""
    residuals = diagnostics.residuals(result, result.y)
    if len(result.x) < 2 or not np.abs(residuals).max() > 1e-9:
        return []
    inputs = dict(zip(result.inputs, result.x, strict=True))
    _, (jacobian,) = diagnostics.parameter_jacobian(result, result.x)
    text = describe_shared_noise(residuals, jacobian, inputs)
    return [text] if text else []
