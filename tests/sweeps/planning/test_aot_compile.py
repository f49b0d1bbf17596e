"""Compilers of machines that are not here; each test needs the extra with that machine's."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
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


def test_what_runs_in_a_loop_counts_as_often_as_the_loop_runs():
    found = aot_compile.total_traffic(aot_compile.find_collectives(TPU, 64))
    assert found["collective-permute"] == {"n": 5, "bytes": 5 * 4 * 4 * 2}


def test_a_collective_in_several_steps_counts_once():
    found = [one for one in aot_compile.find_collectives(TPU, 64) if one.kind == "all-gather"]
    assert [(one.n, one.bytes) for one in found] == [(1, 64 * 32 * 2 * 7 / 8)]
    assert found[0].group == tuple(range(0, 64, 8))


def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
    found = [one for one in aot_compile.find_collectives(TPU, 64) if one.kind == "reduce-scatter"]
    assert [(one.n, one.bytes) for one in found] == [(5, 64 * 32 * 2 * 7 / 8)]
    assert found[0].group == tuple(range(0, 64, 8))


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", (0, 1, 4, 5)),
        ("replica_groups={}", tuple(range(8))),
    ],
)
def test_groups_are_read_in_every_way_that_they_are_written(written, group):
    line = f"  %r = f32[8]{{0}} all-reduce(%x), channel_id=1, {written}, to_apply=%s"
    text = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{line}\n}}\n"
    (found,) = aot_compile.find_collectives(text, 8)
    assert found.group == group
    assert found.bytes == 2 * 32 * (len(group) - 1) / len(group)


def test_a_real_program_sends_what_its_splits_make_it_send():
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((4,), ("x",), auto, devices=jax.devices()[:4])
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("x",), ()))
    a = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=rows)

    def five_times(a):
        def body(x, _):
            x = jax.lax.with_sharding_constraint(jnp.sin(x), whole)
            return jax.lax.with_sharding_constraint(x * x.sum(), rows), None

        return jax.lax.scan(body, a, length=5)[0]

    text = jax.jit(five_times, out_shardings=rows).lower(a).compile().as_text()
    gathered = aot_compile.total_traffic(aot_compile.find_collectives(text, 4))["all-gather"]
    assert gathered == {"n": 5, "bytes": 5 * 8 * 128 * 4 * 3 / 4}


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
def test_what_a_compiler_says_of_memory_is_understood(message, needed):
    found = aot_compile._needed(message, held=2**30, memory=16 * 2**30)
    assert found == pytest.approx(needed)


def test_more_devices_than_this_process_has_are_refused():
    with pytest.raises(ValueError, match="this process has"):
        aot_compile.target_devices(hardware.parse_target("cpu:64"))


@pytest.mark.parametrize(("name", "extra"), [("tpu:v5e:2x2", "tpu"), ("gpu:h100:4", "gpu")])
def test_a_step_compiles_for_a_machine_that_is_not_here(name, extra, tmp_path):
    if aot_compile.missing_extra(hardware.parse_target(name)):
        pytest.skip(f"the extra {extra} is not installed")
    command = [sys.executable, "-m", "experiments.plan", "--config=configs/base.py:10K", "--json"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [*command, f"--target={name}", "--config.mesh.fsdp=4"],
        env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["how"] == "compiled" and row["bytes_over"] == 0 and row["devices"] == 4
    assert row["collectives"] and row["compile_seconds"] > 0
