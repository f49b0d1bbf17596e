"""Properties of prepared sources: whole or absent, the same everywhere, and refused in one line."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lm import config, corpus, tokens

CORPORA = Path(__file__).parents[2] / "shared" / "corpora"


def write_documents(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"jsonl:{path}"


def a_config(tmp_path, *sources, heldout=0.2):
    return config.Data({s: 1.0 for s in sources}, cache=str(tmp_path / "cache"), heldout=heldout)


def read_back(manifest, split):
    raw = Path(manifest.folder, f"{split}.bin").read_bytes()
    assert raw == b"" or raw[-1] == tokens.END
    return raw.decode().split("\0")[:-1]


TEXTS = [f"Document {i}: häppy " + "x" * i for i in range(200)]


def test_every_document_is_on_one_side_once_and_in_order(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", TEXTS + TEXTS[:7])
    manifest = corpus.prepare(a_config(tmp_path, source))[source]
    train, heldout = (read_back(manifest, split) for split in corpus.SPLITS)
    assert not set(train) & set(heldout)
    assert [t for t in TEXTS if t in set(train)] == train
    assert [t for t in TEXTS if t in set(heldout)] == heldout
    assert len(train) + len(heldout) == len(TEXTS)
    assert 20 <= len(heldout) <= 60


def test_the_manifest_counts_what_the_files_hold(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", [*TEXTS, TEXTS[3], "", "  "])
    manifest = corpus.prepare(a_config(tmp_path, source))[source]
    assert manifest.duplicates == 1
    for split in corpus.SPLITS:
        found = read_back(manifest, split)
        ids = np.fromfile(Path(manifest.folder, f"{split}.bin"), manifest.dtype)
        assert manifest.documents[split] == len(found)
        assert manifest.tokens[split] == len(ids)
        assert manifest.bytes[split] == sum(len(text.encode()) for text in found)
        assert manifest.bytes[split] == tokens.Bytes().byte_lengths()[ids].sum()


def test_a_text_is_held_out_of_every_source_or_of_none(tmp_path):
    one = write_documents(tmp_path / "a.jsonl", TEXTS)
    two = write_documents(tmp_path / "b.jsonl", TEXTS[::-2])
    found = corpus.prepare(a_config(tmp_path, one, two))
    assert not set(read_back(found[one], "train")) & set(read_back(found[two], "heldout"))
    assert not set(read_back(found[two], "train")) & set(read_back(found[one], "heldout"))


def test_a_larger_share_holds_out_all_that_a_smaller_one_does(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    some, more = (corpus.prepare(a_config(tmp_path, source, heldout=h))[source] for h in (0.1, 0.3))
    assert set(read_back(some, "heldout")) < set(read_back(more, "heldout"))


def test_documents_of_one_home_are_held_out_together(tmp_path, monkeypatch):
    documents = [corpus.sources.Document(t, t, home=str(i % 20)) for i, t in enumerate(TEXTS)]
    monkeypatch.setitem(corpus.sources.READERS, "code", lambda _: iter(documents))
    manifest = corpus.prepare(a_config(tmp_path, "code"))["code"]
    held = set(read_back(manifest, "heldout"))
    assert held
    for home in range(20):
        assert len({text in held for text in TEXTS[home::20]}) == 1


def test_the_hash_follows_the_documents_and_nothing_else(tmp_path):
    def hash_of(name, texts):
        source = write_documents(tmp_path / name, texts)
        return corpus.prepare(a_config(tmp_path, source))[source].hash

    first = hash_of("a.jsonl", TEXTS)
    assert hash_of("b.jsonl", TEXTS) == first
    assert hash_of("c.jsonl", TEXTS + TEXTS[:1]) == first
    assert hash_of("d.jsonl", [*TEXTS[:-1], TEXTS[-1] + "."]) != first
    assert hash_of("e.jsonl", TEXTS[::-1]) != first


def test_a_second_call_reads_no_text(tmp_path, monkeypatch):
    data = a_config(tmp_path, write_documents(tmp_path / "a.jsonl", TEXTS))
    first = corpus.prepare(data)
    monkeypatch.setattr(corpus.sources, "documents", lambda source: 1 / 0)
    assert corpus.prepare(data) == first


def test_a_changed_file_is_prepared_afresh_beside_the_old(tmp_path):
    path = tmp_path / "a.jsonl"
    source = write_documents(path, TEXTS)
    data = a_config(tmp_path, source)
    first = corpus.prepare(data)[source]
    write_documents(path, [*TEXTS, "one more"])
    second = corpus.prepare(data)[source]
    assert sum(second.documents.values()) == len(TEXTS) + 1
    assert first.key != second.key and Path(first.folder).exists()


@pytest.mark.parametrize("damage", ["manifest.json", "train.bin", "shorter", "longer"])
def test_a_cache_that_is_not_whole_is_made_again(tmp_path, damage):
    data = a_config(tmp_path, source := write_documents(tmp_path / "a.jsonl", TEXTS))
    first = corpus.prepare(data)[source]
    if damage == "shorter":
        os.truncate(Path(first.folder, "train.bin"), 100)
    elif damage == "longer":
        os.truncate(Path(first.folder, "heldout.bin"), 10**5)
    else:
        Path(first.folder, damage).unlink()
    again = corpus.prepare(data)[source]
    assert again == first
    for split in corpus.SPLITS:
        assert len(read_back(again, split)) == first.documents[split]


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(source):
        yield from [corpus.sources.Document(text, "a") for text in TEXTS[:5]]
        raise KeyboardInterrupt

    data = a_config(tmp_path, write_documents(tmp_path / "a.jsonl", TEXTS))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(corpus.sources, "documents", interrupted)
        corpus.prepare(data)
    assert list(Path(data.cache).iterdir()) == []
    assert corpus.prepare(data)


def test_of_two_calls_at_once_the_slower_drops_its_copy(tmp_path, monkeypatch):
    data = a_config(tmp_path, source := write_documents(tmp_path / "a.jsonl", TEXTS))
    documents, inner = corpus.sources.documents, []

    def overtaken(name):
        found = list(documents(name))
        yield from found[:100]
        monkeypatch.setattr(corpus.sources, "documents", documents)
        inner.append(corpus.prepare(data))
        yield from found[100:]

    monkeypatch.setattr(corpus.sources, "documents", overtaken)
    assert corpus.prepare(data) == inner[0]
    assert list(Path(data.cache).iterdir()) == [Path(inner[0][source].folder)]


def test_progress_is_told_to_the_end(tmp_path):
    told = []
    data = a_config(tmp_path, source := write_documents(tmp_path / "a.jsonl", TEXTS))
    manifest = corpus.prepare(data, lambda *what: told.append(what))[source]
    assert told[-1] == (source, len(TEXTS), sum(manifest.bytes.values()))


def refused(data, *words):
    with pytest.raises(ValueError) as caught:
        corpus.prepare(data)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value
    cache = Path(data.cache)
    assert not cache.is_dir() or not any(cache.iterdir())


def test_empty_text_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n")
    refused(a_config(tmp_path, f"text:{tmp_path}/a.txt"), "a.txt' is empty: it must hold text")


def test_bad_text_in_the_middle_leaves_nothing(tmp_path):
    for name, bad in (("nul", "a\0b"), ("half", "a\ud800")):
        source = write_documents(tmp_path / name, [*TEXTS, bad])
        refused(a_config(tmp_path, source), f"{name} line {len(TEXTS) + 1}: is", "at character 1")


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(ValueError, match="data.cache=.*cannot be written .*another folder"):
        corpus.prepare(a_config(tmp_path, source))


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    source = write_documents(tmp_path / "a.jsonl", [text * 100 for text in TEXTS])
    data = a_config(tmp_path, source)
    script = (
        "import sys; from lm import config, corpus\n"
        "try: corpus.prepare(config.Data({sys.argv[1]: 1.0}, cache=sys.argv[2]))\n"
        "except ValueError as error: print(error)"
    )

    def small_files_only():  # what a full disk does, for one process
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-B", "-c", script, source, data.cache],
        capture_output=True,
        text=True,
        preexec_fn=small_files_only,
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.startswith(f"data.cache={data.cache!r} cannot be written ("), done
    assert list(Path(data.cache).iterdir()) == []


def test_real_text_is_prepared_as_its_files_say(tmp_path):
    if not CORPORA.exists():
        pytest.skip(f"needs real text in {CORPORA}")
    source = f"jsonl:{CORPORA}/wikipedia/train-*.jsonl.gz"
    manifest = corpus.prepare(a_config(tmp_path, source, heldout=0.02))[source]
    assert sum(manifest.documents.values()) + manifest.duplicates == 3066
    assert 0.01 < manifest.documents["heldout"] / sum(manifest.documents.values()) < 0.03
