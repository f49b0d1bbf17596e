"""The ladder of model sizes, and what a size costs: exact parameters by part, exact FLOPs a token.

    model("100M").d_model                     768
    counts(model("100M"))["non_embedding"]    99558528
    flops_per_token(model("100M"), 1024)      {"full": ..., "causal": ..., "6N": ..., ...}

A rung is named after its non-embedding parameters (attention, MLP and norms: the N of Kaplan et
al. 2020, arXiv:2001.08361), within 5%; they do not depend on the vocabulary.
"""

from typing import Any

from lm import config

# Wider before deeper: d_model / n_layers grows from 5 to 240, as in published families.
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


def model(size: str, **knobs: Any) -> config.Model:
    """The rung `size` of the ladder; `knobs` set or replace fields of config.Model."""
    if size not in LADDER:
        raise ValueError("size " + config.unknown(size, list(LADDER)))
    names = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_ff")
    shape: dict[str, Any] = dict(zip(names, LADDER[size], strict=True))
    return config.Model(**shape | knobs)


def counts(model: config.Model) -> dict[str, int]:
    """Parameters by part: embedding, attention, mlp, norms, head, their total, non_embedding.

    A tied head adds none. non_embedding is attention + mlp + norms.
    """
    d, layers, h = model.d_model, model.n_layers, model.d_head
    part = {
        "embedding": model.vocab_size * d,
        "attention": layers * 2 * d * h * (model.n_heads + model.n_kv_heads),
        "mlp": layers * 3 * d * model.d_ff,
        "norms": layers * (2 * d + 2 * h) + d,
        "head": 0 if model.tied else d * model.vocab_size,
    }
    inner = part["attention"] + part["mlp"] + part["norms"]
    return part | {"total": sum(part.values()), "non_embedding": inner}


def flops_per_token(model: config.Model, seq_len: int) -> dict[str, float]:
    """Training FLOPs (forward and backward, 2 a multiply-add) for one token, by convention.

    full        every matrix product of the program, attention over all seq_len keys: the
                "model FLOPs" of Chowdhery et al. 2022, arXiv:2204.02311, appendix B
    causal      the same, attention over the (seq_len + 1) / 2 keys a query sees on average
    6N          6 x all parameters
    kaplan      6 N + 6 n_layers seq_len d_attention, N without embeddings and head (Kaplan et al.
                2020, arXiv:2001.08361, equation 2.2, times 3)
    chinchilla  with embedding look-up as a product and softmax (Hoffmann et al. 2022,
                arXiv:2203.15556, appendix F), its two MLP matrices being three here

    Recomputation under model.remat is not counted: it is a cost, not work done.
    """
    n = counts(model)
    d_attention = model.n_heads * model.d_head
    matrices = n["attention"] + n["mlp"] + model.d_model * model.vocab_size
    attention = 12 * model.n_layers * d_attention  # times keys: scores and values, x2, x3
    softmax = 9 * model.n_layers * model.n_heads * seq_len
    look_up = 6 * model.vocab_size * model.d_model
    return {
        "full": 6 * matrices + attention * seq_len,
        "causal": 6 * matrices + attention * (seq_len + 1) / 2,
        "6N": 6 * n["total"],
        "kaplan": 6 * (n["attention"] + n["mlp"]) + attention * seq_len / 2,
        "chinchilla": 6 * matrices + attention * seq_len + softmax + look_up,
    }


def tokens(run: config.Run) -> int:
    """Training tokens of the whole run."""
    return run.steps * run.data.batch_size * run.data.seq_len


def steps(
    run: config.Run, *, tokens: float = 0, tokens_per_param: float = 0, flops: float = 0
) -> int:
    """Steps, rounded to the nearest and at least 1, that spend exactly one of three budgets.

    tokens: training tokens; tokens_per_param: times all parameters (20 is compute-optimal in
    Hoffmann et al. 2022, arXiv:2203.15556); flops: training FLOPs, convention "full".
    """
    if sum(budget > 0 for budget in (tokens, tokens_per_param, flops)) != 1:
        raise ValueError(
            "steps needs exactly one positive budget: tokens, tokens_per_param or flops"
        )
    if tokens_per_param:
        tokens = tokens_per_param * counts(run.model)["total"]
    if flops:
        tokens = flops / flops_per_token(run.model, run.data.seq_len)["full"]
    return max(1, round(tokens / (run.data.batch_size * run.data.seq_len)))


def facts(run: config.Run) -> dict:
    """All of it for one run: params.*, flops_per_token.*, tokens, flops (convention "full")."""
    per_token = flops_per_token(run.model, run.data.seq_len)
    return (
        {f"params.{part}": n for part, n in counts(run.model).items()}
        | {f"flops_per_token.{convention}": n for convention, n in per_token.items()}
        | {"tokens": tokens(run), "flops": per_token["full"] * tokens(run)}
    )
