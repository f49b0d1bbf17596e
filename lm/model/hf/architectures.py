"""The stock architectures of `transformers`: what makes a model one, and where each weight lies.

    family(run.model)                   "qwen3"
    tensors(run.model, "qwen3")         what its files hold, and the parts of ours that lie in each

TENSORS and KNOBS are read both ways, by lm/model/hf/export.py and lm/model/hf/load.py. A model is
of the family whose knobs are its own; one that is of none is refused with the knob to blame.
"""

import dataclasses
import itertools
import math
from typing import Any

import jax
import numpy as np

from lm.config import schema
from lm.model import lora, params, transformer
from lm.parallel import mesh

# Where weights lie in a folder: in one file, or in several that an index names.
INDEX, ONE = "model.safetensors.index.json", "model.safetensors"

_L, _H = "model.layers.{layers}.", "transformer.h.{layers}."
_DECODER = (
    # their tensor                        ours                          axes of theirs
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
# Rows of one tensor of theirs: ours lie in it one after another along its last axis. Axes joined
# by + are one of theirs; a weight that a model does not have (a tied head) has no row.
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
# Knobs of ours -> of their config.json.
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
_PLAIN = {"logit_softcap": 0.0, "n_experts": 0}
_RMS = _PLAIN | {"norm": "rms", "mlp": "gated", "bias": False, "learned_positions": 0}
# What makes a model one of a family.
REQUIRED_FIELDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {name: value for name, value in _RMS.items() if name != "n_experts"}
    | {"qk_norm": True, "router": "softmax", "n_shared_experts": 0, "dispatch": "dropless"},
    "qwen3": _RMS | {"qk_norm": True},
    "llama": _RMS | {"qk_norm": False},
    "gpt2": _PLAIN | {"norm": "layer", "mlp": "gelu", "bias": True, "qk_norm": False},
}
# What their config.json must say, if it says anything: all else is another model.
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
# Where their config.json may leave a knob out.
DEFAULTS = {
    **{
        "tie_embeddings": False,
        "norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "normalize_expert_weights": False,
    },
    **{"experts_per_token": 8, "n_kv_heads": None, "d_head": None, "d_ff": None},
}
GPT2_DEFAULTS = DEFAULTS | {"tie_embeddings": True, "norm_eps": 1e-5, "learned_positions": 1024}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of theirs, and the parts of ours that lie in it."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]
    # (path, place in the stack, order of the axes, sizes in that order) of each


def architecture_of(shape: schema.Model) -> str:
    """llama, qwen3, qwen3_moe or gpt2. ValueError naming the knobs that none of them has."""
    wrong = {name: _differing(name, shape) for name in REQUIRED_FIELDS}
    nearest = min(wrong, key=lambda name: len(wrong[name]))
    if wrong[nearest]:
        raise ValueError(
            f"{'; '.join(wrong[nearest])}: no stock architecture of transformers has that (the"
            f" nearest is {CLASSES[nearest]})"
        )
    return nearest


def _differing(name: str, shape: schema.Model) -> list[str]:
    """What keeps a model out of a family."""
    needed = dict(REQUIRED_FIELDS[name])
    if name == "gpt2":
        needed |= {"n_kv_heads": shape.n_heads, "d_head": shape.d_model / shape.n_heads}
        needed |= {} if shape.learned_positions else {"learned_positions": "a table"}
    if name == "qwen3_moe":
        needed |= {"load_balancing": "loss"} if shape.load_balancing == "bias" else {}
        needed |= {} if shape.n_experts else {"n_experts": "some"}
    return [
        f"model.{knob}={getattr(shape, knob)!r}, not {value!r}"
        for knob, value in needed.items()
        if getattr(shape, knob) != value
    ]


def tensor_table(shape: schema.Model, name: str) -> list[Tensor]:
    """Every tensor of a model of the family `name`, in the order of the table."""
    whole = params.flatten_by_path(jax.eval_shape(lambda: transformer.init_params(shape, 0)))
    leaves = jax.tree_util.tree_leaves_with_path(
        transformer.param_axes(shape), is_leaf=mesh.is_axis_names
    )
    axes = {jax.tree_util.keystr(p, simple=True, separator="/"): names for p, names in leaves}
    rows: dict[str, list[tuple[str, list[list[str]]]]] = {}
    for theirs, ours, said in TENSORS[name]:
        path = f"blocks/{ours}" if "{" in theirs else ours
        if path in axes:
            groups = [group.split("+") for group in said.split()]
            rows.setdefault(theirs, []).append((path, groups))
    assert sum(len(parts) for parts in rows.values()) == len(axes), "a weight has no row"
    found = []
    for theirs, parts in rows.items():
        stacked = [axis for axis in axes[parts[0][0]] if axis in lora.STACKED]
        sizes_of = [
            dict(zip(axes[path], whole[path].shape, strict=True)) | {"": 1} for path, _ in parts
        ]
        ends = [
            [math.prod(size[axis] for axis in group) for group in groups]
            for size, (_, groups) in zip(sizes_of, parts, strict=True)
        ]
        shape_of = (*ends[0][:-1], sum(end[-1] for end in ends))
        for place in itertools.product(*(range(sizes_of[0][axis]) for axis in stacked)):
            mine = []
            for size, (path, groups) in zip(sizes_of, parts, strict=True):
                flat = [axis for group in groups for axis in group]
                kept = [axis for axis in axes[path] if axis not in stacked]
                order = tuple(kept.index(axis) for axis in flat)
                mine.append((path, place, order, tuple(size[axis] for axis in flat)))
            numbers = dict(zip(stacked, place, strict=True))
            found.append(Tensor(theirs.format(**numbers), shape_of, tuple(mine)))
    return found


def tensor_parts(tensor: Tensor, weights: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Ours as they lie in theirs, without copying a number."""
    return [
        weights[path][place].transpose(order).reshape(*tensor.shape[:-1], -1)
        for path, place, order, _ in tensor.parts
    ]
