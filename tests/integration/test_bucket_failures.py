"""Checkpoints and prepared text in a bucket survive failures of single requests."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import failing_bucket

from experiments.benchmarks.attack import simulated_bucket
from experiments.common import cli
from lm.config import schema
from lm.data import dataset
from lm.training import checkpoints

STATE = {"step": jnp.int32(3), "params": {"w": jnp.arange(6000.0)}}
ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), STATE
)
DATA = "ocdbt.process_0/d/"  # objects with the numbers of a checkpoint


@pytest.fixture
def run(tiny, bucket) -> schema.Run:
    return dataclasses.replace(tiny, dir="gs://bucket/runs")


def save(run: schema.Run, *steps: int) -> None:
    with checkpoints.CheckpointStore(run) as store:
        for step in steps:
            store.save(step, STATE, "hash", [], 0.0)


def check_restored(run: schema.Run, step: int) -> None:
    """Check that the newest checkpoint has the saved numbers and that none is damaged."""
    with checkpoints.CheckpointStore(run) as store:
        restored = store.restore_newest(ABSTRACT)
    assert (restored.step, restored.damage) == (step, [])
    np.testing.assert_array_equal(restored.state["params"]["w"], STATE["params"]["w"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure", [failing_bucket.refuse, failing_bucket.delay], ids=["refuse", "delay"]
)
def test_save_survives_failed_uploads(run, monkeypatch, failure):
    with failing_bucket.fail_requests(monkeypatch, "POST", failure, DATA) as failed:
        save(run, 3)
    assert failed
    check_restored(run, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "failure",
    [failing_bucket.refuse, failing_bucket.truncate, failing_bucket.delay],
    ids=["refuse", "truncate", "delay"],
)
def test_restore_survives_failed_downloads(run, monkeypatch, failure):
    """No intact checkpoint is moved to damaged/."""
    save(run, 3)
    with failing_bucket.fail_requests(monkeypatch, "GET", failure, DATA) as failed:
        check_restored(run, 3)
    assert failed


@pytest.mark.slow
def test_truncated_object_is_a_damaged_checkpoint(run):
    save(run, 3, 6)
    for name in simulated_bucket.STORE.names("bucket/runs/tiny/checkpoints/6/state/"):
        content = simulated_bucket.STORE.objects[name][0]
        if len(content) > 1000:
            simulated_bucket.STORE.put(name, content[: len(content) // 2])
    with checkpoints.CheckpointStore(run) as store:
        restored = store.restore_newest(ABSTRACT)
    assert restored.step == 3 and "checkpoint 6 is damaged" in restored.damage[0]


@pytest.mark.slow
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), TimeoutError("timed out")])
def test_failed_upload_of_text_leaves_no_complete_copy(tiny, bucket, tmp_path, monkeypatch, error):
    """The next call uploads the text again, and another machine reads equal text."""
    remote = dataclasses.replace(
        tiny.data, cache_dir="gs://bucket/data", local_cache_dir=str(tmp_path / "a")
    )
    with monkeypatch.context() as patch:
        usual = simulated_bucket.Bucket._open

        def open_object(self, path, mode="rb", **options):
            if mode == "wb" and path.endswith("train.bin"):
                raise error
            return usual(self, path, mode, **options)

        patch.setattr(simulated_bucket.Bucket, "_open", open_object)
        with pytest.raises((OSError, ValueError)) as raised:
            dataset.open_dataset(remote, 0)
        assert "\n" not in str(raised.value)
    assert not [name for name in bucket.names("bucket/data/") if name.endswith("files.json")]
    first = dataset.open_dataset(remote, 0)
    assert [name for name in bucket.names("bucket/data/") if name.endswith("files.json")]
    second = dataset.open_dataset(
        dataclasses.replace(remote, local_cache_dir=str(tmp_path / "b")), 0
    )
    assert first.hash == second.hash


@pytest.mark.slow
def test_truncated_download_of_text_is_detected(tiny, bucket, tmp_path, monkeypatch):
    remote = dataclasses.replace(
        tiny.data, cache_dir="gs://bucket/data", local_cache_dir=str(tmp_path / "a")
    )
    dataset.open_dataset(remote, 0)
    other = dataclasses.replace(remote, local_cache_dir=str(tmp_path / "b"))
    usual = simulated_bucket.Bucket._open

    def open_object(self, path, mode="rb", **options):
        file = usual(self, path, mode, **options)
        if mode == "rb" and path.endswith("train.bin"):
            file.truncate(100)
        return file

    with monkeypatch.context() as patch:
        patch.setattr(simulated_bucket.Bucket, "_open", open_object)
        with pytest.raises(ValueError, match="train.bin: is truncated: 100 bytes"):
            dataset.open_dataset(other, 0)
    assert not list((tmp_path / "b").rglob("train.bin"))
    assert dataset.open_dataset(other, 0).hash


def test_truncated_download_of_text_is_repeated(tiny, bucket, tmp_path, monkeypatch):
    remote = dataclasses.replace(
        tiny.data, cache_dir="gs://bucket/data", local_cache_dir=str(tmp_path / "a")
    )
    first = dataset.open_dataset(remote, 0)
    usual, truncated = simulated_bucket.Bucket._open, []

    def open_object(self, path, mode="rb", **options):
        file = usual(self, path, mode, **options)
        if mode == "rb" and path.endswith(".bin") and path not in truncated:
            truncated.append(path)
            file.truncate(100)
        return file

    monkeypatch.setattr(simulated_bucket.Bucket, "_open", open_object)
    other = dataclasses.replace(remote, local_cache_dir=str(tmp_path / "b"))
    assert dataset.open_dataset(other, 0).hash == first.hash and len(truncated) == 2


def test_error_of_the_bucket_library_is_one_line(capsys):
    """The libraries of buckets raise types that are not OSError."""
    http_error = type("HttpError", (Exception,), {"__module__": "gcsfs.retry"})

    def fail() -> None:
        raise http_error("Anonymous caller\nhas no access")

    assert cli.exit_status(fail, ["command"]) == 2
    assert capsys.readouterr().err == (
        "error: a request to the bucket failed (HttpError: Anonymous caller has no access). Saved"
        " files are intact. Repeat the command to continue.\n"
    )
