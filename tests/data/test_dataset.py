"""Batches are a pure function of the step, and every row is in the exact mixture once per epoch.

Legend: B rows of a batch, T sequence length, S = T + 1 tokens.
"""

import collections
import dataclasses
import hashlib
import json
import time

import numpy as np
import pytest

from lm.config import schema
from lm.data import dataset, tokenizers

SEQ_LEN = 16


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> schema.Data:
    """Config with two sources of about 50 and 400 rows."""
    folder = tmp_path_factory.mktemp("text")
    sources = {}
    for name, n, weight in (("small", 40, 0.25), ("large", 300, 0.75)):
        texts = [hashlib.sha256(f"{name} {i}".encode()).hexdigest()[:20] for i in range(n)]
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        sources[f"jsonl:{folder}/{name}.jsonl"] = weight
    return schema.Data(sources, str(folder / "cache"), 0.1, seq_len=SEQ_LEN, batch_size=8)


@pytest.fixture(scope="module")
def token_dataset(data) -> dataset.TokenDataset:
    return open_dataset(data)


def open_dataset(data: schema.Data, seed: int = 1, **changes) -> dataset.TokenDataset:
    """Open the dataset of a config with changed fields."""
    return dataset.open_dataset(dataclasses.replace(data, **changes), seed)


def row_origins(token_dataset: dataset.TokenDataset, steps: range) -> list[tuple]:
    """Return source, epoch and row of each row of these steps, in order."""
    parts = [token_dataset.rows_of(step) for step in steps]
    return [row for part in parts for row in zip(*part.values(), strict=True)]


def train_tokens(token_dataset: dataset.TokenDataset, source: str) -> np.ndarray:
    """Return the training tokens of a source."""
    return np.fromfile(f"{token_dataset.manifests[source].folder}/train.bin", np.uint8)


def test_batch_is_a_pure_function_of_the_step(data, token_dataset):
    """The steps are read in another order; the pattern of sources repeats after step 511."""
    other = open_dataset(data)
    steps = [0, 511, 512, 700, 3, 100_000]
    batches = [token_dataset.batch(step)["tokens"] for step in steps]
    for step, tokens_BS in reversed(list(zip(steps, batches, strict=True))):
        np.testing.assert_array_equal(other.batch(step)["tokens"], tokens_BS)
        assert tokens_BS.dtype == np.int32 and tokens_BS.shape == (8, SEQ_LEN + 1)


def test_resumed_batches_equal_uninterrupted_ones(data, token_dataset):
    uninterrupted = [token_dataset.batch(step)["tokens"] for step in range(600)]
    resumed = open_dataset(data)
    for step in range(300, 600):
        np.testing.assert_array_equal(resumed.batch(step)["tokens"], uninterrupted[step])


def test_seed_changes_the_rows_but_not_the_sources(data, token_dataset):
    other = open_dataset(data, seed=2)
    assert (other.batch(0)["tokens"] != token_dataset.batch(0)["tokens"]).any()
    np.testing.assert_array_equal(other.rows_of(0)["source"], token_dataset.rows_of(0)["source"])


@pytest.mark.parametrize("batch_size", [1, 5, 512, 5000])
def test_batch_size_does_not_change_the_order_of_rows(data, token_dataset, batch_size):
    other = open_dataset(data, batch_size=batch_size)
    n = 5000
    expected = row_origins(token_dataset, range(n // 8))
    origins = row_origins(other, range(-(-n // batch_size)))
    assert expected[:n] == origins[: len(expected)]


def test_processes_read_parts_of_the_global_batch(token_dataset):
    tokens_BS = token_dataset.batch(5)["tokens"]
    parts = [token_dataset.batch(5, slice(i, None, 2))["tokens"] for i in range(2)]
    np.testing.assert_array_equal(np.stack(parts, 1).reshape(tokens_BS.shape), tokens_BS)
    selected = token_dataset.batch(5, np.array([6, 1]))["tokens"]
    np.testing.assert_array_equal(selected, tokens_BS[[6, 1]])


def test_rows_of_states_the_position_of_each_row(token_dataset):
    for step in (0, 40, 1000):
        tokens_BS, rows = token_dataset.batch(step)["tokens"], token_dataset.rows_of(step)
        for b, (source, row) in enumerate(zip(rows["source"], rows["row"], strict=True)):
            file = train_tokens(token_dataset, source)
            np.testing.assert_array_equal(file[row * SEQ_LEN :][: SEQ_LEN + 1], tokens_BS[b])


def test_every_row_is_read_exactly_once_per_epoch(token_dataset):
    rows = collections.defaultdict(list)
    for source, epoch, row in row_origins(token_dataset, range(1000)):
        rows[source, epoch].append(row)
    for source, n_rows in token_dataset.n_rows.items():
        epochs = sorted(epoch for name, epoch in rows if name == source)
        assert epochs == list(range(len(epochs))) and len(epochs) > 2
        for epoch in epochs[:-1]:
            assert sorted(rows[source, epoch]) == list(range(n_rows))
        assert rows[source, 0] != rows[source, 1] != sorted(rows[source, 1])


@pytest.mark.parametrize("step", [0, 1, 7, 511, 512, 513, 2000])
def test_epochs_count_the_rows_that_were_read(token_dataset, step):
    counts = collections.Counter(source for source, _, _ in row_origins(token_dataset, range(step)))
    expected = {source: counts[source] / n_rows for source, n_rows in token_dataset.n_rows.items()}
    assert token_dataset.epochs(step) == expected


def test_heldout_rows_are_fixed_and_never_trained_on(data, token_dataset):
    batches = (token_dataset.batch(step)["tokens"].astype("u1") for step in range(600))
    training_rows = {bytes(row) for tokens_BS in batches for row in tokens_BS}
    for source in data.sources:
        rows = token_dataset.heldout(source, 10**6)
        n_tokens = token_dataset.manifests[source].tokens["heldout"]
        assert rows.dtype == np.int32 and rows.shape == ((n_tokens - 1) // SEQ_LEN, SEQ_LEN + 1)
        np.testing.assert_array_equal(open_dataset(data, seed=5).heldout(source, 2), rows[:2])
        assert not {bytes(row) for row in rows.astype("u1")} & training_rows


def test_heldout_of_an_unknown_source_suggests_known_ones(token_dataset):
    with pytest.raises(ValueError, match="tiny does not exist: did you mean"):
        token_dataset.heldout("tiny", 1)


def test_source_of_weight_zero_is_only_held_out(data):
    small, large = data.sources
    token_dataset = open_dataset(data, sources={small: 0.0, large: 2.0})
    assert set(token_dataset.rows_of(0)["source"]) == {large}
    assert set(token_dataset.epochs(9)) == {large}
    assert len(token_dataset.heldout(small, 1)) == 1


def test_order_of_sources_in_the_config_has_no_effect(data, token_dataset):
    other = open_dataset(data, sources=dict(reversed(data.sources.items())))
    assert row_origins(other, range(100)) == row_origins(token_dataset, range(100))
    assert other.hash == token_dataset.hash


def test_hash_depends_on_weights_text_and_row_length(data, token_dataset):
    small, large = data.sources
    changes = [{"sources": {small: 0.5, large: 0.5}}, {"seq_len": 8}, {"heldout_fraction": 0.2}]
    hashes = [open_dataset(data, **change).hash for change in changes]
    assert len({token_dataset.hash, *hashes}) == 4
    assert open_dataset(data, seed=9, batch_size=4).hash == token_dataset.hash


def test_bytes_per_token_excludes_end_tokens(token_dataset):
    targets = [token_dataset.batch(step)["tokens"][:, 1:].ravel() for step in range(2048)]
    mean = token_dataset.tokenizer.byte_lengths()[np.concatenate(targets)].mean()
    assert token_dataset.bytes_per_token == pytest.approx(mean, abs=0.002)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seq_len": 900}, "training tokens are fewer than one row of data.seq_len=900"),
        (
            {"seq_len": 400},
            "=0.1 of .* documents: .* held-out tokens are fewer .*: raise data.held",
        ),
        ({"heldout_fraction": 1e-9}, "raise data.heldout_fraction"),
        ({"heldout_fraction": 0.99}, "lower data.heldout_fraction, add text, or set"),
    ],
)
def test_split_with_fewer_tokens_than_a_row_is_rejected(data, changes, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(data, **changes)


@pytest.mark.parametrize("fraction", [0.05, 0.95])
def test_one_document_cannot_be_in_both_splits(tmp_path, fraction):
    (tmp_path / "a.txt").write_text("one short text on one line")
    config = schema.Data({f"text:{tmp_path}/a.txt": 1.0}, str(tmp_path), fraction, seq_len=8)
    message = "of 1 document: 0 .*: add documents, or set data.heldout_fraction=0 to train"
    with pytest.raises(ValueError, match=message):
        dataset.open_dataset(config, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"packing": "documents"},
        {"packing": "continuation"},
        {"decontaminate_ngram": 13},
        {"attend_across_documents": False},
    ],
)
def test_heldout_fraction_may_be_zero(data, changes):
    token_dataset = open_dataset(data, heldout_fraction=0.0, **changes)
    source = token_dataset.sources[0]
    assert token_dataset.heldout(source, 5).shape == (0, SEQ_LEN + 1)
    assert token_dataset.batch(3)["tokens"].shape == (8, SEQ_LEN + 1)
    assert token_dataset.manifests[source].warning == ""
    assert dataset.byte_lengths(token_dataset, source).shape == (256,)


def test_source_may_consist_of_one_row(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "seven b"}')
    source = f"jsonl:{tmp_path}/a.jsonl"
    config = schema.Data({source: 1.0}, str(tmp_path), 0.0, seq_len=7, batch_size=3)
    token_dataset = dataset.open_dataset(config, 0)
    assert token_dataset.tokenizer.decode(token_dataset.batch(2)["tokens"][1]) == "seven b"
    assert token_dataset.epochs(2) == {source: 6.0}


def test_segments_number_the_documents_of_a_row(data, token_dataset):
    other = open_dataset(data, attend_across_documents=False)
    batch = other.batch(3)
    np.testing.assert_array_equal(batch["tokens"], token_dataset.batch(3)["tokens"])
    assert "segments" not in token_dataset.batch(3) and batch["segments"].dtype == np.int32
    for tokens_S, segments_T in zip(batch["tokens"], batch["segments"], strict=True):
        visible_S = np.where(tokens_S == tokenizers.END, ord("|"), tokens_S)
        lengths = [len(text) + 1 for text in other.tokenizer.decode(visible_S).split("|")]
        expected = np.repeat(np.arange(len(lengths)), lengths)[:SEQ_LEN]
        np.testing.assert_array_equal(segments_T, expected)
    assert batch["segments"].max() > 0
    assert other.hash != token_dataset.hash


def test_continuation_rows_have_loss_after_a_random_position(data, token_dataset):
    """Each number of targets with loss, 1 to T, occurs equally often in 16,000 rows."""
    other = open_dataset(data, packing="continuation")
    weights = np.concatenate([other.batch(step)["weights"] for step in range(2000)])
    assert weights.dtype == np.float32 and set(weights.ravel()) == {0.0, 1.0}
    assert (np.diff(weights, axis=1) >= 0).all() and (weights[:, -1] == 1).all()
    counts = np.bincount(weights.sum(axis=1).astype(int), minlength=SEQ_LEN + 1)
    assert counts[0] == 0 and np.abs(counts[1:] / 1000 - 1).max() < 0.2
    np.testing.assert_array_equal(other.batch(7)["tokens"], token_dataset.batch(7)["tokens"])


def test_random_cut_depends_on_the_seed_but_not_the_batch_size(data):
    token_dataset = open_dataset(data, packing="continuation")
    half_batch = open_dataset(data, packing="continuation", batch_size=4)
    expected = token_dataset.batch(7)["weights"][4:]
    np.testing.assert_array_equal(half_batch.batch(15)["weights"], expected)
    other_seed = open_dataset(data, seed=2, packing="continuation")
    assert (other_seed.batch(0)["weights"] != token_dataset.batch(0)["weights"]).any()


def test_random_cut_changes_with_the_epoch(data):
    token_dataset = open_dataset(data, packing="continuation", batch_size=1)
    cuts = collections.defaultdict(list)
    for step in range(1500):
        rows = token_dataset.rows_of(step)
        cut = int(SEQ_LEN - token_dataset.batch(step)["weights"].sum())
        cuts[rows["source"][0], rows["row"][0]].append(cut)
    repeated = [row_cuts for row_cuts in cuts.values() if len(row_cuts) >= 4]
    assert len(repeated) > 20
    assert np.mean([len(set(row_cuts)) > 1 for row_cuts in repeated]) > 0.95


def rows_read(token_dataset: dataset.TokenDataset) -> set:
    """Return the (source, row) pairs of 600 steps, which read every row."""
    rows = {(source, row) for source, _, row in row_origins(token_dataset, range(600))}
    assert len(rows) == sum(token_dataset.n_rows.values())
    return rows


def test_unique_tokens_select_the_same_rows_for_every_seed(data):
    """The 1000 tokens are a subset of the 2000 tokens."""
    small, large = (
        [open_dataset(data, seed=seed, unique_tokens=n) for seed in (1, 2)] for n in (1000, 2000)
    )
    assert rows_read(small[0]) == rows_read(small[1])
    assert rows_read(large[0]) == rows_read(large[1])
    assert rows_read(small[0]) < rows_read(large[0])


def test_unique_tokens_are_divided_by_the_source_weights(data, token_dataset):
    small, large = (open_dataset(data, unique_tokens=n) for n in (1000, 2000))
    assert small.n_rows == dict(zip(small.sources, (46, 15), strict=True))
    assert small.unique_tokens == sum(small.n_rows.values()) * SEQ_LEN
    assert token_dataset.unique_tokens == sum(token_dataset.n_rows.values()) * SEQ_LEN
    assert small.epochs(600)[small.sources[0]] == 3600 / 46
    assert len({token_dataset.hash, small.hash, large.hash}) == 3


def test_more_unique_tokens_than_available_are_rejected(data):
    with pytest.raises(ValueError, match="data.unique_tokens=10000 needs 468 rows .* which has 3"):
        open_dataset(data, unique_tokens=10_000)


def test_more_epochs_than_allowed_are_rejected_by_source(data, token_dataset):
    limited = open_dataset(data, max_epochs=2.0)
    steps = next(n for n in range(1000) if max(limited.epochs(n).values()) > 2)
    dataset.validate_steps(limited, steps - 1)
    message = f"max_epochs=2.0: steps={steps} give 2.* epochs of jsonl:"
    with pytest.raises(ValueError, match=message):
        dataset.validate_steps(limited, steps)
    dataset.validate_steps(token_dataset, 10**6)


def test_fewer_rows_than_one_batch_are_rejected(data):
    token_dataset = open_dataset(data, batch_size=100_000)
    with pytest.raises(ValueError, match="data.batch_size=100000 is more than the .* rows"):
        dataset.validate_steps(token_dataset, steps=1)


def test_row_documents_returns_the_documents_of_a_row(token_dataset):
    for source in token_dataset.sources:
        is_end = train_tokens(token_dataset, source) == tokenizers.END
        document_of_token = np.cumsum(is_end) - is_end
        for row in range(0, token_dataset.n_rows[source], 5):
            first = document_of_token[row * SEQ_LEN]
            n_ends = is_end[row * SEQ_LEN :][:SEQ_LEN].sum()
            numbers = dataset.row_documents(token_dataset, source, row)
            assert list(numbers) == list(range(first, first + n_ends + 1))
        n_rows = len(token_dataset.heldout_files[source])
        numbers = dataset.row_documents(token_dataset, source, n_rows - 1, "heldout")
        assert numbers[-1] < token_dataset.manifests[source].documents["heldout"]


def test_bpe_rows_have_bpe_tokens(data):
    token_dataset = open_dataset(data, tokenizer="bpe:300")
    assert isinstance(token_dataset.tokenizer, tokenizers.HFTokenizer)
    assert token_dataset.bytes_per_token > 1.1
    tokens_BS = token_dataset.batch(0)["tokens"]
    assert tokens_BS.dtype == np.int32 and tokens_BS.min() >= 0 and 255 < tokens_BS.max() < 300
    text = "".join(token_dataset.tokenizer.decode(row) for row in tokens_BS)
    assert len(text) > tokens_BS.size and set(text) <= set("0123456789abcdef")


def test_byte_lengths_are_scaled_if_a_tokenizer_changes_text(data, token_dataset):
    source = token_dataset.sources[0]
    lengths = dataset.byte_lengths(token_dataset, source)
    np.testing.assert_array_equal(lengths, token_dataset.tokenizer.byte_lengths())
    manifest = dataclasses.replace(token_dataset.manifests[source], counted={"heldout": 1})
    other = dataset.TokenDataset(data, 1, token_dataset.manifests | {source: manifest})
    assert dataset.byte_lengths(other, source).max() == manifest.bytes["heldout"]


def test_entropy_bound_exists_for_byte_tokens_only(data, tmp_path):
    name = "synthetic:machine?states=8&megabytes=0.1"
    changes = {"sources": {name: 1.0}, "cache_dir": str(tmp_path), "seq_len": 32}
    bound, error = dataset.entropy_bounds(open_dataset(data, **changes))[name]
    assert 1.86 < bound < 2.0 and 0 < error < 0.01
    assert dataset.entropy_bounds(open_dataset(data, tokenizer="bpe:300", **changes)) == {}


def test_batches_are_computed_at_memory_speed(data):
    """The bound of 5e6 tokens per second is far below normal and detects reads per token."""
    token_dataset = open_dataset(data, batch_size=256)
    token_dataset.batch(0)
    seconds = []
    for step in range(200):
        start = time.perf_counter()
        token_dataset.batch(step)
        seconds.append(time.perf_counter() - start)
    assert 256 * SEQ_LEN / np.median(seconds) > 5e6
