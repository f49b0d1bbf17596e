"""Tests of the checks of option values."""

import numpy as np
import pytest

from lm import laws
from lm.laws import option_validation
from lm.laws.forms import power_laws

ROWS = [
    {"name": f"run {i}", "params": n, "loss": 1.2 + 30 * n**-0.3 + 0.001 * (-1) ** i}
    for i, n in enumerate(np.geomspace(3e4, 3e6, 7))
]
START = {"E": 1.0, "A": 30.0, "alpha": 0.3}


def fit_power(rows=ROWS, **options):
    return power_laws.power(rows, x="params", y="loss", **{"bootstrap": 20, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fixed": {"E": 1.2, "A": 30, "alpha": 0.3}}, "no free parameter"),
        ({"fixed": {"E": float("nan")}}, "nan} must be a finite number"),
        ({"fixed": {"E": "1.2"}}, "must be a finite number"),
        ({"fixed": {"E": None}}, "must be a finite number"),
        ({"fixed": {"A": 0.0}}, "must be above 0"),
        ({"fixed": {"A": -2}}, "must be above 0"),
        ({"fixed": ["E"]}, "must be a dict"),
        ({"starts": []}, "must not be empty"),
        ({"starts": {}}, "must not be empty"),
        ({"starts": [{}]}, "must not be empty"),
        ({"starts": 5}, "must not be empty"),
        ({"starts": {**START, "E": []}}, "pass finite numbers"),
        ({"starts": [{**START, "A": -1}]}, "pass positive numbers"),
        ({"starts": [{**START, "alpha": float("nan")}]}, "pass finite numbers"),
        ({"starts": [START, {"E": 1}]}, "pass equal parameters"),
        ({"delta": 0}, "above 0"),
        ({"delta": -1e-3}, "above 0"),
        ({"delta": float("nan")}, "above 0"),
        ({"delta": "1"}, "above 0"),
        ({"floor": 5.0}, "below the losses"),
        ({"floor": -1.0}, "at least 0"),
        ({"floor": float("nan")}, "must be a finite number"),
        ({"bootstrap": -1}, "bootstrap=-1 must be an integer at least 0"),
        ({"bootstrap": 1.5}, "must be an integer"),
        ({"bootstrap": True}, "must be an integer"),
        ({"seed": -1}, "must be an integer at least 0"),
        ({"reach": 0}, "at least 1"),
        ({"rows": []}, "no rows to fit"),
        ({"rows": ROWS[:1]}, "3 free parameters and only 1 rows"),
        ({"rows": [row | {"params": 1e6} for row in ROWS]}, "in every row"),
    ],
)
def test_invalid_options_have_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        fit_power(**options)
    assert "\n" not in str(error.value)


def test_unknown_option_lists_the_options():
    with pytest.raises(ValueError, match="bootstap=5 is no option of power; allowed: loss"):
        fit_power(bootstap=5)


@pytest.mark.parametrize("level", [95, 0, 1, -0.5, float("nan")])
def test_level_is_a_probability(level):
    fit = fit_power()
    with pytest.raises(ValueError, match="probability between 0 and 1"):
        fit.predict(1e7, level=level)
    with pytest.raises(ValueError, match="probability between 0 and 1"):
        fit.interval("alpha", level)
    with pytest.raises(ValueError, match="probability between 0 and 1"):
        laws.allocation({"E": 1, "A": 2, "B": 3, "alpha": 0.3}, 1e10, level=level)


def test_other_laws_check_their_options():
    with pytest.raises(ValueError, match="bootstrap=-1"):
        laws.isoflop(ROWS, x="params", y="loss", c="params", bootstrap=-1)
    with pytest.raises(ValueError, match="bootstrap=-1"):
        laws.log_linear(ROWS, x="params", y="loss", bootstrap=-1)


def test_floor_above_some_losses_has_a_warning():
    floor = float(np.median([row["loss"] for row in ROWS]))
    assert any("of 7 losses" in text for text in fit_power(floor=floor).warnings)
    assert not any("losses" in text for text in fit_power(floor=1.0).warnings)


NUMBER_CASES = {  # option: (allowed values, refused values)
    "delta": ((1e-12, 3), (0, -1.0, None, True, "1", float("inf"))),
    "bootstrap": ((0, 1, 7.0), (-1, 0.5, None)),
    "seed": ((0, 5), (-1, 0.5, None)),
    "reach": ((1, 2.5), (0.99, None)),
    "max_starts": ((1, None), (0, 1.5)),
    "tolerance": ((0, 0.999), (-1e-9, 1, None)),
    "nearest": ((3, 4, None), (2, 3.5)),
    "points": ((2, 3), (1, 2.5, None)),
    "noise": ((0, 0.01, None), (-1e-9,)),
    "drop": ((0, 0.999), (1, -0.1, None)),
    "window": ((1, 2), (0, 1.5, None)),
    "chance": ((0, 0.25, None), (1, -0.1)),
    "origins": ((1, 2), (0, 1.5, None)),
    "last": ((1, 2), (0, 1.5, None)),
    "n_runs": ((1, 2), (0, 1.5, None)),
    "min_gain": ((0, 0.3, 1), (-0.1, None)),
}


@pytest.mark.parametrize("name", option_validation.NUMBERS)
def test_numbers_are_allowed_up_to_their_bounds(name):
    allowed, refused = NUMBER_CASES[name]
    for value in allowed:
        option_validation.check_option_values({name: value})
    for value in refused:
        with pytest.raises(ValueError, match=f"^{name}={value!r} must be an? "):
            option_validation.check_option_values({name: value})


def test_flags_and_names_of_properties_have_their_type():
    for name in option_validation.FLAGS:
        for value in (True, False, np.bool_(True)):
            option_validation.check_option_values({name: value})
        for value in (1, None, "yes"):
            with pytest.raises(ValueError, match=f"{name}=.* must be True or False"):
                option_validation.check_option_values({name: value})
    for mixed in (True, None, ["corpus"], ("corpus", "start"), {"corpus"}):
        option_validation.check_selection(None, mixed)
    for mixed in ("corpus", b"corpus", 5):
        with pytest.raises(ValueError, match="mixed=.* must be True, False or a list"):
            option_validation.check_selection(None, mixed)


def test_fixed_coefficients_are_positive_and_the_floor_is_below_losses():
    losses = np.array([2.0, 3.0, 4.0])
    for fixed in ({"A": 1e-9}, {"A": 0.5, "alpha": -1.0}, {"E": 0.0}, {"E": 1.99}):
        assert option_validation.check_fixed_powers(fixed, ("alpha",), losses) == ""
    assert "2 of 3 losses" in option_validation.check_fixed_powers({"E": 3.0}, ("alpha",), losses)
    for fixed in ({"A": 0.0}, {"A": -1.0}, {"E": -1e-9}, {"E": 4.0}):
        with pytest.raises(ValueError, match="above 0|at least 0 and below"):
            option_validation.check_fixed_powers(fixed, ("alpha",), losses)


def test_accuracies_are_fractions_above_chance():
    names = [f"r{i}" for i in range(9)]
    option_validation.check_fractions("acc", np.linspace(0, 1, 9), names)
    with pytest.raises(ValueError, match=r": r0 \(-0.1\), r1 \(2\), r2 .*, r3 .*, r4 \(2\)$"):
        option_validation.check_fractions("acc", np.array([-0.1, *[2.0] * 8]), names)
    losses = np.linspace(3, 2, 11)
    spread = np.linspace(0, 0.001, 11)  # the 90% quantile is at 0.0009
    option_validation.check_above_chance("acc", 0.2692 + spread, losses, 0.25)
    with pytest.raises(ValueError, match="acc is at chance: .* below 0.27 where guessing"):
        option_validation.check_above_chance("acc", 0.2690 + spread, losses, 0.25)
    option_validation.check_above_chance("acc", spread, losses, None)
    for flat in ((0.5 + 0 * spread, losses), (0.5 + spread, 0 * losses)):
        with pytest.raises(ValueError, match="the same in every row"):
            option_validation.check_above_chance("acc", *flat, None)


def test_anchor_and_coefficients_have_their_range():
    for anchor in (None, (0, 0), [2.5, 1], np.array([1.0, 0.5])):
        option_validation.check_anchor(anchor)
    for anchor in (5, (1,), (1, 2), (1, -0.1), (1, 0.5, 2), ("a", 1)):
        with pytest.raises(ValueError, match="must be a loss and an accuracy"):
            option_validation.check_anchor(anchor)
    option_validation.check_coefficients({"E": 0, "A": 1e-9, "B": 2, "alpha": 0.3})
    for changes in ({"E": -1}, {"A": 0}, {"beta": 0}, {"alpha": float("nan")}):
        with pytest.raises(ValueError, match="must be a finite number, (positive|at least 0)"):
            option_validation.check_coefficients({"E": 0, "A": 1, "B": 2, "alpha": 0.3} | changes)
