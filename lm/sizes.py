"""The ladder of model sizes, with exact parameter counts and exact FLOPs per token.

    model("100M").d_model                     768
    counts(model("100M"))["non_embedding"]    99558528
    flops_per_token(model("100M"), 1024)      {"full": ..., "causal": ..., "6N": ..., ...}

A size is named after its non-embedding parameters within 5%: attention, MLP and norms, the N of
Kaplan et al. 2020 (arXiv:2001.08361). This count does not depend on the vocabulary.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from lm import config

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


# Mixtures of experts are named after total and active parameters, without embeddings, within 5%.
# Below 1B, the MLP of a dense size is divided into experts. From 1B on, widths, depths and experts
# are those of OLMoE (arXiv:2409.02060), DeepSeekMoE (2401.06066), Qwen3 (2505.09388, two sizes) and
# Kimi K2 (2507.20534), with equal layers and the attention of lm/model.py.
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


def model(size: str, **changes: Any) -> config.Model:
    """Return the model of a size in LADDER or EXPERTS, with changed fields.

    ValueError suggests the most similar sizes if the size is unknown.
    """
    if size not in LADDER and size not in EXPERTS:
        raise ValueError("size " + config.unknown(size, [*LADDER, *EXPERTS]))
    names = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head")
    experts = ("n_experts", "experts_per_token", "n_shared_experts", "d_expert")
    names += ("d_ff",) if size in LADDER else experts
    row = LADDER[size] if size in LADDER else EXPERTS[size]
    shape: dict[str, Any] = dict(zip(names, row, strict=True))
    return config.Model(**shape | changes)


def reshaped(model: config.Model, d_model: int, n_layers: int) -> config.Model:
    """Return the model with another width and depth. Heads and d_ff scale with the width.

    base_width and base_depth become the old width and depth, where all parametrizations agree.
    ValueError if the width does not give a whole number of heads.
    """
    ratio = d_model / model.d_model
    scaled = {name: getattr(model, name) * ratio for name in ("n_heads", "n_kv_heads", "d_ff")}
    if fractional := [name for name, value in scaled.items() if value != int(value)]:
        raise ValueError(
            f"d_model={d_model} is {ratio:g} times {model.d_model}, which makes no whole number of"
            f" {', '.join(fractional)}: take a multiple"
        )
    base = {"base_width": model.d_model, "base_depth": model.n_layers}
    counts = {name: int(value) for name, value in scaled.items()}
    return dataclasses.replace(model, d_model=d_model, n_layers=n_layers, **counts, **base)


def expert_width(model: config.Model) -> int:
    """Return the hidden width of an expert: d_expert, or d_ff divided by the experts per token."""
    return model.d_expert or model.d_ff // (model.experts_per_token + model.n_shared_experts)


def counts(model: config.Model) -> dict[str, int]:
    """Count parameters by part, and four sums.

    Parts: embedding (with learned positions), attention, mlp (shared experts of a mixture of
    experts), router (with its biases), experts, norms, biases, head (0 with tied embeddings).
    Sums: total; non_embedding, without embedding and head; active, without the experts that are not
    selected for a token; active_non_embedding, without both.
    """
    d, layers, h, e = model.d_model, model.n_layers, model.d_head, model.n_experts
    expert = 3 * d * expert_width(model)  # weights of one expert in one layer
    matrices = 3 if model.mlp == "gated" else 2
    norms = layers * (2 * d + 2 * h * model.qk_norm) + d
    biases = h * (model.n_heads + 2 * model.n_kv_heads) + (matrices - 1) * model.d_ff + 2 * d
    part = {
        "embedding": (model.vocab_size + model.max_positions) * d,
        "attention": layers * 2 * d * h * (model.n_heads + model.n_kv_heads),
        "mlp": layers * (model.n_shared_experts * expert if e else matrices * d * model.d_ff),
        "router": layers * e * (d + (model.balance == "bias")),
        "experts": layers * e * expert,
        "norms": norms * (2 if model.norm == "layer" else 1),
        "biases": layers * biases if model.bias else 0,
        "head": 0 if model.tied else d * model.vocab_size,
    }
    total = sum(part.values())
    inner = total - part["embedding"] - part["head"]
    idle = layers * (e - model.experts_per_token) * expert if e else 0
    sums = {"total": total, "non_embedding": inner}
    return part | sums | {"active": total - idle, "active_non_embedding": inner - idle}


def flops_per_token(model: config.Model, seq_len: int) -> dict[str, float]:
    """Return training FLOPs per token (forward and backward, 2 per multiply-add), by convention.

    full        every matrix product of the program, attention over all seq_len keys: the
                "model FLOPs" of Chowdhery et al. 2022, arXiv:2204.02311, appendix B
    causal      the same, but attention over (seq_len + 1) / 2 keys, the average of a causal mask
    6N          6 x all active parameters
    kaplan      6 N + 6 n_layers seq_len d_attention, N without embeddings and head (Kaplan et al.
                2020, arXiv:2001.08361, equation 2.2, times 3)
    chinchilla  full, plus softmax and the embedding look-up as a matrix product (Hoffmann et al.
                2022, arXiv:2203.15556, appendix F), with three MLP matrices instead of two

    Only selected experts count. Recomputation by model.remat and empty expert slots do not count:
    they cost time but are no work of the model.
    """
    n = counts(model)
    d_attention = model.n_heads * model.d_head
    blocks = n["active_non_embedding"] - n["norms"] - n["biases"]
    # Router biases are added, not multiplied.
    blocks -= model.n_layers * model.n_experts * (model.balance == "bias")
    matrices = blocks + model.d_model * model.vocab_size
    attention = 12 * model.n_layers * d_attention  # per key: 2 products, 2 FLOPs, 3 passes
    softmax = 9 * model.n_layers * model.n_heads * seq_len
    look_up = 6 * model.vocab_size * model.d_model
    return {
        "full": 6 * matrices + attention * seq_len,
        "causal": 6 * matrices + attention * (seq_len + 1) / 2,
        "6N": 6 * n["active"],
        "kaplan": 6 * blocks + attention * seq_len / 2,
        "chinchilla": 6 * matrices + attention * seq_len + softmax + look_up,
    }


def tokens(run: config.Run) -> int:
    """Return the training tokens of the run."""
    return run.steps * run.data.batch_size * run.data.seq_len


def steps(
    run: config.Run, *, tokens: float = 0, tokens_per_param: float = 0, flops: float = 0
) -> int:
    """Return the number of steps that spends exactly one of three budgets, rounded, at least 1.

    tokens: training tokens; tokens_per_param: tokens per parameter, of all parameters (20 is
    compute-optimal in Hoffmann et al. 2022, arXiv:2203.15556); flops: training FLOPs, convention
    "full". ValueError unless exactly one budget is positive.
    """
    if sum(budget > 0 for budget in (tokens, tokens_per_param, flops)) != 1:
        raise ValueError(
            "steps needs exactly one positive budget: set tokens, tokens_per_param or flops"
        )
    if tokens_per_param:
        tokens = tokens_per_param * counts(run.model)["total"]
    if flops:
        tokens = flops / flops_per_token(run.model, run.data.seq_len)["full"]
    return max(1, round(tokens / (run.data.batch_size * run.data.seq_len)))


def facts(run: config.Run) -> dict:
    """Return params.*, flops_per_token.*, tokens and flops (convention "full") of a run."""
    per_token = flops_per_token(run.model, run.data.seq_len)
    return (
        {f"params.{part}": n for part, n in counts(run.model).items()}
        | {f"flops_per_token.{convention}": n for convention, n in per_token.items()}
        | {"tokens": tokens(run), "flops": per_token["full"] * tokens(run)}
    )


def branches(run: config.Run, tokens: Sequence[float], decay: float = 0.2) -> list[config.Run]:
    """Return a trunk run with constant learning rate and one cooldown branch per token budget.

    All budgets together cost little more than the largest (Hägele et al. 2024, arXiv:2405.18392). A
    branch restores the full state of the trunk and spends the last fraction `decay` of its steps on
    the way to optim.lr_end. Names end in "-trunk", "-2M" and so on. Budgets are exact within 1%.
    ValueError if a cooldown would begin during the warm-up of the trunk.
    """
    if not 0 < decay < 1 or not tokens or min(tokens) <= 0:
        raise ValueError(
            f"branches: tokens={list(tokens)} must be above 0, decay={decay} in (0, 1)"
        )
    interval = max(round(0.01 * steps(run, tokens=min(tokens)) * (1 - decay)), 1)
    first_steps = [
        round(steps(run, tokens=n) * (1 - decay) / interval) * interval for n in sorted(tokens)
    ]
    trunk = copy.deepcopy(run)
    trunk.name, trunk.steps, trunk.predict = f"{run.name}-trunk", first_steps[-1], False
    trunk.optim.schedule = "constant"
    n_warmup = round(trunk.optim.warmup * trunk.steps)
    if first_steps[0] <= n_warmup:
        raise ValueError(
            f"branches: tokens={min(tokens):g} begins to decay at step {first_steps[0]}, within the"
            f" {n_warmup} steps of warm-up of {trunk.name}: take a smaller optim.warmup"
        )
    # The trunk saves a checkpoint where each branch begins.
    trunk.checkpoint_every = math.gcd(*first_steps, _multiple(run.checkpoint_every, interval))
    runs = [trunk]
    for first_step, budget in zip(first_steps, sorted(tokens), strict=True):
        branch = copy.deepcopy(run)
        branch.name = f"{run.name}-{budget / 1e6:g}M"
        branch.steps = round(first_step / (1 - decay))
        branch.optim.schedule, branch.optim.decay = "wsd", decay
        branch.start = config.Start(run=trunk.name, step=first_step, keep="state")
        runs.append(branch)
    return runs


def _multiple(number: int, unit: int) -> int:
    """Round a number to a multiple of `unit`, at least one unit."""
    return max(round(number / unit), 1) * unit
