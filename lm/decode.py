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

from lm import attention, cache, config, mesh, model

CHUNK = 16  # tokens that are said before the host looks at them


def key(run: config.Run) -> str:
    """What a compiled program of this run can be found again by."""
    return json.dumps([dataclasses.asdict(knobs) for knobs in (run.model, run.mesh)])


def _shape_and_rules(key: str) -> tuple[config.Model, mesh.ShardingRules]:
    shape, knobs = json.loads(key)
    rules = mesh.ShardingRules.of(config.from_dict(knobs, config.Mesh))
    return config.from_dict(shape, config.Model), rules


@functools.cache
def scorer(key: str, device_mesh: jax.sharding.Mesh) -> Callable:
    """jit of (params, packing.arrays) -> nats_BT of the targets, whether each is likeliest."""
    shape, rules = _shape_and_rules(key)

    def score(params: dict, batch: dict):
        segments_BT, roots_BT, t = batch["segments"], batch["roots"], batch["tokens"].shape[1]
        own_BTS = segments_BT[:, :, None] == segments_BT[:, None]
        trunk_BTS = roots_BT[:, :, None] == segments_BT[:, None]
        seen_BTS = (own_BTS | trunk_BTS) & (jnp.arange(t)[:, None] >= jnp.arange(t))
        logits_BTV, _ = cache.reader(shape, params, rules)(
            batch["tokens"], batch["times"], seen_BTS
        )
        nats_BT, _ = model.nats(logits_BTV, batch["targets"])
        return nats_BT, jnp.argmax(logits_BTV, axis=-1) == batch["targets"]

    return jax.jit(score, out_shardings=mesh.sharding(device_mesh))


@functools.cache
def speakers(
    key: str, device_mesh, slots: int, is_random: bool, top_k: int, has_top_p: bool, n_ids: int
) -> tuple[Callable, Callable, Callable]:
    """Compiled: begin (read prompts), resume (read some rows anew), go_on (say up to CHUNK)."""
    shape, rules = _shape_and_rules(key)
    ids_V = np.arange(shape.vocab_size)

    def choose(logits_BV, row_keys, n_said_B, how: dict) -> tuple[jax.Array, jax.Array]:
        """The next token of each row and its nats."""
        choices_BV = jnp.where(ids_V < n_ids, logits_BV, attention.MASKED)
        if is_random:
            choices_BV = choices_BV / how["temperature"]
            if 0 < top_k < shape.vocab_size:
                least_B1 = jax.lax.top_k(choices_BV, top_k)[0][:, -1:]
                choices_BV = jnp.where(choices_BV >= least_B1, choices_BV, attention.MASKED)
            if has_top_p:
                sorted_BV = jnp.sort(choices_BV, axis=-1, descending=True)
                share_BV = jax.nn.softmax(sorted_BV, axis=-1)
                is_needed_BV = jnp.cumsum(share_BV, axis=-1) - share_BV < how["top_p"]
                least_B1 = jnp.where(is_needed_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
                choices_BV = jnp.where(choices_BV >= least_B1, choices_BV, attention.MASKED)
            keys = jax.vmap(jax.random.fold_in)(row_keys, n_said_B)
            token_B = jax.vmap(jax.random.categorical)(keys, choices_BV)
        else:
            token_B = jnp.argmax(choices_BV, axis=-1)
        nats_B1, _ = model.nats(logits_BV[:, None], token_B[:, None])
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
        read = cache.reader(shape, params, rules)
        logits_B1V, kept = read(tokens_BT, times_BT, seen_BTS, last=True)
        token_B, nats_B = choose(logits_B1V[:, 0], row_keys(state, how), state["n_said"], how)
        return cache.grown(kept, slots), (token_B[:, None], nats_B[:, None])

    def resume(params: dict, kept: cache.Kept, rows: dict, state: dict, how: dict, cursor):
        fresh, said = begin(params, rows, state, how)
        shift = cursor - rows["tokens"].shape[1]
        return cache.replaced(kept, fresh, rows["is_new"], shift), said

    def go_on(params: dict, kept: cache.Kept, state: dict, how: dict, cursor, n, end):
        read, keys = cache.reader(shape, params, rules), row_keys(state, how)
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

    everywhere = mesh.sharding(device_mesh)
    kept = rules.sharding(device_mesh, "batch", "kv_heads", None, None)
    return (
        jax.jit(begin, out_shardings=(kept, everywhere)),
        jax.jit(resume, out_shardings=(kept, everywhere), donate_argnums=1),
        jax.jit(go_on, out_shardings=(kept, everywhere, everywhere), donate_argnums=1),
    )
