"""The analytic estimate against traced programs and against the compiler of the CPU."""

import dataclasses
import functools

import pytest

from lm.config import model_sizes, schema
from lm.model import memory_estimate
from lm.sweeps.planning import aot_compile, cost, evaluation_program, hardware, roofline

SHAPES = {
    "full": {"remat": "full", "attention_query_blocks": 2},
    "dots": {"remat": "dots", "attention_query_blocks": 4, "loss_chunks": 4},
    "none": {"remat": "none", "attention_query_blocks": 1},
}
GPT2 = {"mlp": "gelu", "norm": "layer", "bias": True, "learned_positions": 256, "qk_norm": False}


WINDOW = {"attention_query_blocks": 4, "sliding_window": 70, "scan_unroll": 1}


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


EXPERTS = {
    f"{dispatch}-{shared}-{remat}": {
        **{"n_experts": 4, "dispatch": dispatch, "n_shared_experts": shared, "remat": remat}
    }
    for dispatch, shared, remat in [
        ("dropless", 1, "none"), ("dropless", 1, "full"), ("dropless", 0, "full"),
        ("dropless", 2, "dots"), ("capacity", 1, "full"), ("capacity", 0, "dots"),
    ]
}  # fmt: skip


@pytest.mark.parametrize(
    "model_fields",
    [*SHAPES.values(), GPT2 | SHAPES["full"], WINDOW, *EXPERTS.values()],
    ids=[*SHAPES, "gpt2", "window", *EXPERTS],
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
    run.optim.grad_accumulation_steps = 1
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


# Widths of the arrays of one token: residual stream 40, queries 48, keys and values 32, MLP 96,
# scores 64 x 6. Each value has two bytes and each float32 number has four.
SMALL = schema.Model(
    vocab_size=512, d_model=40, n_layers=3, n_heads=6, n_kv_heads=2, d_head=8, d_ff=96,
    qk_norm=False, dtype="bfloat16", attention="plain", attention_query_blocks=1,
)  # fmt: skip
LAYER_BYTES = (
    2 * (4 * 40 + 3 * 48 + 2 * 32 + 4 * 96)  # values, with gradients where both are needed
    + 4 * (2 * 40 + 2 * 48 + 32 + 96)  # norms, rotary embeddings and activation functions
    + (4 + 4 + 2) * 64 * 6  # scores, probabilities, and probabilities as values
)
STORED_BYTES = {"none": LAYER_BYTES, "dots": 2 * (3 * 40 + 2 * 48 + 32 + 2 * 96), "full": 2 * 40}
N_TOKENS, LOGIT_BYTES, LINK_SPEED = 8 * 64, 3 * 4 * 512, 5e9
N_TABLE, N_NORMS = 512 * 40, (2 * 3 + 1) * 40  # the norms are not sharded


def hand_counted_run(remat="none", accumulation=1, **mesh_fields) -> schema.Run:
    """Return a run with 8 rows of 64 tokens whose arrays were counted by hand."""
    run = schema.Run(model=dataclasses.replace(SMALL, remat=remat))
    run.data.batch_size, run.data.seq_len = 8, 64
    run.optim.grad_accumulation_steps = accumulation
    run.mesh = dataclasses.replace(run.mesh, **mesh_fields)
    return run


@functools.cache
def small_weights() -> list[memory_estimate.Weight]:
    return memory_estimate.list_weights(SMALL)


def n_elements() -> int:
    """Return the number of parameters of SMALL."""
    return sum(weight.n for weight in small_weights())


def estimate_small(run: schema.Run, target: str) -> roofline.Estimate:
    return roofline.estimate_step(run, hardware.parse_target(target), small_weights())


@pytest.mark.parametrize("remat", STORED_BYTES)
def test_temporaries_are_the_sum_of_the_arrays_of_a_step(remat):
    activations = 3 * STORED_BYTES[remat] + LAYER_BYTES + LOGIT_BYTES
    estimated = estimate_small(hand_counted_run(remat), "cpu:1")
    assert estimated.temporaries == 4 * n_elements() + N_TOKENS * activations
    accumulated = estimate_small(hand_counted_run(remat, accumulation=2), "cpu:1")
    assert accumulated.temporaries == 2 * 4 * n_elements() + N_TOKENS / 2 * activations
    assert (estimated.params, estimated.optimizer) == (4 * n_elements(), 8 * n_elements())


def test_sharded_weights_are_gathered_layer_by_layer():
    """Two layers are on a device at once, and the largest table with its float32 gradient."""
    estimated = estimate_small(hand_counted_run("full", fsdp=4), "cpu:4")
    local_size = (n_elements() - N_NORMS) / 4 + N_NORMS
    layer_size = (n_elements() - N_NORMS - 2 * N_TABLE) / 3
    gathered = 2 * 2 * layer_size + (2 + 4) * N_TABLE
    stored = N_TOKENS / 4 * (3 * STORED_BYTES["full"] + LAYER_BYTES)
    assert N_TOKENS / 4 * LOGIT_BYTES > gathered
    expected = 4 * local_size + stored + N_TOKENS / 4 * LOGIT_BYTES + gathered
    assert estimated.temporaries == pytest.approx(expected)
    assert estimated.params == 4 * local_size and estimated.optimizer == 8 * local_size


def test_memory_traffic_counts_each_product_and_weight():
    layer = 2 * (8 * 40 + 4 * (6 + 2) * 8 + 6 * 96) + (3 * 4 + 2 * 2) * 64 * 6
    for remat, n_passes in (("none", 3), ("dots", 3), ("full", 4)):
        for accumulation in (1, 2):
            run = hand_counted_run(remat, accumulation)
            tokens = N_TOKENS * (3 * n_passes * layer + 6 * 4 * 512)
            weights = n_elements() * (n_passes * 2 * accumulation + 2 * (2 + 2) * 4)
            estimated = estimate_small(run, "cpu:1")
            assert estimated.memory_seconds * 10e9 == pytest.approx(tokens + weights)
            assert estimated.compute_seconds * 0.05e12 == pytest.approx(estimated.flops)


def test_network_time_counts_the_collectives_of_each_mesh():
    """Each device sends (n - 1) / n of an array per ring, and twice that per all-reduce."""
    stream, n_sharded, norms = 2 * N_TOKENS * 40, n_elements() - N_NORMS, 2 * 4 * N_NORMS
    reduced, keys = 2 * 4 * n_elements(), 2 * 2 * N_TOKENS * 2 * 8
    for fields, n_bytes in (
        ({"data": 4}, 3 / 4 * reduced),
        ({"sequence": 4}, 3 / 4 * (reduced + 3 * 3 * keys)),
        ({"sequence": 4, "remat": "full"}, 3 / 4 * (reduced + 4 * 3 * keys)),
        ({"fsdp": 4}, 3 / 4 * (3 * 2 * n_sharded + norms)),
        ({"fsdp": 4, "remat": "full"}, 3 / 4 * (4 * 2 * n_sharded + norms)),
        ({"fsdp": 4, "accumulation": 2}, 3 / 4 * 2 * (3 * 2 * n_sharded + norms)),
        ({"tensor": 2}, 1 / 2 * 2 * (4 * 3 + 2) * stream),
        ({"tensor": 2, "remat": "full"}, 1 / 2 * 2 * (5 * 3 + 2) * stream),
    ):
        run = hand_counted_run(**fields)
        estimated = estimate_small(run, "cpu:2" if run.mesh.tensor > 1 else "cpu:4")
        assert estimated.network_seconds * LINK_SPEED == pytest.approx(n_bytes), fields


def test_experts_need_memory_for_each_capacity_slot():
    """A slot has four arrays of the stream and three of the expert, and stores one and two."""
    model = dataclasses.replace(SMALL, n_experts=4, experts_per_token=2, remat="dots")
    run = hand_counted_run()
    width = model_sizes.expert_width(model)
    bytes_by_factor = []
    for factor in (1.0, 1.5):
        run.model = dataclasses.replace(model, dispatch="capacity", capacity_factor=factor)
        bytes_by_factor.append(estimate(run, "cpu:1").temporaries)
    slot = 2 * (3 * (40 + 2 * width) + 4 * 40 + 3 * width)
    assert bytes_by_factor[1] - bytes_by_factor[0] == pytest.approx(0.5 * N_TOKENS * 2 * slot)
    run.model = dataclasses.replace(model, dispatch="dropless")
    assert estimate(run, "cpu:1").temporaries == bytes_by_factor[0]


@pytest.mark.parametrize(("tasks", "n_prompts"), [("", 0), ("copy?n=5", 0)])
def test_runs_without_generated_answers_have_no_prompts(tasks, n_prompts):
    run = small_run()
    run.eval.tasks = tasks
    assert evaluation_program.count_prompts(run) == n_prompts
    assert estimate(run, "gpu:h100:4").generation == 0.0


@pytest.mark.parametrize(
    ("tasks", "n_prompts"), [("copy?n=5&generate=1", 5), ("copy?n=500&generate=1", 64)]
)
def test_generated_answers_need_a_cache(tasks, n_prompts):
    run = small_run()
    run.eval.tasks = tasks
    assert evaluation_program.count_prompts(run) == n_prompts
    assert estimate(run, "gpu:h100:4").generation > 0.0


def test_tasks_in_missing_files_count_as_generated():
    run = small_run()
    run.eval.tasks = "file:/missing/task.jsonl"
    assert evaluation_program.count_prompts(run) == 64


def test_step_of_a_small_model_takes_as_long_as_its_kernel_launches():
    """The arithmetic of such a step takes 7 microseconds on an H100."""
    run = small_run()
    assert roofline.launch_seconds(run, "cpu") == 0.0
    seconds = roofline.launch_seconds(run, "gpu")
    assert 2e-4 < seconds < 5e-3
    run.optim.grad_accumulation_steps = 2
    assert roofline.launch_seconds(run, "gpu") > 1.5 * seconds - 2e-4


def test_run_without_evaluations_has_no_bytes_for_them():
    run = small_run()
    assert estimate(run, "gpu:h100:4").evaluation > 0
    run.data.heldout_fraction = 0.0
    assert estimate(run, "gpu:h100:4").evaluation == 0
