"""IBM model 1 learns words from pairs of sentences."""

import pytest

from lm.evaluation.baselines import word_translation

SOURCES = ["The dog runs .", "The cat runs .", "A dog sleeps .", "the cat sleeps", "See the dog ."]
TARGETS = ["Der Hund rennt .", "Der Kater rennt .", "Ein Hund schläft .", "der Kater schläft"]
TARGETS.append("Sieh der Hund .")


def test_words_are_translated_from_their_contexts():
    table = word_translation.fit_table(SOURCES, TARGETS)
    assert table["dog"] == "Hund" and table["cat"] == "Kater" and table["runs"] == "rennt"
    assert table["the"] == "der"  # truecased: "Der" occurs at the beginning of sentences only
    texts = word_translation.translate_words(table, ["The zebra ( dog ) sleeps !", ""])
    assert texts == ["Der zebra (Hund) schläft!", ""]


def test_links_are_bounded_and_missing_pairs_are_rejected(monkeypatch):
    monkeypatch.setattr(word_translation, "MAX_LINKS", 20)
    table = word_translation.fit_table(SOURCES, TARGETS)
    assert "dog" in table and "cat" not in table
    assert word_translation.fit_table(["a"], [""]) == {}
    for sources, targets in (([], []), (["a"], [])):
        with pytest.raises(ValueError, match="give pairs"):
            word_translation.fit_table(sources, targets)
