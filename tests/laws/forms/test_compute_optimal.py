"""Tests of the allocation of budgets."""

import numpy as np
import pytest
from fixtures.learning_curves import LAW, curves, loss

from lm.laws.forms import compute_optimal, log_linear, power_laws


def test_allocation_has_the_lowest_loss():
    best = compute_optimal.allocation(LAW, 1e22)
    assert 6 * best.n * best.d == pytest.approx(1e22)
    assert best.loss == pytest.approx(loss(best.n, best.d))
    for factor in (0.9, 1.1):
        assert loss(best.n * factor, best.d / factor) > best.loss


def test_flops_per_param_token_sets_the_budget_equation():
    best = compute_optimal.allocation(LAW, 1e22, 8)
    assert 8 * best.n * best.d == pytest.approx(1e22)


def test_allocation_of_a_fit_has_intervals():
    rng = np.random.default_rng(0)
    rows = [{**r, "loss": r["loss"] * np.exp(0.003 * rng.standard_normal()), "run": str(i)}
            for i, r in enumerate(curves()[::13])]  # fmt: skip
    fit = power_laws.chinchilla(rows, n="params", d="tokens", y="loss")
    best, true = compute_optimal.allocation(fit, 1e22), compute_optimal.allocation(LAW, 1e22)
    assert best.n_interval[0] < true.n < best.n_interval[1]
    assert best.d_interval[0] < true.d < best.d_interval[1]
    assert "tokens per parameter" in str(best)


def test_allocations_by_parameters_and_tokens_agree():
    budgets = np.geomspace(1e18, 1e21, 5)
    splits = [compute_optimal.allocation(LAW, c) for c in budgets]
    rows = [
        {"flops": c, "params": s.n, "tokens": s.d} for c, s in zip(budgets, splits, strict=True)
    ]
    by_n, by_d = (
        compute_optimal.allocation(log_linear.log_linear(rows, "flops", y), 1e22)
        for y in ("params", "tokens")
    )
    assert by_n.n == pytest.approx(compute_optimal.allocation(LAW, 1e22).n) == by_d.n


def test_interval_of_an_allocation_has_the_percentiles_of_its_draws():
    rng = np.random.default_rng(0)
    rows = [{**r, "loss": r["loss"] * np.exp(0.003 * rng.standard_normal()), "run": str(i)}
            for i, r in enumerate(curves()[::13])]  # fmt: skip
    fit = power_laws.chinchilla(rows, n="params", d="tokens", y="loss", bootstrap=60)
    draws = [dict(zip(fit.ensemble, values, strict=True))
             for values in zip(*fit.ensemble.values(), strict=True)]  # fmt: skip
    splits = [compute_optimal.allocation(draw, 1e22) for draw in draws]
    best = compute_optimal.allocation(fit, 1e22, level=0.8)
    for interval, values in (
        (best.n_interval, [split.n for split in splits]),
        (best.d_interval, [split.d for split in splits]),
    ):
        assert interval == pytest.approx(tuple(np.quantile(values, [0.1, 0.9])), rel=1e-4)
