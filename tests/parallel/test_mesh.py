"""Tests of meshes, sharding rules, and training on meshes of eight devices."""

import dataclasses
import json
import math
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


@pytest.fixture(scope="module", params=[5, pytest.param(13, marks=pytest.mark.slow)])
def eight_devices(request) -> tuple[list[dict], str]:
    """Return the rows of eight_devices.py, one per mesh, and the warnings of the compiler."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "NPROC": "32",  # threads of XLA: with one per core, eight devices can wait for each other
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
    }
    completed = subprocess.run(
        [sys.executable, ROOT / "tests" / "fixtures" / "eight_devices.py", str(request.param)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    return [json.loads(line) for line in completed.stdout.splitlines()], completed.stderr


def test_every_mesh_gives_the_losses_of_one_device(eight_devices):
    (reference, *rows), _ = eight_devices
    assert len(rows) >= 4 and reference["values"][0] > reference["values"][4]
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
    # Weights, gradients, and the gradient of the embedding.
    assert collectives(fsdp=8) == {"all-gather", "all-reduce", "reduce-scatter"}
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
    assert set(axis_rules.MESH_AXES) == set(vars(schema.Mesh())) - {
        *("rules", "deterministic_shards", "deterministic_kernels")
    }


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


@dataclasses.dataclass(frozen=True)
class AbsentDevice:
    """Stand-in for a device of an accelerator that is not present."""

    id: int
    platform: str
    device_kind: str
    process_index: int
    coords: tuple[int, ...] = ()
    slice_index: int | None = None
    core_on_chip: int = 0


def tpu_slices(n_slices: int, shape: tuple[int, ...] = (4, 4)) -> list[AbsentDevice]:
    """Return the devices of TPU v5e slices, with those of the last slice first, as JAX may."""
    n = math.prod(shape)
    return [
        AbsentDevice(
            i, "tpu", "TPU v5 lite", i // 4, (*np.unravel_index(i % n, shape)[::-1], 0), i // n
        )
        for i in reversed(range(n_slices * n))
    ]


def gpu_nodes(n_nodes: int, has_slice_index: bool) -> list[AbsentDevice]:
    """Return the devices of nodes with 8 cards and a process per node."""
    return [
        AbsentDevice(
            i, "gpu", "NVIDIA H100", i // 8, slice_index=i // 8 if has_slice_index else None
        )
        for i in range(8 * n_nodes)
    ]


@pytest.mark.parametrize(
    ("devices", "sizes"),
    [
        (tpu_slices(2), {"fsdp": 8, "tensor": 2}),
        (tpu_slices(3), {"data": 6, "fsdp": 8}),
        (gpu_nodes(2, has_slice_index=True), {"fsdp": 8}),
        (gpu_nodes(4, has_slice_index=False), {"fsdp": 4, "tensor": 2}),
        # Descriptions of absent nodes have the slice index 0.
        ([dataclasses.replace(d, slice_index=0) for d in gpu_nodes(2, True)], {"fsdp": 8}),
    ],
)
def test_data_axis_alone_crosses_slices_and_nodes(devices, sizes):
    grid = mesh.make_mesh(schema.Mesh(**sizes), devices).devices
    is_numbered = len({device.slice_index for device in devices}) > 1
    attribute = "slice_index" if is_numbered else "process_index"
    slices = np.vectorize(lambda device: getattr(device, attribute))(grid)
    assert sorted(device.id for device in grid.flat) == list(range(len(devices)))
    assert (slices == slices[:, :1, :1, :1, :1]).all()  # equal along every axis but data
    order = slices[:, 0, 0, 0, 0]
    assert (np.diff(order) >= 0).all() and len(set(order)) == len(mesh.group_slices(devices, []))


@pytest.mark.parametrize(
    ("devices", "sizes", "message"),
    [
        (tpu_slices(2), {"fsdp": 32}, "of the 2 slices, .*: try mesh.data=2 with mesh.fsdp=16"),
        (tpu_slices(2), {"data": 1, "fsdp": 4, "tensor": 8}, "mesh.data=2 with mesh.fsdp=2"),
        (tpu_slices(2)[:-4], {"data": 28}, "the slices have 12, 16 devices: start"),
        (gpu_nodes(2, True), {"tensor": 16}, "2 nodes, .*: try mesh.data=2 with mesh.tensor=8"),
        (gpu_nodes(4, False), {"data": 2, "fsdp": 16}, "mesh.data=4 with mesh.fsdp=8"),
        (gpu_nodes(2, False)[:-4], {"fsdp": 12}, "the nodes have 8, 4 devices: start"),
        (gpu_nodes(2, False)[:-4], {"tensor": 3}, "the nodes have 8, 4 devices: start"),
    ],
)
def test_axis_that_crosses_the_slow_network_is_refused(devices, sizes, message):
    with pytest.raises(ValueError, match=message) as error:
        mesh.make_mesh(schema.Mesh(**sizes), devices)
    assert "\n" not in str(error.value)


def test_devices_of_one_network_are_one_slice():
    """A process per card on one node is no slow network: JAX numbers the node, not the process."""
    one_node = [dataclasses.replace(d, process_index=d.id) for d in gpu_nodes(1, True)]
    assert len(mesh.group_slices(one_node, [])) == len(mesh.group_slices(jax.devices(), [])) == 1
    assert mesh.make_mesh(schema.Mesh(tensor=8), one_node).shape["tensor"] == 8


def test_unequal_gpu_nodes_are_split_by_the_data_axis():
    devices = gpu_nodes(2, False)[:-4]
    grid = mesh.make_mesh(schema.Mesh(tensor=2), devices).devices
    assert grid.shape == (6, 1, 1, 1, 2)
    assert [device.id for device in grid.flat] == list(range(12))


@pytest.mark.parametrize(
    ("per_process", "host_names", "n_nodes"),
    [(4, "aa", 1), (4, "aabb", 2), (4, "abab", 2), (1, "a" * 8 + "b" * 8, 2), (8, "ab", 2)],
)
def test_gpu_processes_of_one_host_are_one_node(per_process, host_names, n_nodes):
    n_devices = per_process * len(host_names)
    devices = [
        dataclasses.replace(d, process_index=d.id // per_process)
        for d in gpu_nodes(2, has_slice_index=False)[:n_devices]
    ]
    groups = mesh.group_slices(devices, tuple(host_names))
    assert [len(group) for group in groups] == [n_devices // n_nodes] * n_nodes
    hosts = [{host_names[device.process_index] for device in group} for group in groups]
    assert [len(names) for names in hosts] == [1] * n_nodes
