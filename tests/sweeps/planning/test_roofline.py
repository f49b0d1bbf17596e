"""The analytic estimate against traced programs and against the compiler of the CPU."""

import dataclasses

import pytest

from lm.config import model_sizes, schema
from lm.model import memory_estimate
from lm.sweeps.planning import aot_compile, cost, hardware, roofline

SHAPES = {
    "full": {"remat": "full", "attention_query_blocks": 2},
    "dots": {"remat": "dots", "attention_query_blocks": 4, "loss_chunks": 4},
    "none": {"remat": "none", "attention_query_blocks": 1},
}
GPT2 = {"mlp": "gelu", "norm": "layer", "bias": True, "learned_positions": 256, "qk_norm": False}


def small_run(**model_fields) -> schema.Run:
    model = model_sizes.ladder_model("1M", n_layers=10, vocab_size=4096, **model_fields)
    run = schema.Run(model=model)
    run.data.batch_size, run.data.seq_len = 8, 256
    run.mesh.fsdp = 2
    run.mesh.tensor = 2
    return run


def estimate(run: schema.Run, target: str | hardware.Target) -> roofline.Estimate:
    target = hardware.parse_target(target) if isinstance(target, str) else target
    return roofline.estimate_step(run, target, memory_estimate.list_weights(run.model))


@pytest.mark.parametrize(
    "model_fields", [*SHAPES.values(), GPT2 | SHAPES["full"]], ids=[*SHAPES, "gpt2"]
)
def test_analytic_flops_equal_those_of_the_traced_program(model_fields):
    run = small_run(**model_fields)
    assert roofline.executed_flops(run) == pytest.approx(cost.count_step_flops(run), rel=1e-3)


@pytest.mark.parametrize("policy", ["full", "none"])
def test_estimated_bytes_are_near_those_of_the_compiler(policy):
    """Parameters are equal, and the optimizer state except for its counters.

    A step that exceeds the memory returns the missing bytes and raises no error.
    """
    run, target = small_run(**SHAPES[policy]), hardware.parse_target("cpu:4")
    small_memory = dataclasses.replace(
        target, spec=dataclasses.replace(target.spec, memory_bytes=1e5)
    )
    estimated = estimate(run, target)
    compiled = aot_compile.compile_step(run, small_memory)
    assert estimated.params == compiled.params
    assert estimated.optimizer == pytest.approx(compiled.optimizer, rel=1e-3)
    assert 1 / 2 < estimated.temporaries / compiled.temporaries < 2
    gpt2 = estimate(dataclasses.replace(run, model=dataclasses.replace(run.model, **GPT2)), target)
    assert gpt2.temporaries <= estimated.temporaries
    assert gpt2.memory_seconds < estimated.memory_seconds
    assert compiled.over == compiled.bytes - 1e5 > 0 and compiled.network_seconds > 0


def test_more_devices_and_micro_batches_need_less_memory():
    run = small_run()
    few_devices = estimate(run, "cpu:4")
    run.mesh.fsdp = 8
    many_devices = estimate(run, "cpu:16")
    assert many_devices.params < few_devices.params and many_devices.bytes < few_devices.bytes
    run.mesh.fsdp, run.data.batch_size = 2, 64
    one_batch = estimate(run, "cpu:4")
    run.optim.grad_accumulation_steps = 8
    micro_batches = estimate(run, "cpu:4")
    assert micro_batches.temporaries < one_batch.temporaries / 3
    assert micro_batches.flops == one_batch.flops
    assert micro_batches.network_seconds > one_batch.network_seconds


@pytest.mark.parametrize("name", ["tpu:v5e:2x2", "gpu:h200:4"])
def test_fused_attention_stores_no_scores(name):
    """With sequences of 200 tokens, cuDNN still applies, and splash does not."""
    run, target = small_run(dtype="bfloat16", remat="none"), hardware.parse_target(name)
    fused = estimate(run, target)
    plain = estimate(
        dataclasses.replace(run, model=dataclasses.replace(run.model, attention="plain")), target
    )
    assert fused.temporaries < plain.temporaries
    assert fused.memory_seconds < plain.memory_seconds
    run.data.seq_len = 200
    n_scores = memory_estimate.stored_attention_scores(run, roofline.TargetShapes(run, target))
    assert (n_scores == 0) == name.startswith("gpu")


def test_one_device_sends_nothing():
    run = small_run()
    run.mesh.fsdp = run.mesh.tensor = 1
    estimated = estimate(run, "cpu:1")
    assert estimated.network_seconds == 0
    assert estimated.compute_seconds > 0 and estimated.memory_seconds > 0
