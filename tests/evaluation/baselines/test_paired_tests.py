"""P-values of a model against baselines on the same items."""

import numpy as np
import pytest
from scipy import stats

from lm.evaluation import tasks
from lm.evaluation.baselines import paired_tests


def test_sign_tests_are_exact_and_use_the_best_baseline():
    points = np.array([1, 1, 1, 1, 0.5, 0])
    easy, hard = np.zeros(6), np.array([1, 1, 0, 0, 1, 0])
    tests = paired_tests.sign_tests(points, [easy, hard])
    assert tests["p_above_baseline"] == pytest.approx(0.5)  # 2 better, 1 worse
    assert paired_tests.sign_tests(points, [easy])["p_above_baseline"] == 0.5**5
    assert paired_tests.sign_tests(points, [points])["p_above_baseline"] == 1
    assert paired_tests.sign_tests(points, []) == {}


def test_mean_tests_are_t_tests_over_clusters():
    gain = np.array([0.1, 0.2, 0.05, 0.1])
    tests = paired_tests.mean_tests([gain, gain + 1])
    expected = stats.t.sf(gain.mean() / stats.sem(gain), 3)
    assert tests["p_above_baseline"] == pytest.approx(expected)
    assert tests["p_below_baseline"] == 1
    assert paired_tests.mean_tests([np.array([0.3])])["p_above_baseline"] == 1
    assert paired_tests.mean_tests([np.full(3, 0.3)])["p_above_baseline"] == 0


def test_false_positives_are_as_rare_as_the_level():
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(1000):
        points, other, weak = rng.integers(0, 2, (3, 100))
        tests = paired_tests.sign_tests(points, [other, weak])
        p_values.append(tests["p_above_baseline"])
    assert np.mean(np.array(p_values) < 0.05) <= 0.05


def test_members_of_a_group_have_equal_weights():
    baseline = tasks.Baseline("unigram", np.array([1.0, 1.0, 0.0]))
    metrics = paired_tests.baseline_metrics(["a", "a", "b"], np.ones(3), [baseline])
    assert metrics["baseline_unigram"]["value"] == 0.5
    assert 0 < metrics["p_above_baseline"]["value"] < 1
