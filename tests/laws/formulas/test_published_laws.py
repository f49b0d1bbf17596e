"""Tests of laws with published coefficients and of published forms."""

import numpy as np
import pytest

from lm.laws import backtesting
from lm.laws.forms import compute_optimal
from lm.laws.formulas import expressions, published_laws

# Coefficients of the noiseless simulation of figure 4 (right) of Caballero et al. 2022.
BROKEN = {
    "a": 0.41388453071629455,
    "b": 2.2772722897737556,
    "c0": 0.055077348404973955,
    "c1": 5.662903816010331,
    "d1": 612.5836172918001,
    "f1": 0.059193036393742314,
}


def test_chinchilla_law_predicts_its_published_loss():
    """The loss of 70 B parameters and 1.4 T tokens is 1.94 by equation 10."""
    law = published_laws.given("hoffmann2022")
    assert law.predict(70e9, 1.4e12).value == pytest.approx(1.937, abs=5e-4)
    assert law.derived["a"] == pytest.approx(0.28 / 0.62)
    best = compute_optimal.allocation(law, 5.76e23)
    assert best.n * best.d * 6 == pytest.approx(5.76e23)
    assert "arXiv:2203.15556" in str(law) and "no intervals" in str(law)


def test_kaplan_law_has_the_published_overfitting_limit():
    """Equation 4.4: D = 5e3 N^0.74 limits the loss by overfitting to 2%."""
    law = published_laws.given("kaplan2020")
    assert law.derived["overfitting_exponent"] == pytest.approx(0.74, abs=0.005)
    n = np.array([1e7, 1e9])
    ratio = law.predict(n, 5e3 * n**0.74).value / law.predict(n, np.full(2, 1e30)).value
    np.testing.assert_allclose(ratio, 1.02, atol=0.004)


def test_given_formula_predicts_with_draws_and_ranges():
    rng = np.random.default_rng(0)
    law = published_laws.given(
        "E + A * N**-0.5",
        {"E": 2.0, "A": 10.0},
        columns={"N": "params", "L": "loss"},
        ranges={"N": (1e2, 1e4)},
        draws={"E": 2 + 0.1 * rng.standard_normal(2000)},
        source="this test",
    )
    inside = law.predict({"params": 100.0}, noise=False)
    assert inside.value == 3.0 and inside.note == ""
    assert (inside.lo, inside.hi) == pytest.approx((2.8, 3.2), abs=0.02)
    assert "100 times beyond the fitted N" in law.predict(1e6).note
    score = backtesting.holdout(law, [{"params": 100.0, "loss": 3.1}, {"params": 25.0, "loss": 4}])
    assert [round(p["error"], 4) for p in score.predictions] == [-0.0323, 0.0]


def test_given_power_law_and_line_need_columns():
    law = published_laws.given("power", {"A": 10.0, "alpha": 0.5}, {"C": "flops", "L": "loss"})
    assert law.predict(100.0).value == pytest.approx(1.0)
    line = published_laws.given("log_linear", {"k": 2.0, "exponent": 0.5}, {"C": "c", "N": "n"})
    assert line.predict(16.0).value == pytest.approx(8.0)
    with pytest.raises(ValueError, match="needs columns"):
        published_laws.given("power", {"A": 1.0, "alpha": 0.5})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"E": 1.0}, "params lacks A, alpha, B, beta"),
        ({"E": 1, "A": 1, "B": 1, "alpha": 1, "beta": 1, "C": 2}, "params has C"),
        ({"E": np.nan, "A": 1, "B": 1, "alpha": 1, "beta": 1}, "must be a finite number"),
    ],
)
def test_invalid_coefficients_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        published_laws.given("chinchilla", params)


def test_broken_power_law_recovers_published_coefficients():
    formula = expressions.parse_expression(expressions.broken_power_formula("x", 1))
    x = np.unique(np.geomspace(1, 4095, 60).round())
    rows = [{"x": v, "y": y} for v, y in zip(x, formula.evaluate({**BROKEN, "x": x}), strict=True)]
    fit = published_laws.broken_power(rows, x="x", y="y", bootstrap=0)
    assert fit.params == pytest.approx(BROKEN, rel=1e-5)


def test_kaplan_fit_recovers_published_coefficients():
    law = published_laws.given("kaplan2020")
    rng = np.random.default_rng(0)
    rows = [
        {"n": n, "d": d, "loss": law.predict(n, d).value * np.exp(0.001 * rng.standard_normal())}
        for n in np.geomspace(1e6, 1e9, 6)
        for d in np.geomspace(1e8, 2e10, 5)
    ]
    fit = published_laws.kaplan(rows, n="n", d="d", y="loss", bootstrap=200)
    for name, value in {"alpha_N": 0.076, "alpha_D": 0.103, "overfitting_exponent": 0.738}.items():
        lo, hi = fit.interval(name)
        assert lo - 0.001 < value < hi + 0.001 and hi - lo < 0.1 * value


def test_shifted_power_law_contains_the_power_law():
    x = np.geomspace(1e6, 1e9, 15)
    shifted = [{"N": v, "y": 1.7 + 300 * (v + 2e7) ** -0.33} for v in x]
    fit = published_laws.shifted_power(shifted, x="N", y="y", bootstrap=0)
    assert fit.params == pytest.approx({"E": 1.7, "A": 300, "alpha": 0.33, "x0": 2e7}, rel=1e-3)
    plain = [{"N": v, "y": 1.7 + 300 * v**-0.33} for v in x]
    fit = published_laws.shifted_power(plain, x="N", y="y", bootstrap=0)
    assert fit.params["x0"] < 1e3 and fit.params["alpha"] == pytest.approx(0.33, rel=1e-3)


def test_number_of_breaks_is_limited():
    with pytest.raises(ValueError, match="n_breaks=0 must be an integer from 1 to 3"):
        published_laws.broken_power([], n_breaks=0)


def test_published_laws_agree_with_their_papers():
    """Replication finds 20 tokens per parameter; Kaplan's loss falls by 2^-0.095 per doubled D."""
    replicated = compute_optimal.allocation(published_laws.given("besiroglu2024"), 5.76e23)
    assert 15 < replicated.d / replicated.n < 30
    law = published_laws.given("kaplan2020")
    size, data = np.array([1e9, 2e9]), np.array([1e10, 2e10])
    by_size = law.predict(size, np.full(2, 1e40)).value
    by_data = law.predict(np.full(2, 1e40), data).value
    assert by_size[1] / by_size[0] == pytest.approx(2**-0.076)
    assert by_data[1] / by_data[0] == pytest.approx(2**-0.103)
    assert law.predict(8.8e13, 1e60).value < 1 < law.predict(4e13, 1e60).value


def test_given_law_has_no_optimization():
    law = published_laws.given("kaplan2020")
    assert (law.n_starts, law.start_agreement, law.converged, law.gradient) == (0, 1.0, True, 0.0)
    assert (law.n, law.n_runs, law.ensemble, law.loss) == (0, 0, {}, "none")
    expected = ((6.4e13 / 1e9) ** (0.076 / 0.103) + 1.8e13 / 1e10) ** 0.103
    assert law.predict(1e9, 1e10).value == pytest.approx(expected)


def test_starts_of_published_forms_pass_through_the_data(monkeypatch):
    """A start has the median loss at the median inputs, or the largest loss of the smallest x."""
    starts = {}

    def record_starts(rows, definition, options):
        starts[definition.law] = definition.starts

    monkeypatch.setattr(published_laws.custom, "fit_form", record_starts)
    rows = [{"N": n, "D": d, "y": 2 + n**-0.1 + d**-0.1} for n, d in zip(
        np.geomspace(1e6, 1e9, 5), np.geomspace(1e9, 1e11, 5), strict=True)]  # fmt: skip
    losses = [row["y"] for row in rows]
    published_laws.kaplan(rows, n="N", d="D", y="y")
    published_laws.shifted_power(rows, x="N", y="y")
    published_laws.broken_power(rows, x="N", y="y")
    n, d, median = rows[2]["N"], rows[2]["D"], rows[2]["y"]
    assert len(starts["kaplan"]) == 48 and len(starts["shifted_power"]) == 36
    for p in starts["kaplan"]:
        inner = (p["N_c"] / n) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / d
        assert inner ** p["alpha_D"] == pytest.approx(median)
    for p in starts["shifted_power"]:
        assert p["E"] + p["A"] * (n + p["x0"]) ** -p["alpha"] == pytest.approx(median)
    for p in starts["broken_power"]:
        assert p["a"] + p["b"] * 1e6 ** -p["c0"] == pytest.approx(max(losses))
        assert 1e6 < p["d1"] < 1e9 and p["f1"] == 0.2
