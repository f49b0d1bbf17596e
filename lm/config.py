"""Every knob of a run, once: a tree of typed dataclasses whose defaults train on a laptop.

run = Run(name="first")
run.model.d_model = 256
flatten(run)["model.d_model"]   # 256; what cannot work is refused by lm/checks.py
"""

import dataclasses
import difflib
import types
import typing


@dataclasses.dataclass
class Model:
    vocab_size: int = 256  # token ids; 256 for bytes
    d_model: int = 128  # width of the residual stream
    n_layers: int = 4  # decoder blocks
    n_heads: int = 4  # query heads
    n_kv_heads: int = 4  # key/value heads; n_heads must be a multiple (Ainslie et al. 2023)
    d_head: int = 32  # width of one head; even, for rotary embedding
    d_ff: int = 384  # width of the MLP
    mlp: str = "gated"  # gated: silu(x G) (x U) D; gelu: gelu(x U) D, as in GPT-2
    norm: str = "rms"  # rms; layer: mean and bias too
    norm_eps: float = 1e-6  # added to the mean square, or the variance, of what is normed
    qk_norm: bool = True  # queries and keys of a head are normed (arXiv:2302.05442)
    bias: bool = False  # products of attention and MLP have one; never the head's
    tied: bool = False  # head = transposed embedding
    max_positions: int = 0  # rows of a table of learned positions; 0: rotary ones, of any number
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
    attention: str = "auto"  # its kernel: auto (the machine's), plain, cudnn, splash; see kernels
    attention_blocks: int = 2  # of the plain one: query blocks; none sees the keys behind it
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
    steps_per_call: int = 0  # at most, of the compiled program; 0: by their size, see lm/packs.py
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
            raise ValueError(f"{where}{name}={value!r} must hold knobs")
        known[name] = from_dict(value, hints[name], f"{where}{name}.") if nested else value
    return kind(**known)


def unknown(name: str, known: list[str]) -> str:
    """One line that says what exists nearest to a name that does not."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known
    return f"{name} does not exist: did you mean {', '.join(near)}?"
