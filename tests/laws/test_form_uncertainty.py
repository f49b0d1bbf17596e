"""Tests of intervals that include uncertainty about the form of a law."""

import numpy as np
import pytest
from scipy import stats

from lm.laws import form_uncertainty
from lm.laws.forms import downstream, power_laws

SIZES = np.geomspace(1e7, 1e9, 7)


def right_form(n):
    return 1.8 + 400 * n**-0.34


def broken_form(n):
    return 1.5 + 120 * n**-0.25 * (1 + (n / 1e8) ** 2) ** -0.075


def two_powers(n):
    return 1.5 + 40 * n**-0.2 + 3e4 * n**-0.65


def fit_sweep(form, seed, noise=0.002, bootstrap=300, **options):
    rng = np.random.default_rng(seed)
    rows = [
        {"name": f"run {i}", "params": n, "loss": form(n) * np.exp(noise * z)}
        for i, (n, z) in enumerate(zip(SIZES, rng.standard_normal(len(SIZES)), strict=True))
    ]
    return power_laws.power(rows, x="params", y="loss", bootstrap=bootstrap, seed=seed, **options)


def width_ratio(prediction):
    """Return the width with form uncertainty, relative to the width that assumes the form."""
    narrow = prediction.hi_if_form_right - prediction.lo_if_form_right
    return (prediction.hi - prediction.lo) / narrow


def test_intervals_widen_with_the_distance():
    ratios = width_ratio(fit_sweep(right_form, 0).predict(SIZES[-1] * np.array([1, 4, 30])))
    assert 0.9 < ratios[0] < 1.2 and 1.1 < ratios[1] < ratios[2] < 4
    for form in (right_form, broken_form, two_powers):
        prediction = fit_sweep(form, 1).predict(SIZES[-1] * np.geomspace(1, 1000, 7), noise=False)
        assert np.all(np.diff(np.log(prediction.hi / prediction.lo)) > 0)


def test_error_persists_where_the_law_approaches_its_floor():
    """Far from the rows, the error increases in proportion to the log distance or faster."""
    fit = fit_sweep(right_form, 0, bootstrap=2000)
    spread = fit.form_sampler(fit, [SIZES[-1] * np.array([1e3, 1e4])]).std(0)
    assert 4 / 3 < spread[1] / spread[0] < 1.6


def test_correct_form_has_little_extra_width_nearby():
    ratios = [width_ratio(fit_sweep(right_form, seed).predict(2e9)) for seed in range(8)]
    assert 1 < np.mean(ratios) < 1.4


def test_interval_contains_the_fitted_value():
    """The interval moves with a bend of the residuals, but never beyond the law."""
    targets = SIZES[-1] * np.array([0.1, 1, 10, 100])
    for form in (right_form, broken_form, two_powers):
        prediction = fit_sweep(form, 0).predict(targets, noise=False)
        assert np.all((prediction.lo <= prediction.value) & (prediction.value <= prediction.hi))


def test_equal_seeds_give_equal_intervals():
    first, second = (fit_sweep(two_powers, 3) for _ in range(2))
    bounds = [
        (p.lo, p.hi) for p in (first.predict(1e10), second.predict(1e10), first.predict(1e10))
    ]
    assert bounds[0] == bounds[1] == bounds[2]
    assert first.refit(seed=4).predict(1e10).lo != bounds[0][0]


@pytest.mark.parametrize("form", [broken_form, two_powers])
def test_wrong_form_is_covered(form):
    targets = SIZES[-1] * np.array([2, 4, 10, 30])
    hits = []
    for seed in range(6):
        prediction = fit_sweep(form, seed).predict(targets)
        value = form(targets)
        assumed = (prediction.lo_if_form_right <= value) & (value <= prediction.hi_if_form_right)
        hits.append([assumed, (prediction.lo <= value) & (value <= prediction.hi)])
    assumed, included = np.mean(hits, axis=(0, 2))
    assert assumed < 0.5 and included > 0.85


def test_exact_form_adds_no_uncertainty():
    prediction = fit_sweep(right_form, 0, noise=0.0).predict(1e10)
    assert prediction.hi - prediction.lo < 1e-6


def test_interval_at_a_point_is_independent_of_other_points():
    fit = fit_sweep(right_form, 0)
    several, single = fit.predict([1e8, 1e10], noise=False), fit.predict(1e10, noise=False)
    assert several.lo[1] == pytest.approx(single.lo, rel=1e-12)
    assert several.hi[1] == pytest.approx(single.hi, rel=1e-12)


def test_squares_of_the_loss_have_form_uncertainty():
    prediction = fit_sweep(right_form, 0, loss="squares").predict(1e10)
    assert prediction.includes_form and 1 < width_ratio(prediction) < 4


def test_scale_of_row_weights_changes_no_interval():
    rows = [
        {"name": f"run {i}", "params": n, "loss": right_form(n) * (1 + 0.002 * (-1) ** i)}
        for i, n in enumerate(SIZES)
    ]
    fits = [
        power_laws.power(
            [row | {"w": scale * (1 + i)} for i, row in enumerate(rows)],
            x="params", y="loss", weights="w", bootstrap=200,
        )
        for scale in (1.0, 100.0)
    ]  # fmt: skip
    first, second = (fit.predict(1e10) for fit in fits)
    assert first.hi == pytest.approx(second.hi, rel=1e-6) and width_ratio(first) > 1


def test_undetermined_exponents_leave_other_predictions_bounded():
    """Two sizes do not determine alpha, but they predict new tokens of the same sizes."""
    rng = np.random.default_rng(0)
    rows = [
        {"name": f"{n} {d}", "n": n, "d": d, "y": (1.7 + 400 * n**-0.34 + 400 * d**-0.28) * noise}
        for n in (1e8, 4e8)
        for d, noise in zip(
            (1e9, 3e9, 1e10, 3e10), np.exp(0.002 * rng.standard_normal(4)), strict=True
        )
    ]
    fit = power_laws.chinchilla(rows, n="n", d="d", y="y", bootstrap=200)
    same_size, new_size = fit.predict(4e8, 6e10), fit.predict(4e9, 6e10)
    assert same_size.hi / same_size.lo < 1.5 and np.isnan(new_size.lo)


def test_two_steps_combine_their_form_uncertainty():
    step1 = fit_sweep(right_form, 0)
    rows = [
        {**row, "acc": 0.25 + 0.6 / (1 + np.exp(4 * (row["loss"] - 2.4)))}
        for row in step1.data.rows
    ]
    step2 = downstream.accuracy_from_loss(rows, x="loss", y="acc", chance=0.25, bootstrap=300)
    prediction = downstream.two_step(step1, step2).predict(1e10)
    assert prediction.includes_form and width_ratio(prediction) > 1
    assert 0.25 <= prediction.lo < prediction.value < prediction.hi <= 1


@pytest.mark.slow
def test_coverage_stays_high_for_wrong_forms():
    """The benchmark law_coverage measures more cases with more sweeps."""
    targets = SIZES[-1] * np.array([2, 4, 10])
    for loss in (right_form, broken_form, two_powers):
        hits = []
        for seed in range(100):
            prediction = fit_sweep(loss, seed, noise=0.003).predict(targets, noise=False)
            hits.append((prediction.lo <= loss(targets)) & (loss(targets) <= prediction.hi))
        assert np.mean(hits) > 0.85


def test_posterior_is_that_of_a_linear_gaussian_model():
    """Off the Jacobian, residuals are N(0, sigma^2 I + rho^2 G G^T): compare with scipy."""
    rng = np.random.default_rng(0)
    fit = fit_sweep(right_form, 0)
    residuals, effects = 0.004 * rng.standard_normal(7), 0.01 * rng.standard_normal((7, 12))
    basis, off_basis = np.split(np.linalg.qr(rng.standard_normal((7, 7)))[0], [3], axis=1)
    drift = form_uncertainty._posterior(fit, residuals, effects, basis)
    prior = {0.0: 0.7, 0.15: 0.15, 0.3: 0.15}
    assert drift.sigmas == pytest.approx(fit.sigma * np.geomspace(0.1, 4, 40))
    projected = off_basis.T @ effects
    expected = np.array([
        [p * stats.multivariate_normal.pdf(
            off_basis.T @ residuals,
            cov=sigma**2 * np.eye(4) + rho**2 * projected @ projected.T)
         for rho, p in prior.items()]
        for sigma in drift.sigmas
    ])  # fmt: skip
    assert drift.weights == pytest.approx(expected / expected.sum(), rel=1e-6, abs=1e-12)
    # The mean of w is that of the same model, averaged over sigma and rho.
    draws = form_uncertainty._sample_drift(drift, 40_000, rng)
    mean = sum(
        weight * rho**2 * projected.T @ np.linalg.solve(
            sigma**2 * np.eye(4) + rho**2 * projected @ projected.T, off_basis.T @ residuals)
        for sigma, row in zip(drift.sigmas, drift.weights, strict=True)
        for rho, weight in zip(prior, row, strict=True)
    )  # fmt: skip
    assert draws.mean(0) == pytest.approx(mean, abs=5 * draws.std(0).max() / 200)
