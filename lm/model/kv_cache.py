"""The decoder, reading with any mask and through a cache of keys and values.

Tensor names end in their axes as in lm/model/transformer.py: B batch, T query time, S key time or
slot, D d_model, N query heads, K key/value heads, G query heads a key/value head, H d_head, V
vocabulary.

    read = kv_cache.cached_decoder(model, params)                       # while a function is traced
    logits_BTV, kept = read(tokens_BT, times_BT, seen_BTS)   # kept: a layer's {"key", "value"} each
    kept = kv_cache.extend(kept, 128)                            # room for 128 tokens, [B, K, S, H]
    logits_B1V, kept = read(token_B1, time_B1, seen_B1S, kept, slot)
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.config import schema
from lm.model import attention, transformer
from lm.parallel import mesh

KVCache = list[dict[str, jax.Array]]  # a layer each: {"key": [B, K, S, H], "value": [B, K, S, H]}


def cached_decoder(
    shape: schema.Model, params: dict, rules: mesh.ShardingRules = mesh.DEFAULT_RULES
) -> Callable:
    """read(tokens_BT, times_BT, seen_BTS, kept=None, slot=0, last=False) -> (logits_BTV, kept).

    times_BT: the place of each token in its text. seen_BTS: whether query t sees key s: of the
    same tokens, or, with `kept`, of its slots, into which the tokens are written from `slot` on.
    last: logits of the last position alone, [B, 1, V]. Experts drop no token here: what is dropped
    would depend on how a text is cut into reads.

    The layers are taken out of their stack here, once: a loop around `read` that slices them each
    time is half as fast on CPU. So the program grows with the depth, unlike that of training.
    """
    decoder = transformer.make_decoder(
        dataclasses.replace(shape, dispatch="dropless"), params, rules
    )
    layers = [jax.tree.map(lambda w, i=i: w[i], decoder.blocks) for i in range(shape.n_layers)]
    head_DV = decoder.head_weight()

    def read(tokens_BT, times_BT, seen_BTS, kept: KVCache | None = None, slot=0, last=False):
        after: KVCache = []

        def attend(q_BTNH, k_BTKH, v_BTKH):
            if not shape.learned_positions:
                q_BTNH, k_BTKH = (
                    transformer.rotary_embedding(x, shape.rope_theta, times_BT)
                    for x in (q_BTNH, k_BTKH)
                )
            new = {"key": k_BTKH.swapaxes(1, 2), "value": v_BTKH.swapaxes(1, 2)}
            if kept is not None:
                old, start = kept[len(after)], (0, 0, slot, 0)
                new = {n: jax.lax.dynamic_update_slice(old[n], new[n], start) for n in new}
            after.append(
                {n: rules.constrain(x, "batch", "kv_heads", None, None) for n, x in new.items()}
            )
            return masked_attention(q_BTNH, after[-1]["key"], after[-1]["value"], seen_BTS)

        x_BTD = decoder.embedded(tokens_BT, times_BT)
        for block in layers:
            x_BTD, _ = block(x_BTD, attend)
        x_BTD = x_BTD[:, -1:] if last else x_BTD
        return decoder.logits(decoder.norm(x_BTD), head_DV), after

    return read


def masked_attention(q_BTNH, k_BKSH, v_BKSH, seen_BTS) -> jax.Array:
    """softmax(q k / sqrt(H)) v over the keys that are seen; [B, T, N, H]."""
    b, t, n, h = q_BTNH.shape
    k, s = k_BKSH.shape[1:3]
    # M: the queries of a key head, G x T of them; as one axis, for CPUs take no other in bfloat16.
    q_BKMH = (q_BTNH * h**-0.5).reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    q_BKMH = q_BKMH.reshape(b, k, n // k * t, h)
    score_BKMS = jnp.einsum("bkmh,bksh->bkms", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
    score_BKGTS = score_BKMS.reshape(b, k, n // k, t, s)
    score_BKGTS = jnp.where(seen_BTS[:, None, None], score_BKGTS, attention.MASK_VALUE)
    share_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1).astype(v_BKSH.dtype)
    share_BKMS = share_BKGTS.reshape(b, k, n // k * t, s)
    o_BKMH = jnp.einsum("bkms,bksh->bkmh", share_BKMS, v_BKSH, preferred_element_type=jnp.float32)
    o_BTKGH = o_BKMH.astype(v_BKSH.dtype).reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4)
    return o_BTKGH.reshape(b, t, n, h)


def extend(kept: KVCache, slots: int) -> KVCache:
    """With empty slots behind, `slots` in all."""
    return jax.tree.map(
        lambda x: jnp.pad(x, [(0, 0)] * 2 + [(0, slots - x.shape[2]), (0, 0)]), kept
    )


def replace_rows(kept: KVCache, fresh: KVCache, rows_B: jax.Array, shift: jax.Array) -> KVCache:
    """`kept`, with the rows that are marked from `fresh`, whose slots are turned by `shift`."""
    rows_B111 = rows_B[:, None, None, None]
    return jax.tree.map(
        lambda old, new: jnp.where(rows_B111, jnp.roll(new, shift, axis=2), old), kept, fresh
    )
