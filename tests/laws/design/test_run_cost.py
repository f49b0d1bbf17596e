"""Tests of the cost of a run computed from the rows of a fit."""

import numpy as np
import pytest

from lm.laws.design import run_cost
from lm.laws.forms import power_laws


def test_cost_is_that_of_the_rows_at_their_token_budget():
    """Runs of 1.8 M tokens cost 6 N and an attention part per token, not 120 N^2."""
    sweep = [
        {"params": n, "tokens": 1.8e6, "flops": (6 * n + 900 * n**0.5) * 1.8e6, "L": 1 + n**-0.3}
        for n in (1e5, 3e5, 1e6, 3e6)
    ]
    fit = power_laws.power(sweep, x="params", y="L", bootstrap=0)
    price = run_cost.cost_of_rows(fit)
    assert price(3e7) == pytest.approx((6 * 3e7 + 900 * 3e7**0.5) * 1.8e6, rel=1e-6)
    assert price(np.array([1e5]))[0] == pytest.approx(sweep[0]["flops"], rel=1e-6)


def test_cost_of_a_law_of_compute_is_the_compute():
    sweep = [{"flops": c, "L": 1 + c**-0.1} for c in (1e15, 1e16, 1e17, 1e18)]
    fit = power_laws.power(sweep, x="flops", y="L", bootstrap=0)
    assert run_cost.cost_of_rows(fit)(3e18) == 3e18
