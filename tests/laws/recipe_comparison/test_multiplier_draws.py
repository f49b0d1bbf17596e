"""Tests of the draws of the multiplier beyond the ladder."""

import numpy as np
from fixtures.recipe_rows import recipe_rows

from lm.laws.recipe_comparison import multiplier, multiplier_draws, paired_runs


def test_extrapolation_is_wider_than_the_ladder():
    ladder = paired_runs.pair_runs(recipe_rows("a"), recipe_rows("b", 0.3)).ladder("flops")
    fitted = multiplier.fit_multiplier(ladder)
    top = fitted.ladder.x_mean[-1]
    draws = multiplier_draws.draw_multipliers(fitted, top + np.log([1, 10, 100]), 2000)
    widths = np.diff(np.percentile(draws, [2.5, 97.5], axis=0), axis=0)[0]
    assert widths[0] < widths[1] < widths[2]
