"""Tests of the checks of option values."""

import numpy as np
import pytest

from lm import laws
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
