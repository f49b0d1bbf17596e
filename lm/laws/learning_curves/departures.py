"""Departures of a run from its expected curve: a wrong learning rate, or other training text.

    check = departures.check_run(finished_curves, curve)
    print(check)        # expected, or a sentence per test that the run fails

The training losses of the last fifth of the steps are compared with those of finished runs after
the same number of tokens. Two statistics have a distribution over the finished runs, each of which
is compared with the others:

level  root mean square of the difference from the expected log loss, which is linear in the logs of
       size and peak learning rate at each step
noise  root mean square of the same difference without its trend. Runs with equal batches have equal
       fluctuations, which the difference does not contain. Other text changes them

A run is flagged if a statistic is larger than its 99% bound.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.laws.learning_curves import recorded_curves

MIN_FRACTION = 0.2  # of the steps before the first test
WINDOW = 0.2  # of the steps that are tested
SKIPPED = 0.03  # of the steps at the start, where losses fall from their initial value
MIN_RUNS = 8  # finished runs with comparable batches
MIN_ROWS = 8  # rows of metrics in the window
TREND_WINDOW = 4  # rows on each side of the local quadratic trend
LEVEL = 0.99  # of each test
LEVERAGE_RIDGE = 1e-3


class DepartureTest(NamedTuple):
    """Statistic of a run, its expected value and its bound. All are relative to the loss."""

    name: str  # level or noise
    value: float
    expected: float
    bound: float

    @property
    def is_failed(self) -> bool:
        """True if the statistic exceeds its bound."""
        return not self.value <= self.bound


class DepartureCheck(NamedTuple):
    """Tests of one run at its current step. reason: why there are no tests, or ""."""

    name: str
    step: int
    n_runs: int
    tests: tuple[DepartureTest, ...]
    reason: str = ""

    @property
    def is_flagged(self) -> bool:
        """True if the run fails a test."""
        return any(test.is_failed for test in self.tests)

    def __str__(self) -> str:
        if self.reason:
            return f"not tested: {self.reason}"
        causes = {
            "level": "its training loss differs from the expected curve by {:.1%}, bound {:.1%}."
            " Compare the learning rate, the initial weights and the text with finished runs",
            "noise": "its training loss fluctuates by {:.2%} around the expected batches, bound"
            " {:.2%}. Check whether the batches contain the text of finished runs",
        }
        lines = [causes[t.name].format(t.value, t.bound) for t in self.tests if t.is_failed]
        return "; ".join(lines) or f"expected at step {self.step:,}"


def check_run(
    finished: Sequence[recorded_curves.LearningCurve], curve: recorded_curves.LearningCurve
) -> DepartureCheck:
    """Compare the training losses of a run with those of finished runs."""
    step = int(curve.training_steps[-1]) if len(curve.training_steps) else 0
    comparable = [
        other for other in finished if other.batch_key == curve.batch_key and other.n_steps >= step
    ]
    reason = ""
    if step < MIN_FRACTION * curve.n_steps:
        reason = f"step {step:,} is before {MIN_FRACTION:.0%} of its steps"
    elif len(comparable) < MIN_RUNS:
        reason = (
            f"{len(comparable)} finished runs have its seed, text and batch size, {MIN_RUNS} needed"
        )
    start = max(SKIPPED * curve.n_steps, step - WINDOW * curve.n_steps)
    rows = curve.training_steps[(curve.training_steps > start) & (curve.training_steps <= step)]
    for other in comparable:
        rows = rows[np.isin(rows, other.training_steps)]
    if not reason and len(rows) < MIN_ROWS:
        reason = (
            f"{len(rows)} rows of metrics at common steps, {MIN_ROWS} needed: lower log_interval"
        )
    if reason:
        return DepartureCheck(curve.name, step, len(comparable), (), reason)
    from scipy import special  # its import takes longer than that of all laws

    differences = expected_differences([*comparable, curve], rows)
    tests = []
    for name, part in (("level", differences), ("noise", remove_trend(differences))):
        sizes = 0.5 * np.log(np.maximum((part**2).mean(1), 1e-12))
        others = sizes[:-1]
        factor = special.stdtrit(len(others) - 1, LEVEL) * np.sqrt(1 + 1 / len(others))
        bound = others.mean() + factor * others.std(ddof=1)
        values = np.exp([sizes[-1], others.mean(), bound]).tolist()
        tests.append(DepartureTest(name, *values))
    return DepartureCheck(curve.name, step, len(comparable), tuple(tests))


def expected_differences(
    curves: Sequence[recorded_curves.LearningCurve], steps: np.ndarray
) -> np.ndarray:
    """Return the differences of log losses [n, k] from those expected by the other runs.

    The last curve is compared with all others. Each other curve is compared with the others except
    the last one. The expected log loss of a step is linear in the logs of size and rate.
    """
    log_losses = np.array(
        [np.log(c.training_losses[np.searchsorted(c.training_steps, steps)]) for c in curves]
    )
    inputs = np.array([[np.log(c.n_params), np.log(c.rates.max())] for c in curves])
    center, scale = inputs[:-1].mean(0), np.maximum(inputs[:-1].std(0), 1e-6)
    is_varied = inputs[:-1].std(0) > 1e-6
    features = np.concatenate(
        [np.ones((len(curves), 1)), ((inputs - center) / scale)[:, is_varied]], 1
    )
    reference, target = features[:-1], features[-1]
    penalty = LEVERAGE_RIDGE * np.diag([0.0] + [1.0] * (features.shape[1] - 1))
    inverse = np.linalg.inv(reference.T @ reference + penalty)
    weights = inverse @ reference.T @ log_losses[:-1]
    leverage = np.einsum("nf,fg,ng->n", reference, inverse, reference)
    residuals = (log_losses[:-1] - reference @ weights) / (1 - leverage)[:, None]
    return np.concatenate([residuals, [log_losses[-1] - target @ weights]])


def remove_trend(rows: np.ndarray) -> np.ndarray:
    """Return rows [n, k] without a local quadratic trend."""
    n = rows.shape[1]
    result = np.empty_like(rows)
    for i in range(n):
        window = np.arange(max(0, i - TREND_WINDOW), min(n, i + TREND_WINDOW + 1))
        powers = np.vander(window - i, 3, increasing=True).astype(float)
        smooth = np.linalg.pinv(powers)[0]
        result[:, i] = rows[:, i] - rows[:, window] @ smooth
    return result
