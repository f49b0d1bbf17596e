"""Config fields of the network: architecture, numerics and kernels.

A declaration contains type, default, description, roles and bounds: see lm/config/fields.py.
Fields with omit_default were added later. A hash omits their default, so stored hashes stay valid.
"""

import dataclasses
from typing import Literal

from lm.config import fields

field = fields.field  # A short name, because it occurs once per field.


@fields.config_group("model")
@dataclasses.dataclass
class Model:
    """Architecture and numerics of the network.

    mlp: gated is (silu(x G) * (x U)) D, gelu is gelu(x U) D, gated_gelu is (gelu(x G) * (x U)) D;
    GELU is the tanh formula, except in exact_gelu. norm_position: norms of the inputs of branches,
    of their outputs, or both. residual: parallel branches read the same residual stream, after a
    norm each, or after one shared norm. rope_scaling: linear divides all frequencies by
    rope_factor, llama3 divides those of long waves. sliding_window: a query attends to that number
    of keys, itself included. remat: see lm/model/kernels/remat_policies.py. scan_unroll: a model
    with at most that number of layers has no loop. attention_query_blocks: a block skips the keys
    after its last query. lora_on: adapters are trained instead of the weights. loss_chunks: one
    chunk of logits is in memory at a time.
    """

    vocab_size: int = field(0, "Number of token ids; 0 is the tokenizer's.", ge=0, axis="vocab")
    d_model: int = field(128, "Width of the residual stream.", ge=1, axis="embed")
    n_layers: int = field(4, "Number of decoder blocks.", ge=1, axis="layers")
    n_heads: int = field(4, "Query heads per layer.", ge=1, axis="heads")
    n_kv_heads: int = field(
        4, "Key and value heads; divides n_heads (Ainslie et al. 2023).", ge=1, axis="kv_heads"
    )
    d_head: int = field(32, "Width of a head; even, for rotary embeddings.", ge=2, axis="d_head")
    d_ff: int = field(384, "Hidden width of the MLP.", ge=1, axis="mlp")
    mlp: Literal["gated", "gelu", "gated_gelu", "exact_gelu"] = field(
        "gated", "Gated SiLU, GELU as in GPT-2, gated GELU, or GELU without the tanh formula."
    )
    norm: Literal["rms", "layer"] = field("rms", "RMSNorm, or LayerNorm with mean and bias.")
    norm_eps: float = field(1e-6, "Added to the mean square, or variance, in a norm.", gt=0, le=1)
    norm_position: Literal["pre", "post", "both"] = field(
        "pre", "Norms of the inputs of branches, of their outputs, or both.", omit_default=True
    )
    residual: Literal["sequential", "parallel", "parallel_shared"] = field(
        "sequential", "Attention before MLP, or both in parallel.", omit_default=True
    )
    qk_norm: bool = field(True, "Normalize queries and keys per head (arXiv:2302.05442).")
    qk_norm_scope: Literal["head", "all_heads"] = field(
        "head", "Part of queries and keys with one mean square in qk_norm.", omit_default=True
    )
    bias: bool = field(False, "Add biases to the projections; the head has none.")
    qkv_bias: bool = field(False, "Add biases to queries, keys and values only.", omit_default=True)
    head_bias: bool = field(False, "Add a bias to the logits.", omit_default=True)
    embedding_scale: float = field(1.0, "Factor of the token embeddings.", gt=0, omit_default=True)
    tie_embeddings: bool = field(
        False, "Use the transposed embedding as the head.", hash_name="tied"
    )
    learned_positions: int = field(
        0, "Learned positions; 0 is rotary.", ge=0, axis="positions", hash_name="max_positions"
    )
    rope_theta: float = field(10_000.0, "Base of the rotary frequencies (Su et al. 2021).", gt=0)
    rotary_fraction: float = field(
        1.0, "Fraction of a head that is rotated.", gt=0, le=1, omit_default=True
    )
    rope_scaling: Literal["none", "linear", "llama3"] = field(
        "none", "Reduction of the rotary frequencies for longer contexts.", omit_default=True
    )
    rope_factor: float = field(1.0, "Divisor of rope_scaling.", ge=1, omit_default=True)
    rope_original_length: int = field(
        8192, "Context before rope_scaling=llama3, in tokens.", ge=1, omit_default=True
    )
    sliding_window: int = field(
        0, "Keys per query, the nearest ones; 0 is all earlier keys.", ge=0, omit_default=True
    )
    full_attention_interval: int = field(
        0, "Every n-th layer has no sliding window; 0 is none.", ge=0, omit_default=True
    )
    local_rope_theta: float = field(
        0.0,
        "Value of rope_theta in layers with a sliding window, unscaled; 0 is as in other layers.",
        ge=0,
        omit_default=True,
    )
    attention_scale: float = field(
        0.0, "Factor of attention scores; 0 is 1 / sqrt(d_head).", ge=0, omit_default=True
    )
    attention_softcap: float = field(
        0.0,
        "Cap c of attention scores: c tanh(score / c); 0 is off.",
        ge=0,
        smallest=0.01,
        omit_default=True,
    )
    logit_softcap: float = field(0.0, "Cap c: c tanh(logits / c); 0 is off.", ge=0, smallest=0.01)
    z_loss: float = field(0.0, "Weight of log(Z)^2 in the loss; 0 is off.", "compute", ge=0)
    parametrization: Literal["standard", "mup", "completep"] = field(
        "standard", "Scaling of initialization and learning rates with width and depth."
    )
    base_width: int = field(64, "Value of d_model at which all parametrizations agree.", ge=1)
    base_depth: int = field(4, "Value of n_layers at which all parametrizations agree.", ge=1)
    dtype: Literal["float32", "bfloat16"] = field(
        "float32", "Type of the activations; weights are float32.", "compute"
    )
    gradient_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "Type of weight gradients and of their sums over devices.", "compute"
    )
    remat: Literal[
        "none", "elementwise", "dots", "full", "minimal", "minimal_offloaded", "save_qkv_proj",
        "save_out_proj", "save_dot_with_context_except_mlp", "qkv_proj_offloaded",
    ] = field("none", "Recomputed activations.", "execution", "compute", "plan")  # fmt: skip
    scan_unroll: int = field(
        8, "Layers per iteration of the scan over layers.", "execution", "compute", ge=1
    )
    lora_rank: int = field(0, "Rank of LoRA adapters; 0 is off. Needs start.run.", "adapter", ge=0)
    lora_alpha: float = field(16.0, "Adapters are scaled by alpha / rank.", "adapter", gt=0)
    lora_on: str = field(
        "heads,kv_heads,mlp", "Axes of the weights with an adapter, comma-separated.", "adapter"
    )
    attention: Literal["auto", "plain", "cudnn", "splash", "tokamax"] = field(
        "auto", "Attention kernel; auto is the fastest of the device.", "execution", "compute"
    )
    attention_query_blocks: int = field(
        2,
        "Query blocks per row of the plain backend.",
        "compute",
        "plan",
        ge=1,
        chunks="length",
        hash_name="attention_blocks",
    )
    loss_chunks: int = field(
        1, "Chunks of a row for the logits.", "execution", "plan", ge=1, chunks="length"
    )
    n_experts: int = field(0, "Experts per layer; 0 is one dense MLP.", ge=0, axis="experts")
    experts_per_token: int = field(2, "Experts selected per token.", ge=1)
    n_shared_experts: int = field(0, "Additional experts that process every token.", ge=0)
    d_expert: int = field(0, "Width of an expert; 0 is d_ff / (experts per token).", ge=0)
    router: Literal["softmax", "sigmoid"] = field(
        "softmax", "Function from router logits to expert scores."
    )
    normalize_expert_weights: bool = field(
        True, "Scale a token's expert weights to sum to 1.", hash_name="normalize_experts"
    )
    load_balancing: Literal["loss", "bias", "none"] = field(
        "loss", "Auxiliary loss, or router bias (arXiv:2408.15664).", hash_name="balance"
    )
    load_balancing_weight: float = field(
        0.01, "Weight of the loss per layer (Fedus et al. 2021).", ge=0, hash_name="balance_weight"
    )
    router_bias_rate: float = field(
        0.001, "Change of each router bias per step.", ge=0, hash_name="balance_rate"
    )
    router_z_loss: float = field(
        0.0, "Weight of the router's log(Z)^2, per layer; 1e-3 in arXiv:2202.08906.", ge=0
    )
    dispatch: Literal["dropless", "capacity"] = field(
        "dropless", "Process all tokens (dropless), or drop tokens beyond the capacity."
    )
    expert_kernel: Literal["auto", "batched", "xla", "tiles", "tokamax"] = field(
        "auto", "Products of the experts; auto is as for attention.", "execution", "compute"
    )
    capacity_factor: float = field(
        1.25, "Slots of an expert, relative to an even load.", gt=0, le=1e4, hash_name="capacity"
    )
