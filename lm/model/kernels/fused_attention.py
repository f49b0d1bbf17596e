"""Causal attention by the kernels of libraries, on the rows and heads of each device.

    o_BTNH = attend_fused("splash", rules, q_BTNH, k_BSKH, v_BSKH, segments_BT, n_blocks)

The keys of a query are a range of time: from the first position of its segment to the query itself.
Each kernel receives this range in its own form: splash as segment ids, tokamax as two numbers per
query, cuDNN as a mask. Segments must be contiguous in time.

Sharding: each device has its rows and query heads. If rows are split, queries have the order of
`mesh.interleave_positions`, and each device gathers all keys and values of its rows. If heads and
key/value heads are not split alike, each device selects the key/value heads of its query heads.

Tensor names end in their axes: B batch, T query time, S key time, N query heads, K key/value heads,
H d_head. The axes of a device have the same names as those of all devices.
"""

import dataclasses
import importlib
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lm.model.kernels import remat_policies, tokamax_flags
from lm.parallel import mesh


class KeyRanges(typing.NamedTuple):
    """The keys of each query of a device.

    time_T: time of each query. start_BT: time of its first key; None: 0. query_segment_BT,
    key_segment_BS: segment of each query and key, or None. `_attend_shards` also describes the
    partition of these arrays by this class.
    """

    time_T: typing.Any
    start_BT: typing.Any
    query_segment_BT: typing.Any
    key_segment_BS: typing.Any


def segment_starts(segments_BT: jax.Array) -> jax.Array:
    """Return the time of the first position of each position's segment, int32 [B, T]."""
    times_BT = jnp.broadcast_to(jnp.arange(segments_BT.shape[1]), segments_BT.shape)
    is_first_BT = jnp.diff(segments_BT, axis=1, prepend=segments_BT[:, :1]) != 0
    return jax.lax.cummax(jnp.where(is_first_BT, times_BT, 0), axis=1)


@jax.named_scope("attention")
def attend_fused(
    kernel: str,
    rules: mesh.ShardingRules,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segments_BT: jax.Array | None = None,
    n_blocks: int = 1,
    is_interpreted: bool = False,
) -> jax.Array:
    """Return softmax(q k / sqrt(H)) v over the earlier and equal keys of the same segment.

    The result is [B, T, N, H], in the order of the queries. kernel: splash, cudnn or tokamax.
    segments_BT: in the original order of time. n_blocks: see mesh.interleave_positions.
    is_interpreted: emulate the kernel on CPU, for tests; tokamax then computes its reference.
    """
    n_parts = mesh.shard_count("length")
    ranges = _key_ranges(q_BTNH.shape[1], segments_BT, n_blocks)
    if kernel == "splash":
        n_local = q_BTNH.shape[2] // rules.shard_count("heads")
        local_kernel = _make_splash(ranges.time_T, n_local, n_parts, is_interpreted)
    else:
        attend = {"cudnn": cudnn_attention, "tokamax": tokamax_attention}[kernel]
        local_kernel = jax.tree_util.Partial(_RangedKernel(attend, n_parts == 1, is_interpreted))
    current_mesh = jax.sharding.get_abstract_mesh()
    if current_mesh.empty or current_mesh.manual_axes:
        return _attend_local(local_kernel, ranges, q_BTNH, k_BSKH, v_BSKH)
    return _attend_shards(local_kernel, rules, ranges, q_BTNH, k_BSKH, v_BSKH, n_blocks)


def _attend_shards(
    local_kernel: Callable, rules: mesh.ShardingRules, ranges: KeyRanges, q_BTNH, k_BSKH, v_BSKH,
    n_blocks: int,
) -> jax.Array:  # fmt: skip
    """Return the output of a kernel that each device of the current mesh calls for its part."""
    n_heads, current_mesh = q_BTNH.shape[2], jax.sharding.get_abstract_mesh()
    head_axes = rules.mesh_axes("heads")
    has_equal_heads = head_axes == rules.mesh_axes("kv_heads")
    kv_names = ("batch", None, "kv_heads" if has_equal_heads else None, None)
    # With split rows, keys arrive in the order of the queries, and the kernels need that of time.
    k_BSKH, v_BSKH = (
        mesh.restore_order(rules.constrain(x, *kv_names), n_blocks) for x in (k_BSKH, v_BSKH)
    )

    def attend_shard(local_kernel, ranges, q_BTNH, k_BSKH, v_BSKH):
        if not has_equal_heads:
            device = jax.lax.axis_index(head_axes) if head_axes else 0
            k_BSKH, v_BSKH = (
                select_kv_heads(x, n_heads, q_BTNH.shape[2], device) for x in (k_BSKH, v_BSKH)
            )
        return _attend_local(local_kernel, ranges, q_BTNH, k_BSKH, v_BSKH)

    query_spec, kv_spec = rules.spec(("batch", "length", "heads", None)), rules.spec(kv_names)
    position_spec = rules.spec(("batch", "length"))
    range_specs = KeyRanges(
        rules.spec(("length",)), position_spec, position_spec, rules.spec(("batch", None))
    )
    in_specs = (
        _kernel_specs(local_kernel, current_mesh, rules),
        KeyRanges(
            *(None if x is None else spec for x, spec in zip(ranges, range_specs, strict=True))
        ),
        *(query_spec, kv_spec, kv_spec),
    )
    attend_shards = jax.shard_map(
        attend_shard, in_specs=in_specs, out_specs=query_spec, check_vma=False
    )
    return attend_shards(local_kernel, ranges, q_BTNH, k_BSKH, v_BSKH)


def _key_ranges(n_times: int, segments_BT: jax.Array | None, n_blocks: int) -> KeyRanges:
    """Return the keys of all queries of all devices."""
    time_T = mesh.interleave_positions(np.arange(n_times, dtype=np.int32), n_blocks, axis=0)
    if segments_BT is None:
        return KeyRanges(time_T, None, None, None)
    start_BT, segment_BT = (
        mesh.interleave_positions(x, n_blocks) for x in (segment_starts(segments_BT), segments_BT)
    )
    return KeyRanges(time_T, start_BT, segment_BT, segments_BT)


def select_kv_heads(x_BSKH: jax.Array, n_heads: int, n_local: int, device: jax.Array | int):
    """Return the key/value heads of the query heads of a device, [B, S, K, H].

    x_BSKH has all key/value heads. The device has the query heads from device x n_local on. Query
    heads share a key/value head in groups. If the part of a device does not consist of complete
    groups, each query head receives its own copy of the key/value head.
    """
    group = n_heads // x_BSKH.shape[2]
    first = device * n_local
    if n_local % group == 0 or group % n_local == 0:
        size = max(1, n_local // group)
        return jax.lax.dynamic_slice_in_dim(x_BSKH, first // group, size, axis=2)
    return jnp.take(x_BSKH, (first + jnp.arange(n_local)) // group, axis=2)


def _attend_local(local_kernel: Callable, ranges: KeyRanges, q_BTNH, k_BSKH, v_BSKH) -> jax.Array:
    """Return the output of a kernel, with the name that the policies of model.remat refer to."""
    o_BTNH = local_kernel(q_BTNH, k_BSKH, v_BSKH, ranges)
    return remat_policies.name_activation(o_BTNH, "attention_output")


@dataclasses.dataclass(frozen=True)
class _RangedKernel:
    """A kernel with its static arguments; equal instances share a compiled program."""

    attend: Callable
    is_complete: bool
    is_interpreted: bool

    def __call__(self, q_BTNH, k_BSKH, v_BSKH, ranges: KeyRanges) -> jax.Array:
        return self.attend(q_BTNH, k_BSKH, v_BSKH, ranges, self.is_complete, self.is_interpreted)


def cudnn_attention(
    q_BTNH, k_BSKH, v_BSKH, ranges: KeyRanges, is_complete: bool, is_interpreted: bool = False
) -> jax.Array:
    """Return attention by cuDNN, [B, T, N, H].

    is_complete: the queries are all positions in the order of time. Without segments, cuDNN then
    skips the masked half of the scores. Otherwise it reads a mask [B, 1, T, S] in bfloat16.
    is_interpreted: use XLA instead.
    """
    mask_BNTS = None
    if ranges.start_BT is not None or not is_complete:
        key_S = jnp.arange(k_BSKH.shape[1])
        mask_BNTS = (key_S <= jnp.asarray(ranges.time_T)[:, None])[None, None]
        if ranges.start_BT is not None:
            mask_BNTS &= (key_S >= ranges.start_BT[:, :, None])[:, None]
        mask_BNTS = jnp.broadcast_to(mask_BNTS, (q_BTNH.shape[0], *mask_BNTS.shape[1:]))
    return jax.nn.dot_product_attention(
        *(q_BTNH, k_BSKH, v_BSKH),
        mask=mask_BNTS,
        scale=1.0,
        is_causal=is_complete,
        implementation="xla" if is_interpreted else "cudnn",
    )


def tokamax_attention(
    q_BTNH, k_BSKH, v_BSKH, ranges: KeyRanges, is_complete: bool, is_interpreted: bool = False
) -> jax.Array:
    """Return attention by the Mosaic kernels of tokamax for Hopper and Blackwell, [B, T, N, H].

    The kernels skip blocks of keys that are outside of the ranges of all queries of a block.
    is_complete: the queries are all positions in the order of time. is_interpreted: compute the
    reference of tokamax by XLA instead.
    """
    # The public function accepts only dense masks; its docstring of Mask documents this use.
    api, base = (
        importlib.import_module(f"tokamax._src.ops.attention.{name}") for name in ("api", "base")
    )
    tokamax_flags.use_default_flags()
    start_BKT = None if ranges.start_BT is None else ranges.start_BT[:, None, :]
    end_KT = None if is_complete else jnp.asarray(ranges.time_T)[None] + 1
    key_mask = base.Mask(is_causal=is_complete, k_start=start_BKT, k_end=end_KT)
    implementation = api.IMPLEMENTATIONS["xla" if is_interpreted else "mosaic_gpu"]
    return implementation(q_BTNH, k_BSKH, v_BSKH, logits_scale=1.0, mask=key_mask)


class _SplashKernel(typing.NamedTuple):
    """The splash kernel of JAX, a pytree of mask blocks, for `attend_fused`."""

    kernel: typing.Any

    def __call__(self, q_BTNH, k_BSKH, v_BSKH, ranges: KeyRanges) -> jax.Array:
        """Return attention by the splash kernel for TPU, [B, T, N, H]."""
        from jax.experimental.pallas.ops.tpu import splash_attention

        def attend_row(q_TNH, k_SKH, v_SKH, query_segment_T, key_segment_S):
            segment_ids = None
            if query_segment_T is not None:
                segment_ids = splash_attention.SegmentIds(query_segment_T, key_segment_S)
            q_NTH, k_KSH, v_KSH = (x.swapaxes(0, 1) for x in (q_TNH, k_SKH, v_SKH))
            return self.kernel(q_NTH, k_KSH, v_KSH, segment_ids=segment_ids).swapaxes(0, 1)

        return jax.vmap(attend_row)(
            q_BTNH, k_BSKH, v_BSKH, ranges.query_segment_BT, ranges.key_segment_BS
        )


def _make_splash(
    time_T: np.ndarray, n_heads: int, n_parts: int, is_interpreted: bool
) -> _SplashKernel:
    """Return the splash kernel of n_heads query heads of a device, for all parts of a row.

    time_T: time of each query of a row. n_parts: number of devices that split the row.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention

    n_local = len(time_T) // n_parts
    block = next(size for size in (512, 384, 256, 128) if n_local % size == 0)
    sizes = splash_attention.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
        block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    causal = splash_attention.CausalMask((len(time_T), len(time_T)))
    causal.q_sequence = time_T  # the kernel compares these times with the positions of the keys
    kernel = splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([causal] * n_heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=n_parts,
        residual_checkpoint_name="attention_output",
        interpret=is_interpreted,
    )
    return _SplashKernel(kernel)


def _kernel_specs(local_kernel: typing.Any, current_mesh, rules: mesh.ShardingRules):
    """Return the partition of the arrays of a kernel: each device has the blocks of its queries."""
    if not isinstance(local_kernel, _SplashKernel):
        return None
    spec = jax.sharding.PartitionSpec(None, rules.mesh_axes("length") or None)
    sharding = jax.sharding.NamedSharding(current_mesh, spec)
    return _SplashKernel(local_kernel.kernel.manual_sharding_spec(sharding))
