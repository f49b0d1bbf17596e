"""Tests of the diagnostics of a fit: outliers, lack of fit, undetermined parameters."""

import types

import numpy as np
import pytest

from lm import laws
from lm.laws import diagnostics
from lm.laws.forms import power_laws


def sweep(sizes, noise=0.003, seed=0, loss=lambda n: 1.2 + 30 * n**-0.3):
    rng = np.random.default_rng(seed)
    return [
        {"name": f"run {i}", "params": n, "loss": loss(n) * np.exp(noise * rng.standard_normal())}
        for i, n in enumerate(sizes)
    ]


def budgets_sweep(budgets, noise=0.002):
    rng = np.random.default_rng(0)
    return [
        {
            "name": f"{n:.3g} {d:.3g}",
            "params": n,
            "tokens": d,
            "loss": (1.7 + 400 * n**-0.34 + 400 * d**-0.28) * np.exp(noise * z),
        }
        for n in np.geomspace(1e7, 1e9, 7)
        for d, z in zip(budgets, rng.standard_normal(len(budgets)), strict=True)
    ]


def fit_power(rows, **options):
    return power_laws.power(rows, x="params", y="loss", bootstrap=50, **options)


def has_warning(fit, *texts):
    return any(all(text in warning for text in texts) for warning in fit.warnings)


@pytest.mark.parametrize("index", [1, 3, 5])
def test_run_with_an_error_of_eight_percent_is_named(index):
    rows = sweep(np.geomspace(3e4, 3e6, 7))
    rows[index]["loss"] *= 1.08
    assert has_warning(fit_power(rows), f"run {index} is an outlier")


def test_clean_sweeps_have_few_false_alarms():
    fits = [fit_power(sweep(np.geomspace(3e4, 3e6, 7), seed=seed)) for seed in range(12)]
    assert sum(has_warning(fit, "outlier") for fit in fits) <= 3
    assert sum(has_warning(fit, "does not describe") for fit in fits) <= 3


def test_outlier_among_many_rows_is_named():
    rows = budgets_sweep((1e9, 3e9, 1e10, 3e10, 1e11))
    rows[17]["loss"] *= 1.05
    fit = power_laws.chinchilla(rows, n="params", d="tokens", y="loss", bootstrap=0)
    assert has_warning(fit, f"{rows[17]['name']} is an outlier")


def test_curved_residuals_are_reported():
    def broken(n):
        return 1.5 + 120 * n**-0.25 * (1 + (n / 1e8) ** 2) ** -0.15

    fit = fit_power(sweep(np.geomspace(1e6, 1e10, 12), 0.001, loss=broken))
    assert has_warning(fit, "does not describe these runs")


def test_two_token_budgets_do_not_determine_their_exponent():
    fit = power_laws.chinchilla(
        budgets_sweep((1e10, 2e10)), n="params", d="tokens", y="loss", bootstrap=200
    )
    assert set(fit.undetermined) == {"E", "B", "beta", "a", "b"}
    assert set(fit.intervals) == {"A", "alpha"} and set(fit.se) == {"A", "alpha"}
    assert np.isnan(fit.interval("beta")).all() and "beta 0." in str(fit)
    assert "(not determined)" in str(fit) and "nan" not in str(fit)
    assert np.isfinite(fit.predict(4e9, 2e10).lo)
    beyond = fit.predict(4e9, 8e10)
    assert np.isnan([beyond.lo, beyond.hi, beyond.lo_if_form_right]).all()
    assert "do not determine E, B, beta" in beyond.note
    with pytest.raises(ValueError, match="do not determine B, beta, so the best split"):
        laws.allocation(fit, 1e21)


def test_three_token_budgets_determine_every_parameter():
    rows = budgets_sweep((1e9, 1e10, 1e11))
    fit = power_laws.chinchilla(rows, n="params", d="tokens", y="loss", bootstrap=200)
    assert fit.undetermined == [] and np.isfinite(fit.interval("beta")).all()
    assert laws.allocation(fit, 1e21).n > 0


def test_close_sizes_give_no_exponent():
    fit = fit_power(sweep(np.geomspace(1e6, 1.21e6, 5), noise=1e-4))
    assert {"E", "A", "alpha"} <= set(fit.undetermined)
    assert has_warning(fit, "N spans only a factor of 1.21")
    fixed = fit_power(sweep(np.geomspace(1e6, 1.21e6, 5), noise=1e-4), floor=1.2)
    assert fixed.undetermined == []


def test_four_sizes_hardly_test_three_parameters():
    assert has_warning(fit_power(sweep(np.geomspace(3e4, 3e6, 4))), "hardly test the form")


CLOSE_LAWS = {
    "power": (laws.power, {"x": "params", "y": "loss"}),
    "shifted": (laws.shifted_power, {"x": "params", "y": "loss"}),
    "broken": (laws.broken_power, {"x": "params", "y": "loss"}),
    "line": (laws.log_linear, {"x": "params", "y": "loss"}),
    "one step": (laws.one_step, {"x": "params", "y": "accuracy", "chance": 0.2}),
    "custom": (
        laws.custom,
        {
            "form": "E + A * N**-alpha",
            "x": {"N": "params"},
            "y": "loss",
            "starts": {"E": 1, "A": 30, "alpha": 0.3},
        },
    ),
}


@pytest.mark.parametrize("name", CLOSE_LAWS)
def test_close_sizes_have_a_warning_in_every_law_of_one_input(name):
    law, arguments = CLOSE_LAWS[name]
    rows = sweep(np.geomspace(1e6, 1.21e6, 8 if name == "broken" else 5), noise=1e-3)
    rows = [row | {"accuracy": 0.9 - 0.1 * row["loss"]} for row in rows]
    fit = law(rows, bootstrap=50, **arguments)
    assert has_warning(fit, "spans only a factor of 1.21")
    if name in ("power", "shifted", "broken", "custom"):
        assert {"alpha", "c0"} & set(fit.undetermined)


@pytest.mark.filterwarnings("error")
def test_line_through_inputs_that_hardly_differ_is_refused():
    sizes = 1e8 * (1 + 0.001 * np.arange(7))
    rows = [row | {"d": 10**i} for i, row in enumerate(sweep(sizes), start=5)]
    with pytest.raises(ValueError, match="values of params are too close together"):
        laws.log_linear(rows, x=["d", "params"], y="loss")


def test_two_sizes_do_not_determine_their_exponent():
    rows = [row for row in budgets_sweep(np.geomspace(1e9, 1e11, 7)) if row["params"] < 3e7]
    fit = laws.chinchilla(rows, n="params", d="tokens", y="loss", bootstrap=100)
    assert {"A", "alpha"} <= set(fit.undetermined) and "beta" in fit.intervals
    for call in (
        lambda: laws.allocation(fit, 1e21),
        lambda: laws.inference_allocation(fit, 1e12, loss=2.5),
    ):
        with pytest.raises(ValueError, match="do not determine A, alpha, so the best split"):
            call()


def test_repeats_that_are_hardly_exercised_have_no_interval():
    rows = budgets_sweep(np.geomspace(1e9, 1e11, 7), noise=0.003)
    for row in rows:
        row["unique"] = row["tokens"] * (0.95 if row["tokens"] > 5e10 else 1)
    columns = {"n": "params", "d": "tokens", "unique": "unique", "y": "loss"}
    fit = laws.data_constrained(rows, **columns, excess=False, bootstrap=100)
    assert "R_D" in fit.undetermined and "R_D" not in fit.intervals
    assert {"A", "alpha"} <= set(fit.intervals)
    assert has_warning(fit, "do not determine R_D")


def test_saturated_accuracy_of_two_steps_has_no_interval():
    rng = np.random.default_rng(3)
    rows = sweep(np.geomspace(3e4, 3e6, 8))
    rows = [row | {"accuracy": 0.98 + 0.002 * rng.standard_normal()} for row in rows]
    step1 = fit_power(rows)
    step2 = laws.accuracy_from_loss(rows, "loss", "accuracy", bootstrap=50)
    assert step2.undetermined
    fit = laws.two_step(step1, step2)
    assert {f"step2_{name}" for name in step2.undetermined} <= set(fit.undetermined)
    assert not {f"step2_{name}" for name in step2.undetermined} & set(fit.intervals)
    points = np.geomspace(1e3, 1e9, 9)
    is_unknown = step2.undetermined_at(step2, [step1.values(step1.params, points)])
    assert np.isnan(fit.predict(points).lo)[is_unknown].all()


def test_fit_equal_to_a_start_or_unconverged_is_reported():
    """theta at a start with a gradient was not optimized; a small gradient is an optimum."""
    fit = fit_power(sweep(np.geomspace(3e4, 3e6, 7)))
    start = np.array([0.2, 1.0, 0.4])
    problem = types.SimpleNamespace(
        starts=np.stack([start, start + 1]),
        free=fit.free,
        watch=[],
        lower=start - 9,
        upper=start + 9,
    )
    cases = {(0.0, 1e-3): True, (0.9e-5, 1e-3): True, (1e-4, 1e-3): False, (0.0, 1e-5): False}
    for (distance, gradient), expected in cases.items():
        fit.gradient, fit.converged = gradient, gradient < 1e-4
        texts = " ".join(diagnostics.diagnose(problem, start + distance, fit))
        assert ("equals one of its starting points" in texts) == expected
        assert ("has not converged" in texts) == (not fit.converged)
    fit.start_agreement, problem.starts = 0.012, np.tile(start + 1, (1_000, 1))
    text = "only 12 of 1,000 starting points reach the best minimum"
    assert text in diagnostics.diagnose(problem, start, fit)
