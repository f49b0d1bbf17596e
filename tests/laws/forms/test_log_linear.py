"""Tests of log-linear fits."""

import numpy as np
import pytest
from scipy import stats

from lm.laws.forms import log_linear

ROWS = [{"flops": c, "params": 0.1 * c**0.5, "w": 1.0} for c in np.geomspace(1e17, 1e21, 5)]


def test_exact_line_is_recovered():
    fit = log_linear.log_linear(ROWS, x="flops", y="params")
    assert fit.params == pytest.approx({"exponent": 0.5, "k": 0.1})
    assert fit.derived["log10_k"] == pytest.approx(-1) and fit.r_squared == pytest.approx(1)
    assert str(fit).startswith("N* = 0.1 C^0.5") and not fit.warnings


def test_fit_is_least_squares_with_intervals_of_student():
    rng = np.random.default_rng(0)
    rows = [
        {"flops": c, "params": 0.1 * c**0.5 * np.exp(0.1 * rng.standard_normal())}
        for c in np.geomspace(1e17, 1e21, 6)
    ]
    fit = log_linear.log_linear(rows, x="flops", y="params", bootstrap=20_000)
    x, y = (np.log([row[k] for row in rows]) for k in ("flops", "params"))
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert fit.params["exponent"] == pytest.approx(slope)
    lo, hi = fit.interval("exponent")
    assert hi - lo == pytest.approx(2 * stats.t.ppf(0.975, 4) * covariance[0, 0] ** 0.5, rel=0.05)


def test_weights_change_the_fit():
    rows = [dict(row) for row in ROWS]
    rows[-1] |= {"params": 3 * rows[-1]["params"], "w": 1e-9}
    fit = log_linear.log_linear(rows, x="flops", y="params", weights="w")
    assert fit.params["exponent"] == pytest.approx(0.5)


def test_collinear_inputs_raise():
    rows = [{**row, "tokens": 20 * row["params"]} for row in ROWS]
    with pytest.raises(ValueError, match="lie on one line"):
        log_linear.log_linear(rows, x=["params", "tokens"], y="flops")


def test_explained_fraction_is_that_of_weighted_least_squares():
    rng = np.random.default_rng(1)
    rows = [
        {"flops": c, "params": 0.1 * c**0.5 * np.exp(0.5 * rng.standard_normal()), "w": w}
        for c, w in zip(np.geomspace(1e17, 1e21, 8), rng.uniform(0.2, 3, 8), strict=True)
    ]
    x, y = (np.log([row[k] for row in rows]) for k in ("flops", "params"))
    for weights in (None, "w"):
        w = np.array([row["w"] for row in rows]) if weights else np.ones(8)
        fit = log_linear.log_linear(rows, x="flops", y="params", weights=weights, bootstrap=0)
        slope, intercept = np.polyfit(x, y, 1, w=np.sqrt(w))
        squares = np.average((y - slope * x - intercept) ** 2, weights=w)
        expected = 1 - squares / np.cov(y, aweights=w, ddof=0)
        assert fit.r_squared == pytest.approx(expected, rel=1e-6)
        assert np.log(fit.params["k"]) == pytest.approx(intercept, rel=1e-6)


def test_narrow_inputs_have_no_coefficient():
    """A coefficient near the limits of floating-point numbers is refused by its logarithm."""
    for width, is_refused in ((0.02, False), (0.01, True)):
        rows = [{"flops": 1e20 * np.exp(width * i), "params": np.exp(0.2 * i)} for i in range(4)]
        # The intercept is -0.2 / width * log(1e20): -460 and -921.
        if is_refused:
            with pytest.raises(ValueError, match=r"k = exp\(-921\)"):
                log_linear.log_linear(rows, x="flops", y="params", bootstrap=0)
        else:
            fit = log_linear.log_linear(rows, x="flops", y="params", bootstrap=0)
            assert fit.params["exponent"] == pytest.approx(10)
