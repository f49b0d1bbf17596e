"""Choice of the next run of a ladder, so that a target is predicted precisely in the least time.

    choice = next_ladder_run.choose_run(law_fit, [4e6], points, seconds, max_error=0.01)
    print(choice.index, choice.error, choice.error_after, choice.seconds)

The error of a prediction is half the width of the 95% interval of log L at the target, where L is
the mean loss over seeds. It includes the error of the form of the law, see `form_uncertainty`. A
plan adds the run with the most variance removed per second until the expected error is small
enough. It then drops runs that later runs made unnecessary. The next run is the planned run that
removes the most variance per second. After each run, the law is fitted again and a new plan is
made.

The noise is estimated from the n - p residuals of n runs and p parameters, so the interval has the
width of Student's t. Every run, also a cheap one, makes this factor smaller. It is large for few
runs: 2.8 for 4 residuals, and 2.1 for 18. The variance here is that of the target times the square
of this factor, relative to that of the fit.

Legend: m candidates.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.laws import fit
from lm.laws.design import measurement_design

MAX_RUNS = 200  # of a plan
MIN_GAIN = 0.5  # removed variance of a run without a plan, relative to the largest possible
MIN_PROGRESS = 0.01  # variance that a run must remove for a plan to continue, relative to the rest


class RunChoice(NamedTuple):
    """The next run, and the plan that it belongs to."""

    index: int  # candidate of the next run, -1 if no candidate may be trained
    error: float  # of the target, as fitted
    error_after: float  # expected after the next run
    counts: list[int]  # planned runs of each candidate
    seconds: float  # of all planned runs
    planned_error: float  # expected after all planned runs
    is_reachable: bool  # True if the plan reaches the error


def interval_error(law_fit: fit.Fit, target: Sequence[float]) -> float:
    """Return half the width of the 95% interval of log L at the target, infinite if unknown."""
    prediction = law_fit.predict(*target, noise=False)
    if not (np.isfinite([prediction.lo, prediction.hi]).all() and prediction.lo > 0):
        return float("inf")
    return float(0.5 * np.log(prediction.hi / prediction.lo))


def choose_run(
    law_fit: fit.Fit,
    target: Sequence[float],
    points: np.ndarray,
    seconds: np.ndarray,
    max_error: float,
    is_allowed: np.ndarray | None = None,
) -> RunChoice:
    """Return the next run toward an error of the target of at most `max_error`.

    target: inputs of the law. points: inputs of the candidates, [inputs, m]. seconds: cost of each
    candidate, [m]. is_allowed: candidates that the remaining time allows, [m]; the plan may contain
    others. If the plan reaches no small enough error, or if its runs are not allowed, the next run
    removes the most variance per second of the candidates with at least MIN_GAIN of the largest
    reduction. Raises ValueError for a fit without bootstrap.
    """
    if not law_fit.ensemble:
        raise ValueError("the law has no ensemble: fit it with bootstrap=1000")
    at_target = law_fit.points([[value] for value in target])
    design = measurement_design.MeasurementDesign.of_fit(law_fit, at_target, points, True)
    error = interval_error(law_fit, target)
    # Draws of few rows are far from normal, so only their ratio of variances is used.
    ratio = (max_error / error) ** 2 if np.isfinite(error) else 0.0
    factors = _noise_factors(law_fit.n - len(law_fit.free))
    search = _Search(design, np.asarray(seconds, float), factors)
    plan, is_reachable = search.plan_runs(min(ratio, 1.0) * design.variance)
    allowed = np.ones(len(seconds), bool) if is_allowed is None else np.asarray(is_allowed, bool)
    index = search.first_run(plan if is_reachable else [], allowed)

    def expected_error(chosen: list[int]) -> float:
        left = max(search.variance_after(chosen), 0.0) / max(design.variance, 1e-300)
        return float(error * np.sqrt(left))

    return RunChoice(
        index,
        error,
        expected_error([index] if index >= 0 else []),
        np.bincount(plan, minlength=len(seconds)).tolist(),
        float(seconds[plan].sum()),
        expected_error(plan),
        is_reachable,
    )


def _noise_factors(n_spare: int) -> np.ndarray:
    """Return the squared quantile of Student's t after 0, 1, ... further runs, relative to now."""
    from scipy import special  # its import takes longer than that of all laws

    quantiles = special.stdtrit(max(n_spare, 1) + np.arange(MAX_RUNS + 1), 0.975)
    return (quantiles / quantiles[0]) ** 2


class _Search(NamedTuple):
    """Search of a plan: the covariances now, seconds of candidates [m], and `_noise_factors`."""

    design: measurement_design.MeasurementDesign
    seconds: np.ndarray
    factors: np.ndarray

    def variance_after(self, chosen: list[int]) -> float:
        """Return the variance at the target after the chosen runs."""
        return self.design.after(chosen).variance * float(self.factors[len(chosen)])

    def reductions(
        self, current: measurement_design.MeasurementDesign, n_chosen: int
    ) -> np.ndarray:
        """Return the variance that each candidate removes after n_chosen runs, [m]."""
        before = current.variance * self.factors[n_chosen]
        return before - (current.variance - current.reductions()) * self.factors[n_chosen + 1]

    def plan_runs(self, goal: float) -> tuple[list[int], bool]:
        """Return runs that reduce the variance to the goal, and True if they do so."""
        chosen: list[int] = []
        current = self.design
        while (excess := current.variance * self.factors[len(chosen)] - goal) > 0:
            if len(chosen) == MAX_RUNS:
                return chosen, False
            reductions = self.reductions(current, len(chosen))
            if not reductions.max() > MIN_PROGRESS * excess:
                return chosen, False
            # A reduction below the goal has no further use.
            best = int(np.argmax(np.minimum(reductions, excess) / self.seconds))
            chosen.append(best)
            current = current.after([best])
        for index in sorted(set(chosen), key=lambda i: -self.seconds[i]):
            while index in chosen:
                others = list(chosen)
                others.remove(index)
                if self.variance_after(others) > goal:
                    break
                chosen = others
        return chosen, True

    def first_run(self, plan: list[int], is_allowed: np.ndarray) -> int:
        """Return the allowed candidate to train first, -1 if there is none."""
        reductions = np.where(is_allowed, self.reductions(self.design, 0), -1.0)
        planned = [i for i in set(plan) if is_allowed[i]]
        if planned:
            return max(planned, key=lambda i: reductions[i] / self.seconds[i])
        if not is_allowed.any():
            return -1
        is_useful = is_allowed & (reductions >= MIN_GAIN * reductions.max())
        return int(np.argmax(np.where(is_useful, reductions / self.seconds, -1.0)))
