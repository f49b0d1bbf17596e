"""Tests of sums of power laws: recovery of known laws, options, weak designs."""

from typing import Any

import numpy as np
import pytest

from lm.laws.forms import compute_optimal, power_laws

E, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
SIZES, RATIOS = np.geomspace(1e7, 1e10, 6), (5.0, 20.0, 100.0)
NAMES: dict[str, Any] = {"n": "params", "d": "tokens", "y": "loss"}


def sweep(noise=0.0, ratios=RATIOS, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "name": f"{n:.3g}x{m:g}",
            "params": n,
            "tokens": n * m,
            "flops": 6 * n * n * m,
            "loss": (E + A * n**-ALPHA + B * (n * m) ** -BETA)
            * np.exp(noise * rng.standard_normal()),
        }
        for n in SIZES
        for m in ratios
    ]


@pytest.mark.parametrize("loss", ["huber", "absolute", "log_squares", "squares"])
def test_each_loss_recovers_a_law_without_noise(loss):
    params = power_laws.chinchilla(sweep(), **NAMES, loss=loss, bootstrap=0).params
    for name, true in {"E": E, "A": A, "B": B, "alpha": ALPHA, "beta": BETA}.items():
        assert params[name] == pytest.approx(true, rel=1e-4)


def test_derived_exponents_equal_the_best_split():
    fit = power_laws.chinchilla(sweep(), **NAMES, bootstrap=0)
    assert fit.derived["a"] == pytest.approx(BETA / (ALPHA + BETA), rel=1e-5)
    assert fit.derived["a"] + fit.derived["b"] == pytest.approx(1)


def test_single_start_reaches_the_optimum():
    start = [{"E": 1.0, "A": 1.0, "B": 1.0, "alpha": 0.5, "beta": 0.5}]
    fit = power_laws.chinchilla(sweep(0.003), **NAMES, starts=start, bootstrap=0)
    many = power_laws.chinchilla(sweep(0.003), **NAMES, bootstrap=0)
    assert fit.n_starts == 1 and fit.objective == pytest.approx(many.objective, rel=1e-6)


def test_fixed_parameters_are_not_fitted():
    fit = power_laws.chinchilla(sweep(), **NAMES, fixed={"alpha": ALPHA, "A": A}, bootstrap=50)
    assert fit.params["alpha"] == ALPHA and fit.params["A"] == A and fit.free == ["E", "B", "beta"]
    assert fit.params["B"] == pytest.approx(B, rel=1e-4)
    assert "alpha" not in fit.ensemble
    prediction = fit.predict(1e10, 1e11)
    assert prediction.lo <= prediction.value <= prediction.hi


def test_exponents_are_limited_to_ten():
    """A larger exponent is the sign of a wrong column."""
    for exponent in (-10.6, 10.6):
        rows = [{"n": n, "loss": 3 * n**-exponent} for n in np.geomspace(1, 2, 7)]
        fit = power_laws.power(rows, x="n", y="loss", floor=False)
        assert abs(fit.params["alpha"]) == pytest.approx(10)
        assert any("alpha" in text and "at its bound" in text for text in fit.warnings)


def test_irreducible_loss_is_free_given_or_absent():
    rows = sweep(0.002)
    free = power_laws.power(rows, x="params", y="loss", bootstrap=0)
    given = power_laws.power(rows, x="params", y="loss", floor=1.69, bootstrap=0)
    absent = power_laws.power(rows, x="params", y="loss", floor=False, bootstrap=0)
    assert given.params["E"] == 1.69 and "E" not in absent.params
    assert free.objective <= min(given.objective, absent.objective)


def test_each_input_has_a_term():
    rng = np.random.default_rng(0)
    rows = [
        {
            "width": w,
            "depth": h,
            "tokens": d,
            "loss": 1.5 + 8 * w**-0.5 + 3 * h**-0.7 + 90 * d**-0.25,
        }
        for w, h, d in np.exp(rng.uniform(np.log([64, 2, 1e7]), np.log([4096, 64, 1e10]), (60, 3)))
    ]
    fit = power_laws.power(rows, x=["width", "depth", "tokens"], y="loss", bootstrap=0)
    assert [fit.params[k] for k in ("alpha", "beta", "gamma")] == pytest.approx(
        [0.5, 0.7, 0.25], rel=1e-3
    )
    assert fit.inputs == ["x1", "x2", "D"]


def test_tied_exponents_equal_the_overtrained_law():
    chinchilla = power_laws.chinchilla(
        sweep(0.002), **NAMES, tied=True, loss="squares", bootstrap=0
    )
    fit = power_laws.overtrained(sweep(0.002), **NAMES, bootstrap=0)
    eta = fit.derived["eta"]
    assert eta == pytest.approx(chinchilla.params["alpha"] / 2)
    n, m = 3e9, 64.0
    c = 6 * n * n * m
    loss = fit.params["E"] + (fit.derived["a"] * m**eta + fit.derived["b"] * m**-eta) * c**-eta
    assert fit.predict(n, n * m).value == pytest.approx(loss)
    assert chinchilla.predict(n, n * m).value == pytest.approx(loss)
    assert str(fit).startswith("L(C, M) = ")


def test_scale_of_weights_does_not_change_the_fit():
    rows = [
        {**row, "w": 1 + i % 3, "tiny": 1e-12 * (1 + i % 3)} for i, row in enumerate(sweep(0.01))
    ]
    unit = power_laws.chinchilla(rows, **NAMES, weights="w", bootstrap=0)
    tiny = power_laws.chinchilla(rows, **NAMES, weights="tiny", bootstrap=0)
    unweighted = power_laws.chinchilla(rows, **NAMES, bootstrap=0)
    assert unit.params == pytest.approx(tiny.params, rel=1e-6)
    assert tiny.objective == pytest.approx(1e-12 * unit.objective)
    assert unit.params != pytest.approx(unweighted.params, rel=1e-3)


def test_constant_input_raises():
    with pytest.raises(ValueError, match=r"params is 1e\+07 in every row: no exponent of N"):
        power_laws.chinchilla([row for row in sweep() if row["params"] == SIZES[0]], **NAMES)


def test_collinear_runs_predict_only_on_their_line():
    fit = power_laws.chinchilla(
        sweep(0.002, ratios=(20.0,)), **NAMES, loss="log_squares", bootstrap=50
    )
    assert any("one line" in text for text in fit.warnings)
    assert fit.predict(2e10, 4e11).value == pytest.approx(
        E + A * 2e10**-ALPHA + B * 4e11**-BETA, rel=0.01
    )
    with pytest.raises(ValueError, match="off it: add runs off the line"):
        fit.predict(2e10, 4e10)
    with pytest.raises(ValueError, match="best split is not known"):
        compute_optimal.allocation(fit, 1e22)


def test_undetermined_exponent_has_a_warning():
    rows = [
        r
        for n in (1e8, 1.15e8, 1.3e8)
        for r in [
            {
                "name": f"{n:.3g} {m}",
                "params": n,
                "tokens": n * m,
                "loss": (E + A * n**-ALPHA + B * (n * m) ** -BETA) * (1 + 0.004 * (-1) ** m),
            }
            for m in (5, 20, 81, 320)
        ]
    ]
    fit = power_laws.chinchilla(rows, **NAMES)
    assert "alpha" in fit.undetermined and "alpha" not in fit.intervals
    assert any("do not determine" in text and "alpha" in text for text in fit.warnings)
    assert any("params spans" in text or "N spans only" in text for text in fit.warnings)


def test_starts_without_a_parameter_raise():
    with pytest.raises(ValueError, match="neither E nor log_E"):
        power_laws.power(sweep(), x="params", y="loss", starts={"A": [1.0], "alpha": [0.3]})


def test_bounds_contain_exponents_up_to_ten():
    """Coefficients are within e^-12 of the lowest and e^2 of the highest loss."""
    log_y, log_x = np.log([2.0, 3.0, 4.0]), [np.log([1e7, 1e8, 1e9])]
    model = power_laws.PowerSum(log_y, log_x, True, False, {})
    lower, upper, start_lower = model.bounds()
    assert model.free == ["E", "A", "alpha"]
    assert lower == pytest.approx([log_y[0] - 12, log_y[0] - 12, 0])
    assert upper == pytest.approx([log_y[-1] + 2, log_y[-1] + 2, 10 * np.std(log_x[0])])
    assert start_lower == pytest.approx([log_y[0] - 7, log_y[0] - 7, 0])
    line = power_laws.PowerSum(log_y, log_x, False, False, {})
    assert line.bounds()[0][-1] == pytest.approx(-10 * np.std(log_x[0]))


def test_parameters_and_theta_are_inverse():
    log_x = [np.log(np.geomspace(1e7, 1e9, 5)), np.log(np.geomspace(1e9, 1e12, 5))]
    model = power_laws.PowerSum(np.zeros(5), log_x, True, False, {"beta": 0.3})
    params = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.3}
    theta = model.internal({name: np.array([value]) for name, value in params.items()})
    natural = model.natural(theta)
    assert {name: v[0] for name, v in natural.items()} == pytest.approx(params)
    terms = [np.exp(theta[:, t.columns] @ t.X.T + t.offset) for t in model.terms()]
    assert sum(terms)[0] == pytest.approx(model.values(params, *np.exp(log_x)))


def test_laws_without_a_floor_can_increase():
    rows = [{"c": c, "n": 2.0 * c**0.4} for c in np.geomspace(1e3, 1e6, 5)]
    law = power_laws.power(rows, x="c", y="n", floor=False, bootstrap=0)
    assert law.params == pytest.approx({"A": 2.0, "alpha": -0.4}, rel=1e-6)
