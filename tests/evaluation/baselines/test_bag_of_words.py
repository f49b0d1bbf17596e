"""Naive Bayes on texts with known word probabilities."""

import pytest

from lm.evaluation.baselines import bag_of_words

TRAIN = ["good good fine", "bad", "bad awful", "Good"]
LABELS = ["pos", "neg", "neg", "pos"]


def test_words_decide_the_label():
    texts = ["GOOD film", "an awful film", "bad good good", "bad bad good"]
    assert bag_of_words.classify(TRAIN, LABELS, texts) == ["pos", "neg", "pos", "neg"]


def test_texts_of_unknown_words_have_the_most_frequent_label():
    assert bag_of_words.classify([*TRAIN, "film"], [*LABELS, "pos"], ["xyz", ""]) == ["pos"] * 2
    with pytest.raises(ValueError, match="needs training texts"):
        bag_of_words.classify([], [], ["a"])
