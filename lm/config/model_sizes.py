"""Ladder of model sizes, exact parameter counts, and training budgets.

    ladder_model("100M").d_model                                           # 768
    count_parameters(ladder_model("100M", vocab_size=256))["total"]        # 99951744
    steps_for_budget(run, tokens_per_param=20)                             # optimizer steps

The name of a size is its number of non-embedding parameters within 5%: attention, MLP and norms,
the N of Kaplan et al. 2020 (arXiv:2001.08361). This number does not depend on the vocabulary.
"""

import dataclasses
import math
import re
from typing import Any

from lm.config import field_names, flops, schema
from lm.config.schedules import batch_size_schedule

# Width grows faster than depth: d_model / n_layers rises from 5 to 240, as in published families.
LADDER = {
    #        d_model n_layers n_heads n_kv_heads d_head   d_ff
    "10K":  (     16,       3,      2,         2,     8,     48),
    "15K":  (     24,       2,      3,         3,     8,     72),
    "25K":  (     24,       3,      3,         3,     8,     80),
    "40K":  (     32,       3,      2,         2,    16,     96),
    "60K":  (     32,       4,      2,         2,    16,    112),
    "100K": (     48,       4,      3,         3,    16,    112),
    "150K": (     48,       5,      3,         3,    16,    144),
    "250K": (     64,       5,      4,         4,    16,    176),
    "400K": (     80,       5,      5,         5,    16,    224),
    "600K": (     96,       6,      3,         3,    32,    216),
    "1M":   (    128,       5,      4,         4,    32,    352),
    "1.5M": (    128,       7,      4,         4,    32,    384),
    "2.5M": (    160,       8,      5,         5,    32,    432),
    "4M":   (    192,       9,      6,         6,    32,    512),
    "6M":   (    224,      10,      7,         7,    32,    592),
    "10M":  (    256,      12,      8,         8,    32,    736),
    "15M":  (    320,      12,     10,        10,    32,    896),
    "25M":  (    384,      14,      6,         6,    64,   1024),
    "40M":  (    512,      14,      8,         8,    64,   1152),
    "60M":  (    576,      15,      9,         9,    64,   1536),
    "100M": (    768,      15,     12,         6,    64,   2112),
    "150M": (    896,      15,     14,         7,    64,   2816),
    "250M": (   1280,      15,     20,        10,    64,   3072),
    "400M": (   1536,      15,     12,         6,   128,   4224),
    "600M": (   1792,      17,     14,         7,   128,   4736),
    "1B":   (   2048,      21,     16,         8,   128,   5632),
    "1.5B": (   2560,      22,     20,         4,   128,   6784),
    "2.5B": (   3072,      24,     24,         8,   128,   8576),
    "4B":   (   3584,      28,     28,         4,   128,  10496),
    "6B":   (   4608,      28,     36,         4,   128,  12160),
    "10B":  (   5120,      36,     40,         8,   128,  13952),
    "15B":  (   6144,      38,     48,         8,   128,  16640),
    "25B":  (   7168,      46,     56,         8,   128,  19840),
    "40B":  (   8192,      52,     64,         8,   128,  25088),
    "60B":  (  10240,      58,     80,         8,   128,  26112),
    "100B": (  12288,      64,     96,         8,   128,  33536),
    "150B": (  14336,      74,    112,         8,   128,  36864),
    "250B": (  16384,      88,    128,         8,   128,  46080),
    "400B": (  20480,      98,    160,         8,   128,  52224),
    "600B": (  23552,     110,    184,         8,   128,  60928),
    "1T":   (  28672,     120,    224,         8,   128,  76800),
}  # fmt: skip
MAX_BPE_SIZE = 10**6

# The names of mixtures of experts state total and active parameters, without embeddings, within 5%.
# Below 1B, the MLP of a dense size is divided into experts. From 1B on, widths, depths and experts
# are those of OLMoE (arXiv:2409.02060), DeepSeekMoE (2401.06066), Qwen3 (2505.09388, two sizes) and
# Kimi K2 (2507.20534), with equal layers and the attention of lm/model/transformer.py.
EXPERTS = {
    #             d_model n_layers n_heads n_kv_heads d_head n_experts per_token n_shared d_expert
    "190K-A60K":  (    32,       4,      2,         2,    16,        8,       2,       0,      56),
    "300K-A100K": (    48,       4,      3,         3,    16,        8,       2,       0,      56),
    "1.4M-A250K": (    64,       5,      4,         4,    16,       16,       2,       0,      88),
    "3.2M-A600K": (    96,       6,      3,         3,    32,       16,       2,       0,     108),
    "8.7M-A1.5M": (   128,       7,      4,         4,    32,       32,       4,       0,      96),
    "58M-A10M":   (   256,      12,      8,         8,    32,       32,       4,       0,     184),
    "220M-A40M":  (   512,      14,      8,         8,    64,       64,       6,       2,     144),
    "630M-A100M": (   768,      15,     12,         6,    64,       64,       6,       2,     264),
    "6.7B-A1.1B": (  2048,      16,     16,        16,   128,       64,       8,       0,    1024),
    "16B-A2.4B":  (  2048,      28,     16,        16,   128,       64,       6,       2,    1408),
    "30B-A2.7B":  (  2048,      48,     32,         4,   128,      128,       8,       0,     768),
    "235B-A21B":  (  4096,      94,     64,         4,   128,      128,       8,       0,    1536),
    "1T-A32B":    (  7168,      61,     64,         8,   128,      384,       8,       1,    2048),
}  # fmt: skip


def ladder_model(size: str, **changes: Any) -> schema.Model:
    """Return the model of a size in LADDER or EXPERTS, with changed fields.

    changes: fields of schema.Model. Raises ValueError for an unknown size, with similar sizes.
    """
    if size not in LADDER and size not in EXPERTS:
        raise ValueError("size " + field_names.suggest_names(str(size), [*LADDER, *EXPERTS]))
    names = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head")
    expert_names = ("n_experts", "experts_per_token", "n_shared_experts", "d_expert")
    names += ("d_ff",) if size in LADDER else expert_names
    row = LADDER[size] if size in LADDER else EXPERTS[size]
    shape: dict[str, Any] = dict(zip(names, row, strict=True))
    return schema.Model(**shape | changes)


def resize_model(model: schema.Model, d_model: int, n_layers: int) -> schema.Model:
    """Return the model with another width and depth. Heads and d_ff scale with the width.

    base_width and base_depth become the old width and depth, where all parametrizations agree.
    Raises ValueError if the number of heads or d_ff would not be an integer.
    """
    ratio = d_model / model.d_model
    scaled = {name: getattr(model, name) * ratio for name in ("n_heads", "n_kv_heads", "d_ff")}
    if fractional := [name for name, value in scaled.items() if value != int(value)]:
        raise ValueError(
            f"d_model={d_model} is {ratio:g} times {model.d_model}, which gives fractional"
            f" {', '.join(fractional)}: set a multiple of {model.d_model}"
        )
    base = {"base_width": model.d_model, "base_depth": model.n_layers}
    counts = {name: int(value) for name, value in scaled.items()}
    return dataclasses.replace(model, d_model=d_model, n_layers=n_layers, **counts, **base)


def expert_width(model: schema.Model) -> int:
    """Return the hidden width of an expert: d_expert, or d_ff divided by the experts per token."""
    return model.d_expert or model.d_ff // (model.experts_per_token + model.n_shared_experts)


def named_vocab_size(tokenizer: str) -> int:
    """Return the vocabulary size that a value of data.tokenizer states; 0 if it states none."""
    kind, _, rest = tokenizer.partition(":")
    if kind == "bpe" and re.fullmatch("[0-9]{1,9}", rest):
        return int(rest)
    return 256 if tokenizer == "bytes" else 0


def resolved_model(run: schema.Run) -> schema.Model:
    """Return the model of a run, with the vocabulary size of data.tokenizer instead of 0.

    Raises ConfigError if the size is in a tokenizer file, which is read when the run starts.
    """
    vocab_size = run.model.vocab_size or named_vocab_size(run.data.tokenizer)
    if not vocab_size:
        raise schema.ConfigError(
            f"model.vocab_size=0 needs the file of data.tokenizer={run.data.tokenizer!r}: set"
            " model.vocab_size, or call run_tokenizer.resolve_tokenizer(run)"
        )
    return dataclasses.replace(run.model, vocab_size=vocab_size)


def is_gated(model: schema.Model) -> bool:
    """Return True if the MLP has a gate, and therefore three matrices."""
    return model.mlp in ("gated", "gated_gelu")


def attention_windows(model: schema.Model) -> list[int]:
    """Return the number of keys per query of each layer; 0 is all earlier keys."""
    interval = model.full_attention_interval
    return [
        0 if interval and (i + 1) % interval == 0 else model.sliding_window
        for i in range(model.n_layers)
    ]


def rotary_size(model: schema.Model) -> int:
    """Return the number of dimensions of a head that are rotated."""
    return int(model.d_head * model.rotary_fraction)


def count_parameters(model: schema.Model) -> dict[str, int]:
    """Return the number of parameters of each part of a model, and four sums.

    Parts: embedding (with learned positions), attention, mlp (shared experts in a mixture of
    experts), router (with biases), experts, norms, biases, head (with its bias; 0 without a bias if
    the embeddings are tied).

    Sums: total; non_embedding, without embedding and head; active, without the experts that are not
    selected for a token; active_non_embedding, without both. Raises ConfigError if vocab_size is 0.
    """
    if not model.vocab_size:
        raise schema.ConfigError(
            "model.vocab_size=0 has no number of parameters: set it, or pass"
            " model_sizes.resolved_model(run), which takes it from data.tokenizer"
        )
    d, n_layers, d_head, n_experts = model.d_model, model.n_layers, model.d_head, model.n_experts
    expert = 3 * d * expert_width(model)  # weights of one expert in one layer
    n_matrices = 3 if is_gated(model) else 2
    n_norms = 1 if model.residual == "parallel_shared" else 2
    n_norms *= 2 if model.norm_position == "both" else 1
    n_normed_heads = 2 if model.qk_norm_scope == "head" else model.n_heads + model.n_kv_heads
    norms = n_layers * (n_norms * d + n_normed_heads * d_head * model.qk_norm) + d
    biases = d_head * (model.n_heads + 2 * model.n_kv_heads)
    if model.bias:
        biases += (n_matrices - 1) * model.d_ff + 2 * d
    mlp = model.n_shared_experts * expert if n_experts else n_matrices * d * model.d_ff
    parts = {
        "embedding": (model.vocab_size + model.learned_positions) * d,
        "attention": n_layers * 2 * d * d_head * (model.n_heads + model.n_kv_heads),
        "mlp": n_layers * mlp,
        "router": n_layers * n_experts * (d + (model.load_balancing == "bias")),
        "experts": n_layers * n_experts * expert,
        "norms": norms * (2 if model.norm == "layer" else 1),
        "biases": n_layers * biases if model.bias or model.qkv_bias else 0,
        "head": model.vocab_size * ((0 if model.tie_embeddings else d) + model.head_bias),
    }
    total = sum(parts.values())
    non_embedding = total - parts["embedding"] - parts["head"]
    unselected = n_layers * (n_experts - model.experts_per_token) * expert if n_experts else 0
    return parts | {
        "total": total,
        "non_embedding": non_embedding,
        "active": total - unselected,
        "active_non_embedding": non_embedding - unselected,
    }


def training_tokens(run: schema.Run) -> int:
    """Return the number of training tokens of the run, with repetitions."""
    schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
    return schedule.count_tokens(run.steps)


def steps_for_budget(
    run: schema.Run, *, tokens: float = 0, tokens_per_param: float = 0, n_flops: float = 0
) -> int:
    """Return the number of optimizer steps for a budget, rounded, at least 1.

    tokens: training tokens. tokens_per_param: training tokens per parameter, of all parameters; 20
    is compute-optimal in Hoffmann et al. 2022, arXiv:2203.15556. n_flops: training FLOPs,
    convention "full". Raises ValueError unless exactly one of the three is positive and finite.
    """
    budgets = (tokens, tokens_per_param, n_flops)
    if sum(budget > 0 for budget in budgets) != 1 or not math.isfinite(sum(budgets)):
        raise ValueError(
            f"tokens={tokens}, tokens_per_param={tokens_per_param}, n_flops={n_flops}: exactly one"
            " must be positive and finite"
        )
    if tokens_per_param:
        tokens = tokens_per_param * count_parameters(resolved_model(run))["total"]
    if n_flops:
        tokens = n_flops / flops.flops_per_token(resolved_model(run), run.data.seq_len)["full"]
    schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
    return max(1, schedule.find_step(float(tokens)))


def round_to_multiple(number: int, unit: int) -> int:
    """Return the multiple of `unit` that is nearest to a number, at least one unit."""
    return max(round(number / unit), 1) * unit
