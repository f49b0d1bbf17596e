"""Fields of schema.Model from and to config.json of transformers.

    fields = read_fields(file, config, "gemma2")
    config = write_fields(shape, "gemma2")

Most fields have a key in the row of their architecture. Rotary embeddings, sliding windows and
activation functions need a conversion, because versions of transformers store them differently.
"""

from pathlib import Path
from typing import Any, NoReturn

from lm.config import model_sizes, schema
from lm.model.hf import architectures

# Activation function of transformers -> model.mlp of an MLP without a gate.
ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "exact_gelu"}
ROPE_TYPES = ("default", "linear", "llama3")
# Values of rope_type=llama3 that lm/model/position_encoding.py requires.
LLAMA3_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
FULL, LOCAL = "full_attention", "sliding_attention"  # values of layer_types
OFF_IF_NULL = ("sliding_window", "logit_softcap", "attention_softcap")  # null is off, not a default


def read_fields(file: Path, config: dict, name: str) -> dict[str, Any]:
    """Return fields of schema.Model from the content of a config.json.

    Raises ValueError with the key whose value has no counterpart in schema.Model.
    """
    row = architectures.ARCHITECTURES[name]
    for key, required in row.required.items():
        if config.get(key, required) not in (required, None):
            _reject(file, key, config[key], f"must be {required!r}")
    defaults = architectures.DEFAULTS | row.defaults
    fields: dict[str, Any] = {}
    for field, key in row.keys.items():
        value = config.get(key)
        if value is None and key in config and field in OFF_IF_NULL:
            value = 0
        fields[field] = defaults.get(field) if value is None else value
    if name == "qwen3_moe":  # transformers 5 has another name
        fields["n_experts"] = fields["n_experts"] or config.get("num_local_experts")
    if "mlp" in fields:
        if not isinstance(fields["mlp"], str) or fields["mlp"] not in ACTIVATIONS:
            _reject(file, row.keys["mlp"], fields["mlp"], f"must be in {', '.join(ACTIVATIONS)}")
        fields["mlp"] = ACTIVATIONS[fields["mlp"]]
    if "residual" in fields:
        fields["residual"] = "parallel" if fields["residual"] else "sequential"
    for field in ("vocab_size", "d_model", "n_layers", "n_heads"):
        check_positive(file, row.keys[field], fields[field])
    fields["d_head"] = fields.get("d_head") or fields["d_model"] // fields["n_heads"]
    fields["n_kv_heads"] = fields.get("n_kv_heads") or fields["n_heads"]
    fields["d_ff"] = fields["d_ff"] or 4 * fields["d_model"]
    if "embedding_scale" in row.free:
        fields["embedding_scale"] = fields["d_model"] ** 0.5
    if "attention_scale" in row.free:
        scalar = config.get("query_pre_attn_scalar", defaults["attention_scale"])
        if type(scalar) not in (int, float) or not scalar > 0:
            _reject(file, "query_pre_attn_scalar", scalar, "must be a positive number")
        is_default = scalar == fields["d_head"]
        fields["attention_scale"] = 0.0 if is_default else scalar**-0.5
    fields |= _read_windows(file, config, name, fields)
    if "learned_positions" not in row.keys:
        fields |= _read_rope(file, config, name, fields)
    return architectures.required_fields(name) | fields


def _read_windows(file: Path, config: dict, name: str, fields: dict) -> dict[str, Any]:
    """Return the fields of sliding windows."""
    row, n_layers = architectures.ARCHITECTURES[name], fields["n_layers"]
    layer_types = config.get("layer_types")
    if layer_types is None:
        has_interval = fields.get("sliding_window") and "full_attention_interval" in row.free
        if not has_interval:
            return {}
        interval = row.defaults.get("full_attention_interval", 0)
        for key in ("sliding_window_pattern", "_sliding_window_pattern"):
            interval = config.get(key) or interval
        return {"full_attention_interval": interval}
    is_full = [kind == FULL for kind in layer_types] if isinstance(layer_types, list) else []
    if len(is_full) != n_layers or any(kind not in (FULL, LOCAL) for kind in layer_types):
        _reject(file, "layer_types", layer_types, f"must list {FULL} or {LOCAL} for each layer")
    if all(is_full):
        is_off = "sliding_window" in fields
        return {"sliding_window": 0, "full_attention_interval": 0} if is_off else {}
    interval = is_full.index(True) + 1 if True in is_full else 0
    expected = [bool(interval) and (i + 1) % interval == 0 for i in range(n_layers)]
    allows_both = "full_attention_interval" in row.free
    if "sliding_window" not in fields or is_full != expected or (interval and not allows_both):
        problem = f"must be {FULL} in all layers"
        problem += " or in every n-th layer" if allows_both else ""
        _reject(file, "layer_types", layer_types, problem)
    if not interval and "local_rope_theta" in row.free:
        interval = n_layers + 1
    return {"full_attention_interval": interval}


def _read_rope(file: Path, config: dict, name: str, fields: dict) -> dict[str, Any]:
    """Return the fields of rotary embeddings."""
    row = architectures.ARCHITECTURES[name]
    defaults = architectures.DEFAULTS | row.defaults
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{file}: rope_parameters={rope!r} must be an object")
    local = rope.get(LOCAL) if FULL in rope else None
    rope = rope[FULL] if FULL in rope else rope
    if not isinstance(rope, dict) or not isinstance(local, dict | None):
        raise ValueError(f"{file}: rope_parameters={rope!r} must be an object")
    theta_keys = ("rope_theta", "rotary_emb_base")
    theta = next((d[key] for d in (rope, config) for key in theta_keys if d.get(key)), None)
    result: dict[str, Any] = {"rope_theta": theta or defaults["rope_theta"]}
    fraction_keys = ("partial_rotary_factor", "rotary_pct")
    fractions = [d[key] for d in (rope, config) for key in fraction_keys if d.get(key) is not None]
    fraction = fractions[0] if fractions else defaults["rotary_fraction"]
    if "rotary_fraction" in row.free:
        _check_rotary_fraction(file, fraction, fields["d_head"])
        result["rotary_fraction"] = fraction
    elif fraction != 1:
        raise ValueError(f"{file}: partial_rotary_factor={fraction!r} must be 1.0")
    if "local_rope_theta" in row.free:
        if local is not None and _rope_type(local) != "default":
            raise ValueError(f"{file}: rope_parameters={local} must have the rope_type 'default'")
        local_theta = (local or {}).get("rope_theta") or config.get("rope_local_base_freq")
        has_windows = fields.get("sliding_window") and fields.get("full_attention_interval")
        local_theta = local_theta or defaults["local_rope_theta"]
        result["local_rope_theta"] = local_theta if has_windows else 0.0
    return result | _read_scaling(file, config, name, rope)


def _check_rotary_fraction(file: Path, fraction: Any, d_head: int) -> None:
    """Raise ValueError unless the fraction rotates an even number of dimensions of a head."""
    if type(fraction) not in (int, float) or not 0 < fraction <= 1 or int(d_head * fraction) % 2:
        raise ValueError(
            f"{file}: partial_rotary_factor={fraction!r} must rotate an even number of the"
            f" {d_head} dimensions of a head"
        )


def _rope_type(rope: dict) -> Any:
    """Return the rope_type of an entry, by its present or its former key."""
    return rope.get("rope_type", rope.get("type", "default"))


def _read_scaling(file: Path, config: dict, name: str, rope: dict) -> dict[str, Any]:
    """Return the fields of rope_scaling."""
    kind, is_free = _rope_type(rope), "rope_scaling" in architectures.ARCHITECTURES[name].free
    allowed = ROPE_TYPES if is_free else ROPE_TYPES[:1]
    if kind not in allowed:
        types = " or ".join(map(repr, allowed))
        raise ValueError(f"{file}: rope_parameters={rope} must have the rope_type {types}")
    if kind == "default":
        return {}
    if "factor" not in rope:
        raise ValueError(f"{file}: rope_parameters={rope} must have a factor")
    fields = {"rope_scaling": kind, "rope_factor": rope["factor"]}
    if kind == "llama3":
        for key, required in LLAMA3_FACTORS.items():
            if rope.get(key, required) != required:
                _reject(file, f"rope_parameters.{key}", rope[key], f"must be {required!r}")
        key = "original_max_position_embeddings"
        length = rope.get(key, config.get(key))
        check_positive(file, key, length)
        fields["rope_original_length"] = length
    return fields


def write_fields(shape: schema.Model, name: str, seq_len: int) -> dict[str, Any]:
    """Return the entries of config.json for the fields of a model. seq_len: its context."""
    row = architectures.ARCHITECTURES[name]
    config = {key: getattr(shape, field) for field, key in row.keys.items()}
    if "mlp" in row.keys:
        names = {mlp: activation for activation, mlp in reversed(ACTIVATIONS.items())}
        config[row.keys["mlp"]] = names[shape.mlp]
    if "residual" in row.keys:
        config[row.keys["residual"]] = shape.residual == "parallel"
    if name == "qwen3_moe":
        config["moe_intermediate_size"] = model_sizes.expert_width(shape)
    for field in ("sliding_window", "logit_softcap", "attention_softcap"):
        if field in row.keys:
            config[row.keys[field]] = getattr(shape, field) or None
    if "attention_scale" in row.free:
        scalar = architectures.query_scalar(shape)
        config["query_pre_attn_scalar"] = round(scalar)  # transformers accepts no float
    if "sliding_window" in row.keys and "full_attention_interval" in row.defaults:
        windows = model_sizes.attention_windows(shape)
        config["layer_types"] = [LOCAL if window else FULL for window in windows]
    if "learned_positions" not in row.keys:
        config |= _write_rope(shape, name) | {"max_position_embeddings": seq_len}
    return config | row.required


def _write_rope(shape: schema.Model, name: str) -> dict[str, Any]:
    """Return the entries of rotary embeddings, for transformers 4 and 5."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": shape.rope_theta}
    if shape.rope_scaling != "none":
        rope |= {"rope_type": shape.rope_scaling, "factor": shape.rope_factor}
    if shape.rope_scaling == "llama3":
        rope |= LLAMA3_FACTORS
        rope["original_max_position_embeddings"] = shape.rope_original_length
    config: dict[str, Any] = {"rope_theta": shape.rope_theta}
    row = architectures.ARCHITECTURES[name]
    if "rotary_fraction" in row.free:
        rope["partial_rotary_factor"] = shape.rotary_fraction
        config["partial_rotary_factor"] = shape.rotary_fraction
    if name == "gpt_neox":  # keys of transformers 4
        config |= {"rotary_pct": shape.rotary_fraction, "rotary_emb_base": shape.rope_theta}
    if "local_rope_theta" in row.free:
        local = {"rope_type": "default", "rope_theta": shape.local_rope_theta}
        config["rope_local_base_freq"] = shape.local_rope_theta
        return config | {"rope_parameters": {FULL: rope, LOCAL: local}}
    return config | {"rope_parameters": rope}


def check_positive(file: Path, key: str, value: object) -> None:
    """Raise ValueError unless the value of a key is an integer from 1 to 2^31 - 1."""
    if type(value) is not int or not 1 <= value < 2**31:
        raise ValueError(f"{file}: {key}={value!r} must be a positive integer below 2^31")


def _reject(file: Path, key: str, value: object, problem: str) -> NoReturn:
    """Raise ValueError that names a key of config.json and its value."""
    raise ValueError(f"{file}: {key}={value!r} {problem}")
