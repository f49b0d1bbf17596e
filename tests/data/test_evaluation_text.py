"""Text for the evaluation of a finished run."""

import json
import pathlib
import types

import numpy as np
import pytest

from lm.config import schema
from lm.data import dataset, evaluation_text, tokenizers
from lm.data.prepared import recorded_text
from lm.data.tokenization import bpe_training
from lm.runs import json_files, records

WORDS = ("red", "green", "blue", "cyan", "pink", "gray", "gold", "teal")


@pytest.fixture
def other_text(tmp_path) -> pathlib.Path:
    """Write a folder of 12 documents that differ from the text of the run."""
    folder = tmp_path / "other"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        (folder / f"{number}.txt").write_text(" ".join(rng.choice(WORDS, 60)) + "\n")
    return folder


@pytest.fixture
def run(tiny) -> schema.Run:
    """Return a run with a directory, as after its training."""
    records.start_run(tiny, {})
    return tiny


def use_bpe(run: schema.Run) -> tokenizers.Tokenizer:
    """Train the BPE tokenizer of a run, save it in the run directory and return it."""
    run.data.tokenizer, run.model.vocab_size = "bpe:300", 300
    tokenizer = dataset.open_dataset(run.data, run.seed).tokenizer
    tokenizer.save(records.run_dir(run))
    return tokenizer


def test_other_text_is_evaluated_completely(run, other_text):
    source = f"text:{other_text}"
    text, parts = evaluation_text.open_evaluation_text(run, {source: 1.0})
    assert parts == {source: "all documents"}
    assert text.manifests[source].documents == {"train": 0, "heldout": 12}
    n_bytes = sum(file.stat().st_size for file in other_text.iterdir())
    assert len(text.heldout(source, 10**6)) >= n_bytes // 32 - 1
    assert text.shares == {source: 1.0}


def test_own_source_is_evaluated_on_its_heldout_part(run, other_text):
    (own,) = run.data.sources
    expected = dataset.open_dataset(run.data, run.seed)
    for sources in (None, {own: 2.0, f"text:{other_text}": 1.0}):
        text, parts = evaluation_text.open_evaluation_text(run, sources)
        assert parts[own] == "the held-out part"
        assert text.manifests[own] == expected.manifests[own]
        np.testing.assert_array_equal(text.heldout(own, 9), expected.heldout(own, 9))


def test_file_of_a_training_source_is_split_too(run, text_file):
    run.data.heldout_fraction = 0.7  # the file contains held-out documents
    source = f"jsonl:{text_file}/x.jsonl"
    (text_file / "x.jsonl").write_text("")
    try:
        run.data.sources = {f"jsonl:{text_file}/*.jsonl": 1.0}
        lines = [json.dumps({"text": f"{n} {n} some words of document {n}"}) for n in range(99)]
        (text_file / "x.jsonl").write_text("\n".join(lines))
        text, parts = evaluation_text.open_evaluation_text(run, {source: 1.0})
        assert parts == {source: "the held-out part"}
        assert 40 < text.manifests[source].documents["heldout"] < 99
    finally:
        (text_file / "x.jsonl").unlink()


def test_builtin_docs_share_files_with_code(run):
    run.data.sources = {"code": 1.0}
    own, shared, other = evaluation_text._group_sources(run.data, {"docs": 1.0, "code": 1.0})
    assert (own, shared, other) == (["code"], ["docs"], [])


def test_bpe_run_uses_its_own_tokenizer(run, other_text, monkeypatch):
    tokenizer = use_bpe(run)
    monkeypatch.setattr(bpe_training, "train_bpe", lambda *_: pytest.fail("trained anew"))
    (own,) = run.data.sources
    for source in (f"text:{other_text}", own):
        text, _ = evaluation_text.open_evaluation_text(run, {source: 1.0})
        assert text.tokenizer.hash == tokenizer.hash == text.manifests[source].tokenizer


def test_missing_tokenizer_file_is_refused(run):
    use_bpe(run)
    (records.run_dir(run) / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer.json, .* data.tokenizer='bpe:300': copy"):
        evaluation_text.load_run_tokenizer(run)


def edit_own_text(run: schema.Run, folder: pathlib.Path) -> str:
    """Train a run on text in `folder`, then change a word. Return the source."""
    source = f"text:{folder}"
    run.data.sources = {source: 1.0}
    facts = recorded_text.text_facts(dataset.open_dataset(run.data, run.seed))
    records.start_run(run, facts)
    evaluation_text.open_evaluation_text(run)
    path = folder / "3.txt"
    path.write_text(path.read_text().replace("red", "rod"))
    return source


@pytest.mark.parametrize("is_old", [False, True])
def test_changed_text_is_not_evaluated_silently(tiny, other_text, is_old, capsys):
    """Version 0.2.0 recorded one hash of all sources."""
    tiny.data.heldout_fraction = 0.5
    source = edit_own_text(tiny, other_text)
    folder = records.run_dir(tiny)
    if is_old:
        facts = records.read_facts(folder)
        old = {k: v for k, v in facts.items() if "corpus.hash." not in k}
        json_files.write_record(folder / "facts.json", old)
    tiny.data.seq_len = 16  # the context of an evaluation may differ
    with pytest.raises(ValueError, match=f"{source} has changed since .* --sources='") as error:
        evaluation_text.open_evaluation_text(tiny)
    assert "\n" not in str(error.value)
    capsys.readouterr()
    text, _ = evaluation_text.open_evaluation_text(tiny, {source: 1.0})
    assert len(text.heldout(source, 9)) and "has changed since" in capsys.readouterr().err


def test_sentencepiece_run_uses_its_own_model(run, other_text, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(file.read_text() for file in sorted(other_text.iterdir())))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "spm"), vocab_size=26, minloglevel=2
    )
    run.data.tokenizer = f"spm:{tmp_path / 'spm.model'}"
    tokenizers.open_tokenizer(run.data.tokenizer).save(records.run_dir(run))
    (tmp_path / "spm.model").unlink()  # the run directory has its own copy
    run.data.seq_len = 8
    text, _ = evaluation_text.open_evaluation_text(run, {f"text:{other_text}": 1.0})
    assert isinstance(text.tokenizer, tokenizers.SentencePieceTokenizer)


def test_filters_of_the_training_text_are_not_applied(run, other_text):
    run.data.min_words, run.data.unique_tokens = 1000, 10**7
    source = f"text:{other_text}"
    text, _ = evaluation_text.open_evaluation_text(run, {source: 1.0})
    assert text.manifests[source].documents["heldout"] == 12


def test_run_without_heldout_text_needs_other_text(run, other_text):
    run.data.heldout_fraction = 0.0
    with pytest.raises(ValueError, match="data.heldout_fraction=0: .* evaluate other text"):
        evaluation_text.open_evaluation_text(run)
    text, _ = evaluation_text.open_evaluation_text(run, {f"text:{other_text}": 1.0})
    assert text.sources == [f"text:{other_text}"]


def test_text_shorter_than_a_row_is_refused(run, tmp_path):
    (tmp_path / "short.txt").write_text("Hello.\n")
    with pytest.raises(ValueError, match="short.txt: all documents give no row of data.seq_len=32"):
        evaluation_text.open_evaluation_text(run, {f"text:{tmp_path / 'short.txt'}": 1.0})


def test_byte_lengths_add_up_to_the_bytes_of_the_original_text():
    """A tokenizer that changes text has other bytes than the heldout documents."""
    tokenizer = types.SimpleNamespace(byte_lengths=lambda: np.array([0, 1, 3]))
    for counted, scale in (({"heldout": 120}, 90 / 120), ({}, 1.0)):
        manifest = types.SimpleNamespace(bytes={"heldout": 90}, counted=counted)
        text = types.SimpleNamespace(manifests={"a": manifest}, tokenizer=tokenizer)
        assert dataset.byte_lengths(text, "a").tolist() == [0, scale, 3 * scale]
