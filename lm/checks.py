"""What a run's knobs may be: choices, bounds, and which values go together.

check(run)   # refuses what cannot work, before JAX is imported
"""

import math
import re

from lm import config, layout

CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("auto", "plain", "cudnn", "splash"),
    "model.mlp": ("gated", "gelu"),
    "model.norm": ("rms", "layer"),
    "model.parametrization": ("standard", "mup", "completep"),
    "optim.name": ("adamw", "lion", "muon"),
    "model.router": ("softmax", "sigmoid"),
    "model.balance": ("loss", "bias", "none"),
    "model.dispatch": ("dropless", "capacity"),
    "resume": ("auto", "must"),
    "start.keep": ("weights", "state"),
    "optim.nonfinite": ("stop", "skip", "rewind"),
    "optim.schedule": ("cosine", "linear", "wsd", "constant"),
    "data.broken": ("stop", "skip"),
    "data.rows": ("packed", "continued", "whole"),
    "data.score": ("all", "answers"),
    "data.too_long": ("cut", "drop", "refuse"),
    "eval.too_long": ("cut", "refuse"),
}
# Smallest value of each number that has one; others may be anything.
AT_LEAST = {
    "seed": 0,
    "steps": 1,
    "log_every": 1,
    "steps_per_call": 0,
    "checkpoint_every": 1,
    "keep_every": 0,
    "stall_seconds": 0,
    "model.vocab_size": 2,
    "model.d_model": 1,
    "model.n_layers": 1,
    "model.n_heads": 1,
    "model.n_kv_heads": 1,
    "model.d_head": 2,
    "model.d_ff": 1,
    "model.max_positions": 0,
    "model.base_width": 1,
    "model.base_depth": 1,
    "model.unroll": 1,
    "model.attention_blocks": 1,
    "model.loss_chunks": 1,
    "model.logit_softcap": 0,
    "model.lora_rank": 0,
    "model.z_loss": 0,
    "model.n_experts": 0,
    "model.experts_per_token": 1,
    "model.n_shared_experts": 0,
    "model.d_expert": 0,
    "model.balance_weight": 0,
    "model.balance_rate": 0,
    "model.router_z_loss": 0,
    "data.min_words": 0,
    "data.overlap": 0,
    "data.seq_len": 1,
    "data.batch_size": 1,
    "data.unique_tokens": 0,
    "data.max_epochs": 0,
    "optim.accumulate": 1,
    "optim.weight_decay": 0,
    "optim.clip": 0,
    "mesh.fsdp": 1,
    "mesh.expert": 1,
    "mesh.sequence": 1,
    "mesh.tensor": 1,
    "start.step": 0,
    "mesh.exact": 0,
    "eval.every": 0,
    "eval.patience": 0,
    "eval.n_sequences": 1,
    "eval.n_completions": 0,
    "eval.tasks_every": 0,
}
ABOVE = {
    **{"model.rope_theta": 0, "model.capacity": 0, "model.lora_alpha": 0, "model.norm_eps": 0},
    **{"optim.lr": 0, "optim.eps": 0, "optim.layer_decay": 0},
}
SHARES = (
    *("data.heldout", "data.min_letters", "data.max_repeats"),
    *("optim.warmup", "optim.decay", "optim.lr_end", "optim.b1", "optim.b2"),
)


def check(run: config.Run) -> config.Run:
    """Returns `run` as it came; ValueError naming field, value, rule, way out if it cannot work."""
    flat = config.flatten(run)
    for name, kind in config.field_types(config.Run).items():
        value = flat[name]
        if kind is float and type(value) is int:
            value = flat[name] = float(value)
        if type(value) is not kind and not (kind is dict and isinstance(value, dict)):
            _refuse(name, value, f"must be {kind.__name__}, not {type(value).__name__}")
        if kind is float and value != value:
            _refuse(name, value, "must be a number")
    for name, words in CHOICES.items():
        if flat[name] not in words:
            _refuse(name, flat[name], f"must be one of {', '.join(words)}")
    for name, bound in AT_LEAST.items():
        if flat[name] < bound:
            _refuse(name, flat[name], f"must be at least {bound}")
    for name, bound in ABOVE.items():
        if flat[name] <= bound:
            _refuse(name, flat[name], f"must be above {bound}")
    for name in SHARES:
        if not 0 <= flat[name] <= 1:
            _refuse(name, flat[name], "is a share: 0 to 1")
    for name, value in (("name", run.name), ("start.run", run.start.run or "none")):
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+(/[A-Za-z0-9_.+-]+)*", value) or ".." in value:
            _refuse(name, value, "takes letters, digits and _ . + - with / between folders")
    if run.start.run == run.name:
        _refuse("start.run", run.start.run, "is the run itself: name the run it starts from")
    if run.model.lora_rank and not run.start.run:
        _refuse("model.lora_rank", run.model.lora_rank, "adds to trained weights: set start.run")
    if not run.start.run and run.start != config.Start():
        _refuse("start.run", "", "is needed by start.step and start.keep: name a run below dir")

    model, data, mesh, optim = run.model, run.data, run.mesh, run.optim
    if model.n_heads % model.n_kv_heads:
        near = max(k for k in range(1, model.n_kv_heads + 1) if model.n_heads % k == 0)
        rule = f"must be a multiple of model.n_kv_heads={model.n_kv_heads}"
        _refuse("model.n_heads", model.n_heads, f"{rule}: try model.n_kv_heads={near}")
    if model.d_head % 2:
        _refuse("model.d_head", model.d_head, "must be even, for rotary embedding")
    if 0 < model.max_positions < data.seq_len:
        rule = f"must be at least data.seq_len={data.seq_len}, or 0 for rotary positions"
        _refuse("model.max_positions", model.max_positions, rule)
    if mesh.data == 0 or mesh.data < -1:
        _refuse("mesh.data", mesh.data, "must be -1 (all devices) or at least 1")
    layout.check(flat, {axis: max(flat[f"mesh.{axis}"], 1) for axis in layout.AXES})
    if mesh.exact:
        _check_exact(run)
    if run.keep_every % run.checkpoint_every:
        near = -(-run.keep_every // run.checkpoint_every) * run.checkpoint_every
        rule = f"must be a multiple of checkpoint_every={run.checkpoint_every}: try {near}"
        _refuse("keep_every", run.keep_every, rule)
    if run.eval.patience and not run.eval.every:
        _refuse("eval.patience", run.eval.patience, "counts evaluations: set eval.every")
    if run.eval.tasks_every and (not run.eval.every or run.eval.tasks_every % run.eval.every):
        rule = f"must be a multiple of eval.every={run.eval.every}, which is when there are any"
        _refuse("eval.tasks_every", run.eval.tasks_every, rule)
    if optim.schedule == "wsd" and optim.warmup + optim.decay > 1:
        _refuse("optim.decay", optim.decay, f"plus optim.warmup={optim.warmup} must not exceed 1")
    if not data.sources:
        _refuse("data.sources", data.sources, "is empty: name at least one source, such as code")
    for source, weight in data.sources.items():
        if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            _refuse(f"data.sources[{source!r}]", weight, "is a weight: a number from 0 up")
    if model.n_experts:
        _check_experts(model, mesh)
    _check_text(data)
    if not sum(data.sources.values()):
        _refuse(
            "data.sources", data.sources, "has only zero weights: give one source a positive weight"
        )
    return run


def _check_experts(model: config.Model, mesh: config.Mesh) -> None:
    for knob, needed in (("mlp", "gated"), ("bias", False)):
        if (value := getattr(model, knob)) != needed:
            _refuse(f"model.{knob}", value, f"is not for experts: take {needed!r}")
    if model.experts_per_token > model.n_experts:
        rule = f"must not exceed model.n_experts={model.n_experts}"
        _refuse("model.experts_per_token", model.experts_per_token, rule)
    passed = model.experts_per_token + model.n_shared_experts
    if not model.d_expert and model.d_ff % passed:
        rule = f"must be a multiple of the {passed} experts that a token passes"
        _refuse("model.d_ff", model.d_ff, f"{rule}, or set model.d_expert")
    ways = math.prod(max(getattr(mesh, axis), 1) for axis in layout.rules(mesh.rules)["mlp"])
    if (width := model.d_expert or model.d_ff // passed) % ways:
        _refuse("model.d_expert", width, f"must be a multiple of the {ways} devices that split it")


def _check_exact(run: config.Run) -> None:
    shards, size = run.mesh.exact, run.data.batch_size
    if shards & (shards - 1):
        rule = f"must be a power of two, or 0: try {1 << shards.bit_length()}"
        _refuse("mesh.exact", shards, rule)
    kept = f"is not kept in one order by mesh.exact={shards}"
    if run.model.dtype != "float32":
        _refuse("model.dtype", run.model.dtype, f"{kept}: take float32")
    if run.model.n_experts:
        _refuse("model.n_experts", run.model.n_experts, f"{kept}: take 0")
    if run.optim.name == "muon":
        _refuse("optim.name", run.optim.name, f"{kept}: take adamw or lion")
    if run.optim.accumulate > 1:
        _refuse("optim.accumulate", run.optim.accumulate, f"{kept}: take 1, as shards are pieces")
    if size % shards:
        near = -(-size // shards) * shards
        _refuse("data.batch_size", size, f"must be a multiple of mesh.exact={shards}: try {near}")


def _check_text(data: config.Data) -> None:
    kind, _, rest = data.tokenizer.partition(":")
    if kind not in ("bytes", "bpe", "file", "spm") or (kind == "bytes") == bool(rest):
        _refuse("data.tokenizer", data.tokenizer, "must be bytes, bpe:8192, file:JSON or spm:MODEL")
    if kind == "bpe" and not (rest.isdecimal() and 258 <= int(rest) <= 10**6):
        _refuse("data.tokenizer", data.tokenizer, "takes a size from 258 (bytes, 2 more) to 10^6")
    if data.protect and not data.overlap:
        _refuse("data.protect", data.protect, "has no effect with data.overlap=0: try 13 words")
    if data.score == "answers" and data.rows != "whole":
        _refuse("data.score", data.score, f"needs data.rows='whole', not {data.rows!r}")
    if 0 < data.unique_tokens < data.seq_len:
        rule = f"must be at least one row of data.seq_len={data.seq_len}, or 0 for all"
        _refuse("data.unique_tokens", data.unique_tokens, rule)


def _refuse(name: str, value, rule: str):
    raise ValueError(f"{name}={value!r} {rule}")
