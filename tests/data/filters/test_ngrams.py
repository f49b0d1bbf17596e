"""Words of texts in several scripts, and hashes of their n-grams."""

import zlib

import numpy as np
import pytest

from lm.data.filters import ngrams

VOCABULARY = [f"w{i}" for i in range(5000)]
UNSPACED = {
    "Chinese": "人人生而自由在尊严和权利上一律平等",
    "Japanese": "すべての人間は生まれながらにして自由でありコーヒー",
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน",
    "Lao": "ມະນຸດເກີດມາມີສິດເສລີພາບ",
    "Khmer": "មនុស្សទាំងអស់កើតមកមានសេរីភាព",
    "Myanmar": "လူတိုင်းသည်တူညီလွတ်လပ်သော",
    "rare Han": "𠀀𠀁𪜀",
}


def random_text(rng: np.random.Generator, n: int) -> str:
    """Return n words of the vocabulary."""
    return " ".join(rng.choice(VOCABULARY, n))


@pytest.mark.parametrize("text", UNSPACED.values(), ids=UNSPACED)
def test_each_character_of_unspaced_scripts_is_one_word(text):
    assert ngrams.split_words(text) == list(text)
    assert ngrams.count_words(text, 99) == len(text)
    assert len(ngrams.ngram_hashes(text, 3)) == len(text) - 2
    spans = ngrams.word_spans(text)
    assert spans.tolist() == [[i, i + 1] for i in range(len(text))]


@pytest.mark.parametrize(
    "text, words, n_words",
    [
        ("It's two-fold -- really", ["It", "s", "two", "fold", "really"], 4),
        ("日本語のtext2つ。次", [*"日本語の", "text2", "つ", "次"], 7),
        ("안녕하세요 세계", ["안녕하세요", "세계"], 2),
        ("“你好”，世界！ ok", [*"你好世界", "ok"], 5),
        ("Ünïcode Straße", ["Ünïcode", "Straße"], 2),
        ("ราคา ฿๕๐", [*"ราคา๕๐"], 6),
        (" \n", [], 0),
    ],
)
def test_words_of_mixed_text(text, words, n_words):
    assert ngrams.split_words(text) == words
    assert ngrams.count_words(text, 99) == n_words
    assert [text[i:j] for i, j in ngrams.word_spans(text)] == words


def test_word_count_may_stop_at_its_limit():
    assert ngrams.count_words("a b c d", 2) >= 2
    assert ngrams.count_words("水 " * 99, 2) >= 2


def test_ngram_hashes_depend_on_words_and_their_order_only():
    hashes = ngrams.ngram_hashes("One two, three (four) FIVE six", 5)
    assert len(hashes) == 2
    same_words = ngrams.ngram_hashes("one two three four... five six!", 5)
    np.testing.assert_array_equal(same_words, hashes)
    assert ngrams.ngram_hashes("two one three four five", 5)[0] not in hashes
    assert len(ngrams.ngram_hashes("too short", 5)) == 0
    assert len(ngrams.ngram_hashes("too short", 10**9)) == 0


def test_different_ngrams_have_different_hashes():
    hashes = ngrams.ngram_hashes(random_text(np.random.default_rng(0), 100_000), 3)
    assert len(np.unique(hashes)) > 0.9999 * len(hashes)


@pytest.mark.parametrize("n_in_memory", [1 << 22, 1000])
def test_ngram_index_is_sorted_and_distinct(tmp_path, monkeypatch, n_in_memory):
    rng = np.random.default_rng(0)
    arrays = [ngrams.ngram_hashes(random_text(rng, n), 2) for n in (3000, 1, 500, 3000)]
    arrays.append(arrays[0])
    monkeypatch.setattr(ngrams, "HASHES_IN_MEMORY", n_in_memory)
    ngrams.write_ngram_index(tmp_path / "index.u64", iter(arrays))
    index = ngrams.open_ngram_index(tmp_path / "index.u64")
    np.testing.assert_array_equal(index, np.unique(np.concatenate(arrays)))
    assert [path.name for path in tmp_path.iterdir()] == ["index.u64"]


def test_index_without_ngrams_is_empty(tmp_path):
    ngrams.write_ngram_index(tmp_path / "index.u64", iter([]))
    index = ngrams.open_ngram_index(tmp_path / "index.u64")
    assert len(index) == 0 and len(ngrams.open_ngram_index(None)) == 0
    assert ngrams.positions_in_index(np.array([3], np.uint64), index).tolist() == [-1]


def test_positions_of_hashes_in_an_index():
    index = np.array([3, 5, 9], np.uint64)
    hashes = np.array([9, 4, 3, 10, 0], np.uint64)
    assert ngrams.positions_in_index(hashes, index).tolist() == [2, -1, 0, -1, -1]


def test_hash_of_an_ngram_is_that_of_its_words():
    """Prepared text contains these hashes, so their formula does not change."""
    text, modulus = "The quick brown fox - jumps over the lazy dog", 2**64
    words = [zlib.crc32(word.encode()) for word in text.lower().replace("-", "").split()]
    for n in (1, 3, 9):
        expected = []
        for first in range(len(words) - n + 1):
            value = 0
            for word in words[first : first + n]:
                value = (value * 0x9E3779B97F4A7C15 + word) % modulus
            expected.append((value ^ value >> 32) * 0xD6E8FEB86659FD93 % modulus)
        assert ngrams.ngram_hashes(text, n).tolist() == expected


def test_index_has_all_hashes_of_each_bucket(tmp_path, monkeypatch):
    """A bucket has one value of the first byte; each write has at least a number of hashes."""
    monkeypatch.setattr(ngrams, "HASHES_IN_MEMORY", 3)
    values = [byte << 56 | low for byte in (255, 0, 254, 7) for low in (9, 1)]
    arrays = [np.array(values[i : i + 2] * 2, np.uint64) for i in range(0, 8, 2)]
    ngrams.write_ngram_index(tmp_path / "index", [*arrays, *arrays])
    assert np.fromfile(tmp_path / "index", np.uint64).tolist() == sorted(values)
