"""Unigram and bigram models of the training tokens.

    models = ngram_models.fit_models(counts)
    models["bigram"].token_nats(previous, tokens)      # -log p of each token after `previous`

The unigram model is that of Witten and Bell (1991, method C): the T distinct tokens among N tokens
give T / (N + T) of the probability to a uniform distribution. The bigram model has interpolated
Kneser-Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1999, section 3). Its discount is
n1 / (n1 + 2 n2) (Ney et al. 1994), where n1 and n2 are the numbers of bigrams that occur once and
twice. All tokens have a probability above 0.

Tensor names end in their axes: N tokens, V vocabulary, K distinct bigrams.
"""

import functools
from typing import Protocol

import numpy as np

from lm.evaluation.baselines import ngram_counts

DEFAULT_DISCOUNT = 0.75  # of text without a bigram that occurs once


class NgramModel(Protocol):
    """A model that predicts a token from the token before it."""

    def token_nats(self, previous_N: np.ndarray, token_N: np.ndarray) -> np.ndarray:
        """Return -log p of each token after the token before it, float64 [N]."""
        ...

    def best_tokens(self, previous_N: np.ndarray) -> np.ndarray:
        """Return the most likely token after each token, int64 [N]."""
        ...


class Unigram:
    """Witten-Bell unigram model."""

    def __init__(self, counts: ngram_counts.NgramCounts):
        n_types, n_tokens = np.count_nonzero(counts.tokens), counts.n_tokens
        uniform = n_types / len(counts.tokens)
        self.nats_V = -np.log((counts.tokens + uniform) / (n_tokens + n_types))

    def token_nats(self, previous_N: np.ndarray, token_N: np.ndarray) -> np.ndarray:
        """Return -log p of each token, float64 [N]."""
        return self.nats_V[token_N]

    def best_tokens(self, previous_N: np.ndarray) -> np.ndarray:
        """Return the most frequent token, int64 [N]."""
        return np.full(len(previous_N), int(self.nats_V.argmin()))


class Bigram:
    """Bigram model with interpolated Kneser-Ney smoothing."""

    def __init__(self, counts: ngram_counts.NgramCounts):
        n_vocab = len(counts.tokens)
        previous_K, token_K = counts.bigrams // n_vocab, counts.bigrams % n_vocab
        self.counts = counts
        discount = _discount(counts.bigram_counts)
        # The lower order counts distinct tokens before a token, and is interpolated with 1 / V.
        n_before_V = np.bincount(token_K, minlength=n_vocab)
        n_bigrams, lower_discount = max(len(token_K), 1), _discount(n_before_V)
        n_lower_types = np.count_nonzero(n_before_V)
        weight = lower_discount * n_lower_types / n_bigrams if n_lower_types else 1.0
        discounted_V = np.maximum(n_before_V - lower_discount, 0) / n_bigrams
        self.lower_V = discounted_V + weight / n_vocab
        # p(w | v) = max(c(v, w) - d, 0) / c(v) + d T(v) / c(v) p(w)
        total_V = np.bincount(previous_K, counts.bigram_counts, n_vocab)
        n_after_V = np.bincount(previous_K, minlength=n_vocab)
        self.share_K = (counts.bigram_counts - discount) / total_V[previous_K]
        self.weight_V = np.where(total_V > 0, discount * n_after_V / np.maximum(total_V, 1), 1.0)

    def token_nats(self, previous_N: np.ndarray, token_N: np.ndarray) -> np.ndarray:
        """Return -log p of each token after the token before it, float64 [N]."""
        bigrams, n_vocab = self.counts.bigrams, len(self.lower_V)
        probability_N = self.weight_V[previous_N] * self.lower_V[token_N]
        if len(bigrams):
            key_N = np.asarray(previous_N, np.int64) * n_vocab + token_N
            index_N = np.minimum(np.searchsorted(bigrams, key_N), len(bigrams) - 1)
            probability_N = probability_N + np.where(
                bigrams[index_N] == key_N, self.share_K[index_N], 0.0
            )
        return -np.log(probability_N)

    def best_tokens(self, previous_N: np.ndarray) -> np.ndarray:
        """Return the most likely token after each token, int64 [N]."""
        return self._best_V[previous_N]

    @functools.cached_property
    def _best_V(self) -> np.ndarray:
        """The most likely token after each token, int64 [V]."""
        n_vocab = len(self.lower_V)
        previous_K, token_K = self.counts.bigrams // n_vocab, self.counts.bigrams % n_vocab
        # The best token that never follows is the best token of the lower order.
        best_V = np.full(n_vocab, int(self.lower_V.argmax()))
        probability_K = self.share_K + self.weight_V[previous_K] * self.lower_V[token_K]
        order = np.lexsort((probability_K, previous_K))
        is_last = np.append(np.diff(previous_K[order]) > 0, True)[: len(order)]
        last = order[is_last]
        is_better = probability_K[last] >= self.weight_V[previous_K[last]] * self.lower_V.max()
        best_V[previous_K[last][is_better]] = token_K[last][is_better]
        return best_V


def fit_models(counts: ngram_counts.NgramCounts) -> dict[str, NgramModel]:
    """Return {name: model} of the unigram and the bigram model."""
    return {"unigram": Unigram(counts), "bigram": Bigram(counts)}


def _discount(counts: np.ndarray) -> float:
    """Return the absolute discount n1 / (n1 + 2 n2) of counts."""
    n_once, n_twice = int((counts == 1).sum()), int((counts == 2).sum())
    return n_once / (n_once + 2 * n_twice) if n_once and n_twice else DEFAULT_DISCOUNT
