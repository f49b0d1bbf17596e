"""Prepared sources: complete or absent, equal on every machine, one-line errors."""

import dataclasses
import gzip
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers

from lm.config import schema
from lm.data import corpus, preprocessing, staging, tokenizers
from lm.data.sources import documents, readers

CORPORA = Path(__file__).parent.parents[2] / "shared" / "corpora"


def write_documents(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"jsonl:{path}"


def a_config(tmp_path, *sources, heldout=0.2, **knobs):
    weights = {s: 1.0 for s in sources}
    return schema.Data(
        weights, cache_dir=str(tmp_path / "cache"), heldout_fraction=heldout, **knobs
    )


def read_back(manifest, split):
    tokenizer = tokenizers.load_tokenizer(manifest.folder)
    ids = np.fromfile(Path(manifest.folder, f"{split}.bin"), manifest.dtype)
    assert not len(ids) or ids[-1] == tokenizer.end
    ends = np.flatnonzero(ids == tokenizer.end)
    return [tokenizer.decode(part) for part in np.split(ids, ends + 1)[:-1]]


TEXTS = [f"Document {i}: häppy " + "x" * i for i in range(200)]


def test_every_document_is_in_one_split_once_and_in_order(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", TEXTS + TEXTS[:7])
    manifest = corpus.prepare_corpus(a_config(tmp_path, source))[source]
    train, heldout = (read_back(manifest, split) for split in corpus.SPLITS)
    assert not set(train) & set(heldout)
    assert [t for t in TEXTS if t in set(train)] == train
    assert [t for t in TEXTS if t in set(heldout)] == heldout
    assert len(train) + len(heldout) == len(TEXTS)
    assert 20 <= len(heldout) <= 60


def test_the_manifest_counts_what_the_files_hold(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", [*TEXTS, TEXTS[3], "", "  "])
    manifest = corpus.prepare_corpus(a_config(tmp_path, source))[source]
    assert manifest.duplicates == 1
    for split in corpus.SPLITS:
        found = read_back(manifest, split)
        ids = np.fromfile(Path(manifest.folder, f"{split}.bin"), manifest.dtype)
        assert manifest.documents[split] == len(found)
        assert manifest.tokens[split] == len(ids)
        assert manifest.bytes[split] == sum(len(text.encode()) for text in found)
        assert manifest.bytes[split] == tokenizers.ByteTokenizer().byte_lengths()[ids].sum()


def test_a_text_has_the_same_split_in_every_source(tmp_path):
    one = write_documents(tmp_path / "a.jsonl", TEXTS)
    two = write_documents(tmp_path / "b.jsonl", TEXTS[::-2])
    found = corpus.prepare_corpus(a_config(tmp_path, one, two))
    assert not set(read_back(found[one], "train")) & set(read_back(found[two], "heldout"))
    assert not set(read_back(found[two], "train")) & set(read_back(found[one], "heldout"))


def test_a_larger_share_holds_out_all_that_a_smaller_one_does(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    some, more = (
        corpus.prepare_corpus(a_config(tmp_path, source, heldout=h))[source] for h in (0.1, 0.3)
    )
    assert set(read_back(some, "heldout")) < set(read_back(more, "heldout"))


def test_documents_of_one_home_are_held_out_together(tmp_path, monkeypatch):
    all_documents = [documents.Document(t, t, home=str(i % 20)) for i, t in enumerate(TEXTS)]
    monkeypatch.setitem(documents.READERS, "code", lambda _: [lambda _: all_documents])
    manifest = corpus.prepare_corpus(a_config(tmp_path, "code"))["code"]
    held = set(read_back(manifest, "heldout"))
    assert held
    for home in range(20):
        assert len({text in held for text in TEXTS[home::20]}) == 1


def test_the_hash_follows_the_documents_and_nothing_else(tmp_path):
    def hash_of(name, texts):
        source = write_documents(tmp_path / name, texts)
        return corpus.prepare_corpus(a_config(tmp_path, source))[source].hash

    first = hash_of("a.jsonl", TEXTS)
    assert hash_of("b.jsonl", TEXTS) == first
    assert hash_of("c.jsonl", TEXTS + TEXTS[:1]) == first
    assert hash_of("d.jsonl", [*TEXTS[:-1], TEXTS[-1] + "."]) != first
    assert hash_of("e.jsonl", TEXTS[::-1]) != first


def test_a_second_call_reads_no_text(tmp_path, monkeypatch):
    data = a_config(tmp_path, write_documents(tmp_path / "a.jsonl", TEXTS))
    first = corpus.prepare_corpus(data)
    monkeypatch.setattr(documents, "list_shards", lambda *_: 1 / 0)
    assert corpus.prepare_corpus(data) == first


def test_a_changed_file_is_prepared_afresh_beside_the_old(tmp_path):
    path = tmp_path / "a.jsonl"
    source = write_documents(path, TEXTS)
    data = a_config(tmp_path, source)
    first = corpus.prepare_corpus(data)[source]
    write_documents(path, [*TEXTS, "one more"])
    second = corpus.prepare_corpus(data)[source]
    assert sum(second.documents.values()) == len(TEXTS) + 1
    assert first.key != second.key and Path(first.folder).exists()


@pytest.mark.parametrize("damage", ["manifest.json", "train.bin", "shorter", "longer"])
def test_incomplete_cache_is_prepared_again(tmp_path, damage):
    data = a_config(tmp_path, source := write_documents(tmp_path / "a.jsonl", TEXTS))
    first = corpus.prepare_corpus(data)[source]
    if damage == "shorter":
        os.truncate(Path(first.folder, "train.bin"), 100)
    elif damage == "longer":
        os.truncate(Path(first.folder, "heldout.bin"), 10**5)
    else:
        Path(first.folder, damage).unlink()
    again = corpus.prepare_corpus(data)[source]
    assert again == first
    for split in corpus.SPLITS:
        assert len(read_back(again, split)) == first.documents[split]


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(source, start):
        yield from [documents.Document(text, "a") for text in TEXTS[:5]]
        raise KeyboardInterrupt

    data = a_config(tmp_path, write_documents(tmp_path / "a.jsonl", TEXTS))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(documents, "open_source", interrupted)
        corpus.prepare_corpus(data)
    assert list(Path(data.cache_dir).iterdir()) == []
    assert corpus.prepare_corpus(data)


def test_slower_of_two_simultaneous_calls_drops_its_copy(tmp_path, monkeypatch):
    data = a_config(tmp_path, source := write_documents(tmp_path / "a.jsonl", TEXTS))
    all_documents, inner = documents.open_source, []

    def overtaken(name, start):
        found = list(all_documents(name))
        yield from found[:100]
        monkeypatch.setattr(documents, "open_source", all_documents)
        inner.append(corpus.prepare_corpus(data))
        yield from found[100:]

    monkeypatch.setattr(documents, "open_source", overtaken)
    assert corpus.prepare_corpus(data) == inner[0]
    assert list(Path(data.cache_dir).iterdir()) == [Path(inner[0][source].folder)]


def test_progress_is_reported_to_the_end(tmp_path):
    told = []
    data = a_config(tmp_path, source := write_documents(tmp_path / "a.jsonl", TEXTS))
    manifest = corpus.prepare_corpus(data, lambda *what: told.append(what))[source]
    assert told[-1] == (source, len(TEXTS), sum(manifest.bytes.values()), 1.0)


@pytest.fixture
def four_files(tmp_path, monkeypatch):
    """A source of four files, saved after each, whose third may be told to end the reading."""
    for name in "abcd":
        texts = [f"{text} of {name}" for text in TEXTS[:40]] + TEXTS[40:50]
        write_documents(tmp_path / f"{name}.jsonl", texts)
    monkeypatch.setattr(staging, "SAVE_SECONDS", 0.0)
    return f"jsonl:{tmp_path}/?.jsonl"


def files_read(monkeypatch):
    read, jsonl = [], readers._jsonl
    monkeypatch.setattr(
        readers,
        "_jsonl",
        lambda path, *rest: [read.append(path.stem), *jsonl(path, *rest)][1:],
    )
    return read


@pytest.mark.parametrize("knobs", [{}, {"drop_near_duplicates": True, "on_error": "skip"}])
def test_stopped_call_resumes_with_its_current_file(tmp_path, four_files, monkeypatch, knobs):
    whole = corpus.prepare_corpus(a_config(tmp_path / "whole", four_files, **knobs))[four_files]
    data = a_config(tmp_path, four_files, **knobs)
    jsonl = readers._jsonl

    def stopped(path, *rest):
        for document in jsonl(path, *rest):
            yield document
            if path.stem == "c" and document.text.endswith("20: häppy " + "x" * 20 + " of c"):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(readers, "_jsonl", stopped)
        patch.setattr(preprocessing, "CHARACTERS_PER_TASK", 100)
        corpus.prepare_corpus(data)
    (folder,) = Path(data.cache_dir).iterdir()
    assert folder.name.startswith(".")
    read = files_read(monkeypatch)
    again = corpus.prepare_corpus(data)[four_files]
    assert read == ["c", "d"]
    assert dataclasses.replace(again, folder="") == dataclasses.replace(whole, folder="")
    assert again.duplicates == 30
    for split in corpus.SPLITS:
        raw = [Path(m.folder, f"{split}.bin").read_bytes() for m in (again, whole)]
        assert raw[0] == raw[1]
    assert list(Path(data.cache_dir).iterdir()) == [Path(again.folder)]


def test_only_a_corrected_file_is_read_again(tmp_path, four_files, monkeypatch):
    data = a_config(tmp_path, four_files)
    monkeypatch.setattr(preprocessing, "CHARACTERS_PER_TASK", 100)
    good = (tmp_path / "d.jsonl").read_text()
    (tmp_path / "d.jsonl").write_text(good + "{")
    with pytest.raises(ValueError, match="d.jsonl line 51: is not JSON"):
        corpus.prepare_corpus(data)
    (tmp_path / "d.jsonl").write_text(good)
    read = files_read(monkeypatch)
    assert sum(corpus.prepare_corpus(data)[four_files].documents.values()) == 4 * 40 + 10
    assert read == ["d"]


@pytest.mark.parametrize("damage", ["an earlier file", "train.bin", "seen.sqlite"])
def test_invalid_draft_is_rebuilt(tmp_path, four_files, monkeypatch, damage):
    data = a_config(tmp_path, four_files)
    monkeypatch.setattr(preprocessing, "CHARACTERS_PER_TASK", 100)
    good = (tmp_path / "d.jsonl").read_text()
    (tmp_path / "d.jsonl").write_text(good + "{")
    with pytest.raises(ValueError):
        corpus.prepare_corpus(data)
    (tmp_path / "d.jsonl").write_text(good)
    (folder,) = Path(data.cache_dir).iterdir()
    if damage == "an earlier file":
        write_documents(tmp_path / "b.jsonl", TEXTS[:3])
    elif damage == "train.bin":
        os.truncate(folder / damage, 10)
    else:
        (folder / damage).write_bytes(b"no database " * 1000)
    manifest = corpus.prepare_corpus(data)[four_files]
    fresh = corpus.prepare_corpus(a_config(tmp_path / "fresh", four_files))[four_files]
    assert dataclasses.replace(manifest, folder="") == dataclasses.replace(fresh, folder="")


@pytest.fixture(scope="module")
def words():
    """Documents of words that come again and again."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, 80)) for _ in range(120)]


WORDS = [f"{a}{b}" for a in ("ho", "mi", "ta", "ke") for b in ("lin", "rat", "üsk", "mel", "o")]


def test_bpe_is_trained_on_the_sources_and_saved_with_tokens(tmp_path, words):
    source = write_documents(tmp_path / "a.jsonl", words)
    manifest = corpus.prepare_corpus(a_config(tmp_path, source, tokenizer="bpe:290"))[source]
    tokenizer = tokenizers.load_tokenizer(manifest.folder)
    assert (manifest.tokenizer, manifest.vocab_size) == (tokenizer.hash, 290)
    assert manifest.dtype == "uint16" and b" milin" in tokenizer.pieces
    for split in corpus.SPLITS:
        found = read_back(manifest, split)
        ids = np.fromfile(Path(manifest.folder, f"{split}.bin"), manifest.dtype)
        assert [text for text in words if text in set(found)] == found != []
        assert manifest.tokens[split] == len(ids) < 0.4 * manifest.bytes[split]
        assert manifest.bytes[split] == tokenizer.byte_lengths()[ids].sum()
        assert manifest.counted == manifest.bytes


def test_tokenizer_is_not_trained_on_heldout_text(tmp_path, words, monkeypatch):
    seen = []
    train_bpe = tokenizers.train_bpe

    def watched(texts, size):
        seen.extend(texts)
        return train_bpe(iter(seen), size)

    monkeypatch.setattr(tokenizers, "train_bpe", watched)
    source = write_documents(tmp_path / "a.jsonl", words)
    manifest = corpus.prepare_corpus(a_config(tmp_path, source, tokenizer="bpe:290"))[source]
    assert seen == read_back(manifest, "train")


def test_a_tokenizer_learns_from_each_source_by_its_weight(tmp_path, words, monkeypatch):
    one = write_documents(tmp_path / "a.jsonl", words)
    two = write_documents(tmp_path / "b.jsonl", [text.upper() for text in words])
    monkeypatch.setattr(corpus, "SAMPLE_BYTES", 8000)
    data = a_config(tmp_path, one, two)
    data.sources = {one: 3.0, two: 1.0}
    texts = list(corpus._sample(data, sorted(data.sources.items()), None))
    low = sum(len(text.encode()) for text in texts if text.islower())
    high = sum(len(text.encode()) for text in texts if text.isupper())
    assert 6000 <= low < 6600 and 2000 <= high < 2600


def test_trained_tokenizer_is_reused_until_the_text_changes(tmp_path, words):
    source = write_documents(tmp_path / "a.jsonl", words)
    data = a_config(tmp_path, source, tokenizer="bpe:290")
    first = corpus.prepare_corpus(data)[source]
    (folder,) = Path(data.cache_dir).glob("bpe-290-*")
    before = (folder / "tokenizer.json").stat().st_mtime_ns
    assert corpus.prepare_corpus(data)[source] == first
    assert (folder / "tokenizer.json").stat().st_mtime_ns == before
    write_documents(tmp_path / "a.jsonl", words[::2])
    assert corpus.prepare_corpus(data)[source].tokenizer != first.tokenizer


def test_each_tokenizer_has_its_own_folder(tmp_path, words):
    source = write_documents(tmp_path / "a.jsonl", words)
    tokenizers.train_bpe(iter(words[:9]), 270).save(tmp_path)
    kinds = ("bytes", "bpe:290", "bpe:300", f"file:{tmp_path}/tokenizer.json")
    found = [
        corpus.prepare_corpus(a_config(tmp_path, source, tokenizer=kind))[source] for kind in kinds
    ]
    assert len({m.folder for m in found}) == len({m.tokenizer for m in found}) == 4
    assert len({m.hash for m in found}) == 1  # of the documents
    again = corpus.prepare_corpus(a_config(tmp_path, source))[source]
    assert again == found[0]


def test_manifest_counts_text_bytes_if_a_tokenizer_changes_it(tmp_path):
    inner = Tokenizer(models.WordLevel({"?": 0, "ab": 1}, unk_token="?"))
    inner.normalizer = normalizers.NFKC()
    inner.save(str(tmp_path / "tokenizer.json"))
    source = write_documents(tmp_path / "a.jsonl", ["\uff41\uff42", "ab"])
    data = a_config(tmp_path, source, heldout=0.0, tokenizer=f"file:{tmp_path}/tokenizer.json")
    manifest = corpus.prepare_corpus(data)[source]
    assert manifest.bytes["train"] == 6 + 2 and manifest.counted["train"] == 2 + 2


def test_several_processes_give_the_same_files(tmp_path, words, monkeypatch):
    monkeypatch.setattr(preprocessing, "CHARACTERS_PER_TASK", 10_000)
    knobs = {
        "drop_near_duplicates": True,
        "decontaminate_ngram": 9,
        "min_words": 5,
        "tokenizer": "bpe:290",
    }
    source = write_documents(tmp_path / "a.jsonl", [*words, "too short", *words[:9]])
    one = corpus.prepare_corpus(a_config(tmp_path, source, **knobs))[source]
    other = a_config(tmp_path / "other", source, **knobs)
    two = corpus.prepare_corpus(other, workers=2)[source]
    assert {**vars(two), "folder": ""} == {**vars(one), "folder": ""}
    for split in corpus.SPLITS:
        raw = [Path(m.folder, f"{split}.bin").read_bytes() for m in (one, two)]
        assert raw[0] == raw[1]


def test_unreadable_parts_are_skipped_and_counted(tmp_path):
    for name in "abc":
        write_documents(tmp_path / f"{name}.jsonl", [text + name for text in TEXTS[:50]])
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    lines[3:5] = ["{", '{"text": "NUL \\u0000"}']
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    whole = gzip.compress((tmp_path / "c.jsonl").read_bytes() * 99)
    (tmp_path / "c.jsonl").write_bytes(b"\xff\n")
    (tmp_path / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    source = f"jsonl:{tmp_path}/*.jsonl*"
    refused(a_config(tmp_path, source), "b.jsonl line 4: is not JSON")
    manifest = corpus.prepare_corpus(a_config(tmp_path, source, on_error="skip"))[source]
    assert manifest.dropped == {"broken": 4}  # two lines of b, that of c, the end of d
    assert sum(manifest.documents.values()) == 50 + 48 + 50


def test_truncated_archive_is_named_or_counted(tmp_path):
    for i in range(21):
        rows = [{"text": os.urandom(30).hex()} for _ in range(20)]
        raw = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
        (tmp_path / f"{i:02}.jsonl.gz").write_bytes(raw[:-200] if i == 10 else raw)
    source = f"jsonl:{tmp_path}/*.jsonl.gz"
    refused(a_config(tmp_path, source), "10.jsonl.gz: cannot be read to its end")
    manifest = corpus.prepare_corpus(a_config(tmp_path, source, on_error="skip"))[source]
    assert manifest.dropped == {"broken": 1} and 400 < sum(manifest.documents.values()) < 420


def test_file_that_is_not_utf8_is_named_or_counted(tmp_path):
    for name, encoding in (("a", "utf-8"), ("b", "utf-8-sig"), ("c", "latin-1"), ("d", "utf-16")):
        (tmp_path / f"{name}.txt").write_bytes(f"Grüße von {name}".encode(encoding))
    source = f"text:{tmp_path}"
    refused(a_config(tmp_path, source, heldout=0.0), "c.txt: is not UTF-8 at byte 2: convert it")
    manifest = corpus.prepare_corpus(a_config(tmp_path, source, heldout=0.0, on_error="skip"))[
        source
    ]
    assert manifest.dropped == {"broken": 2}
    assert read_back(manifest, "train") == ["Grüße von a", "Grüße von b"]


def test_filters_count_rejections_by_name(tmp_path):
    bad = ["short", "1234 5678 ab " * 9, "again and again\n" * 9]
    source = write_documents(tmp_path / "a.jsonl", [*TEXTS, *bad])
    kept = corpus.prepare_corpus(a_config(tmp_path, source))[source]
    assert kept.dropped == {} and sum(kept.documents.values()) == len(TEXTS) + 3
    data = a_config(tmp_path, source, min_words=2, min_letters=0.5, max_repeats=0.5)
    manifest = corpus.prepare_corpus(data)[source]
    assert manifest.dropped == {"short": 1, "symbols": 1, "repeats": 1}
    assert sum(manifest.documents.values()) == len(TEXTS)
    refused(a_config(tmp_path / "new", source, min_words=99), "nothing is left of it (203 short)")


def test_near_duplicates_are_dropped_after_the_first(tmp_path, words):
    copies = [text + " and so on" for text in words[:20]]
    source = write_documents(tmp_path / "a.jsonl", [*words, *copies])
    assert not corpus.prepare_corpus(a_config(tmp_path, source))[source].dropped
    manifest = corpus.prepare_corpus(a_config(tmp_path, source, drop_near_duplicates=True))[source]
    assert manifest.dropped == {"near_copy": 20}
    assert sorted(read_back(manifest, "train") + read_back(manifest, "heldout")) == sorted(words)


def test_first_source_by_name_keeps_shared_documents(tmp_path, words):
    one = write_documents(tmp_path / "a.jsonl", words[:60])
    copies = [*words[:20], *(text + " and so on" for text in words[20:40])]
    two = write_documents(tmp_path / "b.jsonl", [*words[60:], *copies])
    apart = corpus.prepare_corpus(a_config(tmp_path, two, one))
    assert not apart[two].duplicates and not apart[two].dropped
    found = corpus.prepare_corpus(a_config(tmp_path, two, one, drop_near_duplicates=True))
    assert list(found) == [two, one] and found[one].hash == apart[one].hash
    assert found[two].duplicates == 20 and found[two].dropped == {"near_copy": 20}
    alone = corpus.prepare_corpus(a_config(tmp_path, two, drop_near_duplicates=True))
    assert alone[two].hash == apart[two].hash and alone[two].key != found[two].key
    Path(found[one].folder, "seen.sqlite").unlink()
    assert corpus.prepare_corpus(a_config(tmp_path, two, one, drop_near_duplicates=True)) == found


def test_training_shares_no_ngram_with_heldout_text(tmp_path, words):
    one = write_documents(tmp_path / "a.jsonl", words)
    held = read_back(corpus.prepare_corpus(a_config(tmp_path, one))[one], "heldout")
    leaks = [f"{i} quote: {' '.join(text.split()[9:25]).upper()}" for i, text in enumerate(held)]
    two = write_documents(tmp_path / "b.jsonl", [*TEXTS, *leaks])
    found = corpus.prepare_corpus(a_config(tmp_path, one, two, decontaminate_ngram=13))
    assert found[one].dropped == {}
    train, heldout = (set(read_back(found[two], split)) for split in corpus.SPLITS)
    assert found[two].dropped == {"overlap": len(set(leaks) - heldout)} and len(leaks) > 10
    assert not train & set(leaks) and train | heldout >= set(TEXTS)


def test_training_shares_no_ngram_with_protected_text(tmp_path):
    task = "to be or not to be that is the question whether tis nobler in the mind"
    leak, other = f"Hamlet: {task[:60]}, they say", "To be or not to be in the mind"
    source = write_documents(tmp_path / "a.jsonl", [*TEXTS, leak, other])
    protect = write_documents(tmp_path / "task.jsonl", [task])
    for n_words, left in ((13, {leak}), (5, {leak, other}), (15, set())):
        data = a_config(
            tmp_path,
            source,
            heldout=0.0,
            decontaminate_ngram=n_words,
            decontaminate_against=protect,
        )
        manifest = corpus.prepare_corpus(data)[source]
        assert {*TEXTS, leak, other} - set(read_back(manifest, "train")) == left
        assert manifest.dropped == ({"overlap": len(left)} if left else {})


def refused(data, *words):
    with pytest.raises(ValueError) as caught:
        corpus.prepare_corpus(data)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value
    cache = Path(data.cache_dir)
    assert not cache.is_dir() or not any(cache.iterdir())


def test_empty_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    refused(a_config(tmp_path, f"text:{tmp_path}/a.txt"), "a.txt' is empty: it must hold text")


def test_invalid_text_leaves_no_files(tmp_path):
    for name, bad in (("nul", "a\0b"), ("half", "a\ud800")):
        source = write_documents(tmp_path / name, [*TEXTS, bad])
        refused(a_config(tmp_path, source), f"{name} line {len(TEXTS) + 1}: is", "at character 1")


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(ValueError, match="data.cache_dir=.*cannot be written .*another folder"):
        corpus.prepare_corpus(a_config(tmp_path, source))


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", [text * 100 for text in TEXTS])
    data = a_config(tmp_path, source)
    script = (
        "import sys; from lm.config import schema; from lm.data import corpus\n"
        "try: corpus.prepare_corpus(schema.Data({sys.argv[1]: 1.0}, cache_dir=sys.argv[2]))\n"
        "except ValueError as error: print(error)"
    )

    def small_files_only():  # what a full disk does, for one process
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-B", "-c", script, source, data.cache_dir],
        capture_output=True,
        text=True,
        preexec_fn=small_files_only,
        cwd=Path(__file__).parent.parents[1],
    )
    assert done.stdout.startswith(f"data.cache_dir={data.cache_dir!r} cannot be written ("), done
    assert list(Path(data.cache_dir).iterdir()) == []


def test_real_text_is_prepared_as_its_files_say(tmp_path):
    if not CORPORA.exists():
        pytest.skip(f"needs real text in {CORPORA}")
    source = f"jsonl:{CORPORA}/wikipedia/train-*.jsonl.gz"
    manifest = corpus.prepare_corpus(a_config(tmp_path, source, heldout=0.02))[source]
    assert sum(manifest.documents.values()) + manifest.duplicates == 3066
    assert 0.01 < manifest.documents["heldout"] / sum(manifest.documents.values()) < 0.03
