"""The decoder with an arbitrary attention mask and a cache of keys and values.

Tensor names end in their axes as in lm/model/transformer.py: B batch, T query time, S key time or
cache slot, D d_model, N query heads, K key/value heads, G query heads per key/value head, M the
G x T queries of a key/value head, H d_head, V vocabulary.

    params = kv_cache.cast_weights(model, params)               # once for many tokens
    decode = kv_cache.cached_decoder(model, params)             # inside a traced function
    logits_BTV, cache = decode(tokens_BT, positions_BT, mask_BTS)
    cache = kv_cache.extend(cache, 128)                         # pads the cache to 128 slots
    logits_B1V, cache = decode(token_B1, position_B1, mask_B1S, cache, slot)
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from lm.config import model_sizes, schema
from lm.model import attention, lora, parametrization, position_encoding, transformer
from lm.parallel import mesh

KVCache = list[dict[str, jax.Array]]  # per layer {"key": [B, K, S, H], "value": [B, K, S, H]}


def cached_decoder(
    shape: schema.Model, params: dict, rules: mesh.ShardingRules = mesh.DEFAULT_RULES
) -> Callable:
    """Return decode(tokens_BT, positions_BT, mask_BTS, cache=None, slot=0, ...).

    `decode` returns (logits_BTV, cache). Use it only inside the traced function that made it.

    positions_BT: position of each token in its text. mask_BTS: true where query t attends to key s.
    Without `cache`, the keys are those of the same tokens. With `cache`, the keys are its slots,
    and `decode` writes the tokens to the slots from `slot` on. last: return the logits of the last
    position only, [B, 1, V]. key_positions_BS: position in the text of the key in each slot. A
    model with a sliding window needs it with `cache`.

    Experts drop no token here, and XLA computes their products. With a capacity, the dropped tokens
    would depend on how a text is divided into calls.

    The layers are sliced from their stacked weights once, because a loop that slices them in each
    iteration is half as fast on CPU. The size of the program therefore grows with the depth.
    """
    decoder = transformer.make_decoder(
        dataclasses.replace(shape, dispatch="dropless", expert_kernel="xla"), params, rules
    )
    layers = [jax.tree.map(lambda w, i=i: w[i], decoder.blocks) for i in range(shape.n_layers)]
    head = decoder.head_weight()
    windows = model_sizes.attention_windows(shape)

    def decode(
        tokens_BT, positions_BT, mask_BTS, cache: KVCache | None = None, slot=0, last=False,
        key_positions_BS=None,
    ):  # fmt: skip
        new_cache: KVCache = []
        tables = position_encoding.make_tables(shape, positions_BT)
        if key_positions_BS is None and cache is None:
            key_positions_BS = positions_BT

        def attend(q_BTNH, k_BTKH, v_BTKH):
            window = windows[len(new_cache)]
            q_BTNH, k_BTKH = position_encoding.encode_positions(
                *(q_BTNH, k_BTKH),
                position_encoding.select_tables(tables, window > 0),
                shape.attention_scale,
            )
            old = None if cache is None else cache[len(new_cache)]
            entry = _write_slots(old, k_BTKH, v_BTKH, slot, rules)
            new_cache.append(entry)
            layer_mask_BTS = _mask_window(mask_BTS, positions_BT, key_positions_BS, window)
            return masked_attention(
                q_BTNH, entry["key"], entry["value"], layer_mask_BTS, shape.attention_softcap
            )

        x_BTD = decoder.embedded(tokens_BT, positions_BT)
        for block in layers:
            x_BTD, _ = block(x_BTD, attend)
        x_BTD = x_BTD[:, -1:] if last else x_BTD
        return decoder.logits(decoder.norm(x_BTD), *head), new_cache

    return decode


def _mask_window(
    mask_BTS: jax.Array, positions_BT: jax.Array, key_positions_BS: jax.Array | None, window: int
) -> jax.Array:
    """Return the mask without the keys that are older than the window. window: 0 is none."""
    if not window:
        return mask_BTS
    if key_positions_BS is None:
        raise ValueError("model.sliding_window with a cache needs the position of each key")
    return mask_BTS & (positions_BT[:, :, None] - key_positions_BS[:, None] < window)


def _write_slots(
    old: dict | None, k_BTKH, v_BTKH, slot: jax.typing.ArrayLike, rules: mesh.ShardingRules
) -> dict[str, jax.Array]:
    """Return the cache of one layer with new keys and values from `slot` on.

    old: the cache before; None: the new keys and values are the cache.
    """
    entry = {"key": k_BTKH.swapaxes(1, 2), "value": v_BTKH.swapaxes(1, 2)}
    if old is not None:
        entry = {
            name: jax.lax.dynamic_update_slice(old[name], entry[name], (0, 0, slot, 0))
            for name in entry
        }
    return {
        name: rules.constrain(x_BKSH, "batch", "kv_heads", None, None)
        for name, x_BKSH in entry.items()
    }


def cast_weights(model: schema.Model, params: dict) -> dict:
    """Return the weights for many calls of `decode`: adapters merged, matrices in model.dtype.

    The logits have the same bits as those of the float32 weights, which are cast in every call.
    Norms, biases and routers are computed in float32 and are not cast.
    """
    names = transformer.param_axes(dataclasses.replace(model, lora_rank=0))

    def cast(weight: jax.Array, axes: tuple) -> jax.Array:
        is_matrix = parametrization.weight_role(axes) != "norm" and "router" not in axes
        return weight.astype(model.dtype) if is_matrix else weight

    return jax.tree.map(cast, lora.merge_lora(model, params), names)


def masked_attention(q_BTNH, k_BKSH, v_BKSH, mask_BTS, cap: float = 0.0) -> jax.Array:
    """Return softmax(q k) v over the keys where the mask is true, [B, T, N, H].

    cap: see attention.Variant.
    """
    b, t, n, h = q_BTNH.shape
    k, s = k_BKSH.shape[1:3]
    # G and T are one axis because matrix products on CPU support no other layout in bfloat16.
    q_BKMH = q_BTNH.reshape(b, t, k, n // k, h).transpose(0, 2, 3, 1, 4)
    q_BKMH = q_BKMH.reshape(b, k, n // k * t, h)
    score_BKMS = jnp.einsum("bkmh,bksh->bkms", q_BKMH, k_BKSH, preferred_element_type=jnp.float32)
    score_BKMS = cap * jnp.tanh(score_BKMS / cap) if cap else score_BKMS
    score_BKGTS = score_BKMS.reshape(b, k, n // k, t, s)
    score_BKGTS = jnp.where(mask_BTS[:, None, None], score_BKGTS, attention.MASK_VALUE)
    weight_BKGTS = jax.nn.softmax(score_BKGTS, axis=-1).astype(v_BKSH.dtype)
    weight_BKMS = weight_BKGTS.reshape(b, k, n // k * t, s)
    o_BKMH = jnp.einsum("bkms,bksh->bkmh", weight_BKMS, v_BKSH, preferred_element_type=jnp.float32)
    o_BTKGH = o_BKMH.astype(v_BKSH.dtype).reshape(b, k, n // k, t, h).transpose(0, 3, 1, 2, 4)
    return o_BTKGH.reshape(b, t, n, h)


def extend(cache: KVCache, slots: int) -> KVCache:
    """Return the cache padded with empty slots to `slots` slots in total."""
    return jax.tree.map(
        lambda x: jnp.pad(x, [(0, 0)] * 2 + [(0, slots - x.shape[2]), (0, 0)]), cache
    )


def replace_rows(cache: KVCache, fresh: KVCache, rows_B: jax.Array, shift: jax.Array) -> KVCache:
    """Return the cache with the rows where rows_B is true replaced by those of `fresh`.

    The slots of `fresh` are rotated by `shift` to higher slots.
    """
    rows_B111 = rows_B[:, None, None, None]
    return jax.tree.map(
        lambda old, new: jnp.where(rows_B111, jnp.roll(new, shift, axis=2), old), cache, fresh
    )
