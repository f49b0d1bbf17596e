"""Tests of user-defined laws."""

from typing import Any

import numpy as np
import pytest

from lm.laws.forms import power_laws
from lm.laws.formulas import custom

FORM = "E + A * N**-alpha + B * D**-beta"
COLUMNS = {"N": "params", "D": "tokens"}
STARTS = {"E": 1.5, "A": 300.0, "B": 300.0, "alpha": [0.2, 0.4], "beta": [0.2, 0.4]}


def rows(noise=0.003, floor=1.8):
    rng = np.random.default_rng(0)
    return [
        {
            "name": f"{n:.3g}x{m}",
            "params": n,
            "tokens": n * m,
            "loss": (floor + 300 * n**-0.34 + 700 * (n * m) ** -0.28)
            * np.exp(noise * rng.standard_normal()),
        }
        for n in np.geomspace(1e7, 1e9, 6)
        for m in (5, 20, 80)
    ]


def line_rows(floor):
    rng = np.random.default_rng(1)
    return [
        {"x": x, "y": (floor + 5 * x**-0.1) * np.exp(0.002 * rng.standard_normal())}
        for x in np.geomspace(1, 1e4, 12)
    ]


@pytest.fixture(scope="module")
def fit():
    return custom.custom(rows(), FORM, COLUMNS, "loss", starts=STARTS)


def test_custom_form_equals_the_law_that_it_writes_out(fit):
    law = power_laws.chinchilla(rows(), n="params", d="tokens", y="loss", loss="log_squares")
    for name, value in law.params.items():
        assert fit.params[name] == pytest.approx(value, rel=1e-4)
        assert fit.interval(name) == pytest.approx(law.interval(name), rel=1e-3)
    custom_form, written = fit.predict(1e10, 1e12), law.predict(1e10, 1e12)
    assert (custom_form.value, custom_form.lo, custom_form.hi) == pytest.approx(
        (written.value, written.lo, written.hi), rel=1e-4
    )
    assert fit.score.mean == pytest.approx(law.score.mean, rel=1e-3)
    assert str(fit).startswith("L(N, D) = 1.79")


def test_functions_are_fitted_like_text(fit):
    """A function without complex derivatives is differentiated by central differences."""

    def form(N, D, E, A, B, alpha, beta):
        return E + A * N**-alpha + np.abs(B) * D**-beta

    by_function = custom.custom(rows(), form, COLUMNS, "loss", starts=STARTS, bootstrap=0)
    assert by_function.params == pytest.approx(fit.params, rel=1e-4)
    assert str(by_function).startswith("L(N, D) = form(E = 1.79")


def test_bounds_permit_a_floor_of_zero():
    starts = {"E": [0.0, 0.5], "A": 3.0, "alpha": [0.05, 0.3]}
    options: dict[str, Any] = {"starts": starts, "bounds": {"E": (0, None)}, "bootstrap": 200}
    fit = custom.custom(line_rows(0.0), "E + A * x**-alpha", {"x": "x"}, "y", **options)
    assert 0 <= fit.params["E"] < 0.2 and fit.interval("E")[0] == 0
    assert fit.params["alpha"] == pytest.approx(0.1, abs=0.01)


def test_bounds_limit_a_parameter():
    starts = {"E": 0.5, "A": 3.0, "alpha": 0.3}
    options: dict[str, Any] = {"starts": starts, "bounds": {"alpha": (0.2, 1)}, "bootstrap": 0}
    fit = custom.custom(line_rows(1.0), "E + A * x**-alpha", {"x": "x"}, "y", **options)
    assert fit.params["alpha"] == pytest.approx(0.2, rel=1e-6)
    assert any("alpha = 0.2 is at its bound" in text for text in fit.warnings)


def test_prior_narrows_an_interval_and_moves_the_estimate(fit):
    prior = {"alpha": (0.36, 0.005)}
    informed = custom.custom(rows(), FORM, COLUMNS, "loss", starts=STARTS, priors=prior)
    assert fit.params["alpha"] < informed.params["alpha"] < 0.36
    lo, hi = informed.interval("alpha")
    assert hi - lo < 0.6 * np.diff(fit.interval("alpha"))[0] and lo < informed.params["alpha"] < hi
    assert "weighted by the priors of alpha" in informed.resampling


def test_wide_prior_changes_nothing(fit):
    prior = {"alpha": (0.3, 100.0)}
    informed = custom.custom(rows(), FORM, COLUMNS, "loss", starts=STARTS, priors=prior)
    assert informed.params == pytest.approx(fit.params, rel=1e-4)
    assert informed.interval("alpha") == pytest.approx(fit.interval("alpha"), rel=0.02)


def test_prior_far_from_the_data_is_reported():
    prior = {"alpha": (0.6, 0.001)}
    informed = custom.custom(rows(), FORM, COLUMNS, "loss", starts=STARTS, priors=prior)
    assert any("effective draws" in text for text in informed.warnings)


def test_fixed_parameters_are_not_fitted():
    fit = custom.custom(rows(), FORM, COLUMNS, "loss", starts=STARTS, fixed={"E": 1.8}, bootstrap=0)
    assert fit.params["E"] == 1.8 and "E" not in fit.free


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"starts": {"E": 1.0}}, "starts has no value for A, alpha, B, beta"),
        ({"starts": {}}, "must not be empty"),
        ({"form": "E + A * N**-alpha"}, "does not contain the input D"),
        ({"bounds": {"E": (2, 1)}}, "low must be below high"),
        ({"bounds": {"F": (0, 1)}}, "bounds=F is no parameter"),
        ({"priors": {"E": (1.0, 0.0)}}, "must have a positive standard deviation"),
        ({"priors": {"E": (1.0, 1.0)}, "loss": "huber"}, "has no priors"),
        ({"fixed": dict.fromkeys("ABE", 1.0) | {"alpha": 1, "beta": 1}}, "all parameters"),
        ({"starts": STARTS | {"E": -1e9}}, "not positive and finite"),
        ({"x": {"N": "params", "D": "token"}}, "no row has a column 'token'"),
    ],
)
def test_invalid_definitions_are_refused(changes, message):
    arguments = {"form": FORM, "x": COLUMNS, "y": "loss", "starts": STARTS, "bootstrap": 20}
    with pytest.raises(ValueError, match=message):
        custom.custom(rows(), **(arguments | changes))
