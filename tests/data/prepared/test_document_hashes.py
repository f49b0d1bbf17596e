"""Hash set of documents on disk: equal documents, near-duplicates, and damaged files."""

import hashlib
import sqlite3

import pytest

from lm.data.prepared import document_hashes

DIGESTS = [hashlib.sha256(bytes([i])).digest() for i in range(3)]


def test_document_hashes_reject_equal_documents(tmp_path):
    hashes = document_hashes.DocumentHashes(tmp_path / "a.sqlite")
    assert hashes.add(DIGESTS[0]) and hashes.add(DIGESTS[1]) and not hashes.add(DIGESTS[0])
    hashes.save({"part": 1})
    hashes.close()
    second = document_hashes.DocumentHashes(tmp_path / "b.sqlite", [tmp_path / "a.sqlite"])
    assert not second.add(DIGESTS[1]) and second.add(DIGESTS[2])
    second.close()


def test_document_hashes_find_a_common_band(tmp_path):
    hashes = document_hashes.DocumentHashes(tmp_path / "a.sqlite")
    hashes.add_bands((5, 7))
    assert hashes.has_band((1, 7)) and not hashes.has_band((1, 2)) and not hashes.has_band(())
    hashes.save({})
    hashes.close()
    second = document_hashes.DocumentHashes(tmp_path / "b.sqlite", [tmp_path / "a.sqlite"])
    assert second.has_band((5,)) and not second.has_band((6,))
    second.close()


def test_unsaved_document_hashes_are_lost_on_close(tmp_path):
    hashes = document_hashes.DocumentHashes(tmp_path / "a.sqlite")
    hashes.add(DIGESTS[0])
    hashes.save({"part": 3})
    hashes.add(DIGESTS[1])
    hashes.close()
    hashes = document_hashes.DocumentHashes(tmp_path / "a.sqlite")
    assert hashes.saved_state() == {"part": 3}
    assert not hashes.add(DIGESTS[0]) and hashes.add(DIGESTS[1])
    hashes.close()


def test_changed_state_is_not_used(tmp_path):
    path = tmp_path / "a.sqlite"
    for text in ('{"part": 3}', "0" * 64 + '{"part": 3}'):
        hashes = document_hashes.DocumentHashes(path)
        hashes.save({"part": 3})
        hashes._connection.execute("UPDATE saved SET facts = ?", (text,))
        if text.startswith("{"):
            assert hashes.saved_state() == {"part": 3}  # as version 0.2.0 stored it
        else:
            with pytest.raises(ValueError, match="its state differs from its checksum"):
                hashes.saved_state()
        hashes.close()


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM documents WHERE rowid = (SELECT max(rowid) FROM documents)",
        "UPDATE documents SET hash = hash + 1 WHERE rowid = (SELECT max(rowid) FROM documents)",
        "INSERT INTO documents VALUES (-7)",
        "UPDATE bands SET hash = 6 WHERE hash = 5",
        "DELETE FROM bands",
    ],
)
def test_changed_hashes_are_not_used(tmp_path, change):
    """A lost hash would accept an equal document, and a wrong hash would reject a document."""
    path = tmp_path / "a.sqlite"
    for part in (1, 2):  # the sums continue after the file is opened again
        hashes = document_hashes.DocumentHashes(path)
        assert hashes.saved_state() == ({"part": 1} if part == 2 else {})
        for digest in DIGESTS[part - 1 : part + 1]:
            hashes.add(digest)
        hashes.add_bands((5, 2**63 - 1, -(2**63), 5))
        hashes.save({"part": part})
        hashes.close()
    intact = document_hashes.DocumentHashes(path)
    assert intact.saved_state() == {"part": 2}
    intact.close()
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    connection.close()
    damaged = document_hashes.DocumentHashes(path)
    with pytest.raises(ValueError, match="a.sqlite is damaged: the hashes of .* have changed"):
        damaged.saved_state()
    damaged.close()


def test_state_without_sums_continues(tmp_path):
    """An earlier version stored a state without the sums of the tables."""
    path = tmp_path / "a.sqlite"
    hashes = document_hashes.DocumentHashes(path)
    hashes.add(DIGESTS[0])
    hashes.save({"part": 3})
    hashes._connection.execute("UPDATE saved SET facts = ?", ('{"part": 3}',))
    for digest in DIGESTS[1:]:
        assert hashes.saved_state() == {"part": 3}
        assert not hashes.add(DIGESTS[0]) and hashes.add(digest)
        hashes.save({"part": 3})
    hashes.close()
