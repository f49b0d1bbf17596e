import dataclasses

import pytest

from lm.config import model_sizes, schema
from lm.sweeps.planning import aot_compile, cost, hardware, roofline

SHAPES = {
    "full": {"remat": "full", "attention_query_blocks": 2},
    "dots": {"remat": "dots", "attention_query_blocks": 4, "loss_chunks": 4},
    "none": {"remat": "none", "attention_query_blocks": 1},
}
PLAIN = {"mlp": "gelu", "norm": "layer", "bias": True, "learned_positions": 256, "qk_norm": False}


def small(**knobs) -> schema.Run:
    run = schema.Run(model=model_sizes.ladder_model("1M", n_layers=10, vocab_size=4096, **knobs))
    run.data.batch_size, run.data.seq_len = 8, 256
    run.mesh.fsdp = 2
    run.mesh.tensor = 2
    return run


@pytest.mark.parametrize("knobs", [*SHAPES.values(), PLAIN | SHAPES["full"]], ids=[*SHAPES, "gpt2"])
def test_flops_by_arithmetic_are_those_of_the_program(knobs):
    run = small(**knobs)
    assert roofline.executed_flops(run) == pytest.approx(cost.count_step_flops(run), rel=1e-3)


@pytest.mark.parametrize("policy", ["full", "none"])
def test_bytes_by_arithmetic_are_near_those_of_the_compiler(policy):
    run, target = small(**SHAPES[policy]), hardware.parse_target("cpu:4")
    # Too little memory is an answer in bytes, not an error.
    tight = dataclasses.replace(target, spec=dataclasses.replace(target.spec, memory=1e5))
    guess = roofline.estimate_step(run, target, roofline.list_weights(run.model))
    made = aot_compile.compile_step(run, tight)
    assert guess.params == made.params
    assert guess.optimizer == pytest.approx(made.optimizer, rel=1e-3)  # but for its counters
    assert 1 / 2 < guess.temporaries / made.temporaries < 2
    plain = dataclasses.replace(run.model, **PLAIN)
    less = roofline.estimate_step(
        dataclasses.replace(run, model=plain), target, roofline.list_weights(plain)
    )
    assert less.temporaries <= guess.temporaries and less.memory_seconds < guess.memory_seconds
    assert made.over == made.bytes - 1e5 > 0 and made.network_seconds > 0


def test_more_devices_hold_less_each_and_smaller_pieces_need_less():
    run, of = small(), roofline.list_weights(small().model)
    few = roofline.estimate_step(run, hardware.parse_target("cpu:4"), of)
    run.mesh.fsdp = 8
    many = roofline.estimate_step(run, hardware.parse_target("cpu:16"), of)
    assert many.params < few.params and many.bytes < few.bytes
    run.mesh.fsdp, run.data.batch_size = 2, 64
    whole = roofline.estimate_step(run, hardware.parse_target("cpu:4"), of)
    run.optim.grad_accumulation_steps = 8
    pieces = roofline.estimate_step(run, hardware.parse_target("cpu:4"), of)
    assert pieces.temporaries < whole.temporaries / 3
    assert pieces.flops == whole.flops and pieces.network_seconds > whole.network_seconds


@pytest.mark.parametrize("name", ["tpu:v5e:2x2", "gpu:h200:4"])
def test_a_kernel_of_the_machine_leaves_no_scores_in_memory(name):
    run, target = small(dtype="bfloat16", remat="none"), hardware.parse_target(name)
    of = roofline.list_weights(run.model)
    kernel = roofline.estimate_step(run, target, of)
    plain = dataclasses.replace(run, model=dataclasses.replace(run.model, attention="plain"))
    scores = roofline.estimate_step(plain, target, of)
    assert kernel.temporaries < scores.temporaries
    assert kernel.memory_seconds < scores.memory_seconds
    run.data.seq_len = 200  # of which splash takes none, and cuDNN any
    kept = roofline.stored_attention_scores(run, roofline.ShardedShapes(run, target))
    assert (kept == 0) == name.startswith("gpu")


def test_one_device_sends_nothing():
    run = small()
    run.mesh.fsdp = run.mesh.tensor = 1
    guess = roofline.estimate_step(
        run, hardware.parse_target("cpu:1"), roofline.list_weights(run.model)
    )
    assert guess.network_seconds == 0 and guess.compute_seconds > 0 and guess.memory_seconds > 0
