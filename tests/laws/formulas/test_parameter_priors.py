"""Tests of the objective and of the ensemble of a fit with priors."""

import numpy as np
import pytest
from scipy import stats

from lm.laws.formulas import custom, parameter_priors


def fit_line(priors=None, **options):
    rng = np.random.default_rng(0)
    rows = [{"x": x, "y": 5 * x**-0.3 * np.exp(0.05 * rng.standard_normal())}
            for x in np.geomspace(1, 1e4, 15)]  # fmt: skip
    options |= {"starts": {"A": 3.0, "alpha": 0.2}, "bounds": {"alpha": (-1, 1)}}
    return custom.custom(rows, "A * x**-alpha", {"x": "x"}, "y", priors=priors, **options)


def test_derivatives_of_priors_equal_finite_differences():
    """Parameters are exp(theta) or scale * theta: their priors have curvature in theta."""

    class Model:
        free, is_log, scales = ["A", "b"], {"A": True, "b": False}, {"A": 1.0, "b": 3.0}

        def natural(self, theta):
            return {"A": np.exp(theta[:, 0]), "b": 3.0 * theta[:, 1]}

    def flat(theta, log_y, weights):
        n, p = theta.shape
        return np.zeros(n), np.zeros((n, p)), np.zeros((n, p, p)), np.zeros((n, p, p))

    priors = {"A": (2.0, 0.5), "b": (1.0, 4.0)}
    objective = parameter_priors._add_priors(flat, Model(), priors, noise=0.1)
    theta = np.array([[0.3, 0.7], [1.2, -0.4]])
    value, gradient, hessian, majorizer = objective(theta, np.zeros(1), None)
    z = (np.exp(theta[:, 0]) - 2) / 0.5, (3 * theta[:, 1] - 1) / 4
    assert value == pytest.approx(0.01 * (z[0] ** 2 + z[1] ** 2))
    for i, unit in enumerate(1e-6 * np.eye(2)):
        up, down = (objective(theta + s * unit, np.zeros(1), None) for s in (1, -1))
        assert gradient[:, i] == pytest.approx((up[0] - down[0]) / 2e-6, rel=1e-6)
        assert hessian[:, i] == pytest.approx((up[1] - down[1]) / 2e-6, rel=1e-5, abs=1e-8)
    assert np.linalg.eigvalsh(majorizer).min() > 0
    slopes = np.stack([np.exp(theta[:, 0]), np.full(2, 3.0)], 1)
    expected = 2 * 0.01 * (slopes / [0.5, 4.0]) ** 2
    assert np.einsum("spp->sp", majorizer) == pytest.approx(expected)


def test_draws_are_weighted_by_the_density_of_the_prior():
    """The ensemble is that of the fit without priors, resampled by the normal density."""
    plain, prior = fit_line(bootstrap=4000), (0.302, 0.004)
    informed = fit_line({"alpha": prior}, bootstrap=4000)
    density = stats.norm.pdf(plain.ensemble["alpha"], *prior)
    mean = np.average(plain.ensemble["alpha"], weights=density)
    sd = np.sqrt(np.cov(plain.ensemble["alpha"], aweights=density, ddof=0))
    assert informed.ensemble["alpha"].mean() == pytest.approx(mean, abs=5 * sd / 4000**0.5)
    assert informed.ensemble["alpha"].std() == pytest.approx(sd, rel=0.1)
    assert not any("effective draws" in text for text in informed.warnings)


def test_number_of_effective_draws_is_that_of_kish():
    plain, prior = fit_line(bootstrap=400), (0.31, 0.0006)
    density = stats.norm.pdf(plain.ensemble["alpha"], *prior)
    expected = density.sum() ** 2 / (density**2).sum()
    informed = fit_line({"alpha": prior}, bootstrap=400)
    assert expected < parameter_priors.MIN_PRIOR_DRAWS
    assert any(f"leave {expected:.0f} effective draws" in text for text in informed.warnings)
