"""Checks of the config group model: heads, positions, norms, windows and experts.

check_model(run)     # raises schema.ConfigError for the first invalid combination
"""

import math

from lm.config import axis_rules, model_sizes, schema, value_checks

# Fields of rotary embeddings, which have no effect with learned positions.
ROTARY_FIELDS = ("rotary_fraction", "rope_scaling", "local_rope_theta")


def check_model(run: schema.Run) -> None:
    """Check the fields of a model together. Raises ConfigError for an invalid combination."""
    model, seq_len = run.model, run.data.seq_len
    if model.n_heads % model.n_kv_heads:
        near = axis_rules.largest_divisor(model.n_heads, model.n_kv_heads)
        problem = f"must be a multiple of model.n_kv_heads={model.n_kv_heads}"
        value_checks.reject(
            "model.n_heads", model.n_heads, f"{problem}: try model.n_kv_heads={near}"
        )
    if model.d_head % 2:
        problem = f"must be even, for rotary embeddings: try {model.d_head + 1}"
        value_checks.reject("model.d_head", model.d_head, problem)
    if 0 < model.learned_positions < seq_len:
        problem = f"must be at least data.seq_len={seq_len}, or 0 for rotary positions"
        value_checks.reject("model.learned_positions", model.learned_positions, problem)
    if model.gradient_dtype == "bfloat16" and model.dtype == "float32":
        problem = "must be float32 with model.dtype='float32': set model.dtype='bfloat16'"
        value_checks.reject("model.gradient_dtype", model.gradient_dtype, problem)
    _check_rotation(model)
    _check_windows(model)
    _check_block(model)


def _check_rotation(model: schema.Model) -> None:
    """Check the fields of rotary embeddings."""
    size = model_sizes.rotary_size(model)
    if size < 2 or size % 2:
        problem = f"rotates {size} of model.d_head={model.d_head} dimensions: the number must be"
        near = max(2, size // 2 * 2) / model.d_head
        problem += f" even and at least 2, try {near:g}"
        value_checks.reject("model.rotary_fraction", model.rotary_fraction, problem)
    for name in ROTARY_FIELDS:
        value, default = getattr(model, name), getattr(schema.Model, name)
        if model.learned_positions and value != default:
            problem = f"has no effect with model.learned_positions: set {default!r}"
            value_checks.reject(f"model.{name}", value, problem)
    if model.rope_scaling == "none" and model.rope_factor != 1:
        problem = "has no effect with model.rope_scaling='none': set 1.0, or linear or llama3"
        value_checks.reject("model.rope_factor", model.rope_factor, problem)


def _check_windows(model: schema.Model) -> None:
    """Check the fields of sliding windows."""
    if model.full_attention_interval and not model.sliding_window:
        problem = "has no effect with model.sliding_window=0: set a window, or 0"
        value_checks.reject("model.full_attention_interval", model.full_attention_interval, problem)
    if model.full_attention_interval == 1:
        problem = "gives no layer a window: set at least 2, or 0 for a window in all layers"
        value_checks.reject("model.full_attention_interval", 1, problem)
    if model.local_rope_theta and not model.full_attention_interval:
        problem = "needs layers without a window: set model.full_attention_interval, or 0.0"
        value_checks.reject("model.local_rope_theta", model.local_rope_theta, problem)
    for name in ("sliding_window", "attention_softcap"):
        if getattr(model, name) and model.attention not in ("auto", "plain"):
            problem = f"has no kernel {model.attention!r}: set model.attention='auto'"
            value_checks.reject(f"model.{name}", getattr(model, name), problem)


def _check_block(model: schema.Model) -> None:
    """Check the fields of norms, biases and branches."""
    if model.norm_position != "pre" and model.residual != "sequential":
        problem = "is implemented for model.norm_position='pre' only: set 'sequential'"
        value_checks.reject("model.residual", model.residual, problem)
    if model.qk_norm_scope != "head" and not model.qk_norm:
        problem = "has no effect with model.qk_norm=False: set 'head'"
        value_checks.reject("model.qk_norm_scope", model.qk_norm_scope, problem)
    if model.qkv_bias and model.bias:
        problem = "has no effect with model.bias=True, which adds these biases: set False"
        value_checks.reject("model.qkv_bias", model.qkv_bias, problem)


def check_experts(model: schema.Model, mesh: schema.Mesh) -> None:
    """Check a mixture of experts: its MLP, the number and the width of its experts."""
    for name, required in (("mlp", "gated"), ("bias", False)):
        if (value := getattr(model, name)) != required:
            problem = f"is not implemented for experts: set {required!r}, or model.n_experts=0"
            value_checks.reject(f"model.{name}", value, problem)
    if model.experts_per_token > model.n_experts:
        problem = f"must not exceed model.n_experts={model.n_experts}: try {model.n_experts}"
        value_checks.reject("model.experts_per_token", model.experts_per_token, problem)
    n_active = model.experts_per_token + model.n_shared_experts
    if not model.d_expert and model.d_ff % n_active:
        problem = f"must be a multiple of {n_active}, the experts per token with the shared experts"
        value_checks.reject("model.d_ff", model.d_ff, f"{problem}, or set model.d_expert")
    n_shards = math.prod(
        max(getattr(mesh, axis), 1) for axis in axis_rules.merged_axis_rules(mesh.rules)["mlp"]
    )
    if (width := model.d_expert or model.d_ff // n_active) % n_shards:
        near = -(-width // n_shards) * n_shards
        problem = f"must be a multiple of {n_shards}, the devices that split it: try {near}"
        value_checks.reject("model.d_expert", width, problem)
