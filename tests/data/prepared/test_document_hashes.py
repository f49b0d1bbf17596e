"""Hash set of documents on disk: equal documents, near-duplicates, and damaged files."""

import hashlib
import sqlite3

import numpy as np
import pytest

from lm.data.prepared import document_hashes, hash_runs
from lm.runs import json_files

DIGESTS = [hashlib.sha256(bytes([i])).digest() for i in range(4)]


def test_document_hashes_reject_equal_documents(tmp_path):
    hashes = document_hashes.DocumentHashes(tmp_path / "a")
    assert hashes.add(DIGESTS[0]) and hashes.add(DIGESTS[1]) and not hashes.add(DIGESTS[0])
    hashes.write(tmp_path / "a.u64")
    hashes.close()
    second = document_hashes.DocumentHashes(tmp_path / "b", [tmp_path / "a.u64"])
    assert not second.add(DIGESTS[1]) and second.add(DIGESTS[2])
    second.write(tmp_path / "b.u64")  # without the hashes of the first
    second.close()
    third = document_hashes.DocumentHashes(tmp_path / "c", [tmp_path / "b.u64"])
    assert third.add(DIGESTS[0]) and not third.add(DIGESTS[2])
    third.close()


def test_document_hashes_find_a_common_band(tmp_path):
    bands = (5, 7, 2**63 - 1)
    hashes = document_hashes.DocumentHashes(tmp_path / "a")
    hashes.add_bands(bands)
    for earlier in ([], [tmp_path / "a.u64"]):  # in memory, and in a file
        if earlier:
            hashes.write(earlier[0])
            hashes.close()
            hashes = document_hashes.DocumentHashes(tmp_path / "b", earlier)
        assert hashes.has_band((1, 7)) and not hashes.has_band((1, 2)) and not hashes.has_band(())
    assert hashes.has_band((2**63 - 1,)) and not hashes.has_band((6, 10, 11, 15))
    # A document and a band with the same bits are different.
    digest = (11).to_bytes(8, "big") + bytes(24)
    assert hashes.add(digest) and not hashes.add(digest)
    hashes.close()


def test_unsaved_document_hashes_are_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(hash_runs, "N_RECENT", 1)  # each addition writes and merges runs
    hashes = document_hashes.DocumentHashes(tmp_path / "a")
    hashes.add(DIGESTS[0])
    hashes.add(DIGESTS[1])
    hashes.save({"part": 3})
    hashes.add(DIGESTS[2])
    hashes.add(DIGESTS[3])
    hashes.close()
    hashes = document_hashes.DocumentHashes(tmp_path / "a")
    assert hashes.saved_state() == {"part": 3}
    assert [hashes.add(digest) for digest in DIGESTS] == [False, False, True, True]
    hashes.close()


@pytest.mark.parametrize("change", ["state", "bit", "shorter", "missing"])
def test_changed_hashes_are_not_used(tmp_path, change):
    """A lost hash would accept an equal document, and a wrong hash would reject a document."""
    for part in (1, 2):  # a set that was opened again continues its files
        hashes = document_hashes.DocumentHashes(tmp_path / "a")
        assert hashes.saved_state() == ({"part": 1} if part == 2 else {})
        hashes.add(DIGESTS[part])
        hashes.add_bands((5, part))
        hashes.save({"part": part})
        hashes.close()
    (run,) = (tmp_path / "a").glob("*.u64")
    if change == "state":
        path = tmp_path / "a" / "state.json"
        path.write_text(path.read_text().replace('"part": 2', '"part": 1'))
    elif change == "missing":
        run.unlink()
    else:
        content = run.read_bytes()
        run.write_bytes(content[:-8] if change == "shorter" else b"?" + content[1:])
    with pytest.raises((ValueError, FileNotFoundError), match="is damaged|No such file"):
        document_hashes.DocumentHashes(tmp_path / "a")


def test_sqlite_file_of_an_earlier_version_is_read(tmp_path):
    path = tmp_path / "seen.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE documents (hash INTEGER PRIMARY KEY)")
    connection.execute("CREATE TABLE bands (hash INTEGER PRIMARY KEY)")
    for digest in DIGESTS[:3]:
        number = int.from_bytes(digest[:8], "big", signed=True)
        connection.execute("INSERT INTO documents VALUES (?)", (number,))
    connection.execute("INSERT INTO bands VALUES (7), (?)", (2**63 - 1,))
    connection.commit()
    connection.close()
    hashes = document_hashes.DocumentHashes(tmp_path / "a", [path])
    assert [hashes.add(digest) for digest in DIGESTS] == [False, False, False, True]
    assert hashes.has_band((7,)) and hashes.has_band((2**63 - 1,)) and not hashes.has_band((6, 3))
    hashes.save({"part": 1})
    hashes.close()
    path.write_bytes(b"no database" * 99)
    with pytest.raises(ValueError, match="seen.sqlite is damaged"):
        document_hashes.DocumentHashes(tmp_path / "a", [path])


def test_same_documents_are_rejected_as_by_sets(tmp_path, monkeypatch):
    """Random documents in two sources, with equal documents and common bands."""
    monkeypatch.setattr(hash_runs, "N_RECENT", 50)
    monkeypatch.setattr(hash_runs, "PAGE_HASHES", 4)
    monkeypatch.setattr(hash_runs, "BLOCK_PAGES", 3)
    rng = np.random.default_rng(0)
    documents, bands = rng.integers(0, 150, 400), rng.integers(0, 600, (400, 4)) << 52
    known_documents, known_bands, earlier = set(), set(), []
    for source in range(2):
        folder = tmp_path / str(source)
        hashes = document_hashes.DocumentHashes(folder, earlier)
        for i in range(200 * source, 200 * (source + 1)):
            if i % 70 == 69:  # interrupted and resumed
                hashes.save({"i": i})
                hashes.close()
                hashes = document_hashes.DocumentHashes(folder, earlier)
                assert hashes.saved_state() == {"i": i}
            digest, row = hashlib.sha256(str(documents[i]).encode()).digest(), bands[i].tolist()
            assert hashes.add(digest) == (digest not in known_documents)
            known_documents.add(digest)
            assert hashes.has_band(row) == (not known_bands.isdisjoint(row))
            if not hashes.has_band(row):
                hashes.add_bands(row)
                known_bands.update(row)
        hashes.write(tmp_path / f"{source}.u64")
        hashes.close()
        earlier.append(tmp_path / f"{source}.u64")
    content = np.concatenate([np.fromfile(path, np.uint64) for path in earlier])
    assert len(content) == len(known_documents) + len(known_bands)
    assert len(list((tmp_path / "1").glob("*.u64"))) <= 6


def test_full_filter_loses_no_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(hash_runs, "N_RECENT", 64)
    monkeypatch.setattr(hash_runs, "MAX_FILTER_BYTES", 8)
    values = np.random.default_rng(1).integers(0, 2**64, (2, 300), np.uint64).tolist()
    runs = hash_runs.HashRuns(tmp_path)
    for value in values[0]:
        runs.add([value])
    assert all(runs.has_any([value]) for value in values[0])
    assert not any(runs.has_any([value]) for value in values[1])
    runs.close()


def test_saved_hashes_have_a_checksum(tmp_path):
    hashes = document_hashes.DocumentHashes(tmp_path / "a")
    hashes.add(DIGESTS[0])
    hashes.save({})
    hashes.close()
    stored = json_files.read_record(tmp_path / "a" / "state.json")
    ((name, checksum),) = stored["runs"]
    assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == checksum
