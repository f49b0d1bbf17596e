"""Runs of a tuning sweep as arrays."""

import numpy as np
import pytest

from lm.laws.tuning import tuned_runs


def make_runs(log_rates) -> tuned_runs.TunedRuns:
    """Return runs of one cell with learning rates, and equal batch size and weight decay."""
    ones, cell = np.ones(len(log_rates)), np.zeros(len(log_rates), int)
    hyperparameters = {"lr": np.array(log_rates), "batch": ones, "tau": ones}
    return tuned_runs.TunedRuns(ones, ones, ones, hyperparameters, ones, cell, cell, cell)


def test_values_within_a_percent_are_equal():
    assert tuned_runs.varied_hyperparameters(make_runs([0.0, 0.02, 0.04])) == ["lr"]
    with pytest.raises(ValueError, match="at most 1 learning rates"):
        tuned_runs.varied_hyperparameters(make_runs([0.0, 0.002, 0.004]))
