"""Hierarchical regression of the scores of many tasks on features of their runs.

    fit = score_regression.fit_scores(features, scores, trunks, families)
    draws = fit.draw(features_of_a_new_run, np.random.default_rng(0))       # scores in [0, 1]

    logit_rt = a_t + b_t * x_r + s_t * e_rt

The features x are the loss (two-step method, Bhagia et al. 2024, arXiv:2412.04403), or the
logarithms of size and tokens (direct law). The tasks inform each other in three ways:

- The slopes b_t are normally distributed over the tasks. Their mean and variance come from all
  tasks (empirical Bayes), so the slope of a task with noisy runs is close to the mean slope.
- The noise s_t has the weight of its own residuals and of PRIOR_DEGREES residuals of an average
  task (moderated variances, Smyth 2004). It contains the differences between runs on these items.
  It does not contain the choice of items, because all runs have the same items.
- The errors e_rt of a run have a part that all tasks share, a part of the family of the task, and
  an own part. Without the shared parts, intervals of a number of tasks would be too narrow.

Branches of a trunk run share most of their training, so the rows of a trunk have the weight of one
run together. Seeds of a size share the error of the form, so m of them have the weight of
m / (1 + (m - 1) rho) runs, where rho is the share of that error in the variance (the design effect,
Kish 1965). Legend: R runs, T tasks, K features, J features and the constant, B draws.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from lm.laws import random_effects

PRIOR_DEGREES = 4  # weight of the average residual variance, in residuals
MIN_DEGREES = 2  # runs beyond the number of coefficients
SCORE_MARGIN = 0.002  # least distance of a score from 0 and 1
MIN_VARIATION = 1e-9  # features with a smaller range are constant


@dataclass
class ScoreRegression:
    """Fitted regression: see the module docstring."""

    center_K: np.ndarray  # weighted means of the features, without constant features
    is_varied_K: np.ndarray  # bool; mask of the features that differ between the runs
    rotation_JJ: np.ndarray  # from the constant and the features to orthonormal coordinates
    coefficients_JT: np.ndarray  # posterior means
    own_JT: np.ndarray  # weight of the own coefficient of a task against the mean of all tasks
    variances_T: np.ndarray  # of the noise
    degrees: float  # of freedom, of the variances
    families_T: np.ndarray  # number of the family of each task
    correlations: tuple[float, float]  # of the errors of two tasks, and of two tasks of a family

    def draw(self, features_BK: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return scores of a new run, float64 [B, T], for draws of its features."""
        centered_BK = features_BK[:, self.is_varied_K] - self.center_K
        point_BJ = np.concatenate([np.ones((len(centered_BK), 1)), centered_BK], 1)
        point_BJ = point_BJ @ self.rotation_JJ
        n_draws, n_tasks = len(point_BJ), len(self.variances_T)
        chi_BT = rng.chisquare(self.degrees, (n_draws, n_tasks)) / self.degrees
        noise_BT = np.sqrt(self.variances_T / chi_BT)
        logits_BT = point_BJ @ self.coefficients_JT + noise_BT * self._errors(n_draws, rng)
        shared = self.correlations[0]
        mean_error = (shared + (1 - shared) / n_tasks) ** 0.5  # of the mean of all coefficients
        for j, own_T in enumerate(self.own_JT):
            deviation_BT = own_T**0.5 * self._errors(n_draws, rng)
            deviation_BT += (1 - own_T) * mean_error * rng.standard_normal((n_draws, 1))
            logits_BT += point_BJ[:, j, None] * noise_BT * deviation_BT
        return 1 / (1 + np.exp(-logits_BT))

    def _errors(self, n_draws: int, rng: np.random.Generator) -> np.ndarray:
        """Return correlated standard normal errors, float64 [B, T]."""
        shared, in_family = self.correlations
        n_families = int(self.families_T.max(initial=0)) + 1
        errors_BT = shared**0.5 * rng.standard_normal((n_draws, 1))
        family_BF = rng.standard_normal((n_draws, n_families))
        errors_BT = errors_BT + (in_family - shared) ** 0.5 * family_BF[:, self.families_T]
        own_BT = rng.standard_normal((n_draws, len(self.families_T)))
        return errors_BT + (1 - in_family) ** 0.5 * own_BT


def fit_scores(
    features_RK: np.ndarray,
    scores_RT: np.ndarray,
    trunks: Sequence[str],
    families: Sequence[str],
    importance_R: np.ndarray | None = None,
    groups: Sequence[Hashable] | None = None,
) -> ScoreRegression:
    """Fit the scores of all tasks.

    scores_RT: fractions. trunks: trunk run of each run, or its own name. families: family of each
    task. importance_R: weights of the runs, 1 by default. groups: size and tokens of each run, so
    that the seeds of a group are equal; by default, all runs differ. Raises ValueError if there are
    fewer independent runs than coefficients and MIN_DEGREES: branches of a trunk run are not
    independent, and several seeds of two sizes do not show whether the form fits.
    """
    weights_R = 1 / np.array([list(trunks).count(name) for name in trunks], float)
    if importance_R is not None:
        weights_R = weights_R * importance_R
    sets_R = _connected_sets(trunks, groups or range(len(trunks)))
    is_varied_K = np.ptp(features_RK, axis=0) > MIN_VARIATION * np.abs(features_RK).max(axis=0)
    varied_RK = features_RK[:, is_varied_K]
    n_coefficients = 1 + varied_RK.shape[1]
    n_independent = min(float(weights_R.sum()), len(set(sets_R)))
    if n_independent - n_coefficients < MIN_DEGREES - MIN_VARIATION or n_coefficients == 1:
        raise ValueError(
            f"{n_independent:.3g} independent runs do not determine {n_coefficients} coefficients"
            f" and the noise: use at least {n_coefficients + MIN_DEGREES} runs of different sizes"
        )
    weights_R = weights_R * _seed_weights(varied_RK, _logit(scores_RT), trunks, sets_R)
    degrees = float(weights_R.sum()) - n_coefficients
    center_K = np.average(varied_RK, axis=0, weights=weights_R)
    root_R1 = np.sqrt(weights_R)[:, None]
    design_RJ = root_R1 * np.concatenate([np.ones((len(weights_R), 1)), varied_RK - center_K], 1)
    basis_RJ, triangle_JJ = np.linalg.qr(design_RJ)
    logits_RT = root_R1 * _logit(scores_RT)
    coefficients_JT = basis_RJ.T @ logits_RT
    residuals_RT = logits_RT - basis_RJ @ coefficients_JT
    squares_T = (residuals_RT**2).sum(axis=0) / degrees
    prior = max(float(squares_T.mean()), MIN_VARIATION)
    total = degrees + PRIOR_DEGREES
    variances_T = (PRIOR_DEGREES * prior + degrees * squares_T) / total
    coefficients_JT, own_JT = _shrink(coefficients_JT, variances_T)
    _, families_T = np.unique(list(families), return_inverse=True)
    standard_RT = residuals_RT / np.sqrt(variances_T) / root_R1
    return ScoreRegression(
        center_K,
        is_varied_K,
        np.linalg.inv(triangle_JJ),
        coefficients_JT,
        own_JT,
        variances_T,
        total,
        families_T,
        _correlations(standard_RT, families_T),
    )


def _connected_sets(trunks: Sequence[str], groups: Sequence[Hashable]) -> list[int]:
    """Return the number of the set of each run. Runs of one trunk run or group are in one set."""
    sets: list[set] = []
    for trunk, group in zip(trunks, groups, strict=True):
        names = {("trunk", trunk), ("group", group)}
        connected = [other for other in sets if other & names]
        sets = [other for other in sets if not other & names] + [names.union(*connected)]
    return [next(i for i, names in enumerate(sets) if ("trunk", t) in names) for t in trunks]


def _seed_weights(
    features_RK: np.ndarray, logits_RT: np.ndarray, trunks: Sequence[str], sets_R: Sequence[int]
) -> np.ndarray:
    """Return the factors of the weights of runs in sets of several trunk runs, [R].

    The error of the form, which all runs of a set share, and the noise of a trunk run have the
    variances of an analysis of variance of the residuals of trunk runs, averaged over the tasks.
    Legend: M trunk runs, S sets.
    """
    names, trunk_R = np.unique(list(trunks), return_inverse=True)
    set_M = np.zeros(len(names), int)  # of each of M trunk runs
    set_M[trunk_R] = sets_R
    n_trunks_S = np.bincount(set_M)
    n_sets, n_trunks = len(n_trunks_S), len(names)
    if n_sets == n_trunks:
        return np.ones(len(trunk_R))
    mean_MR = (trunk_R == np.arange(n_trunks)[:, None]) / np.bincount(trunk_R)[:, None]
    design_MJ = np.concatenate([np.ones((n_trunks, 1)), mean_MR @ features_RK], 1)
    basis_MJ = np.linalg.qr(design_MJ)[0]
    residuals_MT = mean_MR @ logits_RT
    residuals_MT = residuals_MT - basis_MJ @ (basis_MJ.T @ residuals_MT)
    sums_ST = random_effects.group_sums(residuals_MT, set_M, np.ones(n_trunks))
    means_ST = sums_ST / n_trunks_S[:, None]
    own = float(((residuals_MT - means_ST[set_M]) ** 2).sum()) / (n_trunks - n_sets)
    between = float((n_trunks_S[:, None] * means_ST**2).sum()) / (n_sets - basis_MJ.shape[1])
    form = max(between - own, 0.0) * n_sets / n_trunks
    rho = form / max(form + own, MIN_VARIATION)
    return 1 / (1 + (n_trunks_S[sets_R] - 1) * rho)


def _logit(scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, SCORE_MARGIN, 1 - SCORE_MARGIN)
    return np.log(clipped / (1 - clipped))


def _shrink(coefficients_JT: np.ndarray, variances_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the posterior means of the coefficients, and the weights of the own coefficients.

    The coordinates are orthonormal, so the variance of a least-squares coefficient is that of the
    noise. The first row contains the constants, which have no common distribution: weight 1.
    """
    means_JT, own_JT = coefficients_JT.copy(), np.ones_like(coefficients_JT)
    if coefficients_JT.shape[1] > 1:
        for j in range(1, len(means_JT)):
            values_T = coefficients_JT[j]
            spread = max(float(values_T.var(ddof=1) - variances_T.mean()), 0.0)
            own_JT[j] = spread / (spread + variances_T)
            means_JT[j] = values_T.mean() + own_JT[j] * (values_T - values_T.mean())
    return means_JT, own_JT


def _correlations(standard_RT: np.ndarray, families_T: np.ndarray) -> tuple[float, float]:
    """Return the mean correlation of the errors of two tasks of different and of equal families."""
    n_runs, n_tasks = standard_RT.shape
    product_TT = standard_RT.T @ standard_RT / n_runs
    scale = max(float(np.trace(product_TT)) / max(n_tasks, 1), MIN_VARIATION)
    is_same_TT = families_T[:, None] == families_T
    is_other_TT = ~np.eye(n_tasks, dtype=bool)
    values = []
    for mask_TT in (~is_same_TT, is_same_TT & is_other_TT):
        values.append(float(product_TT[mask_TT].mean()) / scale if mask_TT.any() else 0.0)
    shared = min(max(values[0], 0.0), 0.99)
    return shared, min(max(values[1], shared), 0.99)
