"""Classification of texts by their words: multinomial naive Bayes.

    labels = bag_of_words.classify(train_texts, train_labels, texts)

The model is that of McCallum and Nigam (1998) with add-one smoothing, over lower-case words and
numbers. Words that are in no training text have no effect.
"""

import collections
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

_WORD = re.compile(r"\w+|[^\w\s]")


def classify(
    train_texts: Sequence[str], train_labels: Sequence[str], texts: Sequence[str]
) -> list[str]:
    """Return the most likely label of each text.

    If labels are equally likely, the result is the first in alphabetical order.
    Raises ValueError without training texts.
    """
    if not train_texts:
        raise ValueError("train_texts is empty: a classifier needs training texts")
    labels = sorted(set(train_labels))
    vocabulary: dict[str, int] = {}
    for text in train_texts:
        for word in _words(text):
            vocabulary.setdefault(word, len(vocabulary))
    counts = _count_words(train_texts, vocabulary)
    label_index = np.array([labels.index(label) for label in train_labels])
    word_counts = np.array(
        [np.asarray(counts[label_index == i].sum(axis=0)).ravel() for i in range(len(labels))]
    )
    word_counts += 1.0
    log_p_word = np.log(word_counts / word_counts.sum(axis=1, keepdims=True))
    log_prior = np.log(np.bincount(label_index, minlength=len(labels)) / len(label_index))
    scores = _count_words(texts, vocabulary) @ log_p_word.T + log_prior
    return [labels[i] for i in np.asarray(scores).argmax(axis=1)]


def _words(text: str) -> list[str]:
    """Return the words, numbers and punctuation marks of a text in lower case."""
    return _WORD.findall(text.lower())


def _count_words(texts: Sequence[str], vocabulary: dict[str, int]) -> "sparse.csr_array":
    """Return the number of occurrences of each word in each text, [texts, words]."""
    from scipy import sparse  # its import is slow, and training does not need it

    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        words = collections.Counter(vocabulary[w] for w in _words(text) if w in vocabulary)
        rows += [row] * len(words)
        columns += list(words)
        values += list(words.values())
    shape = (len(texts), max(len(vocabulary), 1))
    return sparse.csr_array((np.array(values, float), (rows, columns)), shape=shape)
