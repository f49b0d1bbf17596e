"""Save, verify and restore checkpoints."""

import dataclasses
import errno
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fixtures import quota

from lm.config import schema
from lm.model import params
from lm.parallel import mesh
from lm.runs import records
from lm.training import checkpoints, loaded_model, preemption
from lm.training.checkpointing import checkpoint_manifest


@pytest.fixture
def state():
    params = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
    return {"step": jnp.int32(3), "params": params, "opt": optax.adam(1e-3).init(params)}


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def save_steps(run: schema.Run, state: dict, *steps: int) -> pathlib.Path:
    """Save a checkpoint at each step, and return the folder of the checkpoints."""
    with checkpoints.CheckpointStore(run) as store:
        for step in steps:
            store.save(step, state, "hash", [], 0.0)
        return store.folder


def restore_newest(run: schema.Run, state: dict) -> tuple[int, list[str]]:
    """Return the step of the newest intact checkpoint, and the messages about corrupt ones."""
    with checkpoints.CheckpointStore(run) as store:
        restored = store.restore_newest(abstract(state))
        return restored.step, restored.damage


def saved_steps(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_store_without_checkpoint_opens_no_manager(tiny, state):
    """The manager imports orbax, which a new run needs only after its compilation."""
    for read_only in (False, True):
        with checkpoints.CheckpointStore(tiny, read_only) as store:
            assert store.steps() == []
            assert store.restore_newest(abstract(state)).step == 0
            with pytest.raises(checkpoint_manifest.CheckpointError, match="no step 3: it has \\[]"):
                store.restore(3, abstract(state))
            assert "manager" not in vars(store)


def test_interrupted_first_save_leaves_no_file(tiny, state, monkeypatch):
    """The first save imports orbax, and a second signal may interrupt the import."""

    def interrupt(*_, **__):
        raise preemption.Interrupted("stopped by SIGTERM, without saving", "SIGTERM")

    with monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager", interrupt)
        with pytest.raises(preemption.Interrupted):
            save_steps(tiny, state, 3)
    folder = records.run_dir(tiny) / "checkpoints"
    assert list(folder.iterdir()) == []
    assert save_steps(tiny, state, 3) == folder
    assert restore_newest(tiny, state) == (3, [])


def test_restored_state_equals_the_saved_state(tiny, state):
    with checkpoints.CheckpointStore(tiny) as store:
        store.save(3, state, "hash", [], 0.0)
    with checkpoints.CheckpointStore(tiny) as store:
        assert store.steps() == [3]
        restored = store.restore(3, abstract(state))
    assert restored.step == 3 and restored.expected_batch_hash == "hash"
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)


def test_field_newer_than_a_checkpoint_has_its_default(tiny, state):
    with checkpoints.CheckpointStore(tiny) as store:
        del store.fields["model.gradient_dtype"]
        store.save(3, state, "hash", [], 0.0)
    assert restore_newest(tiny, state) == (3, [])
    tiny.model.gradient_dtype = "bfloat16"
    with pytest.raises(ValueError, match="model.gradient_dtype='float32' in the checkpoint"):
        restore_newest(tiny, state)


def test_saved_moments_of_router_biases_are_ignored(tiny):
    """Earlier versions saved them. The other moments are still required."""
    bias = {"blocks": {"mlp": {"bias": jnp.ones((2, 4)), "gate": jnp.ones(3)}}}
    gate = {"blocks": {"mlp": {"gate": jnp.ones(3)}}}
    saved = {"step": jnp.int32(3), "params": bias, "opt": {"mu": bias}}
    save_steps(tiny, saved, 3)
    with checkpoints.CheckpointStore(tiny) as store:
        restored = store.restore(3, abstract(saved | {"opt": {"mu": gate}})).state
        assert restored["opt"]["mu"]["blocks"]["mlp"].keys() == {"gate"}
        np.testing.assert_array_equal(restored["params"]["blocks"]["mlp"]["bias"], np.ones((2, 4)))
        with pytest.raises(ValueError, match="opt/mu/blocks/mlp/gate is float32"):
            store.restore(3, abstract(saved | {"opt": {}}))


def test_empty_folder_restores_no_state(tiny):
    with checkpoints.CheckpointStore(tiny) as store:
        assert store.steps() == []
        assert store.restore_newest({}) == checkpoint_manifest.RestoredState(records.run_dir(tiny))


def test_error_names_the_array_that_differs(tiny, state):
    with checkpoints.CheckpointStore(tiny) as store:
        store.save(3, state, "hash", [], 0.0)
    with checkpoints.CheckpointStore(tiny) as store:
        wider = state | {"params": {"w": jnp.zeros((2, 4)), "b": jnp.ones(3)}}
        with pytest.raises(
            ValueError, match=r"params/w is float32\[2, 3\], the run needs float32\[2, 4\]"
        ):
            store.restore(3, abstract(wider))
        more = state | {"extra": jnp.ones(1)}
        with pytest.raises(ValueError, match="extra is missing, the run needs"):
            store.restore(3, abstract(more))
        with pytest.raises(ValueError, match=r"has no step 4: it has \[3\]"):
            store.restore(4, abstract(state))


def test_every_array_has_a_path_of_its_own(state):
    paths = list(params.flatten_by_path(state))
    assert len(paths) == len(set(paths)) == len(jax.tree.leaves(state))
    assert {"step", "params/w", "params/b"} < set(paths)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_flipped_bit_changes_the_checksum(dtype):
    x = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(jnp.dtype(dtype))
    (before,) = checkpoint_manifest.array_checksums({"x": jnp.asarray(x)}).values()
    for byte in range(0, x.nbytes, 11):
        for bit in (0, 7):
            raw = bytearray(x.tobytes())
            raw[byte] ^= 1 << bit
            flipped = np.frombuffer(bytes(raw), x.dtype).reshape(x.shape)
            assert checkpoint_manifest.array_checksums({"x": jnp.asarray(flipped)})["x"] != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_checksum_depends_on_order_and_not_on_the_mesh(dtype):
    """NumPy computes the checksums of small arrays, and XLA those of large arrays."""
    x = jnp.arange(-5, 27).astype(dtype).reshape(4, 8)
    device_mesh = mesh.make_mesh(schema.Mesh(data=1, fsdp=2, tensor=2))
    sharded = jax.device_put(x, mesh.named_sharding(device_mesh, "embed", "mlp"))
    expected = checkpoint_manifest.array_checksums({"x": x})
    assert checkpoint_manifest.array_checksums({"x": sharded}) == expected
    large = {"x": x, "large": jnp.ones(checkpoint_manifest.SMALL_BYTES)}
    assert checkpoint_manifest.array_checksums(large)["x"] == expected["x"]
    assert checkpoint_manifest.array_checksums({"x": x[::-1]}) != expected


def test_golden_checkpoint_has_the_golden_loss(tmp_path):
    """tests/fixtures/format1 was written by version 0.1.0 and converted to format 2."""
    shape = {"d_model": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 4, "d_ff": 16}
    run = schema.Run(name="format1", dir=str(tmp_path), steps=3)
    run.model = schema.Model(vocab_size=16, **shape)
    run.data.batch_size, run.data.seq_len = 4, 8
    shutil.copytree(
        pathlib.Path(__file__).parents[1] / "fixtures" / "format1", tmp_path / "format1"
    )
    functions, state = loaded_model.restore_model(run)
    assert int(state["step"]) == 1
    with jax.set_mesh(functions.mesh):
        tokens = np.arange(36, dtype=np.int32).reshape(4, 9) % 16
        batch = mesh.put_batch(functions.mesh, {"tokens": tokens})
        nats_BT, _ = functions.score(state["params"], batch)
    assert float(nats_BT.sum()) == pytest.approx(100.726715, rel=1e-5)


@pytest.mark.parametrize(
    "version, message",
    [
        (1, "format_version=1 was written by version 0.1, this version reads 2 to 2: use version"),
        (9, "format_version=9 was written by a newer version of lm-scaling, .*: update lm-scaling"),
    ],
)
def test_checkpoint_of_another_format_is_rejected(tiny, state, monkeypatch, version, message):
    monkeypatch.setattr(checkpoint_manifest, "FORMAT_VERSION", version)
    folder = save_steps(tiny, state, 3)
    monkeypatch.undo()
    with pytest.raises(checkpoint_manifest.CheckpointError, match=message):
        restore_newest(tiny, state)
    assert saved_steps(folder) == [3]


def test_checkpoint_of_an_older_format_is_restored(tiny, state):
    """lm-scaling 0.2.0 stored the version with the key "format"."""
    file = save_steps(tiny, state, 3) / "3" / "manifest" / "metadata"
    manifest = json.loads(file.read_text())
    manifest["format"] = manifest.pop("format_version")
    manifest["checksum"] = checkpoint_manifest.checksum(manifest)
    file.write_text(json.dumps(manifest))
    assert restore_newest(tiny, state) == (3, [])


def test_field_missing_on_one_side_has_its_default(tiny, state):
    """A field that no version has is rejected."""
    save_steps(tiny, state, 3)
    with checkpoints.CheckpointStore(tiny) as store:
        store.fields["optim.beta3"] = 0.5
        del store.fields["optim.b1"]
        message = "another run, optim.beta3='no such field' in the checkpoint, 0.5 in this run"
        with pytest.raises(checkpoint_manifest.CheckpointError, match=message):
            store.restore(3, abstract(state))


def test_full_disk_is_reported_before_a_save(tiny, state, monkeypatch):
    usage = shutil.disk_usage(tiny.dir.rpartition("/")[0])
    with checkpoints.CheckpointStore(tiny) as store:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(OSError, match="no room for a checkpoint of .* bytes, 1,000 are free"):
            store.save(3, state, "hash", [], 0.0)
        assert store.steps() == []


@pytest.mark.parametrize("limit", [300, 8192, 100_000])
def test_quota_is_reported_in_one_line(tiny, state, limit):
    """The earlier checkpoint remains."""
    state = state | {"params": {f"w{i}": jnp.arange(60_000.0) * i for i in range(4)}}
    save_steps(tiny, state, 3)
    with (
        quota.limit_file_size(limit),
        pytest.raises(OSError, match="File too large") as raised,
        checkpoints.CheckpointStore(tiny) as store,
    ):
        store.save(6, state, "hash", [], 0.0)
        store.steps()
    assert raised.value.errno == errno.EFBIG and "\n" not in str(raised.value)
    assert restore_newest(tiny, state) == (3, [])


def test_copied_folder_is_no_checkpoint_of_another_step(tiny, state):
    folder = save_steps(tiny, state, 3, 6)
    for name in ("9", "6 (copy)", "6.bak", "old"):
        shutil.copytree(folder / "6", folder / name)
    step, messages = restore_newest(tiny, state)
    assert step == 6 and len(messages) == 1
    assert "checkpoint 9 is damaged (it was saved as step 6): moved to " in messages[0]
    assert (folder / "6 (copy)").is_dir() and (folder.with_name("damaged") / "9").is_dir()


def test_checkpoint_with_an_unknown_field_is_rejected(tiny, state):
    with checkpoints.CheckpointStore(tiny) as store:
        store.fields = store.fields | {"model.old": 1}
        store.save(3, state, "batch 3", [], 0.0)
    message = "model.old=1 in the checkpoint, 'no such field' in this run"
    with pytest.raises(ValueError, match=message):
        restore_newest(tiny, state)


def test_checkpoint_of_another_run_is_rejected_and_not_moved(tiny, state):
    other = dataclasses.replace(tiny, name="b", optim=dataclasses.replace(tiny.optim, lr=0.25))
    other_folder = save_steps(other, state, 9)
    folder = save_steps(tiny, state, 3, 6)
    shutil.copytree(other_folder / "9", folder / "9")
    message = r"9 belongs to another run, optim.lr=0.25 in the checkpoint, 0.003 in this run"
    with pytest.raises(ValueError, match=message):
        restore_newest(tiny, state)
    assert (folder / "9").is_dir()


def test_checkpoint_accepts_other_execution_fields(tiny, state):
    folder = save_steps(tiny, state, 3, 6)
    renamed = dataclasses.replace(tiny, name="c", log_interval=7, dir=tiny.dir)
    shutil.copytree(folder, pathlib.Path(tiny.dir) / "c" / "checkpoints")
    assert restore_newest(renamed, state) == (6, [])


@pytest.mark.parametrize("subfolder", ["", "state", "manifest"])
def test_emptied_checkpoint_folder_is_skipped(tiny, state, subfolder):
    folder = save_steps(tiny, state, 3, 6)
    shutil.rmtree(folder / "6" / subfolder)
    (folder / "6" / subfolder).mkdir()
    step, messages = restore_newest(tiny, state)
    assert step == 3 and "checkpoint 6 is damaged" in messages[0]


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        OSError(5, "Input/output error"),
        MemoryError(),
        ValueError("RESOURCE_EXHAUSTED: Error opening: Too many open files"),
        ValueError("ABORTED: All 32 retry attempts failed: Service Unavailable [HTTP code 503]"),
    ],
)
def test_transient_error_moves_no_checkpoint(tiny, state, monkeypatch, error):
    folder = save_steps(tiny, state, 3, 6)
    with checkpoints.CheckpointStore(tiny) as store:

        def fail(*_, **__):  # orbax raises some errors again as a cause
            raise Exception("Encountered error while reading array index: (0, 1).") from error

        monkeypatch.setattr(store.manager, "restore", fail)
        with pytest.raises(OSError, match="6 cannot be read now .*no file was moved"):
            store.restore_newest(abstract(state))
    assert sorted(path.name for path in folder.iterdir()) == ["3", "6"]
    assert not folder.with_name("damaged").exists()


def test_failed_writes_have_the_number_of_the_system_call(tmp_path):
    """Messages of tensorstore contain the number; other errors have a line of their own."""
    for error, number in (
        (OSError(28, "No space left on device"), 28),
        (ValueError("write failed [os_error_code='122']"), 122),
        (ValueError("no number\nsecond line"), None),
    ):
        with pytest.raises(OSError, match="a checkpoint could not be written: ") as raised:
            with checkpoints._write_errors(tmp_path):
                raise error
        assert raised.value.errno == number and "\n" not in str(raised.value)
        assert (str(tmp_path) in str(raised.value)) == (number is not None)
