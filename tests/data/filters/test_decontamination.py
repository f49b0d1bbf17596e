"""Blocked n-grams are cut out as in GPT-3, and their cost is counted."""

import json

import numpy as np
import pytest
from fixtures.text_corpora import TEXTS, data_config, read_split, word_texts, write_documents

from lm.data import corpus
from lm.data.filters import decontamination, ngrams

N = 13
WORDS = [f"{a}{b}" for a in "bcdfghjklm" for b in ("alpha", "echo", "india", "oscar", "umbra")]
SHARED = " ".join(f"shared{i}" for i in range(N + 3))
CHINESE = "人人生而自由在尊严和权利上一律平等他们赋有理性和良心"


def random_text(n_characters: int, seed: int = 0) -> str:
    """Return text of random words with this number of characters."""
    rng = np.random.default_rng(seed)
    return " ".join(rng.choice(WORDS, n_characters))[:n_characters]


def cut(text: str, blocked_text: str = SHARED) -> decontamination.Cuts | None:
    """Cut the n-grams of `blocked_text` out of a text."""
    blocked = np.unique(ngrams.ngram_hashes(blocked_text, N))
    return decontamination.cut_blocked_ngrams(text, N, blocked)


def test_text_without_a_blocked_ngram_is_not_changed():
    assert cut(random_text(5000)) is None
    assert cut(" ".join(SHARED.split()[: N - 1])) is None
    assert decontamination.cut_blocked_ngrams(SHARED, N, ngrams.EMPTY_INDEX) is None


def test_window_has_200_characters_on_each_side():
    before, after = random_text(1000, 1), random_text(700, 2)
    cuts = cut(f"{before} {SHARED.upper()}, {after}")
    assert cuts is not None and not cuts.is_dropped
    assert before.startswith(cuts.pieces[0]) and after.endswith(cuts.pieces[1])
    assert 799 <= len(cuts.pieces[0]) <= 801 and 500 <= len(cuts.pieces[1]) <= 503
    assert cuts.shared_texts == (" ".join(SHARED.split()[:N]),)


def test_overlapping_windows_are_one_window():
    cuts = cut(f"{random_text(500)} {SHARED} {random_text(300, 1)} {SHARED} {random_text(500, 2)}")
    assert cuts is not None and len(cuts.shared_texts) == 1 and len(cuts.pieces) == 2
    separate = cut(f"{random_text(500)} {SHARED} {random_text(700)} {SHARED} {random_text(500)}")
    assert separate is not None and len(separate.shared_texts) == 2 and len(separate.pieces) == 3


@pytest.mark.parametrize("length, n_pieces", [(395, 0), (405, 1)])
def test_pieces_below_200_characters_are_dropped(length, n_pieces):
    cuts = cut(f"{random_text(length)} {SHARED}")
    assert cuts is not None and len(cuts.pieces) == n_pieces
    assert cuts.is_dropped == (n_pieces == 0)


@pytest.mark.parametrize("n_windows, n_pieces", [(9, 10), (10, 0)])
def test_document_of_more_than_ten_pieces_is_dropped(n_windows, n_pieces):
    cuts = cut(f" {SHARED} ".join(random_text(900, i) for i in range(n_windows + 1)))
    assert cuts is not None and len(cuts.pieces) == n_pieces
    assert cuts.is_dropped == (n_pieces == 0) and len(cuts.shared_texts) == n_windows


def test_conversation_with_a_blocked_ngram_is_dropped():
    cuts = cut(f"\x01{random_text(900)} {SHARED}\x02{random_text(900)}\x03")
    assert cuts is not None and cuts.is_dropped and not cuts.pieces


def test_unspaced_text_is_cut_by_characters():
    other = "".join(chr(0x5000 + i) for i in range(600))
    cuts = cut(f"{other}「{CHINESE}」{other}", CHINESE)
    assert cuts is not None and cuts.pieces == (other[:-199], other[199:])
    assert cuts.n_removed_bytes == 3 * (2 * 199 + 2 + len(CHINESE))


def test_removed_bytes_and_pieces_add_up():
    text = f"{random_text(600)} é {SHARED} ü {random_text(600, 1)}"
    cuts = cut(text)
    assert cuts is not None
    assert cuts.n_removed_bytes + sum(len(p.encode()) for p in cuts.pieces) == len(text.encode())


def test_costs_name_the_shared_text_that_cost_most(monkeypatch):
    monkeypatch.setattr(decontamination, "SHARED_TEXTS_IN_MEMORY", 20)
    costs = decontamination.CutCosts()
    assert costs.summary() == {}
    for i in range(100):
        costs.add(decontamination.Cuts(("text",), 10, (f"rare {i}",), False))
        costs.add(decontamination.Cuts((), 30, ("common", f"other {i}"), True))
        costs = decontamination.CutCosts(json.loads(json.dumps(costs.state)))
    summary = costs.summary()
    assert summary == {
        "documents": 200,
        "windows": 300,
        "bytes": 4000,
        "dropped": 100,
        "shared_text": "common",
        "shared_text_bytes": 1500,
    }
    assert len(costs.state["bytes_by_text"]) <= 21
    line = decontamination.describe_costs(summary)
    assert "changed 200 documents" in line and "dropped 100" in line and '"common"' in line


def test_training_shares_no_ngram_with_heldout_text(tmp_path):
    first = write_documents(tmp_path / "a.jsonl", word_texts())
    manifest = corpus.prepare_corpus(data_config(tmp_path, first))[first]
    leaks = [
        f"{i} quote: {' '.join(text.split()[9:25]).upper()}"
        for i, text in enumerate(read_split(manifest, "heldout"))
    ]
    second = write_documents(tmp_path / "b.jsonl", [*TEXTS, *leaks])
    data = data_config(tmp_path, first, second, decontaminate_ngram=13)
    manifests = corpus.prepare_corpus(data)
    assert manifests[first].dropped == {}
    train, heldout = (set(read_split(manifests[second], split)) for split in corpus.SPLITS)
    assert manifests[second].dropped == {"overlap": len(set(leaks) - heldout)} and len(leaks) > 10
    assert not train & set(leaks) and train | heldout >= set(TEXTS)


LONG_LEAK = "Hamlet: to be or not to be that is the question whether tis nobler i, they say"
SHORT_LEAK = "To be or not to be in the mind"


@pytest.mark.parametrize("n, leaks", [(13, {LONG_LEAK}), (5, {LONG_LEAK, SHORT_LEAK}), (15, set())])
def test_training_shares_no_ngram_with_protected_text(tmp_path, n, leaks):
    task = "to be or not to be that is the question whether tis nobler in the mind"
    texts = [*TEXTS, LONG_LEAK, SHORT_LEAK]
    source = write_documents(tmp_path / "a.jsonl", texts)
    protected = write_documents(tmp_path / "task.jsonl", [task])
    changes = {"decontaminate_ngram": n, "decontaminate_against": protected}
    data = data_config(tmp_path, source, heldout_fraction=0.0, **changes)
    manifest = corpus.prepare_corpus(data)[source]
    assert set(texts) - set(read_split(manifest, "train")) == leaks
    assert manifest.dropped == ({"overlap": len(leaks)} if leaks else {})


def test_files_under_one_license_header_lose_nothing(tmp_path):
    """Half of 400 files begin with the same notice of 60 words."""
    notice = word_texts()[0]
    for i in range(400):
        header = f"{notice}\n\n" if i % 2 else ""
        (tmp_path / f"{i}.txt").write_text(f"{header}file {i} of the license test")
    source = f"text:{tmp_path}"
    expected = corpus.prepare_corpus(data_config(tmp_path, source, heldout_fraction=0.05))[source]
    data = data_config(tmp_path, source, heldout_fraction=0.05, decontaminate_ngram=13)
    manifest = corpus.prepare_corpus(data)[source]
    assert manifest.dropped == {} and manifest.cuts == {}
    assert manifest.hash == expected.hash and sum(manifest.documents.values()) == 400


def test_manifest_has_the_cost_of_decontamination(tmp_path):
    shared = " ".join(word_texts()[0].split()[:20])
    longs = [f"{word_texts()[i]} {shared} {word_texts()[i + 1]}" for i in range(1, 7, 2)]
    source = write_documents(tmp_path / "a.jsonl", [*TEXTS, *longs, f"only {shared}"])
    protected = write_documents(tmp_path / "task.jsonl", [shared])
    changes = {"decontaminate_ngram": 13, "decontaminate_against": protected}
    data = data_config(tmp_path, source, heldout_fraction=0.0, **changes)
    manifest = corpus.prepare_corpus(data)[source]
    assert manifest.dropped == {"overlap": 1}
    assert manifest.documents["train"] == len(TEXTS) + 6 and manifest.groups["train"] == 203
    removed = sum(len(t.encode()) for t in [*TEXTS, *longs, f"only {shared}"])
    removed -= manifest.bytes["train"]
    expected = {"documents": 4, "windows": 4, "bytes": removed, "dropped": 1}
    first_words = " ".join(shared.split()[:13])
    assert manifest.cuts == expected | {"shared_text": first_words, "shared_text_bytes": removed}
    assert "dropped 1 documents" in corpus.corpus_notes({source: manifest})[0]
