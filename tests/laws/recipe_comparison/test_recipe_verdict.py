"""Tests of the verdict about two recipes."""

import dataclasses
import json
import math

import pytest
from fixtures.recipe_rows import recipe_rows

from lm.laws.recipe_comparison import recipe_verdict


def compare(log_m=0.0, slope=0.0, noise=0.002, **options):
    """Return the comparison of two simulated recipes."""
    return recipe_verdict.compare_recipes(
        recipe_rows("a", noise=noise),
        recipe_rows("b", log_m, slope, noise=noise),
        recipe_verdict.ComparisonOptions(**{"n_draws": 400} | options),
    )


@pytest.mark.parametrize(
    ("log_m", "slope", "noise", "verdict"),
    [
        (0.0, 0.0, 0.001, "no difference"),
        (0.5, 0.0, 0.002, "constant"),
        (0.3, 0.06, 0.002, "grows"),
        (-0.3, -0.06, 0.002, "grows"),
        (0.7, -0.07, 0.002, "vanishes"),
        (-0.5, 0.12, 0.002, "reverses"),
        (0.1, 0.0, 0.05, "undecided"),
    ],
)
def test_verdict_names_the_simulated_trend(log_m, slope, noise, verdict):
    assert compare(log_m, slope, noise).verdict == verdict


def test_comparison_states_crossing_and_probability():
    comparison = compare(-0.5, 0.12)
    assert comparison.crossing is not None
    assert comparison.crossing.lo < 1e12 * 2.718 ** (0.5 / 0.12) < comparison.crossing.hi
    assert comparison.probabilities[10] > 0.95
    assert comparison.extrapolated[100].lo < comparison.extrapolated[100].value
    lines = str(comparison).split("\n")
    assert lines[0].startswith("verdict: reverses")
    assert any(line.startswith("crossing: m is 1 at") for line in lines)
    assert len(lines) <= 14
    assert json.loads(json.dumps(comparison.to_dict()))["verdict"] == "reverses"


@pytest.mark.parametrize(("slope", "better"), [(0.06, "B"), (-0.06, "A")])
def test_text_names_no_better_recipe_of_an_uncertain_middle(slope, better):
    comparison = compare(5 * slope, slope)
    uncertain = {comparison.cost: recipe_verdict.Multiplier(0.93, 0.6, 1.4)}
    text = str(dataclasses.replace(comparison, average=uncertain))
    middle = "the middle of the ladder is undecided"
    assert f"; {better} is better at the largest size; {middle}\n" in text
    assert f"; {better} is better in the middle of the ladder\n" in str(comparison)


def test_more_candidates_and_repeated_tests_widen_intervals():
    narrow, corrected, repeated = (
        compare(0.3), compare(0.3, n_candidates=20), compare(0.3, is_anytime=True)
    )  # fmt: skip
    for wide in (corrected, repeated):
        assert wide.slope.hi - wide.slope.lo > 1.2 * (narrow.slope.hi - narrow.slope.lo)
        assert wide.sizes[0].multipliers["flops"].hi > narrow.sizes[0].multipliers["flops"].hi


def test_identical_losses_are_no_difference():
    rows = recipe_rows("a")
    comparison = recipe_verdict.compare_recipes(rows, rows)
    assert (comparison.verdict, comparison.average["flops"].hi) == ("no difference", 1.0)
    assert 0.3 < comparison.probabilities[100] < 0.7


@pytest.mark.parametrize("option", ["error=0.0", "n_candidates=0", "n_draws=3"])
def test_invalid_options_are_refused(option):
    name, value = option.split("=")
    with pytest.raises(ValueError, match=f"{option} must be"):
        compare(**{name: float(value) if "." in value else int(value)})


def test_large_effect_of_ten_pairs_is_decided_by_the_anytime_valid_test():
    """The irreducible loss is most of the loss, so a pair has little weight in log(L - E)."""
    options = recipe_verdict.ComparisonOptions(is_anytime=True, n_draws=100)
    rows = (recipe_rows(name, log_m, n_sizes=5, n_seeds=2) for name, log_m in (("a", 0), ("b", 1)))
    comparison = recipe_verdict.compare_recipes(*rows, options)
    assert comparison.is_different and comparison.better == "B"
    average = comparison.average["flops"]
    assert 1 < average.lo < math.e < average.hi < 2 * math.e
