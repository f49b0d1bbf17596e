"""Causal attention in plain JAX: any device, any mesh, blocks of queries.

    o_BTNH = causal(q_BTNH, k_BSKH, v_BSKH, n_blocks=2)

Tensor names end in their axes: B batch, T query time, S key time, N query heads, K key/value heads,
G query heads a key/value head, M the queries of a key/value head (G x T of them), H d_head,
C blocks of queries.
"""

import typing

import jax
import jax.numpy as jnp

from lm.config import schema
from lm.parallel import mesh

MASK_VALUE = -1e30  # a score no key survives; finite, so that its gradient is


@jax.named_scope("attention")
def blockwise_attention(
    q_BTNH, k_BSKH, v_BSKH, n_blocks: int, segments_BT=None, rules=mesh.DEFAULT_RULES
) -> jax.Array:
    """softmax(q k / sqrt(H)) v over the keys not later than the query, in blocks of queries.

    Block i of n_blocks multiplies only with the keys up to its own end, so that about half of the
    masked scores are never computed; the result does not depend on n_blocks. segments_BT: numbers
    of documents, in the order of time; a query sees the keys of its own alone.

    Where rows are split over devices, q, k, v and the result are in the order of
    `mesh.interleave_positions`: every device has an equal share of every block, and so of the work.
    It gathers all keys.
    """
    b, t, n, h = q_BTNH.shape
    k = k_BSKH.shape[2]
    size = t // n_blocks
    q_BKGTH = (q_BTNH * h**-0.5).reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    blocks_CBKGTH = mesh.split_chunks(q_BKGTH, n_blocks, "length", axis=3)
    whole = (
        rules.constrain(x_BSKH, "batch", None, "kv_heads", None) for x_BSKH in (k_BSKH, v_BSKH)
    )
    k_BKSH, v_BKSH = (mesh.restore_order(x_BSKH, n_blocks).swapaxes(1, 2) for x_BSKH in whole)
    blocks = []
    for block, start in enumerate(range(0, t, size)):
        end = start + size
        seen_TS = jnp.arange(start, end)[:, None] >= jnp.arange(end)
        if segments_BT is not None:
            mine_BT = rules.constrain(segments_BT[:, start:end], "batch", None)  # cut where it is
            same_BTS = mine_BT[:, :, None] == segments_BT[:, None, :end]
            seen_TS = (seen_TS & same_BTS)[:, None]
        # Added, not selected: s + 0 is s, and s + MASKED is MASKED, in one pass the fewer.
        hidden_TS = jnp.where(seen_TS, 0.0, MASK_VALUE)
        hidden_MS = jnp.concatenate([hidden_TS] * (n // k), axis=-2)
        o_BKMH = _block(
            blocks_CBKGTH[block].reshape(b, k, n // k * size, h),
            k_BKSH[:, :, :end],
            v_BKSH[:, :, :end],
            hidden_MS,
        )
        blocks.append(o_BKMH.reshape(b, k, n // k, size, h))
    o_BKGTH = mesh.merge_chunks(jnp.stack(blocks), "length", axis=3)
    return o_BKGTH.transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)


@jax.custom_vjp
def _block(q_BKMH, k_BKSH, v_BKSH, hidden_MS) -> jax.Array:
    """softmax(q k + hidden) v. Its gradient is written out for CPU: see `_small`."""
    return _forward(q_BKMH, k_BKSH, v_BKSH, hidden_MS)[0]


def _forward(q_BKMH, k_BKSH, v_BKSH, hidden_MS):
    score_BKMS = _product("bkmh,bksh->bkms", q_BKMH, k_BKSH) + hidden_MS
    exp_BKMS = jnp.exp(score_BKMS - score_BKMS.max(axis=-1, keepdims=True))
    sum_BKM1 = exp_BKMS.sum(axis=-1, keepdims=True)
    exp_BKMS = exp_BKMS.astype(v_BKSH.dtype)
    # Divided after the product, not before: H numbers a query in place of S.
    o_BKMH = (_product("bkms,bksh->bkmh", exp_BKMS, v_BKSH) / sum_BKM1).astype(v_BKSH.dtype)
    return o_BKMH, (q_BKMH, k_BKSH, v_BKSH, exp_BKMS, sum_BKM1, o_BKMH)


def _backward(kept, do_BKMH):
    """With p = exp / sum: dv = p do, ds = p (do v - do o), dq = ds k, dk = ds q."""
    q_BKMH, k_BKSH, v_BKSH, exp_BKMS, sum_BKM1, o_BKMH = kept
    do_BKMH = do_BKMH / sum_BKM1
    inner_BKM1 = (do_BKMH * o_BKMH).sum(axis=-1, keepdims=True)
    do_BKMH = do_BKMH.astype(v_BKSH.dtype)
    dexp_BKMS = _product("bkmh,bksh->bkms", do_BKMH, v_BKSH)
    ds_BKMS = (exp_BKMS * (dexp_BKMS - inner_BKM1)).astype(q_BKMH.dtype)
    dq_BKMH = _product("bkms,bksh->bkmh", ds_BKMS, k_BKSH)
    dk_BKSH, dv_BKSH = _small(q_BKMH, ds_BKMS), _small(do_BKMH, exp_BKMS)
    return *(dx.astype(q_BKMH.dtype) for dx in (dq_BKMH, dk_BKSH, dv_BKSH)), None


def _small(x_BKMH, score_BKMS) -> jax.Array:
    """The sum over queries of score x: [B, K, S, H].

    XLA on CPU brings the left operand of a product into the order in which it is read. Scores there
    cost four times the product itself, so x is there, and the barrier keeps XLA from turning the
    product round again.
    """
    found_BKHS = _product("bkmh,bkms->bkhs", x_BKMH, score_BKMS)
    return jax.lax.optimization_barrier(found_BKHS).swapaxes(2, 3)


def _product(axes: str, left, right) -> jax.Array:
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


_block.defvjp(_forward, _backward)


# MERGED DOCSTRING of lm.kernels:
# """Choose the attention kernel for a machine, and the options of its compiler.
#
#     chosen(run, device_mesh)        resolves model.attention="auto" to plain, cudnn or splash
#     attend(shape, rules, q_BTNH, k_BSKH, v_BSKH, segments_BT)
#     options(device_mesh)            compiler options that overlap collectives and matrix products
#
# plain   lm/model/attention.py: any device, any mesh
# cudnn   NVIDIA's flash attention, through jax.nn.dot_product_attention
# splash  flash attention for TPU, a Pallas kernel that comes with JAX
#
# Tensor names end in their axes: B batch, T query time, S key time, N query heads, K key/value
# heads,
# H d_head.
# """

BY_PLATFORM = {"cpu": "plain", "gpu": "cudnn", "tpu": "splash"}


def select_backend(run: schema.Run, device_mesh: jax.sharding.Mesh) -> str:
    """Return the attention kernel of a run on these devices.

    "auto" is the platform's kernel if it supports the shapes, and plain otherwise. Raises
    ValueError for another choice that the devices do not support.
    """
    platform = mesh.device_platform(device_mesh)
    return _chosen(run, platform, is_here=jax.default_backend() == platform)


def select_backend_for(run: schema.Run, platform: str) -> str:
    """Return the attention kernel of a run on another machine of this platform."""
    return _chosen(run, platform, is_here=True)


def _chosen(run: schema.Run, platform: str, is_here: bool) -> str:
    choice = run.model.attention
    name = BY_PLATFORM[platform] if choice == "auto" else choice
    faults = _faults(run, name, platform, is_here)
    if faults and choice != "auto":
        raise ValueError(f"model.attention={choice!r} {faults[0]}: change that, or use 'auto'")
    return "plain" if faults else name


def _faults(run: schema.Run, name: str, platform: str, is_here: bool) -> list[str]:
    """Return the reasons why a kernel does not support a run."""
    if name == "plain":
        return []
    supported = {"cudnn": "gpu", "splash": "tpu"}[name]
    shape, t = run.model, run.data.seq_len
    rules = [
        (platform == supported, f"is for {supported}, not {platform}"),
        (run.mesh.sequence == 1, f"takes whole rows, not mesh.sequence={run.mesh.sequence}"),
    ]
    if name == "cudnn":
        # It queries the device, which a described device does not support.
        is_present = platform != supported or is_here
        segments = not run.data.attend_across_documents or run.data.packing == "documents"
        rules += [
            (is_present, "needs the GPU itself, not its description"),
            (shape.dtype == "bfloat16", f"takes bfloat16, not model.dtype={shape.dtype!r}"),
            (
                shape.d_head % 8 == 0 and shape.d_head <= 128,
                f"takes heads of 8, 16 ... 128, not model.d_head={shape.d_head}",
            ),
            (
                not segments,
                "lets documents of a row see each other, unlike data.attend_across_documents=False",
            ),
        ]
    else:
        rules += [(t % 128 == 0, f"takes rows of 128, 256 ..., not data.seq_len={t}")]
    return [reason for holds, reason in rules if not holds]


def attend(
    shape: schema.Model, rules: mesh.ShardingRules, q_BTNH, k_BSKH, v_BSKH, segments_BT=None
) -> jax.Array:
    """Return softmax(q k / sqrt(H)) v over the earlier and equal keys of the same segment."""
    if shape.attention == "splash":
        return splash_attention(q_BTNH, k_BSKH, v_BSKH, segments_BT, rules)
    if shape.attention == "cudnn" and segments_BT is None:  # evaluation has segments
        return cudnn_attention(q_BTNH, k_BSKH, v_BSKH)
    return blockwise_attention(
        q_BTNH, k_BSKH, v_BSKH, shape.attention_query_blocks, segments_BT, rules
    )


@jax.named_scope("attention")
def cudnn_attention(q_BTNH, k_BSKH, v_BSKH) -> jax.Array:
    """Compute attention by cuDNN. JAX splits the kernel by rows and heads over the devices."""
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, is_causal=True, implementation="cudnn"
    )


@jax.named_scope("attention")
def splash_attention(
    q_BTNH, k_BSKH, v_BSKH, segments_BT=None, rules=mesh.DEFAULT_RULES, interpret: bool = False
) -> jax.Array:
    """Compute attention by the splash kernel, on the rows and heads of each device.

    interpret: run the kernel step by step on any device, for tests.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    t, n, h = q_BTNH.shape[1:]
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

    def of_row(q_TNH, k_SKH, v_SKH, segments_T):
        segment_ids = (
            None if segments_T is None else splash_attention.SegmentIds(segments_T, segments_T)
        )
        q_NTH, k_KSH, v_KSH = (x.swapaxes(0, 1) for x in (q_TNH * h**-0.5, k_SKH, v_SKH))
        o_NTH = typing.cast(jax.Array, kernel(q_NTH, k_KSH, v_KSH, segment_ids=segment_ids))
        return o_NTH.swapaxes(0, 1)

    local, current = jax.vmap(of_row), jax.sharding.get_abstract_mesh()
    if current.empty or current.manual_axes:
        return local(q_BTNH, k_BSKH, v_BSKH, segments_BT)
    heads, keys = (rules.spec(("batch", None, name, None)) for name in ("heads", "kv_heads"))
    split = jax.shard_map(
        local,
        in_specs=(heads, keys, keys, rules.spec(("batch", None))),
        out_specs=heads,
        check_vma=False,
    )
    return split(q_BTNH, k_BSKH, v_BSKH, segments_BT)
