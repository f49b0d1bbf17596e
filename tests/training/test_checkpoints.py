import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config import schema
from lm.model import params
from lm.parallel import mesh
from lm.runs import records
from lm.training import checkpoint_manifest, checkpoints, loaded_model


@pytest.fixture
def state():
    params = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3)}
    return {"step": jnp.int32(3), "params": params, "opt": optax.adam(1e-3).init(params)}


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def test_what_is_saved_comes_back_in_its_own_tree(tiny, state):
    with checkpoints.CheckpointStore(tiny) as store:
        store.save(3, state, "hash", [], 0.0)
    with checkpoints.CheckpointStore(tiny) as store:
        assert store.steps() == [3]
        restored = store.restore(3, abstract(state))
    assert restored.step == 3 and restored.expected_batch_hash == "hash"
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored.state, state)


def test_a_folder_without_checkpoints_has_no_newest(tiny):
    with checkpoints.CheckpointStore(tiny) as store:
        assert store.steps() == []
        assert store.restore_newest({}) == checkpoint_manifest.RestoredState(records.run_dir(tiny))


def test_two_checkpoints_stay_and_every_kept_one(tiny, state):
    tiny.permanent_checkpoint_interval = 8
    with checkpoints.CheckpointStore(tiny) as store:
        for step in range(4, 32, 4):
            store.save(step, state, "hash", [], 0.0)
    kept = sorted(int(p.name) for p in store.folder.iterdir() if p.name.isdigit())
    assert kept == [8, 16, 24, 28]


def test_the_best_checkpoint_stays(tiny, state):
    tiny.keep_best = True
    losses = {4: 3.0, 8: 1.0, 12: 2.0, 16: None, 20: 1.5, 24: 1.2}
    with checkpoints.CheckpointStore(tiny) as store:
        for step, loss in losses.items():
            store.save(step, state, "hash", [], 0.0, loss)
    with checkpoints.CheckpointStore(tiny) as store:
        assert store.steps() == [8, 20, 24]


def test_arrays_that_differ_are_named(tiny, state):
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


def test_paths_name_every_array_once(state):
    paths = list(params.flatten_by_path(state))
    assert len(paths) == len(set(paths)) == len(jax.tree.leaves(state))
    assert {"step", "params/w", "params/b"} < set(paths)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_a_flipped_bit_anywhere_changes_the_fingerprint(dtype):
    x = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(jnp.dtype(dtype))
    (before,) = checkpoint_manifest.array_checksums({"x": jnp.asarray(x)}).values()
    for place in range(0, x.nbytes, 11):
        for bit in (0, 7):
            raw = bytearray(x.tobytes())
            raw[place] ^= 1 << bit
            flipped = np.frombuffer(bytes(raw), x.dtype).reshape(x.shape)
            assert checkpoint_manifest.array_checksums({"x": jnp.asarray(flipped)})["x"] != before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8"])
def test_a_fingerprint_is_the_same_on_every_mesh_and_differs_for_swapped_numbers(dtype):
    x = jnp.arange(-5, 27).astype(dtype).reshape(4, 8)
    device_mesh = mesh.make_mesh(schema.Mesh(data=1, fsdp=2, tensor=2))
    split = jax.device_put(x, mesh.named_sharding(device_mesh, "embed", "mlp"))
    assert checkpoint_manifest.array_checksums({"x": split}) == checkpoint_manifest.array_checksums(
        {"x": x}
    )
    many = {"x": x, "large": jnp.ones(checkpoint_manifest.SMALL_BYTES)}  # too much for NumPy
    assert (
        checkpoint_manifest.array_checksums(many)["x"]
        == checkpoint_manifest.array_checksums({"x": x})["x"]
    )
    assert checkpoint_manifest.array_checksums(
        {"x": x[::-1]}
    ) != checkpoint_manifest.array_checksums({"x": x})


def test_the_golden_checkpoint_still_opens(tmp_path):
    """tests/data/format1 was written by version 0.1.0 and converted to format 2."""
    shape = {"d_model": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 4, "d_ff": 16}
    run = schema.Run(name="format1", dir=str(tmp_path), steps=3)
    run.model = schema.Model(vocab_size=16, **shape)
    run.data.batch_size, run.data.seq_len = 4, 8
    shutil.copytree(
        pathlib.Path(__file__).parents[1] / "fixtures" / "format1", tmp_path / "format1"
    )
    program, state = loaded_model.restore_model(run)
    assert int(state["step"]) == 1
    with jax.set_mesh(program.mesh):
        tokens = np.arange(36, dtype=np.int32).reshape(4, 9) % 16
        batch = mesh.put_batch(program.mesh, {"tokens": tokens})
        nats_BT, _ = program.score(state["params"], batch)
    assert float(nats_BT.sum()) == pytest.approx(100.726715, rel=1e-5)


def test_a_manifest_of_version_0_1_is_refused_by_its_format(tiny, state, monkeypatch):
    monkeypatch.setattr(checkpoint_manifest, "FORMAT", 1)
    steps_of(tiny, state, 3)
    monkeypatch.setattr(checkpoint_manifest, "FORMAT", 2)
    with pytest.raises(
        checkpoint_manifest.CheckpointError, match="format=1 was written by version 0.1"
    ):
        newest(tiny, state)


def test_fields_of_one_side_only_are_compared(tiny, state):
    steps_of(tiny, state, 3)
    with checkpoints.CheckpointStore(tiny) as store:
        store.fields["optim.beta3"] = 0.5
        del store.fields["optim.b1"]
        words = "optim.b1=0.9 in the checkpoint, 'nothing' in this run; optim.beta3='nothing' in"
        with pytest.raises(checkpoint_manifest.CheckpointError, match=words):
            store.restore(3, abstract(state))


def test_a_disk_without_room_is_named_before_a_byte_is_written(tiny, state, monkeypatch):
    usage = shutil.disk_usage(tiny.dir.rpartition("/")[0])
    with checkpoints.CheckpointStore(tiny) as store:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(OSError, match="no room for a checkpoint of .* bytes, 1,000 are free"):
            store.save(3, state, "hash", [], 0.0)
        assert store.steps() == []


def steps_of(run: schema.Run, state: dict, *steps: int) -> pathlib.Path:
    """Saves them; the folder of checkpoints."""
    with checkpoints.CheckpointStore(run) as store:
        for step in steps:
            store.save(step, state, "hash", [], 0.0)
        return store.folder


def newest(run: schema.Run, state: dict) -> tuple[int, list[str]]:
    with checkpoints.CheckpointStore(run) as store:
        restored = store.restore_newest(abstract(state))
        return restored.step, restored.damage


def test_folders_copied_by_hand_are_no_checkpoints_of_other_steps(tiny, state):
    folder = steps_of(tiny, state, 3, 6)
    for name in ("9", "6 (copy)", "6.bak", "old"):
        shutil.copytree(folder / "6", folder / name)
    step, reasons = newest(tiny, state)
    assert step == 6 and len(reasons) == 1
    assert "checkpoint 9 is damaged (it was saved as step 6): moved to " in reasons[0]
    assert (folder / "6 (copy)").is_dir() and (folder.with_name("damaged") / "9").is_dir()


def test_checkpoint_with_an_unknown_field_is_rejected(tiny, state):
    with checkpoints.CheckpointStore(tiny) as store:
        store.knobs = store.knobs | {"model.old": 1}
        store.save(3, state, "batch 3", [], 0.0)
    with pytest.raises(ValueError, match="model.old=1 there, 'no such field' here"):
        newest(tiny, state)


def test_a_checkpoint_of_another_run_is_named_by_its_knobs_and_left_where_it_is(tiny, state):
    other = dataclasses.replace(tiny, name="b", optim=dataclasses.replace(tiny.optim, lr=0.25))
    foreign = steps_of(other, state, 9)
    folder = steps_of(tiny, state, 3, 6)
    shutil.copytree(foreign / "9", folder / "9")
    with pytest.raises(ValueError, match=r"9 is of another run, optim.lr=0.25 in the checkpoint"):
        newest(tiny, state)
    assert (folder / "9").is_dir()
    moved = dataclasses.replace(tiny, name="c", log_interval=7, dir=tiny.dir)
    shutil.copytree(folder, pathlib.Path(tiny.dir) / "c" / "checkpoints")
    shutil.rmtree(pathlib.Path(tiny.dir) / "c" / "checkpoints" / "9")
    assert newest(moved, state) == (6, [])  # what changes no result may differ


@pytest.mark.parametrize("gone", ["", "state", "manifest"])
def test_a_folder_that_was_emptied_is_passed_over(tiny, state, gone):
    folder = steps_of(tiny, state, 3, 6)
    shutil.rmtree(folder / "6" / gone)
    (folder / "6" / gone).mkdir()
    step, reasons = newest(tiny, state)
    assert step == 3 and "checkpoint 6 is damaged" in reasons[0]


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        OSError(5, "Input/output error"),
        MemoryError(),
        ValueError("RESOURCE_EXHAUSTED: Error opening: Too many open files"),
    ],
)
def test_what_cannot_be_read_just_now_is_not_taken_for_damage(tiny, state, monkeypatch, error):
    folder = steps_of(tiny, state, 3, 6)
    with checkpoints.CheckpointStore(tiny) as store:

        def fail(*_, **__):
            raise error

        monkeypatch.setattr(store.manager, "restore", fail)
        with pytest.raises(OSError, match="6 cannot be read now .*no file was moved"):
            store.restore_newest(abstract(state))
    assert sorted(p.name for p in folder.iterdir()) == ["3", "6"]
    assert not folder.with_name("damaged").exists()


def test_what_another_run_starts_from_is_kept(tiny, state):
    checkpoints.protect(tiny, 6, "s/branch")  # before there is a folder: a sweep that is planned
    folder = steps_of(tiny, state, 3, 6, 9, 12)
    checkpoints.protect(tiny, 9, "s/other")
    steps_of(tiny, state, 15, 18)
    assert sorted(int(p.name) for p in folder.iterdir()) == [6, 9, 15, 18]
    (folder.with_name("pins") / "6-s-branch").unlink()
    steps_of(tiny, state, 21)
    assert sorted(int(p.name) for p in folder.iterdir()) == [9, 18, 21]
