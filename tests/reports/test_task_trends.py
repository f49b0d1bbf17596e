"""Trends of task accuracies over size: improving, worsening and flat tasks."""

import numpy as np
from scipy import optimize

from lm.reports import task_trends
from lm.runs import records


def rows(accuracies, n=100):
    """Return finished runs of increasing size with these accuracies of the task `sums`."""
    return [
        {"name": f"toy/{i}", "status": "done", records.N_PARAMS: 1000 * 4**i, records.TOKENS: 10**6}
        | {"task.sums.accuracy": accuracy, "task_se.sums.accuracy": 0.0, "task.sums.n": n}
        | {"eval.task.sums.accuracy": accuracy, "eval.task.sums.n": n}
        for i, accuracy in enumerate(accuracies)
    ]


def test_trend_needs_three_standard_errors():
    directions = [
        [trend.direction for trend in task_trends.fit_trends(rows(accuracies))]
        for accuracies in ((0.0, 0.1, 0.5, 0.9), (0.9, 0.5, 0.1, 0.0), (0.5, 0.52, 0.49, 0.51))
    ]
    assert directions == [["improves"], ["worsens"], ["flat"]]


def test_accuracy_of_zero_has_an_error_and_one_size_no_trend():
    assert task_trends.fit_trends(rows((0.0, 0.0, 0.0, 0.0)))[0].z == 0
    assert task_trends.fit_trends(rows((0.0, 0.0, 0.0, 0.01)))[0].direction == "flat"
    assert task_trends.fit_trends(rows((0.5,)))[0].direction == "flat"


def test_scatter_between_runs_is_no_trend():
    """The sampling error of 67,000 items is far below the differences between seeds."""
    rng = np.random.default_rng(0)
    for noise in (0.01, 0.03):
        flat = [rows(0.6 + noise * rng.standard_normal(8), n=67_000) for _ in range(100)]
        directions = [task_trends.fit_trends(runs)[0].direction for runs in flat]
        assert directions.count("flat") >= 93
    sudden = rows((0.0, 0.01, 0.0, 0.01, 0.0, 0.02, 0.6, 0.9), n=67_000)
    assert task_trends.fit_trends(sudden)[0].direction == "improves"


def test_first_and_last_accuracy_are_stated():
    trend = task_trends.fit_trends(rows((0.0, 0.1, 0.5, 0.9)))[0]
    assert (trend.smallest, trend.largest) == (0.0, 0.9) and not trend.is_past_its_best


def test_fall_at_the_largest_size_is_noticed():
    trend = task_trends.fit_trends(rows((0.0, 0.5, 0.9, 0.6)))[0]
    assert trend.is_past_its_best and (trend.best, trend.best_size) == (0.9, 16_000)
    assert not task_trends.fit_trends(rows((0.0, 0.5, 0.9, 0.85)))[0].is_past_its_best


def test_rising_curve_is_the_isotonic_regression_of_scipy():
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9) * 5:
        means, weights = np.round(rng.random(n), 1), rng.uniform(1, 1000, n)
        curve, n_levels = task_trends._rising_curve(means, weights)
        expected = optimize.isotonic_regression(means, weights=weights)
        np.testing.assert_allclose(curve, expected.x, rtol=1e-13)
        assert n_levels == len(expected.blocks) - 1
