"""Tests of the law between two losses."""

import pathlib

import numpy as np
import pytest

import lm

LADDER = pathlib.Path(__file__).parents[3] / "notebooks/data/real_ladder"


def make_rows(losses, noise=0.0, seed=0):
    """Return runs with a second loss, 0.5 + 0.9 x^1.05 with relative noise."""
    rng = np.random.default_rng(seed)
    return [
        {"name": f"run{i}", "eval.loss": x, "books": y * (1 + noise * rng.standard_normal())}
        for i, (x, y) in enumerate((x, 0.5 + 0.9 * x**1.05) for x in losses)
    ]


def test_law_extrapolates_to_lower_losses():
    fit = lm.laws.loss_to_loss(make_rows(np.linspace(3.2, 4.2, 8)), "books")
    prediction = fit.predict(2.6)
    assert prediction.value == pytest.approx(0.5 + 0.9 * 2.6**1.05, rel=3e-3)
    assert prediction.lo < 0.5 + 0.9 * 2.6**1.05 < prediction.hi
    assert prediction.factor == pytest.approx(3.2 / 2.6)


def test_interval_covers_new_runs():
    """Predict a run below the fitted ones, with a noise of 0.3%: 95% of 100 within their range."""
    n_covered = 0
    for seed in range(100):
        rows = make_rows([*np.linspace(3.2, 4.2, 10), 2.9], noise=0.003, seed=seed)
        prediction = lm.laws.loss_to_loss(rows[:-1], "books").predict(2.9)
        n_covered += prediction.lo <= rows[-1]["books"] <= prediction.hi
    assert 90 <= n_covered <= 100


def test_one_run_predicts_with_a_wide_interval():
    rows = make_rows([3.5, 3.3, 2.8])
    one, two = (lm.laws.loss_to_loss(rows[:n], "books").predict(2.8) for n in (1, 2))
    assert one.lo < rows[2]["books"] < one.hi
    assert one.hi - one.lo > 1.5 * (two.hi - two.lo)
    assert one.value == pytest.approx(rows[2]["books"], rel=0.03)


def test_noise_is_estimated_from_more_than_three_runs():
    """A curve of three parameters leaves no residuals of three runs."""
    few, many = (
        lm.laws.loss_to_loss(make_rows(np.linspace(3.2, 4.2, n), noise=0.1), "books")
        for n in (3, 40)
    )
    assert (few.noise, few.degrees) == (0.003, 3.0)
    assert many.degrees == 3 + 37 and many.noise == pytest.approx(0.1, rel=0.3)


def test_error_of_the_total_widens_the_interval():
    fit = lm.laws.loss_to_loss(make_rows(np.linspace(3.2, 4.2, 8), noise=0.002), "books")
    exact, uncertain = fit.predict(3.0), fit.predict(3.0, x_sd=0.1)
    assert exact.value == uncertain.value
    assert uncertain.hi - uncertain.lo > 3 * (exact.hi - exact.lo)


def test_sources_of_large_models_are_predicted_from_small_ones():
    """Predict six sources of 600K to 4M parameters from up to 250K: mean error below 0.35%."""
    rows = [row for row in lm.load_runs(LADDER) if row["optim.schedule"] == "wsd"]
    small = [row for row in rows if row["params.non_embedding"] < 3e5]
    large = [row for row in rows if row["params.non_embedding"] > 5e5]
    errors = []
    for column in [name for name in rows[0] if name.startswith("eval.loss.jsonl")]:
        fit = lm.laws.loss_to_loss(small, column)
        errors += [abs(fit.predict(row["eval.loss"]).value / row[column] - 1) for row in large]
    assert len(errors) == 36
    assert np.mean(errors) < 0.0035 and np.max(errors) < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": "eval.loss"}, "name two different losses"),
        ({"y": "code"}, "no row has a column 'code'"),
        ({"x": 3}, "x=3"),
    ],
)
def test_invalid_columns_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        lm.laws.loss_to_loss(make_rows([3.0, 4.0]), **({"y": "books"} | change))


@pytest.mark.parametrize("arguments", [{"x": 0}, {"x": "3"}, {"x": 3, "x_sd": -1}])
def test_invalid_losses_are_refused(arguments):
    fit = lm.laws.loss_to_loss(make_rows([3.0, 4.0]), "books")
    with pytest.raises(ValueError, match="must be a number"):
        fit.predict(**arguments)
