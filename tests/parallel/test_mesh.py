"""Tests of meshes, sharding rules, and training on meshes of eight devices."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.config import axis_rules, schema, validation
from lm.model import transformer
from lm.parallel import mesh
from lm.training import step

ROOT = pathlib.Path(__file__).parents[2]


def test_mesh_axis_of_minus_one_gets_the_remaining_devices():
    shape = {"data": 2, "fsdp": 2, "expert": 1, "sequence": 1, "tensor": 1}
    assert mesh.make_mesh(schema.Mesh(fsdp=2)).shape == shape


def test_batch_that_does_not_divide_is_refused():
    run = schema.Run()
    run.data.batch_size = 6
    with pytest.raises(ValueError, match=r"data.batch_size=6 must be a multiple of mesh.data=4"):
        mesh.check_mesh_devices(run, mesh.make_mesh(run.mesh))


@pytest.fixture(scope="module")
def eight_devices() -> tuple[list[dict], str]:
    """Return the rows of eight_devices.py, one per mesh, and the warnings of the compiler."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
    }
    completed = subprocess.run(
        [sys.executable, ROOT / "tests" / "fixtures" / "eight_devices.py"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    return [json.loads(line) for line in completed.stdout.splitlines()], completed.stderr


def test_every_mesh_gives_the_losses_of_one_device(eight_devices):
    (reference, *rows), _ = eight_devices
    assert len(rows) >= 12 and reference["values"][0] > reference["values"][4]
    for row in rows:
        np.testing.assert_allclose(row["values"], reference["values"], rtol=2e-5, err_msg=str(row))


def test_every_step_donates_its_input_state(eight_devices):
    assert all(row["is_donated"] for row in eight_devices[0])


def test_compiler_replicates_no_array_to_reshard_it(eight_devices):
    """The compiler warns of "involuntary full rematerialization" otherwise."""
    assert "rematerialization" not in eight_devices[1]


def test_each_mesh_uses_the_expected_collectives(eight_devices):
    def collectives(**sizes):
        sizes = dict.fromkeys(axis_rules.MESH_AXES, 1) | sizes
        return next(set(row["collectives"]) for row in eight_devices[0] if row["sizes"] == sizes)

    assert collectives() == set()
    assert collectives(data=8) == {"all-reduce"}  # gradients
    assert collectives(data=4, tensor=2) == {"all-reduce"}  # and sums over heads and d_ff
    assert collectives(fsdp=8) == {"all-gather", "all-reduce"}  # weights, gradients
    assert collectives(sequence=8) == {"all-gather", "all-reduce"}  # keys, values, gradients


def test_chunks_contain_a_part_of_every_device():
    """merge_chunks restores the array."""
    device_mesh = mesh.make_mesh(schema.Mesh(data=2, sequence=2))
    x_BT = jnp.arange(2 * 8).reshape(2, 8)
    with jax.set_mesh(device_mesh):
        chunks_CBT = mesh.split_chunks(x_BT, 2, "length", axis=1)
        np.testing.assert_array_equal(chunks_CBT[:, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])
        np.testing.assert_array_equal(mesh.merge_chunks(chunks_CBT, "length", axis=1), x_BT)
    np.testing.assert_array_equal(mesh.split_chunks(x_BT, 2, "length", axis=1)[:, 0, 0], [0, 4])


def test_mesh_rules_apply_only_to_their_run():
    run = schema.Run(mesh=schema.Mesh(fsdp=2, tensor=2, rules={"embed": [], "mlp": "fsdp"}))
    device_mesh = mesh.make_mesh(run.mesh)
    rules = mesh.ShardingRules.from_config(run.mesh)
    assert rules.sharding(device_mesh, "embed", "mlp").spec == PartitionSpec(None, "fsdp")
    assert mesh.named_sharding(device_mesh, "embed", "mlp").spec == PartitionSpec("fsdp", "tensor")


def test_mesh_axis_used_twice_in_one_array_is_refused():
    run = schema.Run(mesh=schema.Mesh(fsdp=2, tensor=2, rules={"embed": "tensor"}))
    with pytest.raises(ValueError, match="mesh.rules: tensor splits '.*' and '.*' of one array"):
        step.build_train_functions(validation.validate_run(run), mesh.make_mesh(run.mesh))


def test_initialization_never_gathers_the_state_on_a_device():
    run = schema.Run(mesh=schema.Mesh(data=1, fsdp=4))
    run.model = schema.Model(256, d_model=64, n_layers=8, d_ff=256)
    program = step.build_train_functions(validation.validate_run(run), mesh.make_mesh(run.mesh))
    memory = program.init.lower(0).compile().memory_analysis()
    state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.abstract))
    # Norms are replicated, so a device has slightly more than a quarter.
    assert memory.output_size_in_bytes < 0.27 * state_bytes
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 0.8 * state_bytes


def test_every_axis_name_of_the_model_has_a_rule():
    names = jax.tree.leaves(transformer.param_axes(schema.Model()))
    assert set(names) <= set(axis_rules.AXIS_RULES)
    assert {axis for axes in axis_rules.AXIS_RULES.values() for axis in axes} == set(
        axis_rules.MESH_AXES
    )
    assert set(axis_rules.MESH_AXES) == set(vars(schema.Mesh())) - {"rules", "deterministic_shards"}


def test_put_batch_splits_the_rows_in_order():
    device_mesh = mesh.make_mesh(schema.Mesh(data=2, fsdp=2))
    rows = np.arange(8 * 5, dtype=np.int32).reshape(8, 5)
    batch = mesh.put_batch(device_mesh, {"rows": rows[mesh.local_rows(device_mesh, 8)]})
    np.testing.assert_array_equal(batch["rows"], rows)
    assert {shard.data.shape for shard in batch["rows"].addressable_shards} == {(2, 5)}


def test_measured_peak_is_plausible():
    device_mesh = mesh.make_mesh(schema.Mesh(), jax.devices()[:1])
    assert 1e8 < mesh.peak_flops_per_second(device_mesh, "float32", size=256) < 1e16
    assert mesh.device_platform(device_mesh) == "cpu"
    assert mesh.describe_devices(device_mesh).startswith("1 cpu device")
