"""Tests of the choice of the next run of a ladder."""

import numpy as np
import pytest

from lm.laws.design import measurement_design, next_ladder_run, run_cost
from lm.laws.forms import power_laws

SIZES = np.array([1e4, 2.5e4, 6e4, 1e5, 2.5e5])
CANDIDATES = np.array([[1e4, 1e5, 2.5e5, 6e5, 1e6]])
SECONDS = 1.0 + CANDIDATES[0] / 1e4
TARGET = [4e6]


@pytest.fixture(scope="module")
def law_fit():
    rng = np.random.default_rng(0)
    rows = [
        {"N": n, "loss": (1 + 20 * n**-0.3) * np.exp(0.003 * rng.standard_normal()), "run": f"r{i}"}
        for i, n in enumerate(np.tile(SIZES, 2))
    ]
    return power_laws.power(rows, x="N", y="loss", bootstrap=400)


def test_planned_runs_reach_the_error_in_less_time_than_other_runs(law_fit):
    error = next_ladder_run.interval_error(law_fit, TARGET)
    choice = next_ladder_run.choose_run(law_fit, TARGET, CANDIDATES, SECONDS, 0.7 * error)
    assert choice.is_reachable and choice.planned_error <= 0.7 * error + 1e-9
    assert choice.error == pytest.approx(error) and choice.error_after < error
    assert choice.counts[choice.index] > 0
    assert choice.seconds == pytest.approx(np.dot(choice.counts, SECONDS))
    # Seeds of a single size need more time than the plan, or do not reach the error.
    for i in range(5):
        single = next_ladder_run.choose_run(
            law_fit, TARGET, CANDIDATES[:, [i]], SECONDS[[i]], 0.7 * error
        )
        assert not single.is_reachable or single.seconds >= choice.seconds - 1e-9


def test_larger_cost_of_a_size_moves_the_choice_to_others(law_fit):
    error = next_ladder_run.interval_error(law_fit, TARGET)
    seconds = np.where(CANDIDATES[0] > 5e5, 1e9, SECONDS)
    choice = next_ladder_run.choose_run(law_fit, TARGET, CANDIDATES, seconds, 0.9 * error)
    assert CANDIDATES[0][choice.index] < 5e5


def test_unreachable_error_and_forbidden_runs_are_reported(law_fit):
    choice = next_ladder_run.choose_run(law_fit, TARGET, CANDIDATES, SECONDS, 1e-6)
    assert not choice.is_reachable and choice.planned_error > 1e-6 and choice.index >= 0
    none = np.zeros(5, bool)
    choice = next_ladder_run.choose_run(law_fit, TARGET, CANDIDATES, SECONDS, 1e-6, none)
    assert choice.index == -1 and choice.error_after == choice.error


def test_form_error_makes_larger_sizes_more_useful(law_fit):
    at_target = law_fit.points([TARGET])
    assumed, with_form = (
        measurement_design.MeasurementDesign.of_fit(law_fit, at_target, CANDIDATES, has_form)
        for has_form in (False, True)
    )
    assert with_form.variance > assumed.variance
    shares = [d.reductions() / d.reductions().sum() for d in (assumed, with_form)]
    assert shares[1][-1] > shares[0][-1]


def test_further_residuals_reduce_the_factor_of_the_noise():
    factors = next_ladder_run._noise_factors(4)
    assert factors[0] == 1 and (np.diff(factors) < 0).all()
    assert factors[14] == pytest.approx((2.1009 / 2.7764) ** 2, rel=1e-3)


def test_seconds_follow_the_measured_runs():
    estimates = np.array([1.0, 2.0, 4.0, 8.0])
    assert run_cost.calibrate_seconds(estimates, np.array([]), np.array([])).tolist() == [
        1,
        2,
        4,
        8,
    ]
    measured = run_cost.calibrate_seconds(
        estimates, np.array([1.0, 1.0, 4.0]), np.array([2.0, 2.0, 4.0])
    )
    assert measured == pytest.approx([2.0, 2.0 * 2**0.5, 4.0, 8.0])
