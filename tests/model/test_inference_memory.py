"""Memory of evaluation and generation."""

import dataclasses

import jax
import pytest

from lm.config import schema
from lm.model import inference_memory, memory_estimate
from lm.parallel import mesh
from lm.training import loop, step


def small_run(**model) -> schema.Run:
    """Return a run whose evaluation needs some MiB."""
    fields = {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 16}
    run = schema.Run(model=schema.Model(**fields | {"d_ff": 192, "vocab_size": 512} | model))
    run.data.batch_size, run.data.seq_len = 8, 256
    return run


@pytest.mark.parametrize("model", [{}, {"vocab_size": 8192}, {"attention_query_blocks": 1}])
def test_bytes_of_scoring_are_near_those_of_the_compiler(model):
    run = small_run(**model)
    device_mesh = mesh.make_mesh(schema.Mesh(), jax.devices()[:1])
    functions = step.build_train_functions(run, device_mesh)
    with jax.set_mesh(device_mesh):
        lowered = functions.score.lower(functions.abstract["params"], functions.evaluation_batch)
    compiled = lowered.compile().memory_analysis().temp_size_in_bytes
    estimated = inference_memory.scoring_bytes(
        run, inference_memory.inference_shapes(run, 1, "cpu")
    )
    assert compiled / 2 < estimated < 2 * compiled


def test_wider_heads_need_float32_activations():
    """The MLP of both models is wider than their queries, keys and values."""
    narrow, wide = (
        inference_memory.scoring_bytes(r, inference_memory.inference_shapes(r, 1, "cpu"))
        for r in (small_run(d_ff=1024, d_head=d_head) for d_head in (16, 32))
    )
    assert wide - narrow == 8 * 256 * 4 * 4 * 16  # tokens, bytes, heads, wider by 16


def test_evaluation_has_no_micro_batches():
    run = small_run()
    accumulated = dataclasses.replace(
        run, optim=dataclasses.replace(run.optim, grad_accumulation_steps=8)
    )
    sizes = [
        inference_memory.scoring_bytes(r, inference_memory.inference_shapes(r, 1, "cpu"))
        for r in (run, accumulated)
    ]
    assert sizes[0] == sizes[1] > 0


def test_generation_counts_cache_mask_and_scores():
    """Doubled context doubles the cache and quadruples scores and mask."""
    run, longer = small_run(), small_run()
    longer.data.seq_len *= 2
    n_tokens, value = 64 * 256, 4
    small, large = (
        inference_memory.generation_bytes(r, inference_memory.inference_shapes(r, 1, "cpu"), 64)
        for r in (run, longer)
    )
    linear, quadratic = 2 * small - large / 2, large / 2 - small
    assert quadratic == n_tokens * 256 * (4 * (4 + value) + 1)  # heads; mask
    assert linear > 2 * n_tokens * 2 * 2 * 16 * value  # layers, key and value, heads, d_head


def test_evaluation_that_does_not_fit_is_refused_before_training(tiny, monkeypatch):
    """The micro-batches of the train step would fit."""
    tiny.optim.grad_accumulation_steps, tiny.model.remat = 128, "full"
    tiny.data.batch_size, tiny.data.seq_len = 512, 512
    step_bytes = memory_estimate.estimate_memory(tiny, 4, "cpu")
    n_bytes = step_bytes.params + step_bytes.optimizer + step_bytes.temporaries
    memory_estimate.check_memory(tiny, 4, "cpu", n_bytes)
    monkeypatch.setattr(loop.device_memory, "available_bytes", lambda device_mesh: n_bytes)
    with pytest.raises(schema.ConfigError, match="an evaluation of these rows at once needs") as e:
        loop.validate_memory(tiny)
    assert "\n" not in str(e.value)
    tiny.check_memory = False
    loop.validate_memory(tiny)


def test_run_without_evaluations_needs_no_memory_for_them(tiny):
    tiny.data.heldout_fraction, tiny.eval.tasks = 0.0, ""
    inference_memory.check_evaluation_memory(tiny, 1, "cpu", 1.0)
    tiny.eval.tasks = "copy"
    with pytest.raises(schema.ConfigError, match="an evaluation of these rows at once needs"):
        inference_memory.check_evaluation_memory(tiny, 1, "cpu", 1.0)
