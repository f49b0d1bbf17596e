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

HERE = pathlib.Path(__file__).parent.parent


def test_minus_one_takes_the_devices_that_are_left():
    shape = {"data": 2, "fsdp": 2, "expert": 1, "sequence": 1, "tensor": 1}
    assert mesh.make_mesh(schema.Mesh(fsdp=2)).shape == shape


def test_a_batch_that_does_not_divide_is_refused():
    run = schema.Run()
    run.data.batch_size = 6
    with pytest.raises(ValueError, match=r"data.batch_size=6 must be a multiple of mesh.data=4"):
        mesh.check_mesh_devices(run, mesh.make_mesh(run.mesh))


@pytest.fixture(scope="module")
def grid() -> tuple[list[dict], str]:
    """What a tiny run did on each mesh of eight_devices.py, and what the compiler complained of."""
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parent),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
    }
    done = subprocess.run(
        [sys.executable, HERE / "eight_devices.py"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_every_mesh_gives_the_losses_of_one_device(grid):
    (one, *others), _ = grid
    assert len(others) >= 12 and one["losses"][0] > one["losses"][4]
    for other in others:
        np.testing.assert_allclose(other["losses"], one["losses"], rtol=2e-5, err_msg=str(other))


def test_the_state_of_a_step_is_given_to_the_next_on_every_mesh(grid):
    assert all(mesh["given"] for mesh in grid[0])


def test_no_mesh_makes_the_compiler_copy_an_array_everywhere(grid):
    assert "rematerialization" not in grid[1]


def test_each_kind_of_mesh_sends_what_it_should(grid):
    def kinds(**sizes):
        ones = dict.fromkeys(axis_rules.MESH_AXES, 1)
        return next(set(m["collectives"]) for m in grid[0] if m["sizes"] == ones | sizes)

    assert kinds() == set()
    assert kinds(data=8) == {"all-reduce"}  # gradients
    assert kinds(data=4, tensor=2) == {"all-reduce"}  # and the sums over heads and d_ff
    assert kinds(fsdp=8) == {"all-gather", "all-reduce"}  # weights as they are needed
    assert kinds(sequence=8) == {"all-gather", "all-reduce"}  # keys and values


def test_pieces_take_a_share_of_every_device_and_join_again():
    device_mesh = mesh.make_mesh(schema.Mesh(data=2, sequence=2))
    x_BT = jnp.arange(2 * 8).reshape(2, 8)
    with jax.set_mesh(device_mesh):
        pieces = mesh.split_chunks(x_BT, 2, "length", axis=1)
        np.testing.assert_array_equal(pieces[:, 0], [[0, 1, 4, 5], [2, 3, 6, 7]])
        np.testing.assert_array_equal(mesh.merge_chunks(pieces, "length", axis=1), x_BT)
    np.testing.assert_array_equal(mesh.split_chunks(x_BT, 2, "length", axis=1)[:, 0, 0], [0, 4])


def test_rules_of_a_run_split_its_weights_and_leave_other_runs_alone():
    run = schema.Run(mesh=schema.Mesh(fsdp=2, tensor=2, rules={"embed": [], "mlp": "fsdp"}))
    device_mesh = mesh.make_mesh(run.mesh)
    rules = mesh.ShardingRules.of(run.mesh)
    assert rules.sharding(device_mesh, "embed", "mlp").spec == PartitionSpec(None, "fsdp")
    assert mesh.named_sharding(device_mesh, "embed", "mlp").spec == PartitionSpec("fsdp", "tensor")


def test_a_mesh_axis_used_twice_in_one_array_is_refused_by_name():
    run = schema.Run(mesh=schema.Mesh(fsdp=2, tensor=2, rules={"embed": "tensor"}))
    with pytest.raises(ValueError, match="mesh.rules: tensor splits '.*' and '.*' of one array"):
        step.build_train_functions(validation.validate_run(run), mesh.make_mesh(run.mesh))


def test_no_device_ever_holds_the_whole_of_a_fresh_state():
    run = schema.Run(mesh=schema.Mesh(data=1, fsdp=4))
    run.model = schema.Model(d_model=64, n_layers=8, d_ff=256)
    program = step.build_train_functions(validation.validate_run(run), mesh.make_mesh(run.mesh))
    memory = program.init.lower(0).compile().memory_analysis()
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.abstract))
    assert memory.output_size_in_bytes < 0.27 * whole  # norms are whole everywhere
    assert memory.output_size_in_bytes + memory.temp_size_in_bytes < 0.8 * whole


def test_every_axis_name_of_the_model_has_a_rule():
    names = jax.tree.leaves(transformer.param_axes(schema.Model()))
    assert set(names) <= set(axis_rules.AXIS_RULES)
    assert {axis for axes in axis_rules.AXIS_RULES.values() for axis in axes} == set(
        axis_rules.MESH_AXES
    )
    assert set(axis_rules.MESH_AXES) == set(vars(schema.Mesh())) - {"rules", "deterministic_shards"}


def test_placed_rows_are_the_rows_and_are_split():
    device_mesh = mesh.make_mesh(schema.Mesh(data=2, fsdp=2))
    rows = np.arange(8 * 5, dtype=np.int32).reshape(8, 5)
    placed = mesh.put_batch(device_mesh, {"rows": rows[mesh.local_rows(device_mesh, 8)]})["rows"]
    np.testing.assert_array_equal(placed, rows)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 5)}


def test_the_peak_is_a_rate_of_all_devices():
    one = mesh.make_mesh(schema.Mesh(), jax.devices()[:1])
    assert 1e8 < mesh.peak_flops_per_second(one, "float32", size=256) < 1e16
    assert mesh.device_platform(one) == "cpu" and mesh.describe_devices(one).startswith(
        "1 cpu device"
    )
