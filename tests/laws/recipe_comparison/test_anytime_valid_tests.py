"""Tests of the critical values of t statistics."""

import math

import numpy as np
from scipy import stats

from lm.laws.recipe_comparison import anytime_valid_tests


def test_fixed_critical_value_is_that_of_student():
    value = anytime_valid_tests.critical_value(0.05, 7, 8.0, is_anytime=False)
    np.testing.assert_allclose(value, stats.t.ppf(0.975, 7))
    assert anytime_valid_tests.critical_value(0.05, 0, 1.0, is_anytime=False) == math.inf


def test_repeated_tests_of_equal_means_reject_rarely():
    """Looks after 3 to 60 samples; the fixed test rejects in a quarter of the sequences."""
    samples = np.random.default_rng(0).standard_normal((2000, 60))
    rejected = np.zeros((2, 2000), bool)
    for n in range(3, 61):
        t = samples[:, :n].mean(1) / samples[:, :n].std(1, ddof=1) * math.sqrt(n)
        for i, is_anytime in enumerate((True, False)):
            critical = anytime_valid_tests.critical_value(0.05, n - 1, n, is_anytime)
            rejected[i] |= np.abs(t) > critical
    assert rejected[0].mean() < 0.05
    assert rejected[1].mean() > 0.2


def test_few_runs_never_reject_at_any_time():
    assert anytime_valid_tests.critical_value(0.05, 1, 2.0, is_anytime=True) == math.inf
    values = [anytime_valid_tests.critical_value(0.05, n - 1, n, True) for n in (6, 12, 100)]
    assert values == sorted(values, reverse=True)
    assert 2.5 < values[-1] < 3.6
