"""Document packing: no document is split, and padding has no weight.

Legend: N rows, T sequence length, S = T + 1 tokens.
"""

import dataclasses
import json

import numpy as np
import pytest

from lm.config import schema
from lm.data import dataset, packing, tokenizers
from lm.data.sources import chat

SEQ_LEN = 48
BYTES = tokenizers.ByteTokenizer()


def token_file(texts: list[str]) -> np.ndarray:
    """Return the tokens of the texts, each followed by an end token."""
    return np.concatenate([np.r_[BYTES.encode(text), 0] for text in texts]).astype(np.uint8)


def documents_in(rows_NS: np.ndarray) -> list[str]:
    """Return the texts of the rows, sorted."""
    parts = b"".join(bytes(row.astype(np.uint8)) + b"\0" for row in rows_NS).split(b"\0")
    return sorted(part.decode() for part in parts if part)


def conversation(prompt: str, answer: str = "yes") -> str:
    """Return the text of a conversation of one turn."""
    return chat.render_conversation("chat", [chat.Turn(prompt, answer)])


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """400 conversations of 2 to 40 characters."""
    rng = np.random.default_rng(0)
    return [conversation("p" * n, "a" * m) for n, m in rng.integers(1, 21, (400, 2)).tolist()]


def test_every_document_is_complete_in_one_row(texts):
    rows = packing.PackedDocuments(token_file(texts), SEQ_LEN, BYTES)
    tokens_NS = rows[np.arange(len(rows))]
    assert tokens_NS.shape == (len(rows), SEQ_LEN + 1) and (tokens_NS[:, 0] == 0).all()
    assert documents_in(tokens_NS) == sorted(texts)
    assert rows.n_cut == rows.n_left_out == 0 and rows.n_documents == 400
    for row in (0, 5):
        expected = sorted(texts[i] for i in rows.document[rows.items(row)])
        assert documents_in(rows[np.array([row])]) == expected


def test_rows_are_nearly_full(texts):
    rows = packing.PackedDocuments(token_file(texts), 4 * SEQ_LEN, BYTES)
    n_tokens = sum(len(text) + 1 for text in texts)
    assert rows.fill == pytest.approx(n_tokens / (len(rows) * 4 * SEQ_LEN)) and rows.fill > 0.97
    tokens_NS = rows[np.arange(len(rows))]
    assert packing.packed_loss_weights(tokens_NS, 0).sum() == n_tokens


def test_each_segment_starts_with_an_end_token(texts):
    rows_NS = packing.PackedDocuments(token_file(texts), SEQ_LEN, BYTES)[np.arange(20)]
    segments_NT = packing.packed_segment_ids(rows_NS, 0)
    for row_S, segments_T in zip(rows_NS, segments_NT, strict=True):
        for number in np.unique(segments_T):
            inputs = row_S[:-1][segments_T == number]
            assert inputs[0] == 0 and (inputs[1:] != 0).all()


def test_long_conversation_loses_the_start_of_its_prompt():
    long = conversation("left" + "." * 60 + "right", "done")
    rows = packing.PackedDocuments(token_file([long, conversation("short")]), SEQ_LEN, BYTES)
    packed = documents_in(rows[np.arange(len(rows))])
    truncated = next(text for text in packed if "right" in text)
    assert truncated[0] == chat.USER and long.endswith(truncated[1:])
    assert len(truncated) == SEQ_LEN - 1
    assert (rows.n_cut, rows.n_left_out) == (1, 0)


def test_conversation_with_too_long_answer_is_dropped():
    rows = packing.PackedDocuments(
        token_file([conversation("p", "a" * 60), conversation("short")]), SEQ_LEN, BYTES
    )
    assert documents_in(rows[np.arange(len(rows))]) == [conversation("short")]
    assert (rows.n_cut, rows.n_left_out) == (0, 1)
    fits = packing.PackedDocuments(
        token_file([conversation("p" * 99, "a" * (SEQ_LEN - 4))]), SEQ_LEN, BYTES
    )
    assert fits.n_cut == 1 and len(documents_in(fits[np.arange(1)])[0]) == SEQ_LEN - 1


@pytest.mark.parametrize("on_overflow, n", [("truncate", 2), ("drop", 1)])
def test_long_conversations_can_be_dropped_or_rejected(on_overflow, n):
    file = token_file([conversation("p" * 60), conversation("short")])
    rows = packing.PackedDocuments(file, SEQ_LEN, BYTES, on_overflow)
    assert len(documents_in(rows[np.arange(len(rows))])) == n
    with pytest.raises(ValueError, match="src: 1 of 2 conversations are longer .* longest 67 tok"):
        packing.PackedDocuments(file, SEQ_LEN, BYTES, "error", "src")


def test_long_text_is_split_into_pieces_without_loss():
    text = "".join(chr(97 + i % 26) for i in range(5 * SEQ_LEN + 7))
    rows = packing.PackedDocuments(token_file([text, "short"]), SEQ_LEN, BYTES)
    pieces = documents_in(rows[np.arange(len(rows))])
    assert sum(map(len, pieces)) == len(text) + len("short")
    assert all(piece in text + "short" for piece in pieces)
    assert rows.n_cut == 0


@pytest.mark.parametrize("options", [{}, {"max_open": 3}, {"newest_only": True}])
def test_no_packed_row_exceeds_its_capacity(options):
    sizes = np.random.default_rng(1).integers(1, 61, 500)
    rows = packing.best_fit(sizes, 60, **options)
    row_sizes = np.bincount(rows, sizes)
    assert (row_sizes <= 60).all() and (row_sizes > 0).all()


def test_best_fit_chooses_the_fullest_row_with_room():
    assert packing.best_fit([5, 7, 3, 4, 3, 8], 10).tolist() == [0, 1, 1, 0, 2, 3]


def test_best_fit_closes_the_fullest_of_too_many_rows():
    assert packing.best_fit([5, 7, 3], 10, max_open=1).tolist() == [0, 1, 0]


def test_next_fit_uses_the_newest_row_only():
    sizes = [5, 7, 5, 10, 5, 5, 1]
    assert packing.best_fit(sizes, 10, newest_only=True).tolist() == [0, 1, 2, 3, 4, 4, 5]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> schema.Data:
    """A mixture of conversations and text."""
    folder = tmp_path_factory.mktemp("mixed")
    lines = [{"prompt": f"Say {n} twice.", "target": f"{n} {n}"} for n in range(200)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"A line, number {n}."}) + "\n" for n in range(200))
    )
    sources = {f"chat:{folder}/chat.jsonl": 0.5, f"jsonl:{folder}/text.jsonl": 0.5}
    options = {"packing": "documents", "loss_on": "answers", "seq_len": 64, "batch_size": 8}
    return schema.Data(sources, str(folder / "cache"), 0.2, **options)


def test_answers_and_text_have_loss_but_prompts_have_none(mixed):
    token_dataset = dataset.open_dataset(mixed, 1)
    batch, rows = token_dataset.batch(3), token_dataset.rows_of(3)
    assert batch["segments"].shape == batch["weights"].shape == (8, 64)
    for tokens_S, weights_T, source in zip(
        batch["tokens"], batch["weights"], rows["source"], strict=True
    ):
        targets = BYTES.decode(tokens_S[1:][weights_T == 1])
        assert "Say" not in targets and "twice" not in targets
        assert ("number" in targets) == source.startswith("jsonl")


def test_packed_heldout_rows_have_segments_and_weights(mixed):
    token_dataset = dataset.open_dataset(mixed, 1)
    source = token_dataset.sources[0]
    tokens_NS = token_dataset.heldout(source, 5)
    batch = dataset.add_segments_and_weights(mixed, token_dataset.tokenizer, tokens_NS)
    assert set(batch) == {"tokens", "segments", "weights"}
    assert dataset.packing_stats(token_dataset)[source]["n_cut"] == 0
    assert dataset.open_dataset(mixed, 1).hash == token_dataset.hash


def test_row_too_short_for_any_conversation_is_rejected(mixed):
    with pytest.raises(ValueError, match="no conversation fits into data.seq_len=4 tokens"):
        dataset.open_dataset(dataclasses.replace(mixed, seq_len=4), 1)
