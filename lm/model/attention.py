"""Causal attention: a blockwise kernel in plain JAX, cuDNN, splash, and the choice between them.

    model.attention = select_backend(run, device_mesh)      # resolves "auto"
    o_BTNH = attend(model, rules, q_BTNH, k_BSKH, v_BSKH, segments_BT)

Backends:

plain   `blockwise_attention`: any device, any mesh
cudnn   flash attention of NVIDIA cuDNN, through jax.nn.dot_product_attention
splash  flash attention for TPU, a Pallas kernel that is part of JAX

Tensor names end in their axes: B batch, T query time, S key time, N query heads, K key/value heads,
G query heads per key/value head, M the G x T queries of a key/value head, H d_head, C blocks of
queries.
"""

import typing

import jax
import jax.numpy as jnp

from lm.config import schema
from lm.parallel import mesh

MASK_VALUE = -1e30  # finite, because the gradient of -inf is NaN
BACKEND_BY_PLATFORM = {"cpu": "plain", "gpu": "cudnn", "tpu": "splash"}


@jax.named_scope("attention")
def blockwise_attention(
    q_BTNH, k_BSKH, v_BSKH, n_blocks: int, segments_BT=None, rules=mesh.DEFAULT_RULES
) -> jax.Array:
    """Return softmax(q k) v over the earlier and equal keys, [B, T, N, H].

    Block i of n_blocks multiplies only with the keys up to its own end. About half of the masked
    scores are therefore never computed. The result does not depend on n_blocks.

    segments_BT: document numbers in the original order of time. A query attends only to the keys
    of its own document.

    If the rows are split over devices, q, k, v and the result are in the order of
    `mesh.interleave_positions`. Each device then has an equal part of every block, and all devices
    do the same work. The keys and values of a row are gathered on every device.
    """
    b, t, n, h = q_BTNH.shape
    k = k_BSKH.shape[2]
    block_size = t // n_blocks
    q_BKGTH = q_BTNH.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    blocks_CBKGTH = mesh.split_chunks(q_BKGTH, n_blocks, "length", axis=3)
    gathered = (
        rules.constrain(x_BSKH, "batch", None, "kv_heads", None) for x_BSKH in (k_BSKH, v_BSKH)
    )
    k_BKSH, v_BKSH = (mesh.restore_order(x_BSKH, n_blocks).swapaxes(1, 2) for x_BSKH in gathered)
    outputs = []
    for block, start in enumerate(range(0, t, block_size)):
        end = start + block_size
        mask_TS = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        if segments_BT is not None:
            query_segments_BT = rules.constrain(segments_BT[:, start:end], "batch", None)
            is_same_BTS = query_segments_BT[:, :, None] == segments_BT[:, None, :end]
            mask_TS = (mask_TS & is_same_BTS)[:, None]
        # An added bias needs one pass over the scores less than a selection. s + MASK_VALUE is
        # MASK_VALUE in float32.
        bias_TS = jnp.where(mask_TS, 0.0, MASK_VALUE)
        bias_MS = jnp.concatenate([bias_TS] * (n // k), axis=-2)
        o_BKMH = _biased_attention(
            blocks_CBKGTH[block].reshape(b, k, n // k * block_size, h),
            k_BKSH[:, :, :end],
            v_BKSH[:, :, :end],
            bias_MS,
        )
        outputs.append(o_BKMH.reshape(b, k, n // k, block_size, h))
    o_BKGTH = mesh.merge_chunks(jnp.stack(outputs), "length", axis=3)
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


@jax.custom_vjp
def _biased_attention(q_BKMH, k_BKSH, v_BKSH, bias_MS) -> jax.Array:
    """Return softmax(q k + bias) v, [B, K, M, H].

    The gradient is explicit because the gradient of autodiff is slow on CPU: see
    `_sum_over_queries`.
    """
    return _forward(q_BKMH, k_BKSH, v_BKSH, bias_MS)[0]


def _forward(q_BKMH, k_BKSH, v_BKSH, bias_MS):
    """Return the output of `_biased_attention` and the residuals of `_backward`."""
    score_BKMS = _product("bkmh,bksh->bkms", q_BKMH, k_BKSH) + bias_MS
    exp_BKMS = jnp.exp(score_BKMS - score_BKMS.max(axis=-1, keepdims=True))
    sum_BKM1 = exp_BKMS.sum(axis=-1, keepdims=True)
    exp_BKMS = exp_BKMS.astype(v_BKSH.dtype)
    # Dividing the product costs H divisions per query, dividing the scores would cost S.
    o_BKMH = (_product("bkms,bksh->bkmh", exp_BKMS, v_BKSH) / sum_BKM1).astype(v_BKSH.dtype)
    return o_BKMH, (q_BKMH, k_BKSH, v_BKSH, exp_BKMS, sum_BKM1, o_BKMH)


def _backward(residuals, do_BKMH):
    """Return dq, dk, dv and None for the bias, from the gradient of the output.

    With p = exp / sum: dv = p do, ds = p (do v - do o), dq = ds k, dk = ds q.
    """
    q_BKMH, k_BKSH, v_BKSH, exp_BKMS, sum_BKM1, o_BKMH = residuals
    do_BKMH = do_BKMH / sum_BKM1
    inner_BKM1 = (do_BKMH * o_BKMH).sum(axis=-1, keepdims=True)
    do_BKMH = do_BKMH.astype(v_BKSH.dtype)
    dexp_BKMS = _product("bkmh,bksh->bkms", do_BKMH, v_BKSH)
    ds_BKMS = (exp_BKMS * (dexp_BKMS - inner_BKM1)).astype(q_BKMH.dtype)
    dq_BKMH = _product("bkms,bksh->bkmh", ds_BKMS, k_BKSH)
    dk_BKSH, dv_BKSH = _sum_over_queries(q_BKMH, ds_BKMS), _sum_over_queries(do_BKMH, exp_BKMS)
    return *(dx.astype(q_BKMH.dtype) for dx in (dq_BKMH, dk_BKSH, dv_BKSH)), None


def _sum_over_queries(x_BKMH, score_BKMS) -> jax.Array:
    """Return the sum over queries of score times x, [B, K, S, H].

    XLA on CPU copies the left operand of a product into the order in which it is read. A copy of
    the scores costs four times the product itself, so x is the left operand. The barrier prevents
    XLA from exchanging the operands.
    """
    sum_BKHS = _product("bkmh,bkms->bkhs", x_BKMH, score_BKMS)
    return jax.lax.optimization_barrier(sum_BKHS).swapaxes(2, 3)


def _product(axes: str, left, right) -> jax.Array:
    """Return the einsum of two arrays, accumulated in float32."""
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


_biased_attention.defvjp(_forward, _backward)


def select_backend(run: schema.Run, device_mesh: jax.sharding.Mesh) -> str:
    """Return the attention backend of a run on these devices: plain, cudnn or splash.

    "auto" selects the backend of the platform if it supports the run, and plain otherwise. Raises
    ValueError if model.attention names a backend that does not support the run.
    """
    platform = mesh.device_platform(device_mesh)
    return _select(run, platform, is_present=jax.default_backend() == platform)


def select_backend_for(run: schema.Run, platform: str) -> str:
    """Return the attention backend of a run on another machine of this platform.

    platform: cpu, gpu or tpu. Raises ValueError like `select_backend`.
    """
    return _select(run, platform, is_present=True)


def _select(run: schema.Run, platform: str, is_present: bool) -> str:
    """Return the backend of a run; is_present: the devices are attached, not only described."""
    choice = run.model.attention
    backend = BACKEND_BY_PLATFORM[platform] if choice == "auto" else choice
    reasons = _unsupported_reasons(run, backend, platform, is_present)
    if reasons and choice != "auto":
        raise ValueError(
            f"model.attention={choice!r} {reasons[0]}: change that or set model.attention='auto'"
        )
    return "plain" if reasons else backend


def _unsupported_reasons(
    run: schema.Run, backend: str, platform: str, is_present: bool
) -> list[str]:
    """Return the reasons why a backend does not support a run; empty if it does."""
    if backend == "plain":
        return []
    supported = {"cudnn": "gpu", "splash": "tpu"}[backend]
    model, seq_len = run.model, run.data.seq_len
    rules = [
        (platform == supported, f"runs on {supported}, not on {platform}"),
        (
            run.mesh.sequence == 1,
            f"cannot split rows: mesh.sequence must be 1, not mesh.sequence={run.mesh.sequence}",
        ),
    ]
    if backend == "cudnn":
        has_segments = not run.data.attend_across_documents or run.data.packing == "documents"
        rules += [
            # JAX queries the device, which the description of an absent device does not support.
            (platform != supported or is_present, "cannot be compiled for an absent GPU"),
            (
                model.dtype == "bfloat16",
                f"computes in bfloat16 only, not in model.dtype={model.dtype!r}",
            ),
            (
                model.d_head % 8 == 0 and model.d_head <= 128,
                "supports head sizes that are multiples of 8 up to 128, not"
                f" model.d_head={model.d_head}",
            ),
            (
                not has_segments,
                "has no document mask, which data.attend_across_documents=False or"
                " data.packing='documents' requires",
            ),
        ]
    else:
        rules += [
            (
                seq_len % 128 == 0,
                f"supports row lengths that are multiples of 128, not data.seq_len={seq_len}",
            )
        ]
    return [reason for is_met, reason in rules if not is_met]


def attend(
    shape: schema.Model, rules: mesh.ShardingRules, q_BTNH, k_BSKH, v_BSKH, segments_BT=None
) -> jax.Array:
    """Return softmax(q k) v over the earlier and equal keys of the same segment.

    The caller has multiplied the queries by H^-1/2, see position_encoding.encode_positions.
    The backend is shape.attention. The result is [B, T, N, H].
    """
    if shape.attention == "splash":
        return splash_attention(q_BTNH, k_BSKH, v_BSKH, segments_BT, rules)
    # Evaluation has segments even if training has none.
    if shape.attention == "cudnn" and segments_BT is None:
        return cudnn_attention(q_BTNH, k_BSKH, v_BSKH)
    return blockwise_attention(
        q_BTNH, k_BSKH, v_BSKH, shape.attention_query_blocks, segments_BT, rules
    )


@jax.named_scope("attention")
def cudnn_attention(q_BTNH, k_BSKH, v_BSKH) -> jax.Array:
    """Return causal attention by cuDNN, [B, T, N, H].

    JAX runs the kernel on the rows and heads of each device.
    """
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, scale=1.0, is_causal=True, implementation="cudnn"
    )


@jax.named_scope("attention")
def splash_attention(
    q_BTNH, k_BSKH, v_BSKH, segments_BT=None, rules=mesh.DEFAULT_RULES, interpret: bool = False
) -> jax.Array:
    """Return causal attention by the splash kernel, [B, T, N, H].

    The kernel runs on the rows and heads of each device. interpret: emulate the kernel on any
    device, for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    t, n = q_BTNH.shape[1:3]
    block = next(size for size in (512, 384, 256, 128) if t % size == 0)
    sizes = splash_attention.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    causal = splash_attention.CausalMask((t, t))
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([causal] * (n // rules.shard_count("heads"))),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def attend_row(q_TNH, k_SKH, v_SKH, segments_T):
        segment_ids = (
            None if segments_T is None else splash_attention.SegmentIds(segments_T, segments_T)
        )
        q_NTH, k_KSH, v_KSH = (x.swapaxes(0, 1) for x in (q_TNH, k_SKH, v_SKH))
        o_NTH = typing.cast(jax.Array, kernel(q_NTH, k_KSH, v_KSH, segment_ids=segment_ids))
        return o_NTH.swapaxes(0, 1)

    attend_rows, current_mesh = jax.vmap(attend_row), jax.sharding.get_abstract_mesh()
    if current_mesh.empty or current_mesh.manual_axes:
        return attend_rows(q_BTNH, k_BSKH, v_BSKH, segments_BT)
    q_spec, kv_spec = (rules.spec(("batch", None, name, None)) for name in ("heads", "kv_heads"))
    attend_shards = jax.shard_map(
        attend_rows,
        in_specs=(q_spec, kv_spec, kv_spec, rules.spec(("batch", None))),
        out_specs=q_spec,
        check_vma=False,
    )
    return attend_shards(q_BTNH, k_BSKH, v_BSKH, segments_BT)
