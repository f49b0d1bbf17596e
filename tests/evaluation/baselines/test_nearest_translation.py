"""The nearest sentence shares most n-grams."""

import pytest

from lm.evaluation.baselines import nearest_translation


def test_nearest_sentence_shares_most_ngrams(monkeypatch):
    train = ["A dog runs .", "Two dogs run in the park .", "runs dog a .", ""]
    texts = ["two dogs run .", "A DOG RUNS !", "zebra"]
    assert nearest_translation.find_nearest(train, texts) == [1, 0, 0]
    monkeypatch.setattr(nearest_translation, "MAX_SENTENCES", 1)
    assert nearest_translation.find_nearest(train, texts) == [0, 0, 0]
    with pytest.raises(ValueError, match="train_texts is empty"):
        nearest_translation.find_nearest([], texts)
