"""Tests of the reporting checklist."""

import numpy as np
import pytest

from lm import laws
from lm.laws.reporting import checklist

COLUMNS = {"n": "params.non_embedding", "d": "tokens", "y": "eval.loss"}


def rows(**recorded):
    return [
        {
            "name": f"{n:.3g}x{m}",
            "params.non_embedding": n,
            "tokens": n * m,
            "eval.loss": 1.8 + 300 * n**-0.34 + 700 * (n * m) ** -0.28,
            **recorded,
        }
        for n in np.geomspace(1e7, 1e9, 5)
        for m in (5, 20, 80)
    ]


def answers(fit):
    return {item.question: item for item in fit.checklist().items}


def test_checklist_answers_form_and_fit():
    fit = laws.chinchilla(rows(), **COLUMNS, fixed={"E": 1.8}, bootstrap=50, seed=3)
    items = answers(fit)
    assert items["Which form"].answer == "L(N, D) = E + A N^-alpha + B D^-beta"
    assert items["Which parameters are fitted"].answer == "A, B, alpha, beta"
    assert items["Which parameters are fixed"].answer == "E = 1.8"
    assert "15 runs, N from 1e+07 to 1e+09" in items["How many models, in which range"].answer
    assert "N = parameters without embeddings" in items["How are N, D and C counted"].answer
    assert "huber, delta 0.001" in items["Which objective"].answer
    assert "starting points, of which " in items["How is it initialized"].answer
    assert "seed 3" in items["How are intervals computed"].answer
    assert "back-test" in items["How good is the extrapolation"].answer


def test_checklist_uses_the_columns_of_the_rows():
    fit = laws.chinchilla(rows(**{"data.tokenizer": "bytes"}), **COLUMNS, bootstrap=0)
    assert (
        "data.tokenizer = bytes" in answers(fit)["Which data, tokenizer and context length"].answer
    )
    many = [row | {"optim.lr": 1e-3 * i} for i, row in enumerate(rows())]
    fit = laws.chinchilla(many, **COLUMNS, bootstrap=0)
    text = answers(fit)["Which optimizer, schedule and batch size"].answer
    assert text == "optim.lr from 0 to 0.014"


def test_checklist_counts_unanswered_questions():
    report = laws.chinchilla(rows(), **COLUMNS, bootstrap=0).checklist()
    missing = [item for item in report.items if not item.is_answered]
    assert missing and all(item.answer == checklist.UNKNOWN for item in missing)
    n_all = len(report.items)
    assert str(report).endswith(f"{n_all - len(missing)} of {n_all} questions are answered")
    assert str(report).count("[ ]") == len(missing)


def test_given_laws_have_no_checklist():
    with pytest.raises(ValueError, match="given coefficients has no rows"):
        laws.given("hoffmann2022").checklist()
