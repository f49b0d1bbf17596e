"""Prefill, reprefill and decoding, compared with the training model without a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import small_model
from fixtures.small_model import CONTEXT, MESH, MODEL, RUN, TOKENIZER, encode

from lm.evaluation import decoding, generation, scoring
from lm.model import kv_cache, transformer


@pytest.fixture(scope="module")
def params():
    return small_model.random_params()


@pytest.mark.parametrize(
    "changes, tolerance",
    [
        ({}, 2e-5),
        ({"n_kv_heads": 4, "tie_embeddings": True, "logit_softcap": 3.0, "n_layers": 1}, 2e-5),
        ({"dtype": "bfloat16", "n_layers": 1}, 0.15),
        (small_model.VARIANT, 2e-5),
    ],
)
def test_cached_logits_equal_uncached_logits(changes, tolerance):
    model = dataclasses.replace(MODEL, **changes)
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 12), 0, 256)
    key_times_BS = np.arange(12)[None].repeat(2, 0)

    @jax.jit
    def both_logits():
        params = transformer.init_params(model, 0)
        read = kv_cache.cached_decoder(model, params)
        times_BT = jnp.arange(12)[None].repeat(2, 0)
        mask_BTS = times_BT[:, :, None] >= jnp.arange(12)
        logits_BTV, cache = read(tokens_BT[:, :7], times_BT[:, :7], mask_BTS[:, :7, :7])
        cache, parts = kv_cache.extend(cache, 12), [logits_BTV]
        for t in range(7, 9):
            now = slice(t, t + 1)
            logits_B1V, cache = read(
                *(tokens_BT[:, now], times_BT[:, now], mask_BTS[:, now], cache, t),
                key_positions_BS=key_times_BS,
            )
            parts.append(logits_B1V)
        uncached_BTV = transformer.compute_logits(model, params, tokens_BT)
        return jnp.concatenate(parts, axis=1), uncached_BTV[:, :9]

    cached_BTV, uncached_BTV = both_logits()
    np.testing.assert_allclose(cached_BTV, uncached_BTV, atol=tolerance)


def test_experts_of_a_cached_model_use_no_kernel_of_training():
    """Experts with a capacity have the kernel "batched", which does not serve dropless ones."""
    experts = {"n_experts": 2, "experts_per_token": 1, "dispatch": "capacity", "n_layers": 1}
    times_BT, logits = jnp.arange(4)[None], []
    mask_BTS = times_BT[:, :, None] >= jnp.arange(4)
    for kernel in ("batched", "auto"):
        model = dataclasses.replace(MODEL, **experts, expert_kernel=kernel)

        @jax.jit
        def first_logits(model=model):
            read = kv_cache.cached_decoder(model, transformer.init_params(model, 0))
            return read(times_BT, times_BT, mask_BTS)[0]

        logits.append(first_logits())
    np.testing.assert_array_equal(*logits)


def test_full_context_continues_from_its_second_half(params):
    """Compare with the definition, token by token and without a cache."""
    prompts = [encode("The cat"), encode("x" * 40), encode("I")]
    sampling = generation.SamplingParams(max_tokens=60)
    logits = small_model.uncached_logits(params)
    answers = generation.generate(RUN, MESH, params, prompts, TOKENIZER, sampling)
    assert [answer.n_truncated for answer in answers] == [0, 8, 0]
    for prompt, answer in zip(prompts, answers, strict=True):
        window = prompt[-CONTEXT:]
        for token, nats in zip(answer.tokens, answer.nats, strict=True):
            logits_V = logits(window)[-1]
            assert token == logits_V.argmax()
            expected = small_model.token_nats(logits_V[None], [token])[0]
            np.testing.assert_allclose(nats, expected, atol=5e-5)
            window = window[-15:] + [token] if len(window) == CONTEXT else window + [token]


def test_greedy_answers_score_as_greedy(params):
    prompt, sampling = encode("The cat"), generation.SamplingParams(max_tokens=20)
    (answer,) = generation.generate(RUN, MESH, params, [prompt], TOKENIZER, sampling)
    (scored,) = scoring.score_answers(RUN, MESH, params, [prompt], [answer.tokens])
    assert scored.is_greedy
    np.testing.assert_allclose(scored.nats, answer.nats, atol=5e-5)


def test_first_tokens_follow_the_filtered_softmax(params):
    """Compare token frequencies with probabilities computed from the logits by NumPy."""
    prompt, n = encode("The cat"), 400
    sampling = generation.SamplingParams(max_tokens=1, temperature=1.5, top_k=6, top_p=0.9)
    answers = generation.generate(RUN, MESH, params, [prompt] * n, TOKENIZER, sampling)
    logits_V = small_model.uncached_logits(params)(prompt)[-1].astype(np.float64) / 1.5
    order = np.argsort(-logits_V)[:6]
    p = np.exp(logits_V[order] - logits_V[order].max())
    p /= p.sum()
    n_nucleus = int(np.searchsorted(np.cumsum(p), 0.9) + 1)
    assert 1 < n_nucleus < 6
    p = p[:n_nucleus] / p[:n_nucleus].sum()
    nucleus = order[:n_nucleus]
    counts = np.array([sum(answer.tokens == [token] for answer in answers) for token in nucleus])
    assert counts.sum() == n
    assert (np.abs(counts / n - p) < 4 * np.sqrt(p * (1 - p) / n)).all()


GPT2 = {"norm": "layer", "mlp": "gelu", "bias": True, "qk_norm": False}


@pytest.mark.slow
@pytest.mark.parametrize("fields", [GPT2 | {"learned_positions": CONTEXT}, small_model.VARIANT])
def test_other_positions_and_windows_work_with_the_cache(fields):
    model = dataclasses.replace(MODEL, **fields)
    run = dataclasses.replace(RUN, model=model)
    params = small_model.random_params(model, shift=0.01)
    logits = small_model.uncached_logits(params, model)
    prompts = [encode("The cat"), encode("a longer one")]
    sampling = generation.SamplingParams(max_tokens=12)
    answers = generation.generate(run, MESH, params, prompts, TOKENIZER, sampling)
    answer_tokens = [answer.tokens for answer in answers]
    scores = scoring.score_answers(run, MESH, params, prompts, answer_tokens)
    for prompt, answer, scored in zip(prompts, answers, scores, strict=True):
        logits_TV = logits(prompt + answer.tokens)[len(prompt) - 1 : -1]
        assert (logits_TV.argmax(-1) == answer.tokens).all() and scored.is_greedy
        expected = small_model.token_nats(logits_TV, answer.tokens)
        np.testing.assert_allclose(answer.nats, expected, atol=5e-5)
        np.testing.assert_allclose(scored.nats, answer.nats, atol=5e-5)


def test_next_power_of_two_respects_the_minimum():
    assert [decoding.next_power_of_two(n) for n in (1, 2, 3, 32, 33)] == [1, 2, 4, 32, 64]
    assert decoding.next_power_of_two(3, least=32) == 32


def test_decoding_reads_weights_in_the_type_of_the_model(monkeypatch):
    """They are cast once per call of generate. The tokens are those of float32 weights."""
    model = dataclasses.replace(MODEL, dtype="bfloat16", n_layers=1)
    run = dataclasses.replace(RUN, model=model)
    params = small_model.random_params(run.model)
    sampling = generation.SamplingParams(max_tokens=3)
    programs, types = decoding.generation_programs, []

    def record_types(*arguments):
        def decode_chunk(params, *arrays):
            names = {"embed": params["embed"], "down": params["blocks"]["mlp"]["down"]}
            names |= {"norm": params["norm"]["scale"]}
            types.append({name: str(weight.dtype) for name, weight in names.items()})
            return original.decode_chunk(params, *arrays)

        original = programs(*arguments)
        return original._replace(decode_chunk=decode_chunk)

    monkeypatch.setattr(decoding, "generation_programs", record_types)

    def answer() -> list:
        (result,) = generation.generate(run, MESH, params, [encode("The")], TOKENIZER, sampling)
        return [result.tokens, result.nats]

    cast = answer()
    assert types[0] == {"embed": "bfloat16", "down": "bfloat16", "norm": "float32"}
    monkeypatch.setattr(decoding, "cast_program", lambda *_: lambda params: params)
    assert cast == answer() and types[-1]["down"] == "float32"


def test_cast_weights_contain_merged_adapters():
    """Routers and biases are float32."""
    model = dataclasses.replace(
        MODEL, dtype="bfloat16", lora_rank=2, n_experts=4, load_balancing="bias"
    )
    tree = jax.eval_shape(lambda: transformer.init_params(model, 0))
    cast = jax.eval_shape(lambda tree: kv_cache.cast_weights(model, tree), tree)
    assert "lora" not in cast
    types = {name: str(leaf.dtype) for name, leaf in cast["blocks"]["mlp"].items()}
    names = ("gate", "up", "down", "router", "bias")
    assert [types[name] for name in names] == ["bfloat16"] * 3 + ["float32"] * 2
