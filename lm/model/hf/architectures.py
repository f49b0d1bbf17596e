"""Table of the architectures of Hugging Face transformers: tensors, fields, required values.

    name = architecture_of(run.model)            # "qwen3"
    ARCHITECTURES[name].class_name               # "Qwen3ForCausalLM"

A family is one row of ARCHITECTURES. tensor_layout.py, config_fields.py, load.py and export.py read
the rows. A model has an architecture if its fields have the values that the row requires.
"""

import dataclasses
from typing import Any

from lm.config import schema

# The weights of a folder are in one file, or in several files that an index lists.
INDEX_FILE, WEIGHTS_FILE = "model.safetensors.index.json", "model.safetensors"

_L, _H, _N = "model.layers.{layers}.", "transformer.h.{layers}.", "gpt_neox.layers.{layers}."
_EMBEDDING = (
    # tensor of transformers              weight                        axes of the tensor
    ("model.embed_tokens.weight",          "embed",                      "vocab embed"),
    ("lm_head.weight",                     "head",                       "vocab embed"),
)  # fmt: skip
_NORMS = (
    ("model.norm.weight",                  "norm/scale",                 "norm"),
    (_L + "input_layernorm.weight",        "attention_norm/scale",       "norm"),
    (_L + "post_attention_layernorm.weight", "mlp_norm/scale",           "norm"),
)  # fmt: skip
_OUTPUT = ((_L + "self_attn.o_proj.weight", "attention/out", "embed heads+d_head"),)
_QKV = (
    (_L + "self_attn.q_proj.weight",       "attention/query",            "heads+d_head embed"),
    (_L + "self_attn.k_proj.weight",       "attention/key",              "kv_heads+d_head embed"),
    (_L + "self_attn.v_proj.weight",       "attention/value",            "kv_heads+d_head embed"),
)  # fmt: skip
_QKV_BIAS = (
    (_L + "self_attn.q_proj.bias",         "attention/query_bias",       "heads+d_head"),
    (_L + "self_attn.k_proj.bias",         "attention/key_bias",         "kv_heads+d_head"),
    (_L + "self_attn.v_proj.bias",         "attention/value_bias",       "kv_heads+d_head"),
)  # fmt: skip
_QK_NORM = (
    (_L + "self_attn.q_norm.weight",       "attention/query_norm/scale", "norm"),
    (_L + "self_attn.k_norm.weight",       "attention/key_norm/scale",   "norm"),
)  # fmt: skip
_MLP = (
    (_L + "mlp.gate_proj.weight",          "mlp/gate",                   "mlp embed"),
    (_L + "mlp.up_proj.weight",            "mlp/up",                     "mlp embed"),
    (_L + "mlp.down_proj.weight",          "mlp/down",                   "embed mlp"),
)  # fmt: skip
_EXPERTS = (
    (_L + "mlp.gate.weight",               "mlp/router",                 "router embed"),
    (_L + "mlp.experts.{experts}.gate_proj.weight", "mlp/gate",          "mlp embed"),
    (_L + "mlp.experts.{experts}.up_proj.weight", "mlp/up",              "mlp embed"),
    (_L + "mlp.experts.{experts}.down_proj.weight", "mlp/down",          "embed mlp"),
)  # fmt: skip
_OLMO2 = (
    ("model.norm.weight",                  "norm/scale",                 "norm"),
    (_L + "post_attention_layernorm.weight", "attention_norm/scale",     "norm"),
    (_L + "post_feedforward_layernorm.weight", "mlp_norm/scale",         "norm"),
    (_L + "self_attn.q_norm.weight",       "attention/query_norm/scale", "heads+d_head"),
    (_L + "self_attn.k_norm.weight",       "attention/key_norm/scale",   "kv_heads+d_head"),
)  # fmt: skip
_GEMMA_NORMS = (
    ("model.norm.weight",                  "norm/scale",                 "norm"),
    (_L + "input_layernorm.weight",        "attention_norm/scale",       "norm"),
    (_L + "post_attention_layernorm.weight", "attention_output_norm/scale", "norm"),
    (_L + "pre_feedforward_layernorm.weight", "mlp_norm/scale",          "norm"),
    (_L + "post_feedforward_layernorm.weight", "mlp_output_norm/scale",  "norm"),
)  # fmt: skip
_PHI3 = (
    (_L + "self_attn.qkv_proj.weight", "attention/query", "parts+heads+d_head embed"),
    (_L + "self_attn.qkv_proj.weight", "attention/key", "parts+kv_heads+d_head embed"),
    (_L + "self_attn.qkv_proj.weight", "attention/value", "parts+kv_heads+d_head embed"),
    (_L + "mlp.gate_up_proj.weight", "mlp/gate", "parts+mlp embed"),
    (_L + "mlp.gate_up_proj.weight", "mlp/up", "parts+mlp embed"),
    (_L + "mlp.down_proj.weight", "mlp/down", "embed mlp"),
)  # fmt: skip
_PHI = (
    ("lm_head.bias",                       "head_bias",                  "vocab"),
    ("model.final_layernorm.weight",       "norm/scale",                 "norm"),
    ("model.final_layernorm.bias",         "norm/bias",                  "norm"),
    (_L + "input_layernorm.weight",        "attention_norm/scale",       "norm"),
    (_L + "input_layernorm.bias",          "attention_norm/bias",        "norm"),
    (_L + "self_attn.dense.weight",        "attention/out",              "embed heads+d_head"),
    (_L + "self_attn.dense.bias",          "attention/out_bias",         "norm"),
    (_L + "mlp.fc1.weight",                "mlp/up",                     "mlp embed"),
    (_L + "mlp.fc1.bias",                  "mlp/up_bias",                "mlp"),
    (_L + "mlp.fc2.weight",                "mlp/down",                   "embed mlp"),
    (_L + "mlp.fc2.bias",                  "mlp/down_bias",              "norm"),
)  # fmt: skip
_GPT_NEOX = (
    ("gpt_neox.embed_in.weight", "embed", "vocab embed"),
    ("embed_out.weight", "head", "vocab embed"),
    ("gpt_neox.final_layer_norm.weight", "norm/scale", "norm"),
    ("gpt_neox.final_layer_norm.bias", "norm/bias", "norm"),
    (_N + "input_layernorm.weight", "attention_norm/scale", "norm"),
    (_N + "input_layernorm.bias", "attention_norm/bias", "norm"),
    (_N + "post_attention_layernorm.weight", "mlp_norm/scale", "norm"),
    (_N + "post_attention_layernorm.bias", "mlp_norm/bias", "norm"),
    (_N + "attention.query_key_value.weight", "attention/query", "heads+parts+d_head embed"),
    (_N + "attention.query_key_value.weight", "attention/key", "kv_heads+parts+d_head embed"),
    (_N + "attention.query_key_value.weight", "attention/value", "kv_heads+parts+d_head embed"),
    (_N + "attention.query_key_value.bias", "attention/query_bias", "heads+parts+d_head"),
    (_N + "attention.query_key_value.bias", "attention/key_bias", "kv_heads+parts+d_head"),
    (_N + "attention.query_key_value.bias", "attention/value_bias", "kv_heads+parts+d_head"),
    (_N + "attention.dense.weight", "attention/out", "embed heads+d_head"),
    (_N + "attention.dense.bias", "attention/out_bias", "norm"),
    (_N + "mlp.dense_h_to_4h.weight", "mlp/up", "mlp embed"),
    (_N + "mlp.dense_h_to_4h.bias", "mlp/up_bias", "mlp"),
    (_N + "mlp.dense_4h_to_h.weight", "mlp/down", "embed mlp"),
    (_N + "mlp.dense_4h_to_h.bias", "mlp/down_bias", "norm"),
)  # fmt: skip
_GPT2 = (
    ("transformer.wte.weight", "embed", "vocab embed"),
    ("transformer.wpe.weight", "positions", "positions embed"),
    ("transformer.ln_f.weight", "norm/scale", "norm"),
    ("transformer.ln_f.bias", "norm/bias", "norm"),
    ("lm_head.weight", "head", "vocab embed"),
    (_H + "ln_1.weight", "attention_norm/scale", "norm"),
    (_H + "ln_1.bias", "attention_norm/bias", "norm"),
    (_H + "ln_2.weight", "mlp_norm/scale", "norm"),
    (_H + "ln_2.bias", "mlp_norm/bias", "norm"),
    (_H + "attn.c_attn.weight", "attention/query", "embed parts+heads+d_head"),
    (_H + "attn.c_attn.weight", "attention/key", "embed parts+kv_heads+d_head"),
    (_H + "attn.c_attn.weight", "attention/value", "embed parts+kv_heads+d_head"),
    (_H + "attn.c_attn.bias", "attention/query_bias", "parts+heads+d_head"),
    (_H + "attn.c_attn.bias", "attention/key_bias", "parts+kv_heads+d_head"),
    (_H + "attn.c_attn.bias", "attention/value_bias", "parts+kv_heads+d_head"),
    (_H + "attn.c_proj.weight", "attention/out", "heads+d_head embed"),
    (_H + "attn.c_proj.bias", "attention/out_bias", "norm"),
    (_H + "mlp.c_fc.weight", "mlp/up", "embed mlp"),
    (_H + "mlp.c_fc.bias", "mlp/up_bias", "mlp"),
    (_H + "mlp.c_proj.weight", "mlp/down", "mlp embed"),
    (_H + "mlp.c_proj.bias", "mlp/down_bias", "norm"),
)  # fmt: skip
_LLAMA = _EMBEDDING + _NORMS + _QKV + _OUTPUT + _MLP
_SIZES = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "d_head": "head_dim",
    "d_ff": "intermediate_size", "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}  # fmt: skip
_NEOX_SIZES = {k: v for k, v in _SIZES.items() if k not in ("n_kv_heads", "d_head")} | {
    "norm_eps": "layer_norm_eps",
    "mlp": "hidden_act",
}
_GEMMA_SIZES = _SIZES | {
    "logit_softcap": "final_logit_softcapping",
    "attention_softcap": "attn_logit_softcapping",
}
_WINDOW = {"sliding_window": "sliding_window"}
_EXPERT_SIZES = {
    "d_expert": "moe_intermediate_size", "n_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok", "normalize_expert_weights": "norm_topk_prob",
}  # fmt: skip
_GPT2_SIZES = {
    "vocab_size": "vocab_size", "d_model": "n_embd", "n_layers": "n_layer",
    "n_heads": "n_head", "d_ff": "n_inner", "learned_positions": "n_positions",
    "norm_eps": "layer_norm_epsilon", "tie_embeddings": "tie_word_embeddings",
    "mlp": "activation_function",
}  # fmt: skip
# Values that config.json must have where it has the key. Other values are another model.
_SILU = {"hidden_act": "silu"}
_QWEN = _SILU | {"use_sliding_window": False}
_GEMMA_KEYS = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "use_bidirectional_attention": False,
}
_GEMMA_FIELDS = {"mlp": "gated_gelu", "norm_position": "both"}
_GEMMA_DEFAULTS = {
    "tie_embeddings": True, "attention_scale": 256, "n_kv_heads": 4, "d_head": 256,
    "sliding_window": 4096,
}  # fmt: skip
# Fields with these values are off. An architecture requires them, unless its row has another value.
OFF = {
    "norm": "rms", "mlp": "gated", "bias": False, "qkv_bias": False, "head_bias": False,
    "learned_positions": 0, "qk_norm": False, "qk_norm_scope": "head", "norm_position": "pre",
    "residual": "sequential", "rotary_fraction": 1.0, "rope_scaling": "none", "sliding_window": 0,
    "full_attention_interval": 0, "local_rope_theta": 0.0, "attention_scale": 0.0,
    "attention_softcap": 0.0, "logit_softcap": 0.0, "embedding_scale": 1.0, "n_experts": 0,
}  # fmt: skip
# Values of fields whose key config.json may omit. None: config_fields.py derives the value.
DEFAULTS = {
    "tie_embeddings": False, "norm_eps": 1e-6, "rope_theta": 10_000.0, "rotary_fraction": 1.0,
    "normalize_expert_weights": False, "experts_per_token": 8, "n_kv_heads": None, "d_head": None,
    "d_ff": None, "sliding_window": 0, "full_attention_interval": 0, "local_rope_theta": 0.0,
    "logit_softcap": 0.0, "attention_softcap": 0.0, "residual": True,
}  # fmt: skip
_GPT2_DEFAULTS = {
    "tie_embeddings": True, "norm_eps": 1e-5, "learned_positions": 1024, "mlp": "gelu_new",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A family of models.

    tensors: rows (tensor, weight, axes). Axes joined by + form one axis of the tensor. Weights with
    the same tensor are concatenated at the pseudo-axis "parts". A row applies only to models that
    have its weight, unlike a tied head. keys: field of schema.Model -> key of config.json. fields:
    required values of fields that differ from OFF. required: required values of keys of
    config.json. defaults: see DEFAULTS. free: further fields with any value, which config_fields.py
    reads and writes. scale_offset: difference between the scale of a norm and its tensor.
    """

    class_name: str
    tensors: tuple[tuple[str, str, str], ...]
    keys: dict[str, str]
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    required: dict[str, Any] = dataclasses.field(default_factory=dict)
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    free: tuple[str, ...] = ()
    scale_offset: float = 0.0


ARCHITECTURES = {
    "qwen3_moe": Architecture(
        *("Qwen3MoeForCausalLM", _EMBEDDING + _NORMS + _QKV + _OUTPUT + _QK_NORM + _EXPERTS),
        keys=_SIZES | _EXPERT_SIZES,
        fields={"qk_norm": True, "router": "softmax", "n_shared_experts": 0}
        | {"dispatch": "dropless"},
        required=_QWEN | {"attention_bias": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
        free=("rope_scaling",),
    ),
    "qwen3": Architecture(
        *("Qwen3ForCausalLM", _LLAMA + _QK_NORM, _SIZES),
        fields={"qk_norm": True},
        required=_QWEN | {"attention_bias": False},
        free=("rope_scaling",),
    ),
    "llama": Architecture(
        *("LlamaForCausalLM", _LLAMA, _SIZES),
        required=_SILU | {"attention_bias": False, "mlp_bias": False},
        free=("rope_scaling",),
    ),
    "mistral": Architecture(
        *("MistralForCausalLM", _LLAMA, _SIZES | _WINDOW),
        required=_SILU,
        defaults={"n_kv_heads": 8, "sliding_window": 4096},
        free=("rope_scaling",),
    ),
    "qwen2": Architecture(
        *("Qwen2ForCausalLM", _LLAMA + _QKV_BIAS, _SIZES),
        fields={"qkv_bias": True},
        required=_QWEN,
        free=("rope_scaling",),
    ),
    "olmo2": Architecture(
        *("Olmo2ForCausalLM", _EMBEDDING + _OLMO2 + _QKV + _OUTPUT + _MLP, _SIZES),
        fields={"qk_norm": True, "qk_norm_scope": "all_heads", "norm_position": "post"},
        required=_SILU | {"attention_bias": False},
        defaults={"norm_eps": 1e-5},
        free=("rope_scaling",),
    ),
    "gpt_neox": Architecture(
        *("GPTNeoXForCausalLM", _GPT_NEOX, _NEOX_SIZES | {"residual": "use_parallel_residual"}),
        fields={"norm": "layer", "bias": True},
        required={"attention_bias": True},
        defaults={"norm_eps": 1e-5, "mlp": "gelu", "rotary_fraction": 0.25},
        free=("rope_scaling", "rotary_fraction"),
    ),
    "phi": Architecture(
        *("PhiForCausalLM", _EMBEDDING + _PHI + _QKV + _QKV_BIAS),
        keys=_NEOX_SIZES | {"n_kv_heads": "num_key_value_heads"},
        fields={"norm": "layer", "bias": True, "head_bias": True, "residual": "parallel_shared"},
        required={"qk_layernorm": False},
        defaults={"norm_eps": 1e-5, "mlp": "gelu_new", "rotary_fraction": 0.5},
        free=("rope_scaling", "rotary_fraction"),
    ),
    "phi3": Architecture(
        *("Phi3ForCausalLM", _EMBEDDING + _NORMS + _PHI3 + _OUTPUT, _SIZES | _WINDOW),
        required=_SILU,
        defaults={"norm_eps": 1e-5},
        free=("rotary_fraction",),
    ),
    "gemma2": Architecture(
        *("Gemma2ForCausalLM", _EMBEDDING + _GEMMA_NORMS + _QKV + _OUTPUT + _MLP),
        keys=_GEMMA_SIZES | _WINDOW,
        fields=_GEMMA_FIELDS,
        required=_GEMMA_KEYS,
        defaults=_GEMMA_DEFAULTS
        | {"attention_softcap": 50.0, "logit_softcap": 30.0, "full_attention_interval": 2},
        free=("attention_scale", "full_attention_interval", "embedding_scale"),
        scale_offset=1.0,
    ),
    "gemma3_text": Architecture(
        *("Gemma3ForCausalLM", _EMBEDDING + _GEMMA_NORMS + _QKV + _OUTPUT + _QK_NORM + _MLP),
        keys=_GEMMA_SIZES | _WINDOW,
        fields=_GEMMA_FIELDS | {"qk_norm": True},
        required=_GEMMA_KEYS,
        defaults=_GEMMA_DEFAULTS
        | {"rope_theta": 1e6, "local_rope_theta": 1e4, "full_attention_interval": 6},
        free=("attention_scale", "full_attention_interval", "embedding_scale", "rope_scaling")
        + ("local_rope_theta",),
        scale_offset=1.0,
    ),
    "gpt2": Architecture(
        *("GPT2LMHeadModel", _GPT2, _GPT2_SIZES),
        fields={"norm": "layer", "bias": True},
        required={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
        },
        defaults=_GPT2_DEFAULTS,
    ),
}


def architecture_of(shape: schema.Model, preferred: str = "") -> str:
    """Return the architecture of a model, a key of ARCHITECTURES.

    preferred: the architecture that is returned if several describe the model. Raises ValueError
    with the fields that prevent the nearest architecture if it has none.
    """
    names = sorted(ARCHITECTURES, key=lambda name: name != preferred)
    mismatches = {name: _mismatches(name, shape) for name in names}
    nearest = min(mismatches, key=lambda name: len(mismatches[name]))
    if mismatches[nearest]:
        raise ValueError(
            f"{'; '.join(mismatches[nearest])}: transformers has no architecture with the present"
            f" values (the nearest is {ARCHITECTURES[nearest].class_name})"
        )
    return nearest


def required_fields(name: str) -> dict[str, Any]:
    """Return the values of fields that an architecture requires."""
    row = ARCHITECTURES[name]
    return {k: v for k, v in OFF.items() if k not in (*row.keys, *row.free)} | row.fields


def query_scalar(shape: schema.Model) -> float:
    """Return the key query_pre_attn_scalar of Gemma, the inverse square of attention_scale."""
    return shape.attention_scale**-2 if shape.attention_scale else shape.d_head


def _mismatches(name: str, shape: schema.Model) -> list[str]:
    """Return the fields of a model that differ from an architecture, with the required values."""
    required, row = required_fields(name), ARCHITECTURES[name]
    if "n_kv_heads" not in row.keys:
        required["n_kv_heads"] = shape.n_heads
    if "d_head" not in row.keys:
        required["d_head"] = shape.d_model / shape.n_heads
    if "embedding_scale" in row.free:
        required["embedding_scale"] = shape.d_model**0.5
    mismatches = [
        f"model.{field}={getattr(shape, field)!r} must be {value!r}"
        for field, value in required.items()
        if getattr(shape, field) != value
    ]
    if "mlp" in row.keys and shape.mlp not in ("gelu", "exact_gelu"):
        mismatches.append(f"model.mlp={shape.mlp!r} must be 'gelu' or 'exact_gelu'")
    scalar = query_scalar(shape)
    if "attention_scale" in row.free and abs(scalar - round(scalar)) > 1e-6 * scalar:
        problem = "must be 1 / sqrt(n) for an integer n, or 0"
        mismatches.append(f"model.attention_scale={shape.attention_scale} {problem}")
    if "residual" in row.keys and shape.residual == "parallel_shared":
        mismatches.append("model.residual='parallel_shared' must be 'parallel' or 'sequential'")
    if "learned_positions" in row.keys and not shape.learned_positions:
        mismatches.append("model.learned_positions=0 must be at least 1")
    if name == "gemma3_text" and not shape.local_rope_theta:
        mismatches.append("model.local_rope_theta=0.0 must be above 0")
    if name == "qwen3_moe" and shape.load_balancing == "bias":
        mismatches.append("model.load_balancing='bias' must be 'loss' or 'none'")
    if name == "qwen3_moe" and not shape.n_experts:
        mismatches.append("model.n_experts=0 must be at least 1")
    return mismatches
