"""Tasks above baseline of draws of p-values, and the Brier score."""

import math

import numpy as np
import pytest

from lm.laws.abilities import above_baseline


def test_discoveries_are_those_of_the_rule_for_one_run():
    p_values = np.random.default_rng(0).beta(0.3, 2, (200, 15))
    masks = above_baseline.select_discoveries(p_values, 0.05)
    for row, mask in zip(p_values, masks, strict=True):
        ranks = [k for k, p in enumerate(sorted(row), 1) if p <= 0.05 * k / len(row)]
        n_selected = max(ranks, default=0)
        assert set(np.flatnonzero(mask)) == set(np.argsort(row)[:n_selected])
    assert 0 < masks.mean() < 1


def test_p_value_above_its_limit_is_selected_with_a_larger_one():
    mask = above_baseline.select_discoveries(np.array([[0.04, 0.03, 0.9], [0.04, 0.9, 0.9]]), 0.06)
    assert mask.tolist() == [[True, True, False], [False, False, False]]


def test_brier_score_of_common_tasks():
    score = above_baseline.brier_score({"a": 0.8, "b": 0.5, "c": 1.0}, {"a": True, "b": False})
    assert score == pytest.approx((0.2**2 + 0.5**2) / 2)
    assert math.isnan(above_baseline.brier_score({"a": 1.0}, {}))
