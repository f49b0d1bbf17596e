"""Tests of profile likelihoods and of the advised next run."""

import types
from typing import Any

import numpy as np
import pytest

from lm.laws.design import experiment_design
from lm.laws.forms import log_linear, power_laws

NAMES: dict[str, Any] = {"n": "params", "d": "tokens", "y": "loss"}
TARGET = (2e10, 4e11)


def rows(noise=0.003, ratios=(5, 20, 80)):
    rng = np.random.default_rng(0)
    return [
        {
            "name": f"{n:.3g}x{m}",
            "params": n,
            "tokens": n * m,
            "flops": 6 * n * n * m,
            "loss": (1.8 + 300 * n**-0.34 + 700 * (n * m) ** -0.28)
            * np.exp(noise * rng.standard_normal()),
        }
        for n in np.geomspace(1e7, 1e9, 6)
        for m in ratios
    ]


@pytest.fixture(scope="module")
def fit():
    return power_laws.chinchilla(rows(), **NAMES, loss="log_squares")


def test_profile_agrees_with_the_bootstrap(fit):
    profile = experiment_design.profile(fit, "E")
    lo, hi = fit.interval("E")
    assert not profile.is_flat and profile.objective.min() >= fit.objective * (1 - 1e-9)
    assert profile.interval[0] == pytest.approx(lo, abs=0.6 * (hi - lo))
    assert profile.interval[1] == pytest.approx(hi, abs=0.6 * (hi - lo))


def test_profile_has_a_prediction_per_value(fit):
    profile = experiment_design.profile(fit, "E", at=(1e11, 2e12))
    assert profile.predictions is not None and len(profile.predictions) == len(profile.values)
    assert profile.predictions[-1] > profile.predictions[0]
    assert "prediction changes from" in str(profile)


def test_profile_reports_a_flat_objective():
    fit = power_laws.power(rows()[:6], x="params", y="loss", bootstrap=0)
    profile = experiment_design.profile(fit, "alpha", values=np.geomspace(0.1, 1.0, 8).tolist())
    assert profile.is_flat and "the objective is flat" in str(profile)


def test_profile_rejects_an_unknown_parameter(fit):
    with pytest.raises(ValueError, match="known: E, A, B, alpha, beta"):
        experiment_design.profile(fit, "gamma")
    line = log_linear.log_linear(rows(), x="params", y="loss", bootstrap=0)
    with pytest.raises(ValueError, match="log_linear cannot fix a parameter"):
        experiment_design.profile(line, "exponent")


def test_advised_run_is_within_budget_and_reduces_the_error(fit):
    small, large = (experiment_design.advise(fit, c, TARGET, min_gain=1) for c in (1e19, 1e21))
    assert small.flops <= 1e19 * 1.001 and large.flops <= 1e21 * 1.001
    assert large.after <= small.after < small.before
    assert "the standard deviation of the prediction changes from" in str(large)


def test_candidates_are_ranked_by_gain_per_flop(fit):
    advice = experiment_design.advise(fit, 1e21, TARGET)
    best = experiment_design.advise(fit, 1e21, TARGET, min_gain=1)
    per_flop = [row["gain_per_flop"] for row in advice.table]
    assert per_flop == sorted(per_flop, reverse=True) and advice.flops < best.flops
    removed = [1 - (a.after / a.before) ** 2 for a in (advice, best)]
    assert removed[0] >= 0.5 * removed[1]


def test_candidates_stay_within_reach_and_below_the_target(fit):
    unlimited = experiment_design.advise(fit, 1e30, TARGET, min_gain=1)
    assert unlimited.inputs["N"] <= 1e9 * fit.reach * 1.001
    near = experiment_design.advise(fit, 1e30, (1.2e9, 2.4e10), min_gain=1)
    assert near.flops < 6 * 1.2e9 * 2.4e10


def test_sweep_shares_a_budget_and_is_better_than_one_run(fit):
    one = experiment_design.advise(fit, 1e20, TARGET, min_gain=1)
    sweep = experiment_design.advise(fit, 1e20, TARGET, n_runs=4)
    assert len(sweep.runs) == 4 and sweep.flops <= 1e20 * 1.001
    assert sweep.flops == pytest.approx(sum(run["flops"] for run in sweep.runs))
    assert sweep.after < one.after and "next 4 runs" in str(sweep)


def test_target_is_accepted_by_name_and_as_a_number(fit):
    by_name = experiment_design.advise(fit, 1e20, {"D": 4e11, "N": 2e10})
    assert by_name.inputs == experiment_design.advise(fit, 1e20, TARGET).inputs
    with pytest.raises(ValueError, match="must have the inputs N, D"):
        experiment_design.advise(fit, 1e20, {"N": 1e9})
    line = power_laws.power(rows(ratios=(20,)), x="params", y="loss", bootstrap=100)
    assert experiment_design.advise(line, 1e20, 1e11).flops < 1e20


def test_cost_is_required_if_the_rows_do_not_determine_it(fit):
    bare = [{k: v for k, v in row.items() if k != "flops"} for row in rows()]
    without = power_laws.chinchilla(bare, **NAMES, bootstrap=50)
    with pytest.raises(ValueError, match="pass cost=, a function from N, D to FLOPs"):
        experiment_design.advise(without, 1e20, TARGET)
    assert experiment_design.advise(without, 1e20, TARGET, cost=lambda n, d: 6 * n * d).flops < 1e20
    mixed = power_laws.power(rows(), x="params", y="loss", bootstrap=50)
    with pytest.raises(ValueError, match="no function of N"):
        experiment_design.advise(mixed, 1e20, 1e11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": -1.0}, "budget=-1.0 must be a positive number"),
        ({"n_runs": 0}, "n_runs=0 must be an integer"),
        ({"budget": 1e10}, "below the cost of 1 of the cheapest"),
        ({"cost": lambda n, d: -n}, "return positive FLOPs"),
    ],
)
def test_invalid_requests_for_advice_are_refused(fit, options, message):
    with pytest.raises(ValueError, match=message):
        experiment_design.advise(**({"law_fit": fit, "budget": 1e20, "target": TARGET} | options))


def test_advised_run_is_better_than_a_repeat(fit):
    """Add a run with its expected result, refit, and compare the width of the prediction."""
    advice = experiment_design.advise(fit, 1e21, TARGET, min_gain=1)
    n, d = advice.inputs["N"], advice.inputs["D"]

    def width_with(n, d):
        new_run = {"name": "next", "params": n, "tokens": d, "loss": fit.predict(n, d).value}
        refit = power_laws.chinchilla([*rows(), new_run], **NAMES, loss="log_squares")
        return np.std(refit.draws(*map(np.asarray, TARGET), noise=False))

    assert width_with(n, d) < 0.95 * width_with(1.1e7, 2.2e8)


def test_predicted_reduction_is_that_of_linear_theory(fit):
    """Compare with (X^T X)^-1 of least squares on log L, with and without the new runs."""
    advice = experiment_design.advise(fit, 1e20, TARGET, n_runs=4)

    def slopes(n, d):
        """Return the derivatives of log L in the parameters, [rows, p]."""
        p, step = fit.params, 1e-6
        columns = []
        for name in p:
            ends = [fit.values({**p, name: p[name] * (1 + s)}, n, d) for s in (step, -step)]
            columns.append(np.log(ends[0] / ends[1]) / (2 * step))
        return np.stack(np.atleast_1d(*columns), -1)

    new = np.array([[run["N"], run["D"]] for run in advice.runs]).T
    before, target = slopes(*fit.x), slopes(*map(np.array, TARGET))[0]
    after = np.concatenate([before, slopes(*new)])
    variances = [target @ np.linalg.inv(x.T @ x) @ target for x in (before, after)]
    expected = np.sqrt(variances[1] / variances[0])
    assert advice.after / advice.before == pytest.approx(expected, rel=0.03)


def test_advise_accepts_candidates_and_a_cost(fit):
    advice = experiment_design.advise(
        fit, 5.0, TARGET, candidates=[(1e9, 1e10), (3e9, 1e11)], cost=lambda n, d: n / 1e9
    )
    assert advice.flops in (1.0, 3.0)


def test_advised_tokens_per_parameter_are_in_range():
    rng = np.random.default_rng(0)
    sweep = [
        {
            "N": n,
            "D": n * m,
            "flops": 6 * n * n * m,
            "L": (1.7 + 400 * n**-0.34 + 400 * (n * m) ** -0.28) * np.exp(noise),
        }
        for n in (1e7, 3e7, 1e8, 3e8)
        for m, noise in zip((5, 20, 80), rng.normal(0, 0.002, 3), strict=True)
    ]
    fit = power_laws.chinchilla(sweep, n="N", d="D", y="L", bootstrap=200)
    advice = experiment_design.advise(fit, budget=1e21, target=(1e10, 2e11))
    assert all(4.99 <= row["D"] / row["N"] <= 80.01 for row in advice.table)


def test_default_grid_extends_to_twice_the_interval_in_logs():
    law_fit = types.SimpleNamespace(params={"E": 2.0}, intervals={"E": (1.6, 2.6)})
    grid = experiment_design._default_grid(law_fit, "E")
    assert len(grid) == 21 and grid[10] == pytest.approx(2.0)
    assert (grid[0], grid[-1]) == pytest.approx((2.0 / 1.25**2, 2.0 * 1.3**2))
    assert np.ptp(np.diff(np.log(grid[:11]))) < 1e-9 and np.ptp(np.diff(np.log(grid[10:]))) < 1e-9
