"""Training FLOPs per token by the conventions of the papers, and the counts of a run.

Example:

    flops_per_token(model, seq_len=1024)    # {"full": ..., "6N": ..., ...}
    run_facts(run)["flops"]                 # training FLOPs of the run
"""

from lm.config import model_sizes, schema


def flops_per_token(model: schema.Model, seq_len: int) -> dict[str, float]:
    """Return {convention: training FLOPs per token}, forward and backward, 2 per multiply-add.

    full        every matrix product of the program, attention over all seq_len keys, or all keys
                of a sliding window: the "model FLOPs" of Chowdhery et al. 2022, arXiv:2204.02311,
                appendix B
    causal      the same, but attention over (seq_len + 1) / 2 keys, the average of a causal mask
    6N          6 x all active parameters
    kaplan      6 N + 6 n_layers seq_len d_attention, with N without embeddings and head (Kaplan et
                al. 2020, arXiv:2001.08361, equation 2.2, times 3)
    chinchilla  full, plus softmax and the embedding look-up as a matrix product (Hoffmann et al.
                2022, arXiv:2203.15556, appendix F), with three MLP matrices instead of two

    Only the selected experts count. Recomputation by model.remat and empty expert slots do not
    count, because they are not part of the function of the model.
    """
    counts = model_sizes.count_parameters(model)
    d_attention = model.n_heads * model.d_head
    blocks = counts["active_non_embedding"] - counts["norms"] - counts["biases"]
    # A router bias is added to a score, so it has no multiply-add.
    blocks -= model.n_layers * model.n_experts * (model.load_balancing == "bias")
    matrices = blocks + model.d_model * model.vocab_size
    # Per key: 2 products, 2 FLOPs per multiply-add, and 3 passes (forward, 2 of backward).
    attention = 12 * d_attention
    windows = [min(window or seq_len, seq_len) for window in model_sizes.attention_windows(model)]
    n_keys = sum(windows)  # of all layers
    causal_keys = sum(_causal_keys(seq_len, window) for window in windows) / 2
    softmax = 9 * model.n_heads * n_keys
    look_up = 6 * model.vocab_size * model.d_model
    return {
        "full": 6 * matrices + attention * n_keys,
        "causal": 6 * matrices + attention * causal_keys,
        "6N": 6 * counts["active"],
        "kaplan": 6 * blocks + attention * n_keys / 2,
        "chinchilla": 6 * matrices + attention * n_keys + softmax + look_up,
    }


def _causal_keys(seq_len: int, window: int) -> float:
    """Return twice the average number of keys of the queries of a row under a causal mask.

    window: largest number of keys of a query, at most seq_len.
    """
    if window == seq_len:
        return seq_len + 1
    return window * (2 * seq_len - window + 1) / seq_len


def run_facts(run: schema.Run) -> dict:
    """Return the counts of a run, such as params.total, flops_per_token.6N, tokens and flops.

    There is one count of parameters per part of the model, and one count of FLOPs per convention.
    The training FLOPs `flops` follow the convention "full".
    """
    model = model_sizes.resolved_model(run)
    per_token = flops_per_token(model, run.data.seq_len)
    return (
        {f"params.{part}": n for part, n in model_sizes.count_parameters(model).items()}
        | {f"flops_per_token.{convention}": n for convention, n in per_token.items()}
        | {
            "tokens": model_sizes.training_tokens(run),
            "flops": per_token["full"] * model_sizes.training_tokens(run),
        }
    )
