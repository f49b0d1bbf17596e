"""The same bits on any number of devices, in processes of their own: threads come at the start."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config import schema, validation
from lm.parallel import deterministic, mesh

ROOT = pathlib.Path(__file__).parent.parent.parent
CACHE = ROOT / ".pytest_cache" / "compiled"
# Trains on the first so many devices, again on fewer, and from the middle on others still.
SCRIPT = """
import dataclasses, json, shutil, sys, jax jax.config.update("jax_num_cpu_devices", 8) from
lm.config import schema; from lm.config import validation; from lm.parallel import deterministic;
from lm.parallel import mesh; from lm.runs import records; from lm.training import checkpoints; from
lm.training import loaded_model; from lm.training import loop import numpy as np

words, cache, *numbers = sys.argv[1:]
base = schema.from_dict(json.loads(words))
mesh.initialize_devices(cache)
deterministic.fix_threads(base.mesh.deterministic_shards)
mesh.peak_flops_per_second = lambda *_: 1e9
make = mesh.make_mesh

def bits(name, n, fsdp, start=""):
    mesh.make_mesh = lambda shape: make(shape, jax.devices()[:n])
    run = dataclasses.replace(base, name=name, mesh=dataclasses.replace(base.mesh, fsdp=fsdp))
    if start:
        shutil.copytree(f"{run.dir}/{start}", f"{run.dir}/{name}")
        shutil.rmtree(f"{run.dir}/{name}/checkpoints/{run.steps}")
        knobs = records.read_json(f"{run.dir}/{name}/config.json") | {"name": name}
        records.write_json(f"{run.dir}/{name}/config.json", knobs)
        (records.run_dir(run) / "evals.jsonl").unlink()
    loop.train(run)
    folder = records.run_dir(run)
    rows = [(row["step"], row["loss"], row["grad_norm"]) for row in records.load_metrics(folder)]
    state = loaded_model.restore_model(run, parts=("step", "params", "opt"))[1]
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    assert records.read_facts(folder)["resumed_from"] == (run.steps - 4 if start else 0)
    return rows, [leaf.tobytes().hex() for leaf in leaves], records.load_evals(folder)[-1]["loss"]

whole = bits("whole", 8, 1)
for number, (n, fsdp, start) in enumerate(json.loads(numbers[0])):
    assert bits(f"{n}-{number}", n, fsdp, start and "whole") == whole, (n, fsdp, start)
print(whole[2])
"""


def trained(run: schema.Run, others: list) -> float:
    words = (json.dumps(schema.to_dict(run)), str(CACHE), json.dumps(others))
    command = [sys.executable, "-c", SCRIPT, *words]
    # As users compile: the flags of the tests are not those that make the bits equal.
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout.split()[-1])


@pytest.fixture
def one_order(tiny) -> schema.Run:
    tiny.mesh.deterministic_shards, tiny.log_interval, tiny.steps = 8, 1, 8
    tiny.data.packing, tiny.model.z_loss = "continuation", 1e-3
    return tiny


@pytest.mark.timeout(180)
def test_one_device_and_a_resume_on_two_give_the_bits_of_eight(one_order):
    assert 1 < trained(one_order, [(1, 1, ""), (2, 2, "whole")]) < 7


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_number_of_devices_gives_the_same_bits(one_order):
    one_order.model.n_layers, one_order.model.remat = 3, "dots"
    one_order.data.attend_across_documents, one_order.optim.on_nonfinite = False, "skip"
    trained(one_order, [(n, fsdp, "") for n in (1, 2, 4, 8) for fsdp in (1, n) if n * fsdp > 1])


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (
            {"tensor": 2},
            "mesh.tensor=2 splits sums whose order mesh.deterministic_shards=8 fixes",
        ),
        (
            {"deterministic_shards": 2},
            "mesh.deterministic_shards=2 shards on 4 devices: the number of devices must be",
        ),
        ({}, "mesh.deterministic_shards=8 needs PJRT_NPROC=8 in the environment before"),
    ],
)
def test_what_cannot_keep_the_order_is_refused(shape, words, monkeypatch):
    monkeypatch.delenv(deterministic.THREADS, raising=False)
    run = schema.Run(mesh=schema.Mesh(**{"deterministic_shards": 8} | shape))
    with pytest.raises(ValueError, match=words):
        deterministic.validate_deterministic(run, mesh.make_mesh(run.mesh, jax.devices()))


@pytest.mark.parametrize(
    ("knob", "value", "way_out"),
    [
        ("model.dtype", "bfloat16", "float32"),
        ("optim.name", "muon", "adamw or lion"),
        ("optim.grad_accumulation_steps", 2, "1, because each shard"),
    ],
)
def test_what_has_no_order_yet_is_refused(knob, value, way_out):
    run = schema.Run(mesh=schema.Mesh(deterministic_shards=8))
    group, name = knob.split(".")
    setattr(getattr(run, group), name, value)
    with pytest.raises(
        ValueError, match=f"{knob}={value!r} .* mesh.deterministic_shards=8: take {way_out}"
    ):
        validation.validate_run(run)


def test_a_gradient_is_clipped_as_optax_does():
    gradient = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones(5)}
    for limit in (1.0, 100.0, 0.0):
        found, norm = deterministic.clip_by_global_norm(gradient, limit)
        clip = optax.clip_by_global_norm(limit) if limit else optax.identity()
        wanted, _ = clip.update(gradient, clip.init(gradient))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, wanted)
        assert float(norm) == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-6)


@pytest.mark.parametrize(("shards", "batch"), [(6, 12), (8, 12)])
def test_shards_that_do_not_divide_are_refused(shards, batch):
    run = schema.Run(mesh=schema.Mesh(deterministic_shards=shards))
    run.data.batch_size = batch
    with pytest.raises(ValueError, match=f"mesh.deterministic_shards={shards}.*: try (8|16)"):
        validation.validate_run(run)
