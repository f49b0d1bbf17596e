"""Tests of laws of hyperparameters, on runs with known optima."""

import dataclasses

import numpy as np
import pytest
from fixtures.tuned_runs import CURVATURE, SIZES, TOKENS, TRUE, true_optimum, tuned_rows

import lm


def test_law_recovers_exponents_without_noise():
    law = lm.laws.hyperparameters(tuned_rows(), max_increase=1)
    for name, value in TRUE.items():
        assert law.params[name] == pytest.approx(value, abs=1e-3)
    # The best learning rate at a batch size follows from the interaction of both.
    slope = -CURVATURE[0, 1] / CURVATURE[0, 0]
    assert law.params["lr_B"] == pytest.approx(slope, abs=1e-3)
    of_batch = CURVATURE[1, 1] - CURVATURE[0, 1] ** 2 / CURVATURE[0, 0]
    assert law.curvature == pytest.approx(np.diag([0.02, of_batch, 0.008]), abs=1e-4)
    assert not law.warnings and not law.excluded
    best, (lr, batch, tau) = law.predict(2.5e5, 1.2e7), true_optimum(2.5e5, 1.2e7)
    assert best.lr.value == pytest.approx(lr, rel=1e-2)
    assert best.batch_tokens.value == pytest.approx(batch, rel=1e-2)
    assert best.weight_decay.value == pytest.approx(batch / (lr * tau * 1.2e7), rel=1e-2)
    assert best.factor == pytest.approx(2.5e5 * 1.2e7 / (6e4 * 3e6), rel=1e-6)
    assert best.loss_increase < 1e-5


def test_intervals_contain_the_true_exponents():
    """Check the coverage of ten sweeps with a noise of 0.3%: at least 8 per exponent."""
    n_covered = dict.fromkeys(TRUE, 0)
    for seed in range(10):
        law = lm.laws.hyperparameters(tuned_rows(0.003, seed))
        for name, value in TRUE.items():
            lo, hi = law.interval(name)
            assert lo < law.params[name] < hi
            n_covered[name] += lo <= value <= hi
    assert min(n_covered.values()) >= 8


def test_loss_increase_grows_with_the_distance():
    law = lm.laws.hyperparameters(tuned_rows(0.003))
    near, far = law.predict(2.5e4, 1e6), law.predict(1e7, 1e9)
    assert 0 < near.loss_increase < far.loss_increase < far.loss_increase_hi
    assert near.factor == 1 < far.factor
    assert far.lr.hi / far.lr.lo > near.lr.hi / near.lr.lo > 1


def test_constant_hyperparameters_are_not_fitted():
    grid = [(a, 0, 0) for a in (-2, -1, 0, 1, 2)]
    law = lm.laws.hyperparameters(tuned_rows(0.001, grid=grid))
    assert law.names == ["lr"]
    best = law.predict(1e5, 1e7)
    assert best.batch_tokens is None and best.weight_decay is None
    assert "do not vary batch size and weight decay" in " ".join(law.warnings)


@pytest.mark.slow
def test_optimum_at_the_edge_of_the_grid_is_named():
    """With learning rates below the optimum, the best one is the largest."""
    rows = tuned_rows(grid=[(a, 0, 0) for a in (-4, -3, -2)])
    law = lm.laws.hyperparameters(rows)
    assert len(law.warnings) > len(SIZES) * len(TOKENS) / 2
    assert "N = 1e+04, D = 1e+06: the best learning rate is outside" in " ".join(law.warnings)


def test_constant_value_of_a_cell_is_no_edge():
    """The only batch size of a cell is a quarter of the best one of the law."""
    cell = {"params.non_embedding": SIZES[0], "tokens": TOKENS[0]}
    rows = [
        row
        for row in tuned_rows()
        if any(row[key] != value for key, value in cell.items())
        or row["steps"] == pytest.approx(TOKENS[0] / 512)
    ]
    law = lm.laws.hyperparameters(rows, max_increase=1)
    assert law.names == ["lr", "batch", "tau"] and len(law.cells) == len(SIZES) * len(TOKENS)
    assert "batch size" not in " ".join(law.warnings)


def test_half_width_is_the_one_of_a_jackknife():
    """Four estimates have a variance of 1: sqrt(3) and the t quantile of 3 degrees, 3.182446."""
    law = lm.laws.hyperparameters(tuned_rows(0.001, grid=[(a, 0, 0) for a in (-1, 0, 1)]))
    estimates = np.tile(law.theta, (4, 1))
    estimates[2:, 0] += 2
    exact = 0 * law.covariance
    scattered = dataclasses.replace(law, jackknife=estimates, covariance=exact)
    half_width = scattered._half_width(lambda theta: theta[:2], 0.95)
    assert half_width == pytest.approx([np.sqrt(3) * 3.182446, 0], rel=1e-5)


def test_bad_runs_are_excluded_with_their_names():
    rows = tuned_rows()
    rows[3]["eval.loss"] *= 1.5
    rows[7]["optim.weight_decay"] = 0.0
    rows[9]["status"] = "diverged"
    excluded = dict(lm.laws.hyperparameters(rows).excluded)
    assert "above the best run" in excluded[rows[3]["name"]]
    assert excluded[rows[7]["name"]] == "weight decay is 0"
    assert excluded[rows[9]["name"]] == "status is diverged"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (1e4, 6e4)}, "have 2 sizes: a law of hyperparameters needs 3"),
        ({"tokens": (1e6,)}, "have 1 token budgets"),
        ({"grid": [(0, 0, 0), (1, 0, 0)]}, "at most 2 learning rates"),
    ],
)
def test_too_few_runs_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        lm.laws.hyperparameters(tuned_rows(**changes))


def test_loss_without_minimum_is_refused():
    rows = tuned_rows(grid=[(a, 0, 0) for a in (-1, 0, 1)])
    for row in rows:
        row["eval.loss"] = 3.0 - 0.1 * np.log(row["optim.lr"]) ** 2 / 100
    with pytest.raises(ValueError, match="no minimum within the tested values"):
        lm.laws.hyperparameters(rows)


def test_text_shows_exponents_and_costs():
    text = str(lm.laws.hyperparameters(tuned_rows(0.002)))
    assert "lr* = " in text and "exponent of D/N: 95% [" in text
    assert "twice or half the best learning rate: loss +0.5" in text


@pytest.mark.parametrize("options", [{"n": 0, "d": 1}, {"n": 1, "d": "x"}, {"n": 1, "d": np.inf}])
def test_invalid_sizes_are_refused(options):
    law = lm.laws.hyperparameters(tuned_rows(0.002))
    with pytest.raises(ValueError, match="must be a number above 0"):
        law.predict(**options)
