"""Which code computes attention, by the machine; and what its compiler is asked for.

    chosen(run, device_mesh)        # what model.attention="auto" is there: plain, cudnn or splash
    attend(shape, rules, q_BTNH, k_BSKH, v_BSKH, segments_BT)
    options(device_mesh)            # compiler options that let collectives and products overlap

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
# Only where there is more than one device: nothing travels on one. Of these, the TPU's are known to
# libtpu alone.
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
    """For jax.jit(compiler_options=...) of a step on these devices."""
    return (OPTIONS[mesh.platform(device_mesh)] or None) if device_mesh.size > 1 else None


def chosen(run: config.Run, device_mesh: jax.sharding.Mesh) -> str:
    """The kernel of a run on these devices; ValueError for one asked for that cannot work there.

    "auto" is the platform's kernel where the shapes are ones that it takes, and plain elsewhere.
    """
    platform = mesh.platform(device_mesh)
    return _chosen(run, platform, is_here=jax.default_backend() == platform)


def chosen_there(run: config.Run, platform: str) -> str:
    """The same on a machine that is not here: what its own process will take."""
    return _chosen(run, platform, is_here=True)


def _chosen(run: config.Run, platform: str, is_here: bool) -> str:
    asked = run.model.attention
    name = BY_PLATFORM[platform] if asked == "auto" else asked
    faults = _faults(run, name, platform, is_here)
    if faults and asked != "auto":
        raise ValueError(f"model.attention={asked!r} {faults[0]}: change that, or take 'auto'")
    return "plain" if faults else name


def _faults(run: config.Run, name: str, platform: str, is_here: bool) -> list[str]:
    """What a kernel cannot do of a run."""
    if name == "plain":
        return []
    its = {"cudnn": "gpu", "splash": "tpu"}[name]
    shape, t = run.model, run.data.seq_len
    rules = [
        (platform == its, f"is for {its}, not {platform}"),
        (run.mesh.sequence == 1, f"takes whole rows, not mesh.sequence={run.mesh.sequence}"),
    ]
    if name == "cudnn":
        # It asks the device what it can; a described one cannot say.
        here = platform != its or is_here
        segments = not run.data.across or run.data.rows == "whole"
        rules += [
            (here, "needs the GPU itself, not its description"),
            (shape.dtype == "bfloat16", f"takes bfloat16, not model.dtype={shape.dtype!r}"),
            (
                shape.d_head % 8 == 0 and shape.d_head <= 128,
                f"takes heads of 8, 16 ... 128, not model.d_head={shape.d_head}",
            ),
            (not segments, "lets documents of a row see each other, unlike data.across=False"),
        ]
    else:
        rules += [(t % 128 == 0, f"takes rows of 128, 256 ..., not data.seq_len={t}")]
    return [words for holds, words in rules if not holds]


def attend(
    shape: config.Model, rules: mesh.ShardingRules, q_BTNH, k_BSKH, v_BSKH, segments_BT=None
) -> jax.Array:
    """softmax(q k / sqrt(H)) v over the keys not later than the query, of its own segment."""
    if shape.attention == "splash":
        return splash(q_BTNH, k_BSKH, v_BSKH, segments_BT, rules)
    if shape.attention == "cudnn" and segments_BT is None:  # evaluation has segments
        return cudnn(q_BTNH, k_BSKH, v_BSKH)
    return attention.causal(q_BTNH, k_BSKH, v_BSKH, shape.attention_blocks, segments_BT, rules)


@jax.named_scope("attention")
def cudnn(q_BTNH, k_BSKH, v_BSKH) -> jax.Array:
    """A head, or a row, never leaves its device: JAX splits the kernel by both."""
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, is_causal=True, implementation="cudnn"
    )


@jax.named_scope("attention")
def splash(
    q_BTNH, k_BSKH, v_BSKH, segments_BT=None, rules=mesh.DEFAULT_RULES, interpret: bool = False
) -> jax.Array:
    """Each device has its rows and heads. interpret: anywhere, step by step, for tests."""
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
        mine = None if segments_T is None else splash_attention.SegmentIds(segments_T, segments_T)
        q_NTH, k_KSH, v_KSH = (x.swapaxes(0, 1) for x in (q_TNH * h**-0.5, k_SKH, v_SKH))
        o_NTH = typing.cast(jax.Array, kernel(q_NTH, k_KSH, v_KSH, segment_ids=mine))
        return o_NTH.swapaxes(0, 1)

    local, here = jax.vmap(of_row), jax.sharding.get_abstract_mesh()
    if here.empty or here.manual_axes:
        return local(q_BTNH, k_BSKH, v_BSKH, segments_BT)
    heads, keys = (rules.spec(("batch", None, name, None)) for name in ("heads", "kv_heads"))
    split = jax.shard_map(
        local,
        in_specs=(heads, keys, keys, rules.spec(("batch", None))),
        out_specs=heads,
        check_vma=False,
    )
    return split(q_BTNH, k_BSKH, v_BSKH, segments_BT)
