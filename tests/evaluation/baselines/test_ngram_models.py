"""Unigram and bigram models against formulas, and the sums of their probabilities."""

import numpy as np
import pytest

from lm.evaluation.baselines import ngram_counts, ngram_models

TEXT = np.array([0, 1, 2, 1, 2, 1, 3, 0, 1, 2, 4, 0])
V = 7  # tokens 5 and 6 do not occur


def counts_of(ids, n_vocab=V) -> ngram_counts.NgramCounts:
    bigrams, counts = np.unique(ids[:-1] * n_vocab + ids[1:], return_counts=True)
    return ngram_counts.NgramCounts(np.bincount(ids, minlength=n_vocab), bigrams, counts)


def test_probabilities_of_all_tokens_sum_to_one():
    random = np.random.default_rng(0).integers(0, 30, 2000)
    for counts in (counts_of(TEXT), counts_of(random, 40), counts_of(np.zeros(1, int))):
        n_vocab = len(counts.tokens)
        for model in ngram_models.fit_models(counts).values():
            for previous in range(n_vocab):
                nats_N = model.token_nats(np.full(n_vocab, previous), np.arange(n_vocab))
                assert np.exp(-nats_N).sum() == pytest.approx(1) and np.isfinite(nats_N).all()
                (best,) = model.best_tokens(np.array([previous]))
                assert nats_N[best] == pytest.approx(nats_N.min())


def test_unigram_has_witten_bell_smoothing():
    unigram = ngram_models.Unigram(counts_of(TEXT))
    probability_V = np.exp(-unigram.token_nats(np.zeros(V, int), np.arange(V)))
    expected = [(count + 5 / V) / (12 + 5) for count in (3, 4, 3, 1, 1, 0, 0)]
    assert probability_V == pytest.approx(expected)


def test_bigram_has_kneser_ney_smoothing():
    """The bigram 1 2 occurs 3 times among 4 bigrams of 1, and 1 3 once."""
    bigram = ngram_models.Bigram(counts_of(TEXT))
    # Counts of 01 12 21 13 30 24 40: 2 3 2 1 1 1 1, so d = 4 / (4 + 4).
    # Distinct tokens before 0 1 2 3 4: 2 2 1 1 1, so the lower discount is 3 / (3 + 4).
    lower, d = 3 / 7, 0.5
    p_2 = (1 - lower) / 7 + lower * 5 / 7 / V
    p_5 = lower * 5 / 7 / V
    expected = [(3 - d) / 4 + d * 2 / 4 * p_2, d * 2 / 4 * p_5, p_2]
    nats_N = bigram.token_nats(np.array([1, 1, 6]), np.array([2, 5, 2]))
    assert np.exp(-nats_N) == pytest.approx(expected)
