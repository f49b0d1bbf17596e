"""Tests of the allocation by training and inference cost."""

import numpy as np
import pytest

from lm import laws
from lm.laws.forms import inference_cost

# Coefficients of Hoffmann et al. 2022 with one more digit, as in Sardana et al. 2024.
LAW = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.336, "beta": 0.283}


def loss_of(n, d):
    return LAW["E"] + LAW["A"] * n ** -LAW["alpha"] + LAW["B"] * d ** -LAW["beta"]


def training_optimum(n):
    """Return the D for which n is compute-optimal, by alpha A N^-alpha = beta B D^-beta."""
    alpha, beta = LAW["alpha"], LAW["beta"]
    return (alpha * LAW["A"] * n**-alpha / (beta * LAW["B"])) ** (-1 / beta)


def test_saving_is_that_of_the_published_example():
    """Figure 1 of Sardana et al. 2024.

    For the loss of a compute-optimal 13 B model and 2 T inference tokens, a 7 B model saves 1.7e22
    FLOPs, 17%.
    """
    n = 13e9
    d = training_optimum(n)
    best = inference_cost.inference_allocation(LAW, 2e12, loss=loss_of(n, d))
    assert best.n == pytest.approx(7e9, rel=0.01)
    assert best.saving == pytest.approx(0.17, abs=0.005)
    assert 6 * n * d + 2 * n * 2e12 - best.flops == pytest.approx(1.7e22, rel=0.01)
    assert loss_of(best.n, best.d) == pytest.approx(best.loss)


def test_without_inference_the_training_optimum_results():
    n = 13e9
    d = training_optimum(n)
    by_loss = inference_cost.inference_allocation(LAW, 0, loss=loss_of(n, d))
    by_budget = inference_cost.inference_allocation(LAW, 0, flops=6 * n * d)
    for best in (by_loss, by_budget):
        assert (best.n, best.d) == pytest.approx((n, d), rel=1e-3)
        assert best.saving == pytest.approx(0, abs=1e-6)


def test_budget_and_loss_agree():
    by_loss = inference_cost.inference_allocation(LAW, 5e12, loss=2.0)
    by_budget = inference_cost.inference_allocation(LAW, 5e12, flops=by_loss.flops)
    assert by_budget.loss == pytest.approx(2.0, abs=1e-6)
    assert (by_budget.n, by_budget.d) == pytest.approx((by_loss.n, by_loss.d), rel=1e-2)


def test_fits_give_intervals():
    rng = np.random.default_rng(0)
    rows = [
        {"n": n, "d": n * m, "loss": loss_of(n, n * m) * np.exp(0.002 * rng.standard_normal())}
        for n in np.geomspace(1e7, 1e10, 7)
        for m in (5, 20, 80)
    ]
    fit = laws.chinchilla(rows, n="n", d="d", y="loss", loss="log_squares", bootstrap=200)
    best = inference_cost.inference_allocation(fit, 2e12, loss=2.2)
    assert best.n_interval[0] < best.n < best.n_interval[1]
    assert best.d_interval[0] < best.d < best.d_interval[1]
    assert "less in total than the model of least training FLOPs" in str(best)
    tied = laws.overtrained(rows, n="n", d="d", y="loss", bootstrap=0)
    assert inference_cost.inference_allocation(tied, 2e12, loss=2.2).n > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either loss"),
        ({"loss": 2.0, "flops": 1e20}, "give either loss"),
        ({"loss": 1.69}, "must be above E = 1.69"),
        ({"flops": -1.0}, "flops=-1.0 must be a positive number"),
        ({"loss": 2.0, "inference_tokens": -1}, "number of at least 0"),
        ({"loss": 2.0, "law": {"E": 1, "A": 2, "alpha": 0.3}}, "law lacks B"),
    ],
)
def test_invalid_allocations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        inference_cost.inference_allocation(**({"law": LAW, "inference_tokens": 1e12} | options))


def test_search_ends_within_half_a_step_of_the_minimum():
    """Three searches of 2001 points: each has 2 of 2000 steps of the previous search."""
    low, high = np.array([1.0, 10.0]), np.array([1e6, 1e9])
    step = np.log(high / low) / 2000 * (2 / 2000) ** 2
    for optimum in np.geomspace(30.0, 9e5, 17):
        n = inference_cost._minimize_over_size(
            lambda n, optimum=optimum: np.abs(np.log(n / optimum)), low, high
        )
        assert (np.abs(np.log(n / optimum)) < 0.51 * step + 1e-13).all()
    at_edge = inference_cost._minimize_over_size(lambda n: n, low, high)
    assert at_edge == pytest.approx(low, rel=1e-6)
