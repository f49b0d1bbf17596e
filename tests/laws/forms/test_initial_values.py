"""Tests of the initial values of a fit."""

import numpy as np
import pytest

from lm.laws.forms import initial_values

LOG_Y = np.log([2.0, 2.5, 3.0, 4.0, 5.0])


def test_starts_describe_the_median_loss():
    """At the center of the data, the floor and all terms have the sum of the median loss."""
    starts = initial_values.default_starts(
        LOG_Y, ["E", "A", "B", "alpha", "beta"], ["A", "B"], ["alpha", "beta"], scale=2.0
    )
    total = np.exp(starts[:, :3]).sum(1)
    assert total == pytest.approx(np.full(len(starts), 3.0))
    assert sorted(set(np.exp(starts[:, 0]).round(6))) == [0.4, 1.2, 1.7, 1.96]
    fractions = np.exp(starts[:, 1]) / (3.0 - np.exp(starts[:, 0]))
    assert sorted(set(fractions.round(6))) == [0.15, 0.5, 0.85]
    assert sorted(set((starts[:, 3] / 2).round(6))) == [0.03, 0.1, 0.25, 0.45, 0.8, 1.5]
    assert len(np.unique(starts, axis=0)) == len(starts) == 4 * 3 * 6 * 6


def test_starts_without_a_floor_or_of_one_term_have_no_split():
    single = initial_values.default_starts(LOG_Y, ["A", "alpha"], ["A"], ["alpha"], 1.0)
    assert np.exp(single[:, 0]) == pytest.approx(np.full(6, 3.0))
    tied = initial_values.default_starts(LOG_Y, ["A", "B", "alpha"], ["A", "B"], ["alpha"] * 2, 1.0)
    assert np.exp(tied[:, :2]).sum(1) == pytest.approx(np.full(3 * 6, 3.0))


def test_given_starts_are_a_grid_or_a_list():
    def internal(params):
        return np.stack([params["A"], params["alpha"]], 1)

    grid = initial_values.start_grid({"A": [1, 2], "alpha": 0.3}, ["A", "alpha"], internal)
    assert grid.tolist() == [[1, 0.3], [2, 0.3]]
    points = [{"A": 1.0, "alpha": 0.3}, {"A": 4.0, "alpha": 0.0}]
    assert initial_values.start_grid(points, ["A", "alpha"], internal).tolist() == [
        [1, 0.3],
        [4, 0],
    ]
    with pytest.raises(ValueError, match="A=0.0: pass positive"):
        initial_values.start_grid([{"A": 0.0, "alpha": 0.3}], ["A", "alpha"], internal)
    with pytest.raises(ValueError, match="neither beta nor log_beta"):
        initial_values.start_grid(points, ["A", "beta"], internal)
