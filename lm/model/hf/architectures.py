"""Tables of the architectures of Hugging Face transformers: tensors, fields, required values.

    name = architecture_of(run.model)            # "qwen3"
    tensors = tensor_table(run.model, name)      # the tensors of its files, the weights of each

lm/model/hf/export.py and lm/model/hf/load.py read the same tables in opposite directions. A model
has an architecture if its fields have the values in REQUIRED_FIELDS.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import numpy as np

from lm.config import schema
from lm.model import parametrization, params, transformer
from lm.parallel import mesh

# The weights of a folder are in one file, or in several files that an index lists.
INDEX_FILE, WEIGHTS_FILE = "model.safetensors.index.json", "model.safetensors"

_L, _H = "model.layers.{layers}.", "transformer.h.{layers}."
_DECODER = (
    # tensor of transformers              weight                        axes of the tensor
    ("model.embed_tokens.weight",          "embed",                      "vocab embed"),
    ("model.norm.weight",                  "norm/scale",                 "norm"),
    ("lm_head.weight",                     "head",                       "vocab embed"),
    (_L + "input_layernorm.weight",        "attention_norm/scale",       "norm"),
    (_L + "post_attention_layernorm.weight", "mlp_norm/scale",            "norm"),
    (_L + "self_attn.q_proj.weight",       "attention/query",            "heads+d_head embed"),
    (_L + "self_attn.k_proj.weight",       "attention/key",              "kv_heads+d_head embed"),
    (_L + "self_attn.v_proj.weight",       "attention/value",            "kv_heads+d_head embed"),
    (_L + "self_attn.o_proj.weight",       "attention/out",              "embed heads+d_head"),
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
    (_L + "mlp.experts.{experts}.gate_proj.weight", "mlp/gate",            "mlp embed"),
    (_L + "mlp.experts.{experts}.up_proj.weight", "mlp/up",                "mlp embed"),
    (_L + "mlp.experts.{experts}.down_proj.weight", "mlp/down",            "embed mlp"),
)  # fmt: skip
_GPT2_TENSORS = (
    ("transformer.wte.weight",             "embed",                      "vocab embed"),
    ("transformer.wpe.weight",             "positions",                  "positions embed"),
    ("transformer.ln_f.weight",            "norm/scale",                 "norm"),
    ("transformer.ln_f.bias",              "norm/bias",                  "norm"),
    ("lm_head.weight",                     "head",                       "vocab embed"),
    (_H + "ln_1.weight",                   "attention_norm/scale",       "norm"),
    (_H + "ln_1.bias",                     "attention_norm/bias",        "norm"),
    (_H + "ln_2.weight",                   "mlp_norm/scale",             "norm"),
    (_H + "ln_2.bias",                     "mlp_norm/bias",              "norm"),
    (_H + "attn.c_attn.weight",            "attention/query",            "embed heads+d_head"),
    (_H + "attn.c_attn.weight",            "attention/key",              "embed kv_heads+d_head"),
    (_H + "attn.c_attn.weight",            "attention/value",            "embed kv_heads+d_head"),
    (_H + "attn.c_attn.bias",              "attention/query_bias",       "heads+d_head"),
    (_H + "attn.c_attn.bias",              "attention/key_bias",         "kv_heads+d_head"),
    (_H + "attn.c_attn.bias",              "attention/value_bias",       "kv_heads+d_head"),
    (_H + "attn.c_proj.weight",            "attention/out",              "heads+d_head embed"),
    (_H + "attn.c_proj.bias",              "attention/out_bias",         "norm"),
    (_H + "mlp.c_fc.weight",               "mlp/up",                     "embed mlp"),
    (_H + "mlp.c_fc.bias",                 "mlp/up_bias",                "mlp"),
    (_H + "mlp.c_proj.weight",             "mlp/down",                   "mlp embed"),
    (_H + "mlp.c_proj.bias",               "mlp/down_bias",              "norm"),
)  # fmt: skip
# Weights of rows with the same tensor are concatenated along its last axis. Axes joined by + form
# one axis of the tensor. A row applies only to models that have its weight, unlike a tied head.
TENSORS = {
    "llama": (*_DECODER, *_MLP),
    "qwen3": (*_DECODER, *_MLP),
    "qwen3_moe": (*_DECODER, *_EXPERTS),
    "gpt2": _GPT2_TENSORS,
}
_ROTARY = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "d_head": "head_dim",
    "d_ff": "intermediate_size", "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "rope_theta": "rope_theta",
}  # fmt: skip
# Fields of schema.Model -> keys of config.json, for each architecture.
FIELD_NAMES = {
    "llama": _ROTARY,
    "qwen3": _ROTARY,
    "qwen3_moe": _ROTARY | {
        "d_expert": "moe_intermediate_size", "n_experts": "num_experts",
        "experts_per_token": "num_experts_per_tok", "normalize_expert_weights": "norm_topk_prob",
    },
    "gpt2": {
        "vocab_size": "vocab_size", "d_model": "n_embd", "n_layers": "n_layer",
        "n_heads": "n_head", "d_ff": "n_inner", "learned_positions": "n_positions",
        "norm_eps": "layer_norm_epsilon", "tie_embeddings": "tie_word_embeddings",
    },
}  # fmt: skip
_DENSE = {"logit_softcap": 0.0, "n_experts": 0}
_RMS = _DENSE | {"norm": "rms", "mlp": "gated", "bias": False, "learned_positions": 0}
# Values of fields of schema.Model that an architecture requires.
REQUIRED_FIELDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {name: value for name, value in _RMS.items() if name != "n_experts"}
    | {"qk_norm": True, "router": "softmax", "n_shared_experts": 0, "dispatch": "dropless"},
    "qwen3": _RMS | {"qk_norm": True},
    "llama": _RMS | {"qk_norm": False},
    "gpt2": _DENSE | {"norm": "layer", "mlp": "gelu", "bias": True, "qk_norm": False},
}
# Values that config.json must have where it has the key. Other values are another model.
REQUIRED_HF_CONFIG = {
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "qwen3": {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    "gpt2": {
        "activation_function": "gelu_new", "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
    },
}  # fmt: skip
REQUIRED_HF_CONFIG["qwen3_moe"] = REQUIRED_HF_CONFIG["qwen3"] | {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
# Values of fields whose key config.json may omit. None: read_shape derives the value.
DEFAULTS = {
    "tie_embeddings": False,
    "norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "normalize_expert_weights": False,
    "experts_per_token": 8,
    "n_kv_heads": None,
    "d_head": None,
    "d_ff": None,
}
GPT2_DEFAULTS = DEFAULTS | {"tie_embeddings": True, "norm_eps": 1e-5, "learned_positions": 1024}


@dataclasses.dataclass(frozen=True)
class Part:
    """A weight, or one matrix of a stacked weight, as a part of a tensor.

    path: path of the weight. index: its indices on the stacked axes. order: the order of its other
    axes in the tensor. sizes: the sizes of these axes in that order.
    """

    path: str
    index: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of transformers, and its parts, concatenated along the last axis."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def architecture_of(shape: schema.Model) -> str:
    """Return the architecture of a model: llama, qwen3, qwen3_moe or gpt2.

    Raises ValueError with the fields that prevent the nearest architecture if it has none.
    """
    mismatches = {name: _mismatches(name, shape) for name in REQUIRED_FIELDS}
    nearest = min(mismatches, key=lambda name: len(mismatches[name]))
    if mismatches[nearest]:
        raise ValueError(
            f"{'; '.join(mismatches[nearest])}: transformers has no architecture with the present"
            f" values (the nearest is {CLASSES[nearest]})"
        )
    return nearest


def _mismatches(name: str, shape: schema.Model) -> list[str]:
    """Return the fields of a model that differ from an architecture, with the required values."""
    required = dict(REQUIRED_FIELDS[name])
    if name == "gpt2":
        required |= {"n_kv_heads": shape.n_heads, "d_head": shape.d_model / shape.n_heads}
    mismatches = [
        f"model.{field}={getattr(shape, field)!r} must be {value!r}"
        for field, value in required.items()
        if getattr(shape, field) != value
    ]
    if name == "gpt2" and not shape.learned_positions:
        mismatches.append("model.learned_positions=0 must be at least 1")
    if name == "qwen3_moe" and shape.load_balancing == "bias":
        mismatches.append("model.load_balancing='bias' must be 'loss' or 'none'")
    if name == "qwen3_moe" and not shape.n_experts:
        mismatches.append("model.n_experts=0 must be at least 1")
    return mismatches


def tensor_table(shape: schema.Model, name: str) -> list[Tensor]:
    """Return every tensor of a model of the architecture `name`, in the order of TENSORS."""
    weights = params.flatten_by_path(jax.eval_shape(lambda: transformer.init_params(shape, 0)))
    leaves = jax.tree_util.tree_leaves_with_path(
        transformer.param_axes(shape), is_leaf=mesh.is_axis_names
    )
    axes = {jax.tree_util.keystr(p, simple=True, separator="/"): names for p, names in leaves}
    rows: dict[str, list[tuple[str, list[list[str]]]]] = {}
    for template, weight_name, tensor_axes in TENSORS[name]:
        path = f"blocks/{weight_name}" if "{" in template else weight_name
        if path in axes:
            groups = [group.split("+") for group in tensor_axes.split()]
            rows.setdefault(template, []).append((path, groups))
    assert sum(len(row) for row in rows.values()) == len(axes), "a weight has no row"
    tensors = []
    for template, row in rows.items():
        sizes = {path: dict(zip(axes[path], weights[path].shape, strict=True)) for path, _ in row}
        part_shapes = [
            [math.prod(sizes[path][axis] for axis in group) for group in groups]
            for path, groups in row
        ]
        tensor_shape = (*part_shapes[0][:-1], sum(part_shape[-1] for part_shape in part_shapes))
        first_path = row[0][0]
        stacked = [axis for axis in axes[first_path] if axis in parametrization.STACKED]
        for index in itertools.product(*(range(sizes[first_path][axis]) for axis in stacked)):
            parts = tuple(_make_part(path, index, groups, sizes[path]) for path, groups in row)
            numbers = dict(zip(stacked, index, strict=True))
            tensors.append(Tensor(template.format(**numbers), tensor_shape, parts))
    return tensors


def _make_part(
    path: str, index: tuple[int, ...], groups: list[list[str]], sizes: dict[str, int]
) -> Part:
    """Return a part; groups: its axes per axis of the tensor; sizes: all axes of the weight."""
    tensor_axes = [axis for group in groups for axis in group]
    weight_axes = [axis for axis in sizes if axis not in parametrization.STACKED]
    order = tuple(weight_axes.index(axis) for axis in tensor_axes)
    return Part(path, index, order, tuple(sizes[axis] for axis in tensor_axes))


def tensor_parts(tensor: Tensor, weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the parts of a tensor in its layout, without a copy; weights: by path."""
    return [
        weights[part.path][part.index].transpose(part.order).reshape(*tensor.shape[:-1], -1)
        for part in tensor.parts
    ]
