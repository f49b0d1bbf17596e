"""What is compiled to ask a model: one program that scores rows, three that say tokens.

Tensor names end in their axes: B rows, T time, S slot, V vocabulary, N tokens of a chunk.
"""

import dataclasses
import functools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import schema
from lm.model import attention, kv_cache, transformer
from lm.parallel import mesh

CHUNK = 16  # tokens that are said before the host looks at them


def program_cache_key(run: schema.Run) -> str:
    """What a compiled program of this run can be found again by."""
    return json.dumps([dataclasses.asdict(knobs) for knobs in (run.model, run.mesh)])


def _shape_and_rules(key: str) -> tuple[schema.Model, mesh.ShardingRules]:
    shape, knobs = json.loads(key)
    rules = mesh.ShardingRules.of(schema.from_dict(knobs, schema.Mesh))
    return schema.from_dict(shape, schema.Model), rules


@functools.cache
def scoring_program(key: str, device_mesh: jax.sharding.Mesh) -> Callable:
    """jit of (params, scoring.to_arrays) -> nats_BT of the targets, whether each is likeliest."""
    shape, rules = _shape_and_rules(key)

    def score(params: dict, batch: dict):
        segments_BT, roots_BT, t = batch["segments"], batch["roots"], batch["tokens"].shape[1]
        own_BTS = segments_BT[:, :, None] == segments_BT[:, None]
        trunk_BTS = roots_BT[:, :, None] == segments_BT[:, None]
        seen_BTS = (own_BTS | trunk_BTS) & (jnp.arange(t)[:, None] >= jnp.arange(t))
        logits_BTV, _ = kv_cache.cached_decoder(shape, params, rules)(
            batch["tokens"], batch["times"], seen_BTS
        )
        nats_BT, _ = transformer.cross_entropy(logits_BTV, batch["targets"])
        return nats_BT, jnp.argmax(logits_BTV, axis=-1) == batch["targets"]

    return jax.jit(score, out_shardings=mesh.named_sharding(device_mesh))


@functools.cache
def generation_programs(
    key: str, device_mesh, slots: int, is_random: bool, top_k: int, has_top_p: bool, n_ids: int
) -> tuple[Callable, Callable, Callable]:
    """Compiled: begin (read prompts), resume (read some rows anew), go_on (say up to CHUNK)."""
    shape, rules = _shape_and_rules(key)
    ids_V = np.arange(shape.vocab_size)

    def choose(logits_BV, row_keys, n_said_B, how: dict) -> tuple[jax.Array, jax.Array]:
        """The next token of each row and its nats."""
        choices_BV = jnp.where(ids_V < n_ids, logits_BV, attention.MASK_VALUE)
        if is_random:
            choices_BV = choices_BV / how["temperature"]
            if 0 < top_k < shape.vocab_size:
                least_B1 = jax.lax.top_k(choices_BV, top_k)[0][:, -1:]
                choices_BV = jnp.where(choices_BV >= least_B1, choices_BV, attention.MASK_VALUE)
            if has_top_p:
                sorted_BV = jnp.sort(choices_BV, axis=-1, descending=True)
                share_BV = jax.nn.softmax(sorted_BV, axis=-1)
                is_needed_BV = jnp.cumsum(share_BV, axis=-1) - share_BV < how["top_p"]
                least_B1 = jnp.where(is_needed_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
                choices_BV = jnp.where(choices_BV >= least_B1, choices_BV, attention.MASK_VALUE)
            keys = jax.vmap(jax.random.fold_in)(row_keys, n_said_B)
            token_B = jax.vmap(jax.random.categorical)(keys, choices_BV)
        else:
            token_B = jnp.argmax(choices_BV, axis=-1)
        nats_B1, _ = transformer.cross_entropy(logits_BV[:, None], token_B[:, None])
        return token_B.astype(jnp.int32), nats_B1[:, 0]

    def row_keys(state: dict, how: dict):
        fold = jax.vmap(lambda key, n: jax.random.fold_in(key, n), in_axes=(None, 0))
        keys = fold(jax.random.key(how["seed"]), state["crc"])
        return jax.vmap(jax.random.fold_in)(keys, state["copy"])

    def begin(params: dict, rows: dict, state: dict, how: dict):
        tokens_BT, length_B = rows["tokens"], rows["length"]
        t = tokens_BT.shape[1]
        times_BT = jnp.arange(t) - (t - length_B[:, None])
        seen_BTS = (jnp.arange(t)[:, None] >= jnp.arange(t)) & (times_BT >= 0)[:, None]
        read = kv_cache.cached_decoder(shape, params, rules)
        logits_B1V, kept = read(tokens_BT, times_BT, seen_BTS, last=True)
        token_B, nats_B = choose(logits_B1V[:, 0], row_keys(state, how), state["n_said"], how)
        return kv_cache.extend(kept, slots), (token_B[:, None], nats_B[:, None])

    def resume(params: dict, kept: kv_cache.KVCache, rows: dict, state: dict, how: dict, cursor):
        fresh, said = begin(params, rows, state, how)
        shift = cursor - rows["tokens"].shape[1]
        return kv_cache.replace_rows(kept, fresh, rows["is_new"], shift), said

    def go_on(params: dict, kept: kv_cache.KVCache, state: dict, how: dict, cursor, n, end):
        read, keys = kv_cache.cached_decoder(shape, params, rules), row_keys(state, how)
        rows = state["token"].shape[0]

        def goes_on(carry):
            i, _, _, is_live_B, _, _ = carry
            return (i < n) & is_live_B.any()

        def say(carry):
            i, kept, token_B, is_live_B, token_BN, nats_BN = carry
            slot = (cursor + i) % slots
            age_S = (slot - jnp.arange(slots)) % slots  # 0: the token itself
            times_B1 = (state["n_kept"] + i)[:, None]
            seen_B1S = (age_S <= times_B1)[:, None]
            logits_B1V, kept = read(token_B[:, None], times_B1, seen_B1S, kept, slot)
            token_B, nats_B = choose(logits_B1V[:, 0], keys, state["n_said"] + i, how)
            is_live_B &= token_B != end
            token_BN, nats_BN = token_BN.at[:, i].set(token_B), nats_BN.at[:, i].set(nats_B)
            return i + 1, kept, token_B, is_live_B, token_BN, nats_BN

        empty = jnp.zeros((rows, CHUNK), jnp.int32), jnp.zeros((rows, CHUNK), jnp.float32)
        carry = (0, kept, state["token"], state["is_live"], *empty)
        i, kept, _, _, token_BN, nats_BN = jax.lax.while_loop(goes_on, say, carry)
        return kept, (token_BN, nats_BN), i

    everywhere = mesh.named_sharding(device_mesh)
    kept = rules.sharding(device_mesh, "batch", "kv_heads", None, None)
    return (
        jax.jit(begin, out_shardings=(kept, everywhere)),
        jax.jit(resume, out_shardings=(kept, everywhere), donate_argnums=1),
        jax.jit(go_on, out_shardings=(kept, everywhere, everywhere), donate_argnums=1),
    )
