"""Packing of whole documents: no document is split, and padding has no weight."""

import dataclasses
import json

import numpy as np
import pytest

from lm.config import schema
from lm.data import dataset, packing, tokenizers
from lm.data.sources import chat

SEQ_LEN = 48
BYTES = tokenizers.ByteTokenizer()


def a_file(texts):
    return np.concatenate([np.r_[BYTES.encode(text), 0] for text in texts]).astype(np.uint8)


def documents_in(rows_NS):
    """The texts of rows, in any order."""
    parts = b"".join(bytes(row.astype(np.uint8)) + b"\0" for row in rows_NS).split(b"\0")
    return sorted(part.decode() for part in parts if part)


def talk(prompt, answer="yes"):
    return chat.render_conversation("chat", [chat.Turn(prompt, answer)])


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [talk("p" * int(n), "a" * int(m)) for n, m in rng.integers(1, 21, (400, 2))]


def test_every_document_is_complete_in_one_row(texts):
    rows = packing.PackedDocuments(a_file(texts), SEQ_LEN, BYTES)
    found = rows[np.arange(len(rows))]
    assert found.shape == (len(rows), SEQ_LEN + 1) and (found[:, 0] == 0).all()
    assert documents_in(found) == sorted(texts)
    assert rows.n_cut == rows.n_left_out == 0 and rows.n_documents == 400
    for row in (0, 5):
        mine = sorted(texts[i] for i in rows.document[rows.items(row)])
        assert documents_in(rows[np.array([row])]) == mine


def test_rows_are_nearly_full(texts):
    rows = packing.PackedDocuments(a_file(texts), 4 * SEQ_LEN, BYTES)
    n_tokens = sum(len(text) + 1 for text in texts)
    assert rows.fill == pytest.approx(n_tokens / (len(rows) * 4 * SEQ_LEN)) and rows.fill > 0.97
    found = rows[np.arange(len(rows))]
    assert packing.packed_loss_weights(found, 0).sum() == n_tokens


def test_each_segment_starts_with_an_end_token(texts):
    rows_NS = packing.PackedDocuments(a_file(texts), SEQ_LEN, BYTES)[np.arange(20)]
    segments_NT = packing.packed_segment_ids(rows_NS, 0)
    for row_S, segments_T in zip(rows_NS, segments_NT, strict=True):
        for number in np.unique(segments_T):
            mine = row_S[:-1][segments_T == number]
            assert mine[0] == 0 and (mine[1:] != 0).all()


def test_long_conversation_loses_the_left_of_its_prompt():
    long = talk("left" + "." * 60 + "right", "done")
    rows = packing.PackedDocuments(a_file([long, talk("short")]), SEQ_LEN, BYTES)
    kept = next(text for text in documents_in(rows[np.arange(len(rows))]) if "right" in text)
    assert kept[0] == chat.USER and long.endswith(kept[1:]) and len(kept) == SEQ_LEN - 1
    assert (rows.n_cut, rows.n_left_out) == (1, 0)


def test_conversation_with_too_long_answer_is_dropped():
    rows = packing.PackedDocuments(a_file([talk("p", "a" * 60), talk("short")]), SEQ_LEN, BYTES)
    assert documents_in(rows[np.arange(len(rows))]) == [talk("short")]
    assert (rows.n_cut, rows.n_left_out) == (0, 1)
    fits = packing.PackedDocuments(a_file([talk("p" * 99, "a" * (SEQ_LEN - 4))]), SEQ_LEN, BYTES)
    assert fits.n_cut == 1 and len(documents_in(fits[np.arange(1)])[0]) == SEQ_LEN - 1


@pytest.mark.parametrize("on_overflow, n", [("truncate", 2), ("drop", 1)])
def test_long_conversations_can_be_dropped_or_refused(on_overflow, n):
    file = a_file([talk("p" * 60), talk("short")])
    rows = packing.PackedDocuments(file, SEQ_LEN, BYTES, on_overflow)
    assert len(documents_in(rows[np.arange(len(rows))])) == n
    with pytest.raises(ValueError, match="src: 1 of 2 conversations are longer .* longest 67 tok"):
        packing.PackedDocuments(file, SEQ_LEN, BYTES, "error", "src")


def test_long_text_is_cut_into_pieces_and_nothing_is_lost():
    text = "".join(chr(97 + i % 26) for i in range(5 * SEQ_LEN + 7))
    rows = packing.PackedDocuments(a_file([text, "short"]), SEQ_LEN, BYTES)
    found = rows[np.arange(len(rows))]
    pieces = documents_in(found)
    assert sum(map(len, pieces)) == len(text) + 5 and all(
        piece in text + "short" for piece in pieces
    )
    assert rows.n_cut == 0


@pytest.mark.parametrize("options", [{}, {"max_open": 3}, {"newest_only": True}])
def test_no_packed_row_exceeds_its_capacity(options):
    sizes = np.random.default_rng(1).integers(1, 61, 500)
    rows = packing.best_fit(sizes, 60, **options)
    filled = np.bincount(rows, sizes)
    assert (filled <= 60).all() and (filled > 0).all()


def test_best_fit_chooses_the_fullest_row_with_room():
    assert packing.best_fit([5, 7, 3, 4, 3, 8], 10).tolist() == [0, 1, 1, 0, 2, 3]
    assert packing.best_fit([5, 7, 3], 10, max_open=1).tolist() == [0, 1, 0]  # closes the fullest


def test_next_fit_uses_the_newest_row_only():
    sizes = [5, 7, 5, 10, 5, 5, 1]
    assert packing.best_fit(sizes, 10, newest_only=True).tolist() == [0, 1, 2, 3, 4, 4, 5]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Conversations and text."""
    folder = tmp_path_factory.mktemp("mixed")
    lines = [{"prompt": f"Say {n} twice.", "target": f"{n} {n}"} for n in range(200)]
    (folder / "talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"A line, number {n}."}) + "\n" for n in range(200))
    )
    names = {f"chat:{folder}/talk.jsonl": 0.5, f"jsonl:{folder}/text.jsonl": 0.5}
    knobs = {"packing": "documents", "loss_on": "answers", "seq_len": 64, "batch_size": 8}
    return schema.Data(names, str(folder / "cache"), 0.2, **knobs)


def test_a_batch_of_a_mixture_learns_answers_and_text(mixed):
    text = dataset.open_dataset(mixed, 1)
    batch, rows = text.batch(3), text.rows_of(3)
    assert batch["segments"].shape == batch["weights"].shape == (8, 64)
    for tokens_S, weights_T, source in zip(
        batch["tokens"], batch["weights"], rows["source"], strict=True
    ):
        learned = BYTES.decode(tokens_S[1:][weights_T == 1])
        assert "Say" not in learned and ("twice" not in learned)
        assert ("number" in learned) == source.startswith("jsonl")
    heldout = dataset.add_segments_and_weights(
        text.data, text.tokenizer, text.heldout(text.sources[0], 5)
    )
    assert set(heldout) == {"tokens", "segments", "weights"}
    stats = dataset.packing_stats(text)[text.sources[0]]
    assert stats["n_cut"] == 0 and dataset.open_dataset(mixed, 1).hash == text.hash


def test_too_short_a_row_for_any_conversation_is_refused(mixed):
    with pytest.raises(ValueError, match="no conversation fits into data.seq_len=4 tokens"):
        dataset.open_dataset(dataclasses.replace(mixed, seq_len=4), 1)
