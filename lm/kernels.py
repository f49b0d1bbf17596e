"""Choose the attention kernel for a machine, and the options of its compiler.

    chosen(run, device_mesh)        resolves model.attention="auto" to plain, cudnn or splash
    attend(shape, rules, q_BTNH, k_BSKH, v_BSKH, segments_BT)
    options(device_mesh)            compiler options that overlap collectives and matrix products

plain   lm/attention.py: any device, any mesh
cudnn   NVIDIA's flash attention, through jax.nn.dot_product_attention
splash  flash attention for TPU, a Pallas kernel that comes with JAX

Tensor names end in their axes: B batch, T query time, S key time, N query heads, K key/value heads,
H d_head.
"""

import typing

import jax

from lm import attention, config, mesh

BY_PLATFORM = {"cpu": "plain", "gpu": "cudnn", "tpu": "splash"}
# For several devices only: a single device has no collectives. Only libtpu knows the TPU options.
OPTIONS: dict[str, dict[str, bool | int]] = {
    "cpu": {},
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": True,  # starts collectives early
        "xla_gpu_enable_pipelined_all_gather": True,  # of the next layer, while one computes
        "xla_gpu_enable_pipelined_reduce_scatter": True,
        "xla_gpu_enable_while_loop_double_buffering": True,  # layers in a scan, two at a time
        "xla_gpu_all_reduce_combine_threshold_bytes": 2**27,  # gradients, in few messages
    },
    "tpu": {
        "xla_tpu_enable_async_collective_fusion": True,  # collectives beside products
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        "xla_enable_async_all_gather": True,
    },
}


def options(device_mesh: jax.sharding.Mesh) -> dict[str, bool | int] | None:
    """Return the compiler options of a step on these devices, for jax.jit."""
    return (OPTIONS[mesh.platform(device_mesh)] or None) if device_mesh.size > 1 else None


def chosen(run: config.Run, device_mesh: jax.sharding.Mesh) -> str:
    """Return the attention kernel of a run on these devices.

    "auto" is the platform's kernel if it supports the shapes, and plain otherwise. Raises
    ValueError for another choice that the devices do not support.
    """
    platform = mesh.platform(device_mesh)
    return _chosen(run, platform, is_here=jax.default_backend() == platform)


def chosen_there(run: config.Run, platform: str) -> str:
    """Return the attention kernel of a run on another machine of this platform."""
    return _chosen(run, platform, is_here=True)


def _chosen(run: config.Run, platform: str, is_here: bool) -> str:
    choice = run.model.attention
    name = BY_PLATFORM[platform] if choice == "auto" else choice
    faults = _faults(run, name, platform, is_here)
    if faults and choice != "auto":
        raise ValueError(f"model.attention={choice!r} {faults[0]}: change that, or use 'auto'")
    return "plain" if faults else name


def _faults(run: config.Run, name: str, platform: str, is_here: bool) -> list[str]:
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
        segments = not run.data.across or run.data.rows == "whole"
        rules += [
            (is_present, "needs the GPU itself, not its description"),
            (shape.dtype == "bfloat16", f"takes bfloat16, not model.dtype={shape.dtype!r}"),
            (
                shape.d_head % 8 == 0 and shape.d_head <= 128,
                f"takes heads of 8, 16 ... 128, not model.d_head={shape.d_head}",
            ),
            (not segments, "lets documents of a row see each other, unlike data.across=False"),
        ]
    else:
        rules += [(t % 128 == 0, f"takes rows of 128, 256 ..., not data.seq_len={t}")]
    return [reason for holds, reason in rules if not holds]


def attend(
    shape: config.Model, rules: mesh.ShardingRules, q_BTNH, k_BSKH, v_BSKH, segments_BT=None
) -> jax.Array:
    """Return softmax(q k / sqrt(H)) v over the earlier and equal keys of the same segment."""
    if shape.attention == "splash":
        return splash(q_BTNH, k_BSKH, v_BSKH, segments_BT, rules)
    if shape.attention == "cudnn" and segments_BT is None:  # evaluation has segments
        return cudnn(q_BTNH, k_BSKH, v_BSKH)
    return attention.causal(q_BTNH, k_BSKH, v_BSKH, shape.attention_blocks, segments_BT, rules)


@jax.named_scope("attention")
def cudnn(q_BTNH, k_BSKH, v_BSKH) -> jax.Array:
    """Compute attention by cuDNN. JAX splits the kernel by rows and heads over the devices."""
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, is_causal=True, implementation="cudnn"
    )


@jax.named_scope("attention")
def splash(
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
