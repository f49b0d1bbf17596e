"""Tests of the variances of trunks and branches, and of the intervals that contain both."""

import numpy as np
import pytest
from scipy import stats

from lm.laws import diagnostics, random_effects
from lm.laws.forms import log_linear, power_laws

GROUPS = np.repeat(np.arange(8), 4)


def design():
    """Return the Jacobian of a law of two inputs: one varies between groups, one within."""
    between, within = GROUPS - GROUPS.mean(), np.tile(np.arange(4), 8)
    return np.stack([np.ones(32), between, within], 1)


def draw_residuals(rng, between_sd, own_sd):
    return between_sd * rng.standard_normal(8)[GROUPS] + own_sd * rng.standard_normal(32)


def estimate(rng, between_sd, own_sd, weights=None):
    noise = draw_residuals(rng, between_sd, own_sd)
    return random_effects.estimate_variances(noise, design(), GROUPS, weights)


def test_variances_are_unbiased():
    rng = np.random.default_rng(0)
    estimates = [estimate(rng, 0.3, 0.1).estimates for _ in range(400)]
    assert np.mean(estimates, 0) == pytest.approx([0.09, 0.01], rel=0.08)


def test_degrees_of_freedom_exclude_the_parameters():
    variances = estimate(np.random.default_rng(0), 0.3, 0.1)
    assert (variances.between_degrees, variances.within_degrees) == (6, 23)


def test_variances_do_not_depend_on_the_fitted_parameters():
    noise = draw_residuals(np.random.default_rng(0), 0.3, 0.1)
    jacobian = design()
    shifted = noise + jacobian @ [0.5, -0.1, 0.2]
    first, second = (
        random_effects.estimate_variances(r, jacobian, GROUPS).estimates for r in (noise, shifted)
    )
    assert first == pytest.approx(second)


def test_independent_rows_have_a_pooled_variance():
    rng = np.random.default_rng(1)
    pooled = [not estimate(rng, 0.0, 0.1).has_group_noise for _ in range(200)]
    assert 0.65 < np.mean(pooled) < 0.85
    assert all(estimate(rng, 0.3, 0.1).has_group_noise for _ in range(50))


def test_constant_and_parallel_parameters_are_no_degrees():
    noise = draw_residuals(np.random.default_rng(0), 0.3, 0.1)
    jacobian = np.column_stack([design(), design()[:, 1] * 2, np.zeros(32)])
    variances = random_effects.estimate_variances(noise, jacobian, GROUPS)
    assert (variances.between_degrees, variances.within_degrees) == (6, 23)


def test_noise_of_a_resample_has_both_variances():
    rng = np.random.default_rng(2)
    variances = estimate(rng, 0.3, 0.1)
    noise, new_run = random_effects.draw_noise(variances, GROUPS, None, 4000, rng)
    means = noise.reshape(4000, 8, 4).mean(2)
    within = noise.reshape(4000, 8, 4) - means[:, :, None]
    between, own = variances.estimates
    assert np.median(within.std((1, 2), ddof=8)) == pytest.approx(own**0.5, rel=0.1)
    assert np.median(means.std(1)) == pytest.approx((between + own / 4) ** 0.5, rel=0.25)
    assert np.median(new_run) == pytest.approx((between + own) ** 0.5, rel=0.2)


def test_weights_scale_the_own_noise():
    rng = np.random.default_rng(3)
    weights = np.tile([0.4, 0.8, 1.2, 1.6], 8)
    own = [
        random_effects.estimate_variances(
            0.1 * rng.standard_normal(32) / weights**0.5, design(), GROUPS, weights
        ).estimates[1]
        for _ in range(300)
    ]
    assert np.mean(own) == pytest.approx(0.01, rel=0.1)


def branches(seed, trunk_sd=0.004, own_sd=0.001):
    rng = np.random.default_rng(seed)
    return [
        {"name": f"{n:.3g}-{r}", "start.run": f"{n:.3g}", "start.restore": "full_state",
         "params": n, "tokens": r * n,
         "loss": (1.69 + 406.4 * n**-0.34 + 410.7 * (r * n) ** -0.28)
         * np.exp(shift + own_sd * rng.standard_normal())}
        for n in np.geomspace(1e6, 6.4e7, 7)
        for shift in [trunk_sd * rng.standard_normal()]
        for r in (5, 20, 80)
    ]  # fmt: skip


def fit_branches(rows, **options):
    return power_laws.chinchilla(rows, n="params", d="tokens", y="loss", **options)


def test_noise_of_a_new_run_contains_that_of_its_trunk():
    sigmas = [fit_branches(branches(seed), bootstrap=20).sigma for seed in range(6)]
    assert np.sqrt(np.mean(np.square(sigmas))) == pytest.approx(0.0041, rel=0.3)


def test_branches_without_a_group_have_a_warning():
    columns = ("start.run", "start.restore")
    ungrouped = [{k: v for k, v in row.items() if k not in columns} for row in branches(0)]
    (text,) = [t for t in fit_branches(ungrouped, bootstrap=0).warnings if "group=" in t]
    assert "rows of equal N have similar residuals" in text
    independent = [{k: v for k, v in row.items() if k not in columns}
                   for row in branches(1, trunk_sd=0.0, own_sd=0.004)]  # fmt: skip
    for rows in (independent, branches(0)):
        assert "group=" not in " ".join(fit_branches(rows, bootstrap=0).warnings)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [(0.004, 0.001), (0.0, 0.004)])
def test_intervals_of_branches_cover_the_law_and_a_new_run(noise):
    truth = 1.69 + 406.4 * 2.56e8**-0.34 + 410.7 * 5.12e9**-0.28
    start = [{"E": 1.5, "A": 200, "B": 400, "alpha": 0.3, "beta": 0.25}]
    hits = {"law": [], "new run": []}
    for seed in range(200):
        rng = np.random.default_rng((seed, 1))
        fit = fit_branches(branches(seed, *noise), bootstrap=300, seed=seed, starts=start)
        law = fit.predict(2.56e8, 5.12e9, noise=False)
        new = fit.predict(2.56e8, 5.12e9)
        measured = truth * np.exp(np.hypot(*noise) * rng.standard_normal())
        hits["law"].append(law.lo <= truth <= law.hi)
        hits["new run"].append(new.lo <= measured <= new.hi)
    for results in hits.values():
        assert 0.90 <= np.mean(results) <= 0.985, np.mean(results)


def test_jacobian_of_a_line_is_its_design():
    """log y = log k + e log x, so the derivatives by log k and log e are 1 and e log x."""
    x = np.geomspace(1e3, 1e6, 6)
    rows = [{"x": v, "y": 2 * v**0.4 * (1 + 0.01 * (-1) ** i)} for i, v in enumerate(x)]
    fit = log_linear.log_linear(rows, x="x", y="y", bootstrap=0)
    names, (jacobian,) = diagnostics.parameter_jacobian(fit, fit.x)
    expected = {"k": np.ones(6), "exponent": fit.params["exponent"] * np.log(x)}
    for name, column in zip(names, jacobian.T, strict=True):
        assert column == pytest.approx(expected[name], rel=1e-4)


def test_law_without_parameters_removes_no_degrees():
    """The moments are then those of an analysis of variance with one mean per group."""
    noise = draw_residuals(np.random.default_rng(0), 0.3, 0.1)
    variances = random_effects.estimate_variances(noise, np.zeros((32, 2)), GROUPS)
    means = noise.reshape(8, 4).mean(1)
    assert (variances.between_degrees, variances.within_degrees) == (8, 24)
    assert variances.between_squares == pytest.approx(4 * (means**2).sum())
    within = ((noise.reshape(8, 4) - means[:, None]) ** 2).sum()
    assert variances.within_squares == pytest.approx(within)
    assert variances.p_value == pytest.approx(
        stats.f.sf(4 * (means**2).sum() / 8 / (within / 24), 8, 24)
    )


@pytest.mark.parametrize("case", ["crossed", "law of the groups", "weights", "one group", "no law"])
def test_variances_equal_those_of_projections_on_dense_matrices(case):
    """The reference builds the indicators [n, G] and decomposes them."""
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 1 if case == "one group" else 7, 40))
    groups = np.unique(groups, return_inverse=True)[1]
    jacobian = np.stack([np.ones(40), rng.standard_normal(40), np.exp(0.1 * groups)], 1)
    if case == "law of the groups":
        jacobian = jacobian[:, [0, 2]]
    if case == "no law":
        jacobian = jacobian[:, :0]
    weights = rng.uniform(0.2, 2, 40) if case == "weights" else np.ones(40)
    residuals = rng.standard_normal(40) + rng.standard_normal(7)[groups]
    result = random_effects.estimate_variances(residuals, jacobian, groups, weights)
    root = np.sqrt(weights)
    indicators = (groups[:, None] == np.arange(groups.max() + 1)) * root[:, None]
    law = diagnostics.orthonormal_basis(jacobian * root[:, None])
    off_law = diagnostics.remove_projection(indicators, law)
    errors = diagnostics.remove_projection(residuals * root, law)
    basis, scales, _ = np.linalg.svd(off_law, full_matrices=False)
    means = basis[:, scales > 1e-7]
    assert result.between_degrees == means.shape[1]
    assert result.within_degrees == 40 - law.shape[1] - means.shape[1]
    assert result.trace == pytest.approx((off_law**2).sum(), abs=1e-9)
    assert result.between_squares == pytest.approx(((means.T @ errors) ** 2).sum(), abs=1e-9)
    total = result.between_squares + result.within_squares
    assert total == pytest.approx(float(errors @ errors))
