"""Compiled programs: scoring, next-token probabilities, and the three programs of generation.

Tensor names end in their axes: B rows, T time, S cache slot, V vocabulary, N tokens of a chunk.

Dicts of arrays that generation passes to the programs:

    rows        prompts: tokens [B, T] aligned to the right, length [B], is_new [B] (rows that
                reprefill replaces)
    state       per row [B]: prompt_crc and copy_index (the random key), n_generated, last_token,
                n_cached (tokens in the cache), is_active (the answer has no finish reason yet)
    scalars     seed, temperature, top_p
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import schema
from lm.evaluation import heldout
from lm.model import attention, kv_cache, transformer
from lm.parallel import mesh

CHUNK_SIZE = 16  # largest number of tokens per row that one call of decode_chunk generates

SampledTokens = tuple[jax.Array, jax.Array]  # token ids [B, N] and their nats [B, N]


@dataclasses.dataclass(frozen=True)
class ProgramOptions:
    """Options of the generation programs. Each combination is compiled separately."""

    n_slots: int  # slots of the key-value cache
    is_random: bool  # sample, instead of the most likely token
    top_k: int  # sample from the k most likely tokens; 0: from all tokens
    has_top_p: bool  # sample from the nucleus of probability scalars["top_p"]
    n_ids: int  # token ids of the tokenizer; the model may have more logits


class GenerationPrograms(NamedTuple):
    """Compiled functions of generation: see the methods of the same names in _Generator."""

    prefill: Callable
    reprefill: Callable
    decode_chunk: Callable


def next_power_of_two(n: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least n, or `least` if that is larger.

    Sizes are rounded up with it, so that few programs are compiled.
    """
    return max(least, 1 << (int(n) - 1).bit_length())


def program_cache_key(run: schema.Run) -> str:
    """Return the model and mesh of a run as JSON: the key of its compiled programs."""
    return json.dumps([dataclasses.asdict(section) for section in (run.model, run.mesh)])


def _model_and_rules(key: str) -> tuple[schema.Model, mesh.ShardingRules]:
    """Return the model config and the sharding rules of a cache key."""
    model_fields, mesh_fields = json.loads(key)
    rules = mesh.ShardingRules.from_config(schema.from_dict(mesh_fields, schema.Mesh))
    return schema.from_dict(model_fields, schema.Model), rules


@functools.cache
def scoring_program(key: str, device_mesh: jax.sharding.Mesh) -> Callable:
    """Return the jitted function (params, batch) -> (nats_BT, is_greedy_BT).

    batch: the arrays of scoring.to_arrays. nats_BT are -log p of the targets. is_greedy_BT is True
    where the target is the most likely token.
    """
    model, rules = _model_and_rules(key)

    def score(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        segments_BT, roots_BT, t = batch["segments"], batch["roots"], batch["tokens"].shape[1]
        same_segment_BTS = segments_BT[:, :, None] == segments_BT[:, None]
        own_prompt_BTS = roots_BT[:, :, None] == segments_BT[:, None]
        mask_BTS = same_segment_BTS | own_prompt_BTS
        mask_BTS &= jnp.arange(t)[:, None] >= jnp.arange(t)
        logits_BTV, _ = kv_cache.cached_decoder(model, params, rules)(
            batch["tokens"], batch["times"], mask_BTS
        )
        nats_BT, _ = transformer.cross_entropy(logits_BTV, batch["targets"])
        return nats_BT, jnp.argmax(logits_BTV, axis=-1) == batch["targets"]

    return jax.jit(score, out_shardings=mesh.named_sharding(device_mesh))


@functools.cache
def sentence_program(key: str, device_mesh: jax.sharding.Mesh) -> Callable:
    """Return the jitted function (params, batch) -> nats_BT of each next token.

    batch: tokens [B, T+1] and segments [B, T] of any size. The function is heldout.make_scorer
    without the most likely tokens, which take a quarter of the time of a small model.
    """
    model_fields, mesh_fields = json.loads(key)
    run = schema.Run(
        model=schema.from_dict(model_fields, schema.Model),
        mesh=schema.from_dict(mesh_fields, schema.Mesh),
    )
    score = heldout.make_scorer(run, device_mesh)
    return jax.jit(
        lambda params, batch: score(params, batch)[0],
        out_shardings=mesh.named_sharding(device_mesh),
    )


@functools.cache
def cast_program(key: str, device_mesh: jax.sharding.Mesh) -> Callable:
    """Return the function params -> weights for generation, see kv_cache.cast_weights."""
    model, rules = _model_and_rules(key)
    if model.dtype == "float32" and not model.lora_rank:
        return lambda params: params
    names = transformer.param_axes(dataclasses.replace(model, lora_rank=0))
    shardings = jax.tree.map(
        lambda axes: rules.sharding(device_mesh, *axes), names, is_leaf=mesh.is_axis_names
    )
    return jax.jit(functools.partial(kv_cache.cast_weights, model), out_shardings=shardings)


@functools.cache
def next_token_program(key: str, device_mesh: jax.sharding.Mesh) -> Callable:
    """Return the jitted function (params, rows) -> log_p_BV of the token after each row.

    rows: tokens [B, T] aligned to the right, length [B].
    """
    model, rules = _model_and_rules(key)

    def log_probs(params: dict, rows: dict) -> jax.Array:
        logits_B1V, _ = _read_prompts(model, rules, params, rows)
        return jax.nn.log_softmax(logits_B1V[:, 0].astype(jnp.float32), axis=-1)

    return jax.jit(log_probs, out_shardings=mesh.named_sharding(device_mesh))


def _read_prompts(
    model: schema.Model, rules: mesh.ShardingRules, params: dict, rows: dict
) -> tuple[jax.Array, kv_cache.KVCache]:
    """Return the logits after each row [B, 1, V] and the cache. rows: see the module docstring."""
    tokens_BT, length_B = rows["tokens"], rows["length"]
    t = tokens_BT.shape[1]
    times_BT = jnp.arange(t) - (t - length_B[:, None])
    mask_BTS = (jnp.arange(t)[:, None] >= jnp.arange(t)) & (times_BT >= 0)[:, None]
    return kv_cache.cached_decoder(model, params, rules)(tokens_BT, times_BT, mask_BTS, last=True)


@functools.cache
def generation_programs(
    key: str, device_mesh: jax.sharding.Mesh, options: ProgramOptions
) -> GenerationPrograms:
    """Return the jitted functions of generation for a cache key and options.

    The cache argument of reprefill and decode_chunk is donated: its buffers are reused.
    """
    model, rules = _model_and_rules(key)
    generator = _Generator(model, rules, options)
    replicated = mesh.named_sharding(device_mesh)
    cache = rules.sharding(device_mesh, "batch", "kv_heads", None, None)
    return GenerationPrograms(
        jax.jit(generator.prefill, out_shardings=(cache, replicated)),
        jax.jit(generator.reprefill, out_shardings=(cache, replicated), donate_argnums=1),
        jax.jit(
            generator.decode_chunk, out_shardings=(cache, replicated, replicated), donate_argnums=1
        ),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Generator:
    """Functions of generation that are compiled."""

    model: schema.Model
    rules: mesh.ShardingRules
    options: ProgramOptions

    def prefill(
        self, params: dict, rows: dict, state: dict, scalars: dict
    ) -> tuple[kv_cache.KVCache, SampledTokens]:
        """Run the model on all prompts. Return the cache and the first token of each answer."""
        logits_B1V, cache = _read_prompts(self.model, self.rules, params, rows)
        keys_B = _row_keys(state, scalars)
        token_B, nats_B = self.sample(logits_B1V[:, 0], keys_B, state["n_generated"], scalars)
        cache = kv_cache.extend(cache, self.options.n_slots)
        return cache, (token_B[:, None], nats_B[:, None])

    def reprefill(
        self,
        params: dict,
        cache: kv_cache.KVCache,
        rows: dict,
        state: dict,
        scalars: dict,
        cursor: jax.Array,
    ) -> tuple[kv_cache.KVCache, SampledTokens]:
        """Run the model on the rows with is_new and replace them in the cache.

        cursor: slot into which the next token of every row is written. Return the cache and the
        next token of each row; tokens of the other rows have no meaning.
        """
        new_cache, sampled = self.prefill(params, rows, state, scalars)
        shift = cursor - rows["tokens"].shape[1]
        return kv_cache.replace_rows(cache, new_cache, rows["is_new"], shift), sampled

    def decode_chunk(
        self,
        params: dict,
        cache: kv_cache.KVCache,
        state: dict,
        scalars: dict,
        cursor: jax.Array,
        n_tokens: jax.Array,
        end: jax.Array,
    ) -> tuple[kv_cache.KVCache, SampledTokens, jax.typing.ArrayLike]:
        """Generate up to n_tokens tokens per row; stop when all rows have generated `end`.

        Return the cache, the tokens [B, CHUNK_SIZE], and the number of columns that are filled.
        """
        read = kv_cache.cached_decoder(self.model, params, self.rules)
        keys_B = _row_keys(state, scalars)
        n_slots, n_rows = self.options.n_slots, state["last_token"].shape[0]

        def should_continue(carry):
            i, _, _, is_active_B, _, _ = carry
            return (i < n_tokens) & is_active_B.any()

        def decode_token(carry):
            i, cache, token_B, is_active_B, token_BN, nats_BN = carry
            slot = (cursor + i) % n_slots
            age_S = (slot - jnp.arange(n_slots)) % n_slots  # 0 is the slot of the token itself
            times_B1 = (state["n_cached"] + i)[:, None]
            mask_B1S = (age_S <= times_B1)[:, None]
            logits_B1V, cache = read(
                *(token_B[:, None], times_B1, mask_B1S, cache, slot),
                key_positions_BS=times_B1 - age_S,
            )
            token_B, nats_B = self.sample(
                logits_B1V[:, 0], keys_B, state["n_generated"] + i, scalars
            )
            is_active_B &= token_B != end
            token_BN, nats_BN = token_BN.at[:, i].set(token_B), nats_BN.at[:, i].set(nats_B)
            return i + 1, cache, token_B, is_active_B, token_BN, nats_BN

        token_BN = jnp.zeros((n_rows, CHUNK_SIZE), jnp.int32)
        nats_BN = jnp.zeros((n_rows, CHUNK_SIZE), jnp.float32)
        carry = (0, cache, state["last_token"], state["is_active"], token_BN, nats_BN)
        n_filled, cache, _, _, token_BN, nats_BN = jax.lax.while_loop(
            should_continue, decode_token, carry
        )
        return cache, (token_BN, nats_BN), n_filled

    def sample(
        self, logits_BV: jax.Array, keys_B: jax.Array, n_generated_B: jax.Array, scalars: dict
    ) -> tuple[jax.Array, jax.Array]:
        """Return the next token of each row, int32 [B], and its nats [B] at temperature 1."""
        ids_V = np.arange(self.model.vocab_size)
        allowed_BV = jnp.where(ids_V < self.options.n_ids, logits_BV, attention.MASK_VALUE)
        if self.options.is_random:
            filtered_BV = self.filter_logits(allowed_BV / scalars["temperature"], scalars)
            keys_B = jax.vmap(jax.random.fold_in)(keys_B, n_generated_B)
            token_B = jax.vmap(jax.random.categorical)(keys_B, filtered_BV)
        else:
            token_B = jnp.argmax(allowed_BV, axis=-1)
        nats_B1, _ = transformer.cross_entropy(logits_BV[:, None], token_B[:, None])
        return token_B.astype(jnp.int32), nats_B1[:, 0]

    def filter_logits(self, logits_BV: jax.Array, scalars: dict) -> jax.Array:
        """Mask the logits of tokens outside of top_k and top_p.

        top_p selects the smallest set of most likely tokens with at least this total probability
        (Holtzman et al. 2020, arXiv 1904.09751).
        """
        if 0 < self.options.top_k < self.model.vocab_size:
            threshold_B1 = jax.lax.top_k(logits_BV, self.options.top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV >= threshold_B1, logits_BV, attention.MASK_VALUE)
        if self.options.has_top_p:
            sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
            p_BV = jax.nn.softmax(sorted_BV, axis=-1)
            in_nucleus_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < scalars["top_p"]
            threshold_B1 = jnp.where(in_nucleus_BV, sorted_BV, jnp.inf).min(axis=-1, keepdims=True)
            logits_BV = jnp.where(logits_BV >= threshold_B1, logits_BV, attention.MASK_VALUE)
        return logits_BV


def _row_keys(state: dict, scalars: dict) -> jax.Array:
    """Return a random key per row, from the seed, the prompt and its number among equal prompts."""
    fold_each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys_B = fold_each(jax.random.key(scalars["seed"]), state["prompt_crc"])
    return jax.vmap(jax.random.fold_in)(keys_B, state["copy_index"])
