"""Tests of the law of a new corpus."""

import typing

import numpy as np
import pytest

import lm


def reference_loss(n, d):
    return 1.7 + 400 * n**-0.34 + 410 * d**-0.28


def new_loss(n, d):
    """Return a loss that is a shifted power law of the loss on the reference corpus."""
    return 0.5 + 0.7 * reference_loss(n, d) ** 1.06


def make_rows(points, loss, corpus, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"name": f"{corpus}-{n:g}-{d:g}", "N": n, "D": d, "corpus.hash": corpus}
        | {"loss": loss(n, d) * (1 + noise * rng.standard_normal())}
        for n, d in points
    ]


@pytest.fixture(scope="module")
def reference():
    sizes = (1e7, 3e7, 1e8, 3e8, 1e9)
    points = [(n, ratio * n) for n in sizes for ratio in (10, 40)]
    rows = make_rows(points, reference_loss, "a", noise=0.002)
    return lm.laws.chinchilla(rows, n="N", d="D", y="loss", bootstrap=50)


def test_two_runs_predict_ten_times_their_flops(reference):
    """Errors at 10 times the FLOPs are below 1.5% for a noise of 0.1%."""
    points = [(3e7, 6e8), (1e8, 2e9)]
    target = 1e8 * 10**0.5, 2e9 * 10**0.5
    for seed in range(5):
        rows = make_rows(points, new_loss, "b", noise=0.001, seed=seed)
        prediction = lm.laws.new_corpus(rows, reference, y="loss").predict(*target)
        assert prediction.value == pytest.approx(new_loss(*target), rel=0.015)
        assert prediction.lo < new_loss(*target) < prediction.hi


def test_one_run_has_a_wider_interval(reference):
    rows = make_rows([(3e7, 6e8), (1e8, 2e9)], new_loss, "b")
    one, two = (lm.laws.new_corpus(rows[:k], reference, y="loss") for k in (1, 2))
    narrow, wide = two.predict(1e9, 2e10), one.predict(N=1e9, D=2e10)
    assert wide.hi - wide.lo > 1.2 * (narrow.hi - narrow.lo)
    assert "loss on the reference corpus" in str(two)


def test_equal_inputs_use_the_measured_reference_loss(reference):
    row = make_rows([(1e8, 1e9)], new_loss, "b")
    measured = next(r["loss"] for r in reference.data.rows if (r["N"], r["D"]) == (1e8, 1e9))
    assert lm.laws.new_corpus(row, reference, y="loss").law.x_range == (measured, measured)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (make_rows([(1e8, 1e9)], new_loss, "a"), "trained on the corpus of the reference law"),
        (make_rows([(1e11, 1e12)], new_loss, "b"), "loss on the reference corpus is unknown"),
        (
            make_rows([(1e8, 1e9)], new_loss, "b") + make_rows([(3e8, 3e9)], new_loss, "c"),
            "corpus",
        ),
    ],
)
def test_insufficient_runs_are_refused(reference, rows, message):
    with pytest.raises(ValueError, match=message) as error:
        lm.laws.new_corpus(rows, reference, y="loss")
    assert "\n" not in str(error.value)


def test_reference_must_be_a_fit():
    options: dict[str, typing.Any] = {"reference": 3}
    with pytest.raises(ValueError, match="reference=3 must be a fit"):
        lm.laws.new_corpus(make_rows([(1e8, 1e9)], new_loss, "b"), **options)
