"""Analytic memory of evaluation and generation on one device, without a compiler.

    shapes = inference_memory.inference_shapes(run, n_devices=4, platform="gpu")
    inference_memory.scoring_bytes(run, shapes)       # temporaries of a batch of held-out rows
    inference_memory.generation_bytes(run, shapes)    # key-value cache and temporaries

During training these bytes are needed in addition to parameters and optimizer state. An evaluation
has no micro-batches: it scores data.batch_size rows at once. Generation has a dense attention mask
and plain attention scores. The values are within a factor of 2 of those of XLA's compilers.
"""

import dataclasses

from lm.config import model_sizes, schema
from lm.model import memory_estimate

FLOAT32 = memory_estimate.FLOAT32


def inference_shapes(
    run: schema.Run, n_devices: int, platform: str, capability: str = ""
) -> memory_estimate.ShardedShapes:
    """Return the sizes of the arrays of an evaluation on one of several equal devices.

    capability: see memory_estimate.ShardedShapes.
    """
    run = memory_estimate.resolve_layout(run, n_devices, platform)
    optim = dataclasses.replace(run.optim, grad_accumulation_steps=1)
    run = dataclasses.replace(run, optim=optim)
    return memory_estimate.ShardedShapes(run, n_devices, platform, capability)


def has_evaluations(run: schema.Run) -> bool:
    """Return True if a run evaluates held-out text or tasks."""
    return run.data.heldout_fraction > 0 or bool(run.eval.tasks)


def check_evaluation_memory(
    run: schema.Run, n_devices: int, platform: str, available_bytes: float
) -> None:
    """Check that an evaluation can fit into the memory next to the train state.

    A run with many micro-batches may train, and fail at its first evaluation. available_bytes: of
    one device. Raises ConfigError with the estimate and remedies, unless check_memory is False.
    The tolerance is that of memory_estimate.check_memory. A run without evaluations is not checked.
    """
    if not run.check_memory or not has_evaluations(run):
        return
    train = memory_estimate.estimate_memory(run, n_devices, platform)
    has_frozen = bool(run.optim.frozen or run.model.lora_rank)
    state = train.params + (0 if has_frozen else train.optimizer)
    evaluation = scoring_bytes(run, inference_shapes(run, n_devices, platform))
    if state + evaluation / memory_estimate.TEMPORARIES_FACTOR > available_bytes:
        gib = memory_estimate.GIB
        raise schema.ConfigError(
            f"run {run.name}: data.batch_size={run.data.batch_size}: an evaluation of these rows at"
            f" once needs about {(state + evaluation) / gib:.3g} GiB per device with the train"
            f" state, and each device has {available_bytes / gib:.3g} GiB: use a smaller"
            " data.batch_size, larger model.loss_chunks or model.attention_query_blocks, or more"
            " devices; check_memory=False omits this check"
        )


def scoring_bytes(run: schema.Run, shapes: memory_estimate.ShardedShapes) -> float:
    """Return the temporaries of scoring one batch of data.batch_size rows.

    These are the arrays of one layer, the logits and the gathered weights of a layer.
    """
    model = run.model
    is_plain = memory_estimate.stored_attention_scores(run, shapes) > 0
    n_keys = run.data.seq_len / model.attention_query_blocks if is_plain else 0.0
    layer = _layer_bytes(run, shapes, shapes.n_tokens)
    layer += _score_bytes(run, shapes, shapes.n_tokens * n_keys)
    logits = FLOAT32 * shapes.n_tokens * model.vocab_size
    logits /= shapes.shard_count("vocab") * model.loss_chunks
    return max(layer, logits) + shapes.value_bytes * shapes.n_tokens * model.d_model


def generation_bytes(
    run: schema.Run, shapes: memory_estimate.ShardedShapes, n_prompts: int
) -> float:
    """Return the cache and the temporaries of n_prompts prompts that fill the context.

    n_prompts: of all devices.
    """
    model, length = run.model, run.data.seq_len
    n_rows = max(1.0, n_prompts / shapes.shard_count("batch"))
    n_tokens = n_rows * length
    keys = 2 * model.n_kv_heads * model.d_head / shapes.shard_count("kv_heads")
    cache = shapes.value_bytes * model.n_layers * n_tokens * keys
    prefill = _layer_bytes(run, shapes, n_tokens) + n_tokens * length  # the mask has a byte each
    prefill += _score_bytes(run, shapes, n_tokens * length)
    logits = 2 * FLOAT32 * n_rows * model.vocab_size / shapes.shard_count("vocab")
    weights = 0.0  # cast to bfloat16 once, before the loop over tokens
    if shapes.value_bytes < FLOAT32:
        weights = shapes.value_bytes * sum(
            w.n / shapes.shard_count(*w.names) for w in memory_estimate.list_weights(model)
        )
    return cache + weights + max(prefill, logits)


def _score_bytes(run: schema.Run, shapes: memory_estimate.ShardedShapes, n_pairs: float) -> float:
    """Return the bytes of attention scores and weights. n_pairs: queries times keys."""
    n_scores = n_pairs * run.model.n_heads / shapes.shard_count("heads")
    return (FLOAT32 + shapes.value_bytes) * n_scores


def _layer_bytes(run: schema.Run, shapes: memory_estimate.ShardedShapes, n_tokens: float) -> float:
    """Return the bytes of the arrays of one layer without attention scores."""
    model = run.model
    heads = n_tokens * model.n_heads * model.d_head / shapes.shard_count("heads")
    keys = n_tokens * 2 * model.n_kv_heads * model.d_head / shapes.shard_count("kv_heads")
    hidden = n_tokens * memory_estimate.mlp_width(model) / shapes.shard_count("mlp")
    n_up = 2 if model_sizes.is_gated(model) else 1
    stream = n_tokens * model.d_model
    layer = shapes.value_bytes * (stream + max(2 * heads + 2 * keys, (n_up + 1) * hidden))
    if model.n_experts:
        width = model_sizes.expert_width(model) / shapes.shard_count("mlp")
        slots = n_tokens * model.experts_per_token * shapes.shard_count("experts")
        layer += shapes.value_bytes * slots * (2 * model.d_model + 2 * width)
    return layer + FLOAT32 * (stream + heads)
