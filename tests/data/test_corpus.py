"""Prepared sources are complete, equal on every machine, and counted in their manifest."""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest
from fixtures.text_corpora import (
    TEXTS,
    WORDS,
    assert_equal_corpora,
    assert_rejected,
    data_config,
    read_ids,
    read_split,
    word_texts,
    write_documents,
)
from tokenizers import Tokenizer, models, normalizers

from lm.data import corpus, preprocessing, staging, tokenizers
from lm.data.sources import documents
from lm.data.tokenization import bpe_training

CORPORA = Path(__file__).parents[3] / "shared" / "corpora"


def test_every_document_is_in_one_split_once_and_in_order(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", TEXTS + TEXTS[:7])
    manifest = corpus.prepare_corpus(data_config(tmp_path, source))[source]
    train, heldout = (read_split(manifest, split) for split in corpus.SPLITS)
    assert not set(train) & set(heldout)
    assert [text for text in TEXTS if text in set(train)] == train
    assert [text for text in TEXTS if text in set(heldout)] == heldout
    assert len(train) + len(heldout) == len(TEXTS)
    assert 20 <= len(heldout) <= 60


def test_manifest_counts_documents_tokens_and_bytes(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", [*TEXTS, TEXTS[3], "", "  "])
    manifest = corpus.prepare_corpus(data_config(tmp_path, source))[source]
    assert manifest.duplicates == 1
    for split in corpus.SPLITS:
        texts, ids = read_split(manifest, split), read_ids(manifest, split)
        assert manifest.documents[split] == len(texts)
        assert manifest.tokens[split] == len(ids)
        assert manifest.bytes[split] == sum(len(text.encode()) for text in texts)
        assert manifest.bytes[split] == tokenizers.ByteTokenizer().byte_lengths()[ids].sum()


def test_text_has_the_same_split_in_every_source(tmp_path):
    first = write_documents(tmp_path / "a.jsonl", TEXTS)
    second = write_documents(tmp_path / "b.jsonl", TEXTS[::-2])
    manifests = corpus.prepare_corpus(data_config(tmp_path, first, second))
    splits = [
        {split: set(read_split(manifests[source], split)) for split in corpus.SPLITS}
        for source in (first, second)
    ]
    assert not splits[0]["train"] & splits[1]["heldout"]
    assert not splits[1]["train"] & splits[0]["heldout"]


def test_larger_heldout_fraction_holds_out_a_superset(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    small, large = (
        corpus.prepare_corpus(data_config(tmp_path, source, heldout_fraction=fraction))[source]
        for fraction in (0.1, 0.3)
    )
    assert set(read_split(small, "heldout")) < set(read_split(large, "heldout"))


def test_documents_of_one_home_are_held_out_together(tmp_path, monkeypatch):
    all_documents = [
        documents.Document(text, text, home=str(i % 20)) for i, text in enumerate(TEXTS)
    ]
    monkeypatch.setitem(documents.READERS, "code", lambda _: [lambda _: all_documents])
    manifest = corpus.prepare_corpus(data_config(tmp_path, "code"))["code"]
    heldout = set(read_split(manifest, "heldout"))
    assert heldout
    for home in range(20):
        assert len({text in heldout for text in TEXTS[home::20]}) == 1


def test_hash_depends_on_the_documents_and_their_order_only(tmp_path):
    def corpus_hash(name, texts):
        source = write_documents(tmp_path / name, texts)
        return corpus.prepare_corpus(data_config(tmp_path, source))[source].hash

    first = corpus_hash("a.jsonl", TEXTS)
    assert corpus_hash("b.jsonl", TEXTS) == first
    assert corpus_hash("c.jsonl", TEXTS + TEXTS[:1]) == first
    assert corpus_hash("d.jsonl", [*TEXTS[:-1], TEXTS[-1] + "."]) != first
    assert corpus_hash("e.jsonl", TEXTS[::-1]) != first


def test_folder_of_a_source_has_the_name_of_its_file_and_not_of_its_instruction(tmp_path):
    (tmp_path / "sst2").mkdir()
    file = tmp_path / "sst2" / "train.jsonl"
    lines = [json.dumps({"prompt": text, "target": "yes"}) for text in TEXTS]
    file.write_text("\n".join(lines))
    for line in ("Is+it+good", "Is+it+bad"):
        corpus.prepare_corpus(data_config(tmp_path, f"chat:{file}?instruction={line}"))
    folders = [path for path in tmp_path.glob("**/*sst2-train-jsonl-*") if path.is_dir()]
    assert len(folders) == 2 and not any("good" in folder.name for folder in folders)


def test_second_call_reads_no_text(tmp_path, monkeypatch):
    data = data_config(tmp_path, write_documents(tmp_path / "a.jsonl", TEXTS))
    first = corpus.prepare_corpus(data)
    monkeypatch.setattr(documents, "list_shards", lambda *_: pytest.fail("a source is read"))
    assert corpus.prepare_corpus(data) == first


def test_changed_file_is_prepared_in_a_new_folder(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    data = data_config(tmp_path, source)
    first = corpus.prepare_corpus(data)[source]
    write_documents(tmp_path / "a.jsonl", [*TEXTS, "another document"])
    second = corpus.prepare_corpus(data)[source]
    assert sum(second.documents.values()) == len(TEXTS) + 1
    assert first.key != second.key and Path(first.folder).exists()


def test_progress_is_reported_to_the_end(tmp_path):
    reports = []
    data = data_config(tmp_path, source := write_documents(tmp_path / "a.jsonl", TEXTS))
    manifest = corpus.prepare_corpus(data, lambda *values: reports.append(values))[source]
    assert reports[-1] == (source, len(TEXTS), sum(manifest.bytes.values()), 1.0)


def test_bpe_is_trained_on_the_sources_and_saved_with_tokens(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", word_texts())
    manifest = corpus.prepare_corpus(data_config(tmp_path, source, tokenizer="bpe:290"))[source]
    tokenizer = tokenizers.load_tokenizer(manifest.folder)
    assert (manifest.tokenizer, manifest.vocab_size) == (tokenizer.hash, 290)
    assert manifest.dtype == "uint16" and b" milin" in tokenizer.pieces
    for split in corpus.SPLITS:
        texts, ids = read_split(manifest, split), read_ids(manifest, split)
        assert [text for text in word_texts() if text in set(texts)] == texts != []
        assert manifest.tokens[split] == len(ids) < 0.4 * manifest.bytes[split]
        assert manifest.bytes[split] == tokenizer.byte_lengths()[ids].sum()
        assert manifest.counted == manifest.bytes


def test_tokenizer_is_not_trained_on_heldout_text(tmp_path, monkeypatch):
    training_texts = []
    train_bpe = bpe_training.train_bpe

    def recording_train_bpe(texts, size):
        training_texts.extend(texts)
        return train_bpe(iter(training_texts), size)

    monkeypatch.setattr(bpe_training, "train_bpe", recording_train_bpe)
    source = write_documents(tmp_path / "a.jsonl", word_texts())
    manifest = corpus.prepare_corpus(data_config(tmp_path, source, tokenizer="bpe:290"))[source]
    assert training_texts == read_split(manifest, "train")


def test_tokenizer_sample_follows_the_source_weights(tmp_path, monkeypatch):
    lower = write_documents(tmp_path / "a.jsonl", word_texts())
    upper = write_documents(tmp_path / "b.jsonl", [text.upper() for text in word_texts()])
    monkeypatch.setattr(bpe_training, "SAMPLE_BYTES", 8000)
    data = data_config(tmp_path, lower, upper)
    data.sources = {lower: 3.0, upper: 1.0}
    texts = list(bpe_training._tokenizer_sample(data, sorted(data.sources.items()), None))
    n_lower_bytes = sum(len(text.encode()) for text in texts if text.islower())
    n_upper_bytes = sum(len(text.encode()) for text in texts if text.isupper())
    assert 6000 <= n_lower_bytes < 6600 and 2000 <= n_upper_bytes < 2600


def test_trained_tokenizer_is_reused_until_the_text_changes(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", word_texts())
    data = data_config(tmp_path, source, tokenizer="bpe:290")
    first = corpus.prepare_corpus(data)[source]
    (folder,) = Path(data.cache_dir).glob("bpe-290-*")
    modified_at = (folder / "tokenizer.json").stat().st_mtime_ns
    assert corpus.prepare_corpus(data)[source] == first
    assert (folder / "tokenizer.json").stat().st_mtime_ns == modified_at
    write_documents(tmp_path / "a.jsonl", word_texts()[::2])
    assert corpus.prepare_corpus(data)[source].tokenizer != first.tokenizer


def test_each_tokenizer_has_its_own_folder(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", word_texts())
    bpe_training.train_bpe(iter(word_texts()[:9]), 270).save(tmp_path)
    names = ("bytes", "bpe:290", "bpe:300", f"file:{tmp_path}/tokenizer.json")
    manifests = [
        corpus.prepare_corpus(data_config(tmp_path, source, tokenizer=name))[source]
        for name in names
    ]
    assert len({manifest.folder for manifest in manifests}) == 4
    assert len({manifest.tokenizer for manifest in manifests}) == 4
    assert len({manifest.hash for manifest in manifests}) == 1
    assert corpus.prepare_corpus(data_config(tmp_path, source))[source] == manifests[0]


def test_manifest_counts_text_bytes_if_a_tokenizer_changes_it(tmp_path):
    inner = Tokenizer(models.WordLevel({"?": 0, "ab": 1}, unk_token="?"))
    inner.normalizer = normalizers.NFKC()
    inner.save(str(tmp_path / "tokenizer.json"))
    source = write_documents(tmp_path / "a.jsonl", ["\uff41\uff42", "ab"])
    name = f"file:{tmp_path}/tokenizer.json"
    data = data_config(tmp_path, source, heldout_fraction=0.0, tokenizer=name)
    manifest = corpus.prepare_corpus(data)[source]
    assert manifest.bytes["train"] == 6 + 2 and manifest.counted["train"] == 2 + 2


def test_several_processes_write_the_same_files(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocessing, "CHARACTERS_PER_TASK", 10_000)
    changes = {
        "drop_near_duplicates": True,
        "decontaminate_ngram": 9,
        "min_words": 5,
        "tokenizer": "bpe:290",
    }
    texts = [*word_texts(), "too short", *word_texts()[:9]]
    source = write_documents(tmp_path / "a.jsonl", texts)
    single = corpus.prepare_corpus(data_config(tmp_path, source, **changes))[source]
    data = data_config(tmp_path / "two-workers", source, **changes)
    assert_equal_corpora(corpus.prepare_corpus(data, workers=2)[source], single)


def test_unreadable_parts_are_skipped_and_counted(tmp_path):
    """The source has two invalid lines, a file that is not UTF-8 and a truncated archive."""
    for name in "abc":
        write_documents(tmp_path / f"{name}.jsonl", [text + name for text in TEXTS[:50]])
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    lines[3:5] = ["{", '{"text": "NUL \\u0000"}']
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    archive = gzip.compress((tmp_path / "c.jsonl").read_bytes() * 99)
    (tmp_path / "c.jsonl").write_bytes(b"\xff\n")
    (tmp_path / "d.jsonl.gz").write_bytes(archive[: len(archive) // 2])
    source = f"jsonl:{tmp_path}/*.jsonl*"
    assert_rejected(data_config(tmp_path, source), "b.jsonl line 4: is not JSON")
    manifest = corpus.prepare_corpus(data_config(tmp_path, source, on_error="skip"))[source]
    assert manifest.dropped == {"broken": 4}
    assert sum(manifest.documents.values()) == 50 + 48 + 50


def test_tokenizer_learns_from_all_files(tmp_path, monkeypatch):
    """With a sample of a tenth of the text, the vocabulary has a word of each of ten files."""
    monkeypatch.setattr(bpe_training, "SAMPLE_BYTES", 20_000)
    for i in range(10):
        write_documents(tmp_path / f"{i}.jsonl", [f"{n} {WORDS[i]}" * 20 for n in range(200)])
    data = data_config(tmp_path, f"jsonl:{tmp_path}", tokenizer="bpe:400")
    pieces = b"\n".join(bpe_training.prepare_tokenizer(data, tmp_path / "cache").pieces)
    assert all(word[:5].encode() in pieces for word in WORDS[:10])


def test_empty_records_and_other_files_are_counted(tmp_path, capsys):
    """The counts are in the manifest, and are printed once."""
    folder = tmp_path / "text"
    folder.mkdir()
    write_documents(folder / "a.jsonl", [*TEXTS, "", " \n"])
    with open(folder / "a.jsonl", "a") as file:
        file.write('{"text": null}\n\n')
    for name in ("b.pdf", "c.pdf", ".d.jsonl"):
        (folder / name).write_text("other")
    source = f"jsonl:{folder}"
    for _ in range(2):
        manifest = corpus.prepare_corpus(data_config(tmp_path, source))[source]
    assert manifest.dropped == {"empty": 3} and not manifest.duplicates
    assert manifest.omitted_files == {".pdf": 2, "hidden": 1}
    assert sum(manifest.documents.values()) == len(TEXTS)
    line = f"{source}: left out 2 .pdf, 1 hidden files; 3 empty records\n"
    assert capsys.readouterr().err == line


def test_truncated_archive_is_named_or_counted(tmp_path):
    for i in range(21):
        rows = [{"text": os.urandom(30).hex()} for _ in range(20)]
        raw = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        (tmp_path / f"{i:02}.jsonl.gz").write_bytes(raw[:-200] if i == 10 else raw)
    source = f"jsonl:{tmp_path}/*.jsonl.gz"
    assert_rejected(data_config(tmp_path, source), "10.jsonl.gz: cannot be read to its end")
    manifest = corpus.prepare_corpus(data_config(tmp_path, source, on_error="skip"))[source]
    assert manifest.dropped == {"broken": 1} and 400 < sum(manifest.documents.values()) < 420


def test_file_that_is_not_utf8_is_named_or_counted(tmp_path):
    for name, encoding in (("a", "utf-8"), ("b", "utf-8-sig"), ("c", "latin-1"), ("d", "utf-16")):
        (tmp_path / f"{name}.txt").write_bytes(f"Grüße von {name}".encode(encoding))
    source = f"text:{tmp_path}"
    data = data_config(tmp_path, source, heldout_fraction=0.0)
    assert_rejected(data, "c.txt: is not UTF-8 at byte 2: convert it")
    data = data_config(tmp_path, source, heldout_fraction=0.0, on_error="skip")
    manifest = corpus.prepare_corpus(data)[source]
    assert manifest.dropped == {"broken": 1}
    assert read_split(manifest, "train") == ["Grüße von a", "Grüße von b", "Grüße von d"]


def test_filters_count_rejections_by_name(tmp_path):
    rejected = ["short", "1234 5678 ab " * 9, "again and again\n" * 9]
    source = write_documents(tmp_path / "a.jsonl", [*TEXTS, *rejected])
    unfiltered = corpus.prepare_corpus(data_config(tmp_path, source))[source]
    assert unfiltered.dropped == {} and sum(unfiltered.documents.values()) == len(TEXTS) + 3
    data = data_config(tmp_path, source, min_words=2, min_letters=0.5, max_repeats=0.5)
    manifest = corpus.prepare_corpus(data)[source]
    assert manifest.dropped == {"short": 1, "symbols": 1, "repeats": 1}
    assert sum(manifest.documents.values()) == len(TEXTS)
    data = data_config(tmp_path / "new", source, min_words=99)
    assert_rejected(data, "has no accepted document (203 short)")


def test_near_duplicates_are_dropped_after_the_first(tmp_path):
    near_duplicates = [text + " and so on" for text in word_texts()[:20]]
    source = write_documents(tmp_path / "a.jsonl", [*word_texts(), *near_duplicates])
    assert not corpus.prepare_corpus(data_config(tmp_path, source))[source].dropped
    data = data_config(tmp_path, source, drop_near_duplicates=True)
    manifest = corpus.prepare_corpus(data)[source]
    assert manifest.dropped == {"near_copy": 20}
    texts = read_split(manifest, "train") + read_split(manifest, "heldout")
    assert sorted(texts) == sorted(word_texts())


def test_first_source_by_name_contains_shared_documents(tmp_path):
    texts = word_texts()
    first = write_documents(tmp_path / "a.jsonl", texts[:60])
    shared = [*texts[:20], *(text + " and so on" for text in texts[20:40])]
    second = write_documents(tmp_path / "b.jsonl", [*texts[60:], *shared])
    independent = corpus.prepare_corpus(data_config(tmp_path, second, first))
    assert not independent[second].duplicates and not independent[second].dropped
    data = data_config(tmp_path, second, first, drop_near_duplicates=True)
    joint = corpus.prepare_corpus(data)
    assert list(joint) == [second, first] and joint[first].hash == independent[first].hash
    assert joint[second].duplicates == 20 and joint[second].dropped == {"near_copy": 20}
    alone = corpus.prepare_corpus(data_config(tmp_path, second, drop_near_duplicates=True))
    assert alone[second].hash == independent[second].hash
    assert alone[second].key != joint[second].key
    Path(joint[first].folder, "seen.u64").unlink()
    assert corpus.prepare_corpus(data) == joint


def test_pieces_of_a_file_are_in_one_split_and_counted(tmp_path):
    (tmp_path / "text").mkdir()
    for i in range(12):
        lines = [f"{' '.join(word_texts()[i].split()[:9])} {i} {j}\n\n" for j in range(600)]
        (tmp_path / "text" / f"{i}.txt").write_text("".join(lines))
    source = f"text:{tmp_path}/text"
    manifest = corpus.prepare_corpus(data_config(tmp_path, source, tokenizer="bpe:290"))[source]
    files = {
        split: [text.split("\n")[0].split()[-2] for text in read_split(manifest, split)]
        for split in corpus.SPLITS
    }
    assert not set(files["train"]) & set(files["heldout"])
    assert manifest.groups == {split: len(set(numbers)) for split, numbers in files.items()}
    assert sum(manifest.groups.values()) == 12 and manifest.groups["heldout"] >= 1
    n_pieces, n_files = len(files["heldout"]), manifest.groups["heldout"]
    assert n_pieces > n_files
    assert f"held-out split: {n_pieces} pieces of {n_files} file" in manifest.warning
    assert corpus.corpus_notes({source: manifest}) == [f"warning: {manifest.warning}"]


def test_unspaced_text_is_not_short(tmp_path):
    texts = ["人人生而自由在尊严和权利上一律平等" * 3 + str(i) for i in range(9)]
    source = write_documents(tmp_path / "a.jsonl", texts)
    data = data_config(tmp_path, source, heldout_fraction=0.0, min_words=50)
    assert corpus.prepare_corpus(data)[source].documents["train"] == 9


def test_added_file_may_change_the_split_of_a_staged_corpus(tmp_path, monkeypatch):
    """The smaller of two files is held out, until a third file has a smaller hash."""
    (tmp_path / "text").mkdir()
    for name, n in (("a", 900), ("b", 1000), ("c", 10)):
        lines = [f"file {name} line {j} of the text\n\n" for j in range(n)]
        (tmp_path / "text" / f"{name}.txt").write_text("".join(lines))
    (tmp_path / "text" / "c.txt").write_bytes(b"\xff")
    monkeypatch.setattr(staging, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(preprocessing, "CHARACTERS_PER_TASK", 1000)
    source = f"text:{tmp_path}/text"
    data = data_config(tmp_path, source, heldout_fraction=1e-6)
    with pytest.raises(ValueError, match="c.txt"):
        corpus.prepare_corpus(data)
    candidates = [f"file c {i}" for i in range(200)]
    smallest = min(candidates, key=lambda text: hashlib.sha256(text.encode()).digest())
    (tmp_path / "text" / "c.txt").write_text(smallest)
    manifest = corpus.prepare_corpus(data)[source]
    assert read_split(manifest, "heldout") == [smallest]
    new_data = data_config(tmp_path / "new", source, heldout_fraction=1e-6)
    assert_equal_corpora(manifest, corpus.prepare_corpus(new_data)[source])


def test_empty_text_is_rejected(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    data = data_config(tmp_path, f"text:{tmp_path}/a.txt")
    assert_rejected(data, "a.txt' has no accepted document (1 empty): add text")


def test_invalid_text_leaves_no_files(tmp_path):
    for name, text in (("nul", "a\0b"), ("surrogate", "a\ud800")):
        source = write_documents(tmp_path / name, [*TEXTS, text])
        messages = (f"{name} line {len(TEXTS) + 1}: is", "at character 1")
        assert_rejected(data_config(tmp_path, source), *messages)


def test_real_text_has_its_known_number_of_documents(tmp_path):
    if not CORPORA.exists():
        pytest.skip(f"needs real text in {CORPORA}")
    source = f"jsonl:{CORPORA}/wikipedia/train-*.jsonl.gz"
    data = data_config(tmp_path, source, heldout_fraction=0.02)
    manifest = corpus.prepare_corpus(data)[source]
    assert sum(manifest.documents.values()) + manifest.duplicates == 3066
    assert 0.01 < manifest.documents["heldout"] / sum(manifest.documents.values()) < 0.03
