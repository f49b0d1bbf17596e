import dataclasses
import math

import pytest

from lm.config import axis_rules, model_sizes, schema
from lm.sweeps.planning import aot_compile, cost, hardware, layout_search, roofline


def run() -> schema.Run:
    run = schema.Run(model=model_sizes.ladder_model("1M", n_heads=4, n_kv_heads=4, vocab_size=1024))
    run.data.batch_size, run.data.seq_len = 16, 256
    return run


def machine(**spec) -> hardware.Target:
    """Eight made-up devices: as fast as can be but for what `spec` says."""
    fast = {"bfloat16": 1e15, "float32": 1e15, "memory": 1e15, "memory_speed": 1e15, "link": 1e15}
    chip = dataclasses.replace(hardware.ACCELERATORS["cpu"], **fast | spec)
    return dataclasses.replace(hardware.parse_target("cpu:8"), spec=chip)


def test_every_mesh_multiplies_to_the_devices_and_none_comes_twice():
    found = [tuple(sizes.values()) for sizes in layout_search.list_meshes(run(), 8)]
    assert all(math.prod(sizes) == 8 for sizes in found) and len(set(found)) == len(found)
    assert {len(sizes) for sizes in found} == {len(axis_rules.MESH_AXES)}
    assert (1, 2, 1, 1, 4) in found and (8, 1, 1, 1, 1) in found


def test_where_only_arithmetic_is_slow_nothing_is_computed_twice():
    rows = layout_search.search_layouts(run(), machine(float32=1e9), 3, compiling=False)
    assert {row["model.remat"] for row in rows} == {"none"}
    assert {row["bound"] for row in rows} == {"compute"}


def test_where_the_network_is_slow_weights_stay_where_they_are():
    (row,) = layout_search.search_layouts(run(), machine(link=1e6), 1, compiling=False)
    assert row["mesh"] == {"data": 8} and row["optim.grad_accumulation_steps"] == 1


def test_where_memory_is_short_weights_are_split_and_the_batch_cut():
    (roomy,) = layout_search.search_layouts(run(), machine(link=1e6), 1, compiling=False)
    held = roomy["bytes_params"] + roomy["bytes_optimizer"]
    (tight,) = layout_search.search_layouts(
        run(), machine(link=1e6, memory=held), 1, compiling=False
    )
    assert tight["bytes_needed"] <= held and tight["bytes_over"] == 0
    assert set(tight["mesh"]) != {"data"} and tight["roofline_seconds"] > roomy["roofline_seconds"]


def test_what_fits_in_no_layout_is_refused_with_what_is_missing():
    with pytest.raises(ValueError, match="fits cpu:8 in no layout: .* GiB too much"):
        layout_search.search_layouts(run(), machine(memory=1e4), 1, compiling=False)


def test_a_policy_that_takes_more_than_was_guessed_is_guessed_larger(monkeypatch):
    """The first compile finds twice the temporaries: what would then not fit is passed over."""
    seen = []

    def compile_step(run, target):
        guess = roofline.estimate_step(run, target, roofline.list_weights(run.model))
        seen.append(run.model.remat)
        temporaries = guess.temporaries * (1000 if run.model.remat == "none" else 1)
        over = max(0.0, guess.params + guess.optimizer + temporaries - target.spec.memory)
        return aot_compile.Compiled(guess.params, guess.optimizer, temporaries, over, [], 0.0, 1.0)

    monkeypatch.setattr(aot_compile, "compile_step", compile_step)
    rows = layout_search.search_layouts(run(), machine(memory=2e9, float32=1e9), 3)
    assert seen[0] == "none" and seen.count("none") == 1
    assert [row["bytes_over"] > 0 for row in rows] == [False, False, True]
    assert rows[0]["roofline_seconds"] and rows[-1]["roofline_seconds"] is None


def test_the_roofline_and_the_assumed_share_are_kept_apart():
    row = cost.plan_run(run(), machine(float32=1e9), compiling=False)
    assert row["roofline_seconds"] == row["compute_seconds"] < row["step_seconds"]
    assert row["reached"] < 0.6 and row["bound"] == "compute"
    slow = cost.plan_run(run(), machine(memory_speed=1e6), compiling=False)
    assert slow["step_seconds"] == slow["roofline_seconds"] == slow["memory_seconds"]
    assert slow["device_hours"] == 8 * slow["hours"]
