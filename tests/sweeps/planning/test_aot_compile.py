"""Collectives of HLO programs, and compilation for absent TPUs and GPUs.

A test of an absent TPU or GPU needs the extra with its compiler.
"""

import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lm.sweeps.planning import aot_compile, hardware

TPU = """HloModule made_up, is_scheduled=true

%region.sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (p: bf16[64,32]) -> bf16[8,32] {
  %p = bf16[64,32]{1,0} parameter(0)
  %all-reduce.1 = bf16[64,32]{1,0:T(8,128)(2,1)} all-reduce(%p), channel_id=1, \
replica_groups=[8,8]<=[8,8]T(1,0), to_apply=%region.sum
  ROOT %slice = bf16[8,32]{1,0} dynamic-slice(%all-reduce.1)
}

%gather.first (p: bf16[8,32]) -> bf16[64,32] {
  %all-gather.1 = bf16[64,32]{1,0} all-gather(%p), channel_id=2, \
replica_groups=mesh['axis_0'=8,'axis_1'=8] {'axis_0'}, dimensions={0}
}

%gather.rest (p: bf16[8,32]) -> bf16[64,32] {
  %all-gather.2 = bf16[64,32]{1,0} all-gather(%p), channel_id=2, \
replica_groups=mesh['axis_0'=8,'axis_1'=8] {'axis_0'}, dimensions={0}
}

%cond (c: (s32[], bf16[64,32])) -> pred[] {
  %constant.9 = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %constant.9), direction=LT
}

%body (c: (s32[], bf16[64,32])) -> (s32[], bf16[64,32]) {
  %scattered = bf16[8,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %permuted = (bf16[4,4]{1,0}, bf16[4,4]{1,0}, u32[]{:S(2)}, \
u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,7},{1,0}}
}

ENTRY %main (x: bf16[64,32]) -> bf16[64,32] {
  %start = (bf16[8,32]{1,0}, bf16[64,32]{1,0}) fusion(%x), kind=kCustom, calls=%gather.first
  %done = bf16[64,32]{1,0} fusion(%start), kind=kCustom, calls=%gather.rest
  %while.1 = (s32[], bf16[64,32]{1,0}) while(%t), condition=%cond, body=%body
}
"""


def find_kind(kind: str) -> list[aot_compile.Collective]:
    collectives = aot_compile.find_collectives(TPU, 64)
    return [collective for collective in collectives if collective.kind == kind]


def test_collective_in_a_loop_counts_each_iteration():
    totals = aot_compile.total_traffic(aot_compile.find_collectives(TPU, 64))
    assert totals["collective-permute"] == {"n": 5, "bytes": 5 * 4 * 4 * 2}


def test_collective_in_several_instructions_counts_once():
    (gather,) = find_kind("all-gather")
    assert (gather.n, gather.bytes) == (1, 64 * 32 * 2 * 7 / 8)
    assert gather.group == tuple(range(0, 64, 8))


def test_sliced_all_reduce_counts_as_reduce_scatter():
    (scatter,) = find_kind("reduce-scatter")
    assert (scatter.n, scatter.bytes) == (5, 64 * 32 * 2 * 7 / 8)
    assert scatter.group == tuple(range(0, 64, 8))


@pytest.mark.parametrize(
    ("notation", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("replica_groups={}", tuple(range(8))),
    ],
)
def test_replica_groups_are_parsed_in_all_notations(notation, group):
    line = f"  %r = f32[8]{{0}} all-reduce(%x), channel_id=1, {notation}, to_apply=%s"
    text = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{line}\n}}\n"
    (collective,) = aot_compile.find_collectives(text, 8)
    assert collective.group == group
    assert collective.bytes == 2 * 32 * (len(group) - 1) / len(group)


def test_collectives_of_one_tpu_slice_use_its_links():
    """JAX describes the devices of a single slice without the attribute slice_index."""
    target = hardware.parse_target("tpu:v5e:4x4", "--target")
    devices = [types.SimpleNamespace(id=i, coords=(i % 4, i // 4, 0)) for i in range(16)]
    device_mesh = types.SimpleNamespace(devices=np.array(devices).reshape(2, 8))
    collectives = [aot_compile.Collective("all-gather", 3, 1e6, tuple(range(8)))]
    seconds = aot_compile.collective_seconds(collectives, target, device_mesh)
    coordinates = [(0, i % 4, i // 4) for i in range(8)]
    assert seconds == 3e6 / hardware.link_bandwidth(target, coordinates)


def test_compiled_program_all_gathers_in_each_iteration():
    """The body of a loop of length 5 replicates an array that is sharded over four devices."""
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("x",), auto, devices=jax.devices()[:4])
    sharded, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x",), ()))
    a = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=sharded)

    def five_times(a):
        def body(x, _):
            x = jax.lax.with_sharding_constraint(jnp.sin(x), replicated)
            return jax.lax.with_sharding_constraint(x * x.sum(), sharded), None

        return jax.lax.scan(body, a, length=5)[0]

    text = jax.jit(five_times, out_shardings=sharded).lower(a).compile().as_text()
    totals = aot_compile.total_traffic(aot_compile.find_collectives(text, 4))
    assert totals["all-gather"] == {"n": 5, "bytes": 5 * 8 * 128 * 4 * 3 / 4}


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 33.5G of 15.75G hbm. Exceeded hbm capacity"
         " by 17.75G.", 16 * 2**30 + 17.75 * 2**30),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO"
         " temporaries (165.56G) exceeds available HBM (15.75G).", 2**30 + 165.56 * 2**30),
        ("INVALID_ARGUMENT: something else", 0.0),
    ],
)  # fmt: skip
def test_needed_bytes_are_parsed_from_compiler_messages(message, needed):
    parsed = aot_compile.parse_needed_bytes(message, state=2**30, memory=16 * 2**30)
    assert parsed == pytest.approx(needed)


def test_cpu_target_with_too_many_devices_is_refused():
    with pytest.raises(ValueError, match="this process has"):
        aot_compile.target_devices(hardware.parse_target("cpu:64"))


@pytest.mark.parametrize(("name", "extra"), [("tpu:v5e:2x2", "tpu"), ("gpu:h100:4", "gpu")])
def test_step_compiles_for_absent_hardware(name, extra, tmp_path):
    if aot_compile.missing_extra(hardware.parse_target(name)):
        pytest.skip(f"the extra {extra} is not installed")
    command = [sys.executable, "-m", "experiments.plan", "--config=configs/base.py:10K", "--json"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    result = subprocess.run(
        [*command, f"--target={name}", "--config.mesh.fsdp=4"],
        env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)
    assert row["method"] == "compiled" and row["bytes_over"] == 0 and row["devices"] == 4
    assert row["collectives"] and row["compile_seconds"] > 0
