"""Layouts that the search prefers on made-up devices with one slow resource."""

import dataclasses
import math

import pytest

from lm.config import axis_rules, model_sizes, schema
from lm.model import memory_estimate
from lm.sweeps.planning import aot_compile, cost, hardware, layout_search, roofline


def small_run() -> schema.Run:
    run = schema.Run(model=model_sizes.ladder_model("1M", n_heads=4, n_kv_heads=4, vocab_size=1024))
    run.data.batch_size, run.data.seq_len = 16, 256
    return run


def made_up_target(**spec) -> hardware.Target:
    """Return eight devices on which every resource is fast, except for the values of `spec`."""
    fast = dict.fromkeys(
        ("bfloat16", "float32", "memory_bytes", "memory_speed", "link_speed"), 1e15
    )
    chip = dataclasses.replace(hardware.ACCELERATORS["cpu"], **fast | spec)
    return dataclasses.replace(hardware.parse_target("cpu:8"), spec=chip)


def test_meshes_use_all_devices_and_are_unique():
    meshes = [tuple(sizes.values()) for sizes in layout_search.list_meshes(small_run(), 8)]
    assert all(math.prod(sizes) == 8 for sizes in meshes) and len(set(meshes)) == len(meshes)
    assert {len(sizes) for sizes in meshes} == {len(axis_rules.MESH_AXES)}
    assert (1, 2, 1, 1, 4) in meshes and (8, 1, 1, 1, 1) in meshes


def test_compute_bound_layouts_recompute_nothing():
    target = made_up_target(float32=1e9)
    rows = layout_search.search_layouts(small_run(), target, 3, should_compile=False)
    assert {row["model.remat"] for row in rows} == {"none"}
    assert {row["bound"] for row in rows} == {"compute"}


def test_network_bound_layout_does_not_shard_weights():
    target = made_up_target(link_speed=1e6)
    (row,) = layout_search.search_layouts(small_run(), target, 1, should_compile=False)
    assert row["mesh"] == {"data": 8} and row["optim.grad_accumulation_steps"] == 1


def test_scarce_memory_shards_weights():
    """A device with memory for the unsharded state alone uses a slower, sharded layout."""
    target = made_up_target(link_speed=1e6)
    (ample,) = layout_search.search_layouts(small_run(), target, 1, should_compile=False)
    state_bytes = ample["bytes_params"] + ample["bytes_optimizer"]
    target = made_up_target(link_speed=1e6, memory_bytes=state_bytes)
    (scarce,) = layout_search.search_layouts(small_run(), target, 1, should_compile=False)
    assert scarce["bytes_needed"] <= state_bytes and scarce["bytes_over"] == 0
    assert set(scarce["mesh"]) != {"data"}
    assert scarce["roofline_seconds"] > ample["roofline_seconds"]


def test_run_that_fits_in_no_layout_is_refused():
    """The error names the missing memory of the smallest layout."""
    message = "--target=cpu:8: .* fits in no layout. .* by .* GiB"
    with pytest.raises(ValueError, match=message):
        layout_search.search_layouts(
            small_run(), made_up_target(memory_bytes=1e4), 1, should_compile=False
        )


def test_compiled_temporaries_correct_the_estimates(monkeypatch):
    """After one compilation exceeds its estimate, layouts with the same policy are skipped."""
    compiled_policies = []

    def compile_step(run, target):
        estimate = roofline.estimate_step(run, target, memory_estimate.list_weights(run.model))
        compiled_policies.append(run.model.remat)
        temporaries = estimate.temporaries * (1000 if run.model.remat == "none" else 1)
        needed = estimate.params + estimate.optimizer + temporaries
        over = max(0.0, needed - target.spec.memory_bytes)
        return aot_compile.Compiled(
            estimate.params, estimate.optimizer, temporaries, over, [], 0.0, 1.0
        )

    monkeypatch.setattr(aot_compile, "compile_step", compile_step)
    target = made_up_target(memory_bytes=2e9, float32=1e9)
    rows = layout_search.search_layouts(small_run(), target, 3)
    assert compiled_policies[0] == "none" and compiled_policies.count("none") == 1
    assert [row["bytes_over"] > 0 for row in rows] == [False, False, True]
    assert rows[0]["roofline_seconds"] and rows[-1]["roofline_seconds"] is None


def test_expected_time_is_above_the_roofline():
    """The expected step time assumes an MFU. It is the roofline where that is slower."""
    row = cost.plan_run(small_run(), made_up_target(float32=1e9), should_compile=False)
    assert row["roofline_seconds"] == row["compute_seconds"] < row["step_seconds"]
    assert row["mfu"] < 0.6 and row["bound"] == "compute"
    slow = cost.plan_run(small_run(), made_up_target(memory_speed=1e6), should_compile=False)
    assert slow["step_seconds"] == slow["roofline_seconds"] == slow["memory_seconds"]
    assert slow["device_hours"] == 8 * slow["hours"]


def test_layouts_cross_the_slow_network_with_data_alone():
    """A slow network makes the search prefer a mesh with less traffic between the slices."""
    target = dataclasses.replace(made_up_target(slow_speed=1e6), n_slices=2, shape=(4,))
    rows = layout_search.search_layouts(small_run(), target, 5, should_compile=False)
    assert all(row["mesh"].get("data", 1) % 2 == 0 for row in rows)
    (row,) = layout_search.search_layouts(small_run(), target, 1, should_compile=False)
    assert row["bound"] == "network"
    within = made_up_target(slow_speed=1e6)
    (fast,) = layout_search.search_layouts(small_run(), within, 1, should_compile=False)
    assert fast["network_seconds"] < row["network_seconds"] / 100


def test_plan_refuses_a_mesh_whose_other_axis_crosses_slices():
    run = small_run()
    run.mesh.fsdp = 8
    target = dataclasses.replace(made_up_target(), n_slices=2, shape=(4,))
    with pytest.raises(ValueError, match="try mesh.data=2 with mesh.fsdp=4"):
        cost.plan_run(run, target, should_compile=False)
