"""Every knob of a run, once: a tree of typed dataclasses whose defaults train on a laptop.

run = Run(name="first")
run.model.d_model = 256
check(run)                      # refuses what cannot work, before JAX is imported
"""

import dataclasses
import difflib
import math
import re
import types
import typing

from lm import layout


@dataclasses.dataclass
class Model:
    vocab_size: int = 256  # token ids; 256 for bytes
    d_model: int = 128  # width of the residual stream
    n_layers: int = 4  # decoder blocks
    n_heads: int = 4  # query heads
    n_kv_heads: int = 4  # key/value heads; n_heads must be a multiple (Ainslie et al. 2023)
    d_head: int = 32  # width of one head; even, for rotary embedding
    d_ff: int = 384  # width of the gated MLP
    tied: bool = False  # head = transposed embedding
    rope_theta: float = 10_000.0  # base of the rotary frequencies (Su et al. 2021)
    logit_softcap: float = 0.0  # logits -> cap * tanh(logits / cap); 0 is off
    z_loss: float = 0.0  # weight of log(Z)^2 in the training loss; 0 is off
    parametrization: str = "standard"  # by width and depth: standard, mup, completep
    base_width: int = 64  # d_model at which parametrizations agree
    base_depth: int = 4  # n_layers at which they agree
    dtype: str = "float32"  # of activations: float32, bfloat16; weights stay float32
    remat: str = "none"  # recompute in the backward pass: none, dots (keep matmuls), full
    unroll: int = 8  # layers unrolled per scan step; stacks no deeper than this are unrolled whole
    lora_rank: int = 0  # of additions that learn in place of the weights; 0: none; needs start.run
    lora_alpha: float = 16.0  # additions are multiplied by lora_alpha / lora_rank
    lora_on: str = "heads,kv_heads,mlp"  # axes of the weights that have one, with commas between
    attention_blocks: int = 2  # query blocks; block i never sees the keys behind it
    loss_chunks: int = 1  # pieces of a row whose logits exist one at a time; 1: all at once
    n_experts: int = 0  # MLPs that a router picks from, in every layer; 0: one MLP for all tokens
    experts_per_token: int = 2  # of them that a token passes
    n_shared_experts: int = 0  # more that every token passes
    d_expert: int = 0  # width of an expert; 0: d_ff shared out over those that a token passes
    router: str = "softmax"  # an expert's score: softmax, sigmoid
    normalize_experts: bool = True  # what a token's experts count adds up to 1
    balance: str = "loss"  # what evens out the load: loss, bias (arXiv:2408.15664), none
    balance_weight: float = 0.01  # of the balance loss, per layer (Fedus et al. 2021)
    balance_rate: float = 0.001  # how far a step moves each bias
    router_z_loss: float = 0.0  # weight of its log(Z)^2, per layer; 1e-3 in arXiv:2202.08906
    dispatch: str = "dropless"  # places for tokens: dropless (as many as it takes), capacity
    capacity: float = 1.25  # places of an expert in a row of the batch, per token it gets if even


@dataclasses.dataclass
class Data:
    sources: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"code": 0.5, "docs": 0.5}
    )
    # what to read -> weight: code, docs, text:PATH, jsonl:GLOB[?field=NAME] and more: lm/sources.py
    cache: str = "data"  # folder of prepared token files; may be gs://BUCKET/FOLDER
    heldout: float = 0.05  # share of documents held out, by hash of their text
    tokenizer: str = "bytes"  # bytes, bpe:SIZE (trained on the sources), file:JSON, spm:MODEL
    broken: str = "stop"  # at a file or line that cannot be read: stop, skip (and count)
    min_words: int = 0  # a document; shorter ones are dropped
    min_letters: float = 0.0  # share of letters in a document; with a smaller it is dropped
    max_repeats: float = 1.0  # share of a document's lines that came before; above it is dropped
    drop_copies: bool = False  # drop documents nearly like one before; equal ones always are
    overlap: int = 0  # words in a row that training must not share with held-out text; 0: any
    protect: str = ""  # a source, such as a task's text, that counts as held out for data.overlap
    seq_len: int = 128  # tokens of context
    batch_size: int = 16  # sequences a step, over all devices and hosts
    # What a row is: packed (cut wherever it is full), continued (learned after a random place),
    rows: str = "packed"  # whole (documents that are not cut, apart from each other, filled up)
    score: str = "all"  # what is learned of it: all, answers (of conversations; whole rows only)
    too_long: str = "cut"  # conversations longer than a row: cut (left of it), drop, refuse
    unseen: str = ""  # tasks and categories, with commas between, that no source may hold
    across: bool = True  # attention may cross the ends of documents within a row
    unique_tokens: int = 0  # training tokens that are ever seen, over all sources; 0: all there are
    max_epochs: float = 0.0  # times that a run may see any source; 0: any
    copies: str = "data"  # folder on this machine for what a data.cache in a bucket holds


@dataclasses.dataclass
class Optim:
    name: str = "adamw"  # adamw, lion, muon (matrices; adamw for the rest)
    lr: float = 3e-3  # peak learning rate
    schedule: str = "cosine"  # cosine, linear, wsd (warm-up, stable, decay), constant
    warmup: float = 0.05  # share of the steps spent warming up
    decay: float = 0.2  # wsd: share of the steps spent decaying
    lr_end: float = 0.1  # learning rate at the end, as a share of the peak
    b1: float = 0.9  # decay of the first moment; of muon's matrices 0.95
    b2: float = 0.95  # decay of the second moment
    eps: float = 1e-8  # added to the root of the second moment
    weight_decay: float = 0.1  # decoupled, times the learning rate; never on norms
    layer_decay: float = 1.0  # learning rate of a layer, as a share of that of the layer above it
    freeze: str = ""  # weights that do not learn: parts of paths or axes, embed,mlp; see learned
    clip: float = 1.0  # largest global gradient norm; 0 is off
    accumulate: int = 1  # pieces of a batch, one after another, whose gradients are summed
    nonfinite: str = "stop"  # a loss or gradient that is no number: stop, skip (the update), rewind


@dataclasses.dataclass
class Mesh:
    data: int = -1  # devices over which the batch is split; -1: all that are left
    fsdp: int = 1  # devices over which the batch and the weights are split
    expert: int = 1  # devices over which the batch and the experts are split
    sequence: int = 1  # devices over which the positions of a row are split
    tensor: int = 1  # devices over which heads, MLP and vocabulary are split
    rules: dict[str, str | list[str]] = dataclasses.field(default_factory=dict)
    # rows that replace those of layout.RULES, such as {"vocab": ["tensor", "fsdp"], "mlp": []}
    exact: int = 0  # shards of a batch, summed in one order: the same bits on any devices; 0: off


@dataclasses.dataclass
class Start:
    run: str = ""  # name, below dir, of the run whose checkpoint this one starts from; "": none
    step: int = 0  # of that checkpoint; 0: the last of that run, or its best: see eval.patience
    keep: str = "weights"  # taken over: weights (fine-tuning), state (a branch: steps count on)


@dataclasses.dataclass
class Eval:
    every: int = 0  # steps between evaluations; 0: only at the end
    patience: int = 0  # evaluations in a row without a lower loss that end a run; 0: never
    n_sequences: int = 512  # held-out sequences a source
    n_completions: int = 1024  # held-out words to complete, over all sources
    tasks: str = ""  # names with spaces between, copy?length=4 file:my/set: see lm/tasks.py
    tasks_every: int = 0  # steps between evaluations with tasks, of eval.every; 0: only at the end
    too_long: str = "cut"  # an example longer than data.seq_len: cut (left of it), refuse


@dataclasses.dataclass
class Run:
    name: str = "run"  # folder below dir; sweeps use SWEEP/RUN
    dir: str = "runs"  # folder of all runs; may be gs://BUCKET/FOLDER
    seed: int = 0  # of weights and data order
    steps: int = 1000  # optimizer steps
    log_every: int = 10  # steps between metrics
    checkpoint_every: int = 200  # steps between checkpoints; the newest is kept
    keep_every: int = 0  # steps between checkpoints kept for good; 0: only the last
    keep_best: bool = False  # keep the checkpoint of the lowest held-out loss; see eval.every
    resume: str = "auto"  # auto; must: refuse to start afresh
    stall_seconds: float = 1800.0  # end the process after so long without a step; 0: never
    wandb: bool = False  # also log to Weights & Biases (extra: wandb)
    predict: bool = False  # in a sweep: start last, once the law of the others has predicted it
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    optim: Optim = dataclasses.field(default_factory=Optim)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    eval: Eval = dataclasses.field(default_factory=Eval)
    start: Start = dataclasses.field(default_factory=Start)


CHOICES = {
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
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
    **{"model.rope_theta": 0, "model.capacity": 0, "model.lora_alpha": 0},
    **{"optim.lr": 0, "optim.eps": 0, "optim.layer_decay": 0},
}
SHARES = (
    *("data.heldout", "data.min_letters", "data.max_repeats"),
    *("optim.warmup", "optim.decay", "optim.lr_end", "optim.b1", "optim.b2"),
)


def check(run: Run) -> Run:
    """Returns `run` as it came; ValueError naming field, value, rule, way out if it cannot work."""
    flat = flatten(run)
    for name, kind in field_types(Run).items():
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
    if not run.start.run and run.start != Start():
        _refuse("start.run", "", "is needed by start.step and start.keep: name a run below dir")

    model, data, mesh, optim = run.model, run.data, run.mesh, run.optim
    if model.n_heads % model.n_kv_heads:
        near = max(k for k in range(1, model.n_kv_heads + 1) if model.n_heads % k == 0)
        rule = f"must be a multiple of model.n_kv_heads={model.n_kv_heads}"
        _refuse("model.n_heads", model.n_heads, f"{rule}: try model.n_kv_heads={near}")
    if model.d_head % 2:
        _refuse("model.d_head", model.d_head, "must be even, for rotary embedding")
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


def _check_experts(model: Model, mesh: Mesh) -> None:
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


def _check_exact(run: Run) -> None:
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


def _check_text(data: Data) -> None:
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


def flatten(run) -> dict:
    """{"optim.lr": 0.003, ...}: an entry a knob, in order of declaration; dict knobs stay whole."""
    flat = {}
    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {f"{field.name}.{k}": v for k, v in flatten(value).items()}
        else:
            flat[field.name] = value
    return flat


def field_types(kind: type) -> dict[str, type]:
    """{"optim.lr": float, ...} for a dataclass type, in the order of `flatten`."""
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            found |= {f"{name}.{k}": v for k, v in field_types(hint).items()}
        else:
            found[name] = dict if isinstance(hint, types.GenericAlias) else hint
    return found


def to_dict(run: Run) -> dict:
    """Nested plain dict, ready for JSON."""
    return dataclasses.asdict(run)


def from_dict(values: dict, kind: type = Run, where: str = ""):
    """The inverse of `to_dict`; a knob that does not exist is refused with the nearest names."""
    hints = typing.get_type_hints(kind)
    known = {}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(unknown(where + name, [where + k for k in hints]))
        nested = dataclasses.is_dataclass(hints[name])
        if nested and not isinstance(value, dict):
            _refuse(where + name, value, "must hold knobs")
        known[name] = from_dict(value, hints[name], f"{where}{name}.") if nested else value
    return kind(**known)


def unknown(name: str, known: list[str]) -> str:
    """One line that says what exists nearest to a name that does not."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    return f"{name} does not exist: did you mean {', '.join(near)}?"


def _refuse(name: str, value, rule: str):
    raise ValueError(f"{name}={value!r} {rule}")
