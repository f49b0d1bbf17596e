"""Quality filters, MinHash bands of near-duplicates, and encoding of documents."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm.config import schema
from lm.data import preprocessing, splits, tokenizers
from lm.data.filters import ngrams
from lm.data.sources import readers

VOCABULARY = [f"w{i}" for i in range(5000)]


def random_words(rng: np.random.Generator, n: int) -> list[str]:
    """Return n words of the vocabulary."""
    return list(rng.choice(VOCABULARY, n))


@pytest.mark.parametrize(
    "changes, bad_text, good_text",
    [
        ({"min_words": 3}, "two words", "now three words"),
        ({"min_words": 5}, "日本 go。", "日本語 go ok"),
        ({"min_letters": 0.5}, "1 2 3 ab", "1 2 3 abc"),
        ({"max_repeats": 0.3}, "a\n\na\nb\n a", "a\nb\nc\na"),
    ],
    ids=["short", "unspaced short", "symbols", "repeats"],
)
def test_filter_rejects_by_name_and_only_if_enabled(changes, bad_text, good_text, request):
    data = schema.Data(**changes)
    reason = request.node.callspec.id.split()[-1]
    assert preprocessing.rejection_reason(bad_text, data) == reason
    assert preprocessing.rejection_reason(good_text, data) == ""
    assert preprocessing.rejection_reason(bad_text, schema.Data()) == ""


def similar_words(rng: np.random.Generator, words: list[str], jaccard: float) -> list[str]:
    """Return a copy with changed words, whose shingles have this Jaccard similarity on average."""
    common_fraction = 2 * jaccard / (1 + jaccard)  # of the shingles of one text
    changed = rng.random(len(words)) > common_fraction ** (1 / preprocessing.SHINGLE_WORDS)
    return [
        f"new{rng.integers(10**9)}" if is_changed else word
        for word, is_changed in zip(words, changed, strict=True)
    ]


@pytest.mark.parametrize("jaccard, expected", [(0.9, 0.99), (0.8, 0.93), (0.5, 0.08), (0.2, 0.0)])
def test_near_duplicates_share_a_band_as_often_as_documented(jaccard, expected):
    rng = np.random.default_rng(0)
    n_hits = 0
    for _ in range(300):
        words = random_words(rng, 1000)
        other_words = similar_words(rng, words, jaccard)
        bands = preprocessing.minhash_bands(" ".join(words))
        n_hits += bool(set(bands) & set(preprocessing.minhash_bands(" ".join(other_words))))
    assert n_hits / 300 == pytest.approx(expected, abs=0.07)


def test_short_texts_share_a_band_only_if_words_are_equal():
    bands = preprocessing.minhash_bands("two words")
    assert bands == preprocessing.minhash_bands("Two words!")
    assert not set(bands) & set(preprocessing.minhash_bands("two birds"))
    letter_bands = preprocessing.minhash_bands("a b c d e")
    assert not set(letter_bands) & set(preprocessing.minhash_bands("..."))


def test_bands_do_not_depend_on_the_chunk_size(monkeypatch):
    text = " ".join(random_words(np.random.default_rng(0), 3000))
    bands = preprocessing.minhash_bands(text)
    monkeypatch.setattr(preprocessing, "SHINGLES_PER_CHUNK", 100)
    assert preprocessing.minhash_bands(text) == bands


def test_hashes_are_the_same_in_every_process():
    code = (
        "from lm.data import preprocessing\n"
        "from lm.data.filters import ngrams\n"
        "print(preprocessing.minhash_bands('one two three four five six'))\n"
        "print(ngrams.ngram_hashes('one two three', 2).tolist())"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    bands = preprocessing.minhash_bands("one two three four five six")
    hashes = ngrams.ngram_hashes("one two three", 2).tolist()
    assert process.stdout == f"{bands}\n{hashes}\n"


CHINESE = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少"  # Meng Haoran, 20 characters


def test_near_duplicates_are_detected_in_unspaced_text():
    line = "我们在北京的一所大学里学习自然语言处理和机器学习的基本方法与应用"
    text = "。".join(f"{line}{character}" for character in CHINESE)
    bands = set(preprocessing.minhash_bands(text))
    assert bands & set(preprocessing.minhash_bands(text + "。完"))
    assert not bands & set(preprocessing.minhash_bands(CHINESE))


def test_cut_document_gives_one_result_per_piece(tmp_path):
    rng = np.random.default_rng(0)
    before, shared, after = (" ".join(random_words(rng, n)) for n in (200, 20, 150))
    index = tmp_path / "index.u64"
    ngrams.write_ngram_index(index, [ngrams.ngram_hashes(shared, 13)])
    data = schema.Data(decontaminate_ngram=13)
    document = readers.Document(f"{before} {shared} {after}", "a")
    tokenizer = tokenizers.ByteTokenizer()
    first, second = preprocessing.encode_documents(
        iter([document]), tokenizer, data, splits.Split(0.0), index
    )
    texts = [tokenizer.decode(np.frombuffer(r.ids, np.uint8)[:-1]) for r in (first, second)]
    assert before.startswith(texts[0]) and after.endswith(texts[1]) and all(texts)
    assert [first.n_bytes, second.n_bytes] == [len(text) for text in texts]
    assert first.group == second.group and first.digest != second.digest
    assert first.cuts and first.cuts.n_removed_bytes == len(document.text) - sum(map(len, texts))
    assert second.cuts is None and not first.rejection
    (heldout,) = preprocessing.encode_documents(
        iter([document]), tokenizer, data, splits.Split(1.0), index
    )
    assert heldout.cuts is None and heldout.n_bytes == len(document.text)
