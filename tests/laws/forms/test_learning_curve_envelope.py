"""Tests of the envelope of learning curves."""

from typing import Any

import numpy as np
import pytest
from fixtures.learning_curves import curves, loss
from scipy import spatial

from lm.laws.forms import learning_curve_envelope

# The default number of points is 1500, for curves with more evaluations.
COLUMNS: dict[str, Any] = {"n": "params", "y": "loss", "points": 300}


@pytest.mark.parametrize("hull", ["lower", "convex"])
def test_envelope_has_the_exponent_of_the_best_split(hull):
    fit = learning_curve_envelope.envelope(curves(), **COLUMNS, hull=hull, bootstrap=0)
    assert fit.params["exponent"] == pytest.approx(0.3 / 0.64, abs=0.02)
    assert fit.n_runs <= 13


def test_convex_envelope_equals_that_of_scipy():
    fit = learning_curve_envelope.envelope(
        curves(), n="params", y="loss", hull="convex", bootstrap=0, edges="keep"
    )
    c, y = (np.log([row[k] for row in curves()]) for k in ("flops", "loss"))
    upper_right = [[c.max() + 1, y.max() + 1]]
    corners = spatial.ConvexHull(np.vstack([np.stack([c, y], 1), upper_right])).vertices
    falling = [i for i in corners if i < len(c) and y[i] <= y[c <= c[i]].min()]
    assert np.allclose(sorted(np.exp(c[falling])), fit.envelope.flops)


def test_envelope_at_the_edge_has_a_warning():
    fit = learning_curve_envelope.envelope(curves(), **COLUMNS, bootstrap=0, edges="keep")
    assert any("smallest or largest model" in text for text in fit.warnings)


@pytest.mark.parametrize("n_runs", [1, 3, 5])
def test_envelope_of_fewer_than_four_interior_runs_raises(n_runs):
    with pytest.raises(ValueError, match="an exponent needs 4; add sizes"):
        learning_curve_envelope.envelope(noisy_curves(n_runs, 0.0, 0), n="params", y="loss")


def noisy_curves(n_runs, noise, seed):
    rng = np.random.default_rng(seed)
    return [
        {"run": f"{n:.4g}", "params": n, "tokens": d, "flops": 6 * n * d,
         "loss": loss(n, d) * np.exp(shift)}
        for n in np.geomspace(1e7, 1e9, n_runs)
        for shift in [noise * rng.standard_normal()]
        for d in np.geomspace(1e8, 2e11, 30)
    ]  # fmt: skip


@pytest.mark.parametrize(("hull", "n_runs"), [("lower", 9), ("convex", 15)])
def test_each_resample_of_runs_has_its_own_envelope(hull, n_runs):
    """A fixed envelope gives slope 0 for draws of one run and too narrow intervals."""
    truth = 0.3 / 0.64
    fits = [
        learning_curve_envelope.envelope(
            noisy_curves(n_runs, 0.003, seed),
            **{"n": "params", "y": "loss", "hull": hull, "points": 300, "bootstrap": 200},
        )
        for seed in range(5)
    ]
    intervals = np.array([fit.interval("exponent") for fit in fits])
    assert ((intervals[:, 0] < truth) & (truth < intervals[:, 1])).sum() >= 4
    assert np.median(np.diff(intervals)) < 0.25
    assert all((np.abs(fit.ensemble["exponent"]) > 1e-3).all() for fit in fits)
    assert "each with its own envelope" in str(fits[0])


def test_edges_are_dropped_for_tokens_as_for_parameters():
    by_n, by_d = (
        learning_curve_envelope.envelope(curves(), **COLUMNS | {"n": n}, bootstrap=0)
        for n in ("params", "tokens")
    )
    assert by_n.params["exponent"] + by_d.params["exponent"] == pytest.approx(1)


def test_resample_of_all_runs_has_the_line_of_the_fit():
    """The envelopes of resamples cover the budgets of the line, the first and last included."""
    for hull in ("lower", "convex"):
        fit = learning_curve_envelope.envelope(
            noisy_curves(4, 0.0, 0), n="params", y="loss", hull=hull, edges="keep", points=12,
            bootstrap=200,
        )  # fmt: skip
        is_equal = np.isclose(fit.ensemble["exponent"], fit.params["exponent"], rtol=1e-6, atol=0)
        # 24 of 256 draws of four from four runs contain each run.
        assert 0.04 < is_equal.mean() < 0.2
