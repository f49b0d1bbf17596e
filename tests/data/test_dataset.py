"""Batches: a pure function of the step, exact mixture, every row once per epoch."""

import collections
import dataclasses
import hashlib
import itertools
import json
import threading
import time

import numpy as np
import pytest

from lm.config import schema
from lm.data import dataset, tokenizers

SEQ_LEN = 16


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Two sources of about 50 and 400 rows."""
    folder = tmp_path_factory.mktemp("text")
    sources = {}
    for name, n, weight in (("small", 40, 0.25), ("large", 300, 0.75)):
        texts = [hashlib.sha256(f"{name} {i}".encode()).hexdigest()[:20] for i in range(n)]
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
        sources[f"jsonl:{folder}/{name}.jsonl"] = weight
    return schema.Data(sources, str(folder / "cache"), 0.1, seq_len=SEQ_LEN, batch_size=8)


@pytest.fixture(scope="module")
def text(mixture):
    return dataset.open_dataset(mixture, seed=1)


def rows_seen(text, steps):
    """(source, epoch, row) of each row of these steps, in order."""
    parts = [text.rows_of(step) for step in steps]
    return [row for part in parts for row in zip(*part.values(), strict=True)]


def test_a_batch_is_a_pure_function_of_the_step(mixture, text):
    other = dataset.open_dataset(mixture, seed=1)
    steps = [0, 511, 512, 700, 3, 100_000]  # a pattern ends with step 511
    found = [text.batch(step)["tokens"] for step in steps]
    for step, batch in reversed(list(zip(steps, found, strict=True))):
        np.testing.assert_array_equal(other.batch(step)["tokens"], batch)
        assert batch.dtype == np.int32 and batch.shape == (8, SEQ_LEN + 1)


def test_resumed_equals_continued(mixture, text):
    whole = [text.batch(step)["tokens"] for step in range(600)]
    resumed = dataset.open_dataset(mixture, seed=1)
    for step in range(300, 600):
        np.testing.assert_array_equal(resumed.batch(step)["tokens"], whole[step])


def test_another_seed_is_another_order(mixture, text):
    other = dataset.open_dataset(mixture, seed=2)
    assert (other.batch(0)["tokens"] != text.batch(0)["tokens"]).any()
    np.testing.assert_array_equal(other.rows_of(0)["source"], text.rows_of(0)["source"])


@pytest.mark.parametrize("batch_size", [1, 5, 512, 5000])
def test_the_batch_size_does_not_change_the_order_of_rows(mixture, text, batch_size):
    other = dataset.open_dataset(dataclasses.replace(mixture, batch_size=batch_size), seed=1)
    n = 5000
    mine = rows_seen(text, range(n // 8))
    theirs = rows_seen(other, range(-(-n // batch_size)))
    assert mine[:n] == theirs[: len(mine)]


def test_processes_read_parts_of_the_global_batch(text):
    whole = text.batch(5)["tokens"]
    parts = [text.batch(5, slice(host, None, 2))["tokens"] for host in range(2)]
    np.testing.assert_array_equal(np.stack(parts, 1).reshape(whole.shape), whole)
    np.testing.assert_array_equal(text.batch(5, np.array([6, 1]))["tokens"], whole[[6, 1]])


def test_rows_of_names_the_windows_of_a_batch(text):
    for step in (0, 40, 1000):
        batch, rows = text.batch(step)["tokens"], text.rows_of(step)
        for b, (source, row) in enumerate(zip(rows["source"], rows["row"], strict=True)):
            file = np.fromfile(f"{text.manifests[source].folder}/train.bin", np.uint8)
            np.testing.assert_array_equal(file[row * SEQ_LEN :][: SEQ_LEN + 1], batch[b])


def test_every_row_is_seen_exactly_once_an_epoch(text):
    seen = collections.defaultdict(list)
    for source, epoch, row in rows_seen(text, range(1000)):
        seen[source, epoch].append(row)
    for source, n_rows in text.n_rows.items():
        epochs = sorted(epoch for name, epoch in seen if name == source)
        assert epochs == list(range(len(epochs))) and len(epochs) > 2
        for epoch in epochs[:-1]:
            assert sorted(seen[source, epoch]) == list(range(n_rows))
        assert seen[source, 0] != seen[source, 1] != sorted(seen[source, 1])


@pytest.mark.parametrize("step", [0, 1, 7, 511, 512, 513, 2000])
def test_epochs_count_the_rows_that_were_seen(text, step):
    counts = collections.Counter(source for source, _, _ in rows_seen(text, range(step)))
    wanted = {source: counts[source] / n_rows for source, n_rows in text.n_rows.items()}
    assert text.epochs(step) == wanted


def test_heldout_rows_are_fixed_and_never_trained_on(mixture, text):
    trained = {bytes(row) for step in range(600) for row in text.batch(step)["tokens"].astype("u1")}
    for source in mixture.sources:
        rows = text.heldout(source, 10**6)
        n_tokens = text.manifests[source].tokens["heldout"]
        assert rows.dtype == np.int32 and rows.shape == ((n_tokens - 1) // SEQ_LEN, SEQ_LEN + 1)
        np.testing.assert_array_equal(
            dataset.open_dataset(mixture, seed=5).heldout(source, 2), rows[:2]
        )
        assert not {bytes(row) for row in rows.astype("u1")} & trained


def test_heldout_of_an_unknown_source_names_the_known(text):
    with pytest.raises(ValueError, match="tiny does not exist: did you mean"):
        text.heldout("tiny", 1)


def test_a_source_of_weight_zero_is_only_held_out(mixture):
    small, large = mixture.sources
    text = dataset.open_dataset(
        dataclasses.replace(mixture, sources={small: 0.0, large: 2.0}), seed=1
    )
    assert set(text.rows_of(0)["source"]) == {large} and set(text.epochs(9)) == {large}
    assert len(text.heldout(small, 1)) == 1


def test_the_order_in_which_sources_are_named_does_not_matter(mixture, text):
    sources = dict(reversed(mixture.sources.items()))
    other = dataset.open_dataset(dataclasses.replace(mixture, sources=sources), seed=1)
    assert rows_seen(other, range(100)) == rows_seen(text, range(100))
    assert other.hash == text.hash


def test_the_hash_follows_weights_text_and_rows(mixture, text):
    small, large = mixture.sources
    changed = [
        dataclasses.replace(mixture, sources={small: 0.5, large: 0.5}),
        dataclasses.replace(mixture, seq_len=8),
        dataclasses.replace(mixture, heldout_fraction=0.2),
    ]
    hashes = [dataset.open_dataset(other, seed=1).hash for other in changed]
    assert len({text.hash, *hashes}) == 4
    assert (
        dataset.open_dataset(dataclasses.replace(mixture, batch_size=4), seed=9).hash == text.hash
    )


def test_bytes_per_token_leaves_out_the_ends_of_documents(text):
    found = np.concatenate([text.batch(step)["tokens"][:, 1:].ravel() for step in range(2048)])
    mean = text.tokenizer.byte_lengths()[found].mean()
    assert text.bytes_per_token == pytest.approx(mean, abs=0.002)


def test_fewer_tokens_than_a_row_are_refused(mixture):
    with pytest.raises(
        ValueError, match="training tokens are fewer than one row of data.seq_len=900"
    ):
        dataset.open_dataset(dataclasses.replace(mixture, seq_len=900), seed=1)
    with pytest.raises(
        ValueError, match="data.heldout_fraction=0.1 of .* documents gives .*: raise data.held"
    ):
        dataset.open_dataset(dataclasses.replace(mixture, seq_len=400), seed=1)
    with pytest.raises(ValueError, match="raise data.heldout_fraction"):
        dataset.open_dataset(dataclasses.replace(mixture, heldout_fraction=1e-9), seed=1)


def test_heldout_fraction_may_be_zero(mixture):
    text = dataset.open_dataset(dataclasses.replace(mixture, heldout_fraction=0.0), seed=1)
    assert text.heldout(text.sources[0], 5).shape == (0, SEQ_LEN + 1)


def test_a_row_may_be_the_whole_of_a_source(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "seven b"}')
    source = f"jsonl:{tmp_path}/a.jsonl"
    text = dataset.open_dataset(
        schema.Data({source: 1.0}, str(tmp_path), 0.0, seq_len=7, batch_size=3), 0
    )
    assert text.tokenizer.decode(text.batch(2)["tokens"][1]) == "seven b"
    assert text.epochs(2) == {source: 6.0}


def test_segments_number_the_documents_of_a_row(mixture, text):
    other = dataset.open_dataset(
        dataclasses.replace(mixture, attend_across_documents=False), seed=1
    )
    batch = other.batch(3)
    np.testing.assert_array_equal(batch["tokens"], text.batch(3)["tokens"])
    assert "segments" not in text.batch(3) and batch["segments"].dtype == np.int32
    for row, segments in zip(batch["tokens"], batch["segments"], strict=True):
        parts = other.tokenizer.decode(np.where(row == tokenizers.END, ord("|"), row)).split("|")
        lengths = [len(part) + 1 for part in parts]
        wanted = np.repeat(np.arange(len(lengths)), lengths)[:SEQ_LEN]
        np.testing.assert_array_equal(segments, wanted)
    assert batch["segments"].max() > 0
    assert other.hash != text.hash


def test_continued_rows_have_weight_after_a_random_position(mixture, text):
    other = dataset.open_dataset(dataclasses.replace(mixture, packing="continuation"), seed=1)
    weights = np.concatenate([other.batch(step)["weights"] for step in range(2000)])
    assert weights.dtype == np.float32 and set(weights.ravel()) == {0.0, 1.0}
    assert (np.diff(weights, axis=1) >= 0).all() and (weights[:, -1] == 1).all()
    lengths = np.bincount(weights.sum(axis=1).astype(int), minlength=SEQ_LEN + 1)
    assert lengths[0] == 0 and np.abs(lengths[1:] / 1000 - 1).max() < 0.2  # each as often
    np.testing.assert_array_equal(other.batch(7)["tokens"], text.batch(7)["tokens"])
    again = dataset.open_dataset(
        dataclasses.replace(mixture, packing="continuation", batch_size=4), seed=1
    )
    np.testing.assert_array_equal(again.batch(15)["weights"], other.batch(7)["weights"][4:])
    reseeded = dataset.open_dataset(dataclasses.replace(mixture, packing="continuation"), seed=2)
    assert (reseeded.batch(0)["weights"] != other.batch(0)["weights"]).any()


def test_random_cut_changes_with_the_epoch(mixture):
    text = dataset.open_dataset(
        dataclasses.replace(mixture, packing="continuation", batch_size=1), seed=1
    )
    places = collections.defaultdict(list)
    for step in range(1500):
        rows = text.rows_of(step)
        cut = int(SEQ_LEN - text.batch(step)["weights"].sum())
        places[rows["source"][0], rows["row"][0]].append(cut)
    several = [cuts for cuts in places.values() if len(cuts) >= 4]
    assert len(several) > 20 and np.mean([len(set(cuts)) > 1 for cuts in several]) > 0.95


def test_unique_tokens_repeat_the_same_subset_for_every_seed(mixture, text):
    few, more = (
        [
            dataset.open_dataset(dataclasses.replace(mixture, unique_tokens=n), seed=s)
            for s in (1, 2)
        ]
        for n in (1000, 2000)
    )
    assert few[0].n_rows == dict(zip(few[0].sources, (46, 15), strict=True))
    assert few[0].unique_tokens == sum(few[0].n_rows.values()) * SEQ_LEN
    assert text.unique_tokens == sum(text.n_rows.values()) * SEQ_LEN

    def rows(text):
        seen = collections.Counter((s, r) for s, _, r in rows_seen(text, range(600)))
        assert len(seen) == sum(text.n_rows.values())
        return set(seen)

    assert rows(few[0]) == rows(few[1]) < rows(more[0]) == rows(more[1])
    assert few[0].epochs(600)[few[0].sources[0]] == 3600 / 46
    assert len({text.hash, few[0].hash, more[0].hash}) == 3


def test_more_unique_tokens_than_there_are_is_refused(mixture):
    with pytest.raises(ValueError, match="data.unique_tokens=10000 needs 468 rows .* which has 3"):
        dataset.open_dataset(dataclasses.replace(mixture, unique_tokens=10_000), seed=1)


def test_more_epochs_than_allowed_are_refused_by_name(mixture):
    text = dataset.open_dataset(dataclasses.replace(mixture, max_epochs=2.0), seed=1)
    steps = next(n for n in range(1000) if max(text.epochs(n).values()) > 2)
    dataset.validate_steps(text, steps - 1)
    with pytest.raises(ValueError, match=f"max_epochs=2.0: steps={steps} would see jsonl:.* 2.* t"):
        dataset.validate_steps(text, steps)
    dataset.validate_steps(dataset.open_dataset(mixture, seed=1), 10**6)


def test_row_documents_names_the_documents_of_a_row(text):
    for source in text.sources:
        file = np.fromfile(f"{text.manifests[source].folder}/train.bin", np.uint8)
        number = np.cumsum(file == tokenizers.END) - (
            file == tokenizers.END
        )  # document of each byte
        for row in range(0, text.n_rows[source], 5):
            inside = file[row * SEQ_LEN :][:SEQ_LEN] == tokenizers.END
            first = number[row * SEQ_LEN]
            assert list(dataset.row_documents(text, source, row)) == list(
                range(first, first + inside.sum() + 1)
            )


def test_bpe_rows_have_bpe_tokens(mixture):
    text = dataset.open_dataset(dataclasses.replace(mixture, tokenizer="bpe:300"), seed=1)
    assert isinstance(text.tokenizer, tokenizers.HFTokenizer) and text.bytes_per_token > 1.1
    tokens_BS = text.batch(0)["tokens"]
    assert tokens_BS.dtype == np.int32 and 255 < tokens_BS.max() < 300
    words = text.tokenizer.decode(tokens_BS[0])
    assert len(words) > 16 and set(words) <= set("0123456789abcdef")


def test_byte_lengths_are_scaled_if_a_tokenizer_changes_text(mixture, text):
    source = text.sources[0]
    np.testing.assert_array_equal(dataset.byte_lengths(text, source), text.tokenizer.byte_lengths())
    manifest = dataclasses.replace(text.manifests[source], counted={"heldout": 1})
    other = dataset.TokenDataset(mixture, 1, text.manifests | {source: manifest})
    assert dataset.byte_lengths(other, source).max() == manifest.bytes["heldout"]


def test_entropy_bound_of_a_language_is_computed_for_rows(mixture, tmp_path):
    name = "synthetic:machine?states=8&megabytes=0.1"
    small = dataclasses.replace(mixture, sources={name: 1.0}, cache_dir=str(tmp_path), seq_len=32)
    floor, error = dataset.entropy_bounds(dataset.open_dataset(small, seed=1))[name]
    assert 1.86 < floor < 2.0 and 0 < error < 0.01
    other = dataset.open_dataset(dataclasses.replace(small, tokenizer="bpe:300"), seed=1)
    assert dataset.entropy_bounds(other) == {}


def test_batches_are_made_at_memory_speed(text):
    wide = dataset.open_dataset(dataclasses.replace(text.data, batch_size=256), seed=1)
    wide.batch(0)
    seconds = []
    for step in range(200):
        start = time.perf_counter()
        wide.batch(step)
        seconds.append(time.perf_counter() - start)
    assert 256 * SEQ_LEN / np.median(seconds) > 5e6  # tokens a second; 100 times less is a bug


def test_prefetch_yields_every_step_in_order():
    assert list(dataset.prefetch_batches(lambda step: step * step, 3, 8)) == [9, 16, 25, 36, 49]
    assert list(dataset.prefetch_batches(abs, 3, 3)) == []
    assert list(dataset.prefetch_batches(abs, 0, 2, depth=9)) == [0, 1]


def test_prefetch_works_ahead_by_its_depth_and_no_more():
    made = []
    steps = dataset.prefetch_batches(made.append, 0, 100, depth=3)
    next(steps)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert made == [0, 1, 2, 3]
    steps.close()


def test_prefetch_raises_at_the_failing_step():
    steps = dataset.prefetch_batches(lambda step: 1 // (2 - step), 0, 5)
    assert list(itertools.islice(steps, 2)) == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(steps)


def test_the_thread_ends_with_its_generator():
    steps = dataset.prefetch_batches(abs, 0, 1000)
    next(steps)
    assert any(thread.name.startswith("prefetch") for thread in threading.enumerate())
    steps.close()
    assert not any(thread.name.startswith("prefetch") for thread in threading.enumerate())


def test_fewer_tokens_than_one_batch_are_refused(mixture):
    with pytest.raises(ValueError, match="data.batch_size=100000 is more than the .* rows"):
        text = dataset.open_dataset(dataclasses.replace(mixture, batch_size=100_000), seed=1)
        dataset.validate_steps(text, steps=1)
