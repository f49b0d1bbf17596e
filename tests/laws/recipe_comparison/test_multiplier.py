"""Tests of the compute multiplier and its uncertainty."""

import numpy as np
import pytest
from fixtures.recipe_rows import recipe_rows

from lm.laws.recipe_comparison import multiplier, multiplier_draws, paired_runs


def fit(rows_a, rows_b, cost="flops", document_error=0.0):
    """Return the fit of two lists of rows."""
    ladder = paired_runs.pair_runs(rows_a, rows_b).ladder(cost)
    return multiplier.fit_multiplier(ladder, document_error)


def test_exact_ladders_give_the_exact_multiplier():
    fitted = fit(recipe_rows("a", noise=0.0), recipe_rows("b", np.log(1.5), 0.02, noise=0.0))
    # E is on a grid, and its value does not matter much for m.
    average, slope = multiplier.line_effects(fitted)
    middle = np.log(1.5) + 0.02 * 2.5 * np.log(6)
    assert average.value == pytest.approx(middle, rel=0.02)
    assert slope.value == pytest.approx(0.02, rel=0.15)
    for k, effect in enumerate(multiplier.size_effects(fitted)):
        assert effect.value == pytest.approx(np.log(1.5) + 0.02 * k * np.log(6), rel=0.06)
    top = fitted.ladder.x_mean[-1] + np.log([1.0, 100.0])
    draws = np.median(multiplier_draws.draw_multipliers(fitted, top, 500), axis=0)
    np.testing.assert_allclose(draws, middle + 0.02 * (top - fitted.center), rtol=0.1)


def test_multiplier_above_one_means_that_a_needs_more_compute():
    better = fit(recipe_rows("a"), recipe_rows("b", np.log(2)))
    worse = fit(recipe_rows("b", np.log(2)), recipe_rows("a"))
    assert np.exp(multiplier.line_effects(better)[0].value) == pytest.approx(2, rel=0.15)
    assert np.exp(multiplier.line_effects(worse)[0].value) == pytest.approx(0.5, rel=0.15)


def test_cheaper_runs_of_equal_loss_are_a_multiplier():
    """B costs half of the FLOPs and reaches the same loss, so A needs twice as many."""
    rows_b = [row | {"flops": row["flops"] / 2} for row in recipe_rows("b", noise=0.001)]
    fitted = fit(recipe_rows("a", noise=0.001), rows_b)
    average, slope = multiplier.line_effects(fitted)
    assert average.value == pytest.approx(np.log(2), rel=0.05)
    assert all(
        effect.value == pytest.approx(np.log(2), abs=0.1)
        for effect in multiplier.size_effects(fitted)
    )
    draws = multiplier_draws.draw_multipliers(fitted, fitted.ladder.x_b[-1:], 500)
    assert np.median(draws) == pytest.approx(np.log(2), rel=0.1)


def test_document_error_widens_the_average_and_not_the_slope():
    rows = recipe_rows("a"), recipe_rows("b")
    narrow, wide = (
        multiplier.line_effects(fit(*rows, document_error=error)) for error in (0.0, 0.01)
    )
    assert wide[0].standard_error > 2 * narrow[0].standard_error
    assert wide[1].standard_error == narrow[1].standard_error


def test_common_noise_of_pairs_cancels():
    rows_a = recipe_rows("a", noise=0.01)
    rows_b = [row | {"eval.loss": row["eval.loss"] * 0.99} for row in rows_a]
    effects = multiplier.size_effects(fit(rows_a, rows_b))
    assert all(effect.standard_error < 0.1 * effect.value for effect in effects)


def test_loss_that_increases_with_compute_is_refused():
    rows = [row | {"eval.loss": 1 + row["flops"] / 1e18} for row in recipe_rows("a")]
    with pytest.raises(ValueError, match="the loss does not decrease"):
        fit(rows, [dict(row, name=f"b{row['name']}") for row in rows])
