"""Tests of equal bits on any number of devices.

Training runs in processes, because a process fixes its number of threads at its start.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from lm.config import schema, validation
from lm.parallel import deterministic, mesh

ROOT = pathlib.Path(__file__).parents[2]
CACHE = ROOT / ".pytest_cache" / "compiled"
# Train on 8 devices. Then train again on each other number of devices, from the start or from a
# checkpoint of the first run, and compare losses, state and evaluation. Print the evaluation loss.
SCRIPT = """
import dataclasses
import json
import shutil
import sys

import jax

jax.config.update("jax_num_cpu_devices", 8)

import numpy as np

from lm.config import schema
from lm.parallel import deterministic, mesh
from lm.runs import json_files, records
from lm.training import loaded_model, loop

config, cache, other_meshes = sys.argv[1:]
base = schema.from_dict(json.loads(config))
jax.config.update("jax_compilation_cache_dir", cache)
mesh.initialize_devices()
deterministic.fix_threads(base.mesh.deterministic_shards)
mesh.peak_flops_per_second = lambda *_: 1e9
make_mesh = mesh.make_mesh


def train(name, n_devices, fsdp, parent=""):
    mesh.make_mesh = lambda shape: make_mesh(shape, jax.devices()[:n_devices])
    run = dataclasses.replace(base, name=name, mesh=dataclasses.replace(base.mesh, fsdp=fsdp))
    folder = records.run_dir(run)
    if parent:
        shutil.copytree(f"{run.dir}/{parent}", folder)
        shutil.rmtree(folder / "checkpoints" / str(run.steps))
        config = json_files.read_record(folder / "config.json") | {"name": name}
        json_files.write_record(folder / "config.json", config)
        (folder / "evals.jsonl").unlink()
    loop.train(run)
    rows = [(row["step"], row["loss"], row["grad_norm"]) for row in records.load_metrics(folder)]
    state = loaded_model.restore_model(run, parts=("step", "params", "opt"))[1]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    assert records.read_facts(folder)["resumed_from"] == (run.steps - 4 if parent else 0)
    return rows, [leaf.tobytes().hex() for leaf in leaves], records.load_evals(folder)[-1]["loss"]


expected = train("reference", 8, 1)
for i, (n_devices, fsdp, parent) in enumerate(json.loads(other_meshes)):
    actual = train(f"{n_devices}-{i}", n_devices, fsdp, parent)
    assert actual == expected, (n_devices, fsdp, parent)
print(expected[2])
"""


def train_on_meshes(run: schema.Run, other_meshes: list[tuple[int, int, str]]) -> float:
    """Run SCRIPT; other_meshes: (devices, fsdp, parent run or ""). Return the evaluation loss."""
    arguments = (json.dumps(schema.to_dict(run)), str(CACHE), json.dumps(other_meshes))
    # The test must compile like users do, without the flags for fast compilation of other tests.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    completed = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    return float(completed.stdout.split()[-1])


@pytest.fixture
def deterministic_run(tiny) -> schema.Run:
    tiny.mesh.deterministic_shards, tiny.log_interval, tiny.steps = 8, 1, 8
    tiny.data.packing, tiny.model.z_loss = "continuation", 1e-3
    return tiny


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_one_device_gives_the_bits_of_eight(deterministic_run):
    """A run that is interrupted and continues on two devices gives them too."""
    assert 1 < train_on_meshes(deterministic_run, [(1, 1, ""), (2, 2, "reference")]) < 7


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_number_of_devices_gives_the_same_bits(deterministic_run):
    run = deterministic_run
    run.model.n_layers, run.model.remat = 3, "dots"
    run.data.attend_across_documents, run.optim.on_nonfinite = False, "skip"
    meshes = [(n, fsdp, "") for n in (1, 2, 4, 8) for fsdp in (1, n) if n * fsdp > 1]
    train_on_meshes(run, meshes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"tensor": 2},
            "mesh.tensor=2 splits sums whose order mesh.deterministic_shards=8 fixes",
        ),
        (
            {"deterministic_shards": 2},
            "mesh.deterministic_shards=2 shards on 4 devices: the number of devices must be",
        ),
        ({}, "mesh.deterministic_shards=8 requires PJRT_NPROC=8 in the environment before"),
    ],
)
def test_mesh_without_a_fixed_order_is_refused(fields, message, monkeypatch):
    monkeypatch.delenv(deterministic.THREADS, raising=False)
    run = schema.Run(mesh=schema.Mesh(**{"deterministic_shards": 8} | fields))
    with pytest.raises(ValueError, match=message):
        deterministic.validate_deterministic(run, mesh.make_mesh(run.mesh, jax.devices()))


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("model.dtype", "bfloat16", "float32"),
        ("optim.name", "muon", "adamw or lion"),
        ("optim.grad_accumulation_steps", 2, "1, because each shard"),
    ],
)
def test_field_without_a_fixed_order_is_refused(field, value, allowed):
    run = schema.Run(mesh=schema.Mesh(deterministic_shards=8))
    group, name = field.split(".")
    setattr(getattr(run, group), name, value)
    with pytest.raises(
        ValueError, match=f"{field}={value!r} .* mesh.deterministic_shards=8: .*{allowed}"
    ):
        validation.validate_run(run)


def test_gradient_is_clipped_as_by_optax():
    gradient = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5, np.float32)}
    limits = (1.0, 100.0, 0.0)

    @jax.jit
    def clip_all(gradient):
        clips = [
            optax.clip_by_global_norm(limit) if limit else optax.identity() for limit in limits
        ]
        expected = [clip.update(gradient, clip.init(gradient))[0] for clip in clips]
        actual = [deterministic.clip_by_global_norm(gradient, limit) for limit in limits]
        return actual, expected, optax.tree.norm(gradient)

    actual, expected, norm = clip_all(gradient)
    gradients, norms = zip(*actual, strict=True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), [*gradients], expected)
    np.testing.assert_allclose(norms, norm, rtol=1e-6)


@pytest.mark.parametrize(("shards", "batch_size"), [(6, 12), (8, 12)])
def test_shards_that_do_not_divide_are_refused(shards, batch_size):
    run = schema.Run(mesh=schema.Mesh(deterministic_shards=shards))
    run.data.batch_size = batch_size
    with pytest.raises(ValueError, match=f"mesh.deterministic_shards={shards}.*: try (8|16)"):
        validation.validate_run(run)
