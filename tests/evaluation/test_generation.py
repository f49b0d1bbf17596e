import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import schema
from lm.data import tokenizers
from lm.evaluation import generation, scoring
from lm.model import kv_cache, transformer
from lm.parallel import mesh

BYTES = tokenizers.ByteTokenizer()
SHAPE = schema.Model(
    vocab_size=256, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=48
)
RUN = schema.Run(model=SHAPE)
RUN.data.seq_len, RUN.data.batch_size = 32, 4
MESH = mesh.make_mesh(schema.Mesh())
RANDOM = generation.SamplingParams(max_tokens=40, temperature=0.9, top_k=50, top_p=0.95, seed=3)


def ids(text: str) -> list[int]:
    return BYTES.encode(text).tolist()


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(
        lambda w: 2 * w, jax.jit(lambda: transformer.init_params(SHAPE, 0))()
    )  # has opinions


@pytest.fixture(scope="module")
def plain(params):
    """tokens -> logits_TV of the model as it is trained: no cache, no packing."""
    compiled = jax.jit(lambda tokens_BT: transformer.compute_logits(SHAPE, params, tokens_BT))

    def logits(tokens_T):
        padded = np.pad(np.array(tokens_T, np.int32), (0, 32 - len(tokens_T)))
        return np.asarray(compiled(padded[None]))[0, : len(tokens_T)]

    return logits


def nats(logits_TV, targets_T) -> np.ndarray:
    found, _ = transformer.cross_entropy(jnp.asarray(logits_TV)[None], jnp.asarray(targets_T)[None])
    return np.asarray(found)[0]


PROMPTS = [ids(p) for p in ("The cat", "The cat", "x", "a longer one " * 4, "The cat", "The cat")]
ANSWERS = [ids(a) for a in (" sat", " is on the mat", "y", "here", "", " sat on two mats now")]


def test_answers_in_packed_rows_score_as_alone(params, plain):
    rows, _ = scoring.pack_requests(PROMPTS, ANSWERS, 32)
    assert len(rows) < 5 and max(len(row) for row in rows) > 1
    found = scoring.score_answers(RUN, MESH, params, PROMPTS, ANSWERS)
    for scored, prompt, answer in zip(found, PROMPTS, ANSWERS, strict=True):
        assert scored.n_cut == max(0, len(prompt) + len(answer) - 33)
        if answer:
            whole = (prompt + answer)[-33:]
            logits_TV = plain(whole[:-1])[-len(answer) :]
            np.testing.assert_allclose(scored.nats, nats(logits_TV, answer), atol=5e-5)
            assert scored.is_greedy == (logits_TV.argmax(-1) == answer).all()
    assert found[4].is_greedy and len(found[4].nats) == 0


def test_an_equal_prompt_is_written_once():
    rows, length = scoring.pack_requests([ids("once")] * 3, [ids("ab"), ids("c"), ids("def")], 32)
    (item,) = rows[0]
    assert len(rows) == 1 and item.length == 3 + 2 + 1 + 3 and length == 32
    batch, places = scoring.to_arrays(rows, [ids("ab"), ids("c"), ids("def")], 1, length)
    assert bytes(batch["tokens"][0, :9].tolist()) == b"onc" + b"ea" + b"e" + b"ede"
    assert bytes(batch["targets"][0, 3:9].tolist()) == b"ab" + b"c" + b"def"
    assert batch["times"][0, :9].tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5]
    assert [place for _, _, place in places] == [3, 5, 6]


def test_what_the_model_says_it_scores_as_greedy(params):
    (said,) = generation.generate(
        RUN, MESH, params, [ids("The cat")], BYTES, generation.SamplingParams(max_tokens=20)
    )
    (scored,) = scoring.score_answers(RUN, MESH, params, [ids("The cat")], [said.tokens])
    assert scored.is_greedy
    np.testing.assert_allclose(scored.nats, said.nats, atol=5e-5)


@pytest.mark.parametrize(
    "knobs, tolerance",
    [
        ({}, 2e-5),
        ({"n_kv_heads": 4, "tie_embeddings": True, "logit_softcap": 3.0}, 2e-5),
        ({"dtype": "bfloat16"}, 0.15),
    ],
)
def test_logits_through_the_cache_are_those_without(knobs, tolerance):
    shape = dataclasses.replace(SHAPE, **knobs)
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 12), 0, 256)

    @jax.jit
    def both():
        params = transformer.init_params(shape, 0)
        read = kv_cache.cached_decoder(shape, params)
        times_BT = jnp.arange(12)[None].repeat(2, 0)
        seen_BTS = times_BT[:, :, None] >= jnp.arange(12)
        first, kept = read(tokens_BT[:, :7], times_BT[:, :7], seen_BTS[:, :7, :7])
        kept, parts = kv_cache.extend(kept, 12), [first]
        for t in range(7, 9):
            one = (tokens_BT[:, t : t + 1], times_BT[:, t : t + 1], seen_BTS[:, t : t + 1])
            part, kept = read(*one, kept, t)
            parts.append(part)
        whole = transformer.compute_logits(shape, params, tokens_BT)
        return jnp.concatenate(parts, axis=1), whole[:, :9]

    cached, whole = both()
    np.testing.assert_allclose(cached, whole, atol=tolerance)


def test_past_the_context_it_goes_on_from_the_later_half(params, plain):
    """By the letter of the rule, token by token, with no cache."""
    prompts = [ids("The cat"), ids("x" * 40), ids("I")]
    found = generation.generate(
        RUN, MESH, params, prompts, BYTES, generation.SamplingParams(max_tokens=60)
    )
    assert [one.n_cut for one in found] == [0, 8, 0]
    for prompt, one in zip(prompts, found, strict=True):
        window = prompt[-32:]
        for token, nat in zip(one.tokens, one.nats, strict=True):
            logits_V = plain(window)[-1]
            assert token == logits_V.argmax()
            np.testing.assert_allclose(nat, nats(logits_V[None], [token])[0], atol=5e-5)
            window = window[-15:] + [token] if len(window) == 32 else window + [token]


@pytest.mark.parametrize("sampling", [generation.SamplingParams(max_tokens=40), RANDOM])
def test_an_answer_does_not_depend_on_the_other_prompts(params, sampling):
    prompts = [ids("The cat"), ids("quite another thing"), ids("x"), ids("The cat")]
    together = generation.generate(RUN, MESH, params, prompts, BYTES, sampling)
    alone = generation.generate(RUN, MESH, params, [prompts[2]], BYTES, sampling)
    assert together[2].tokens == alone[0].tokens and len(alone[0].tokens) > 5
    np.testing.assert_allclose(together[2].nats, alone[0].nats, atol=1e-4)
    twice = generation.generate(RUN, MESH, params, [ids("The cat")] * 2, BYTES, sampling)
    assert [t.tokens for t in twice] == [together[0].tokens, together[3].tokens]
    assert (twice[0].tokens == twice[1].tokens) == (sampling.temperature == 0)


@pytest.mark.slow
def test_every_mesh_says_and_scores_the_same(params):
    knobs = schema.Mesh(expert=2, tensor=2, rules={"embed": "expert", "vocab": []})
    run, other = dataclasses.replace(RUN, mesh=knobs), mesh.make_mesh(knobs)
    split = jax.tree.map(
        lambda w, names: jax.device_put(w, mesh.named_sharding(other, *names)),
        params,
        transformer.param_axes(SHAPE),
    )
    prompts = [ids("The cat"), ids("x"), ids("dog")]
    here = generation.generate(RUN, MESH, params, prompts, BYTES, RANDOM)
    there = generation.generate(run, other, split, prompts, BYTES, RANDOM)
    assert [one.tokens for one in here] == [one.tokens for one in there]
    answers = [one.tokens[:9] for one in here]
    for a, b in zip(
        scoring.score_answers(RUN, MESH, params, prompts, answers),
        scoring.score_answers(run, other, split, prompts, answers),
        strict=True,
    ):
        np.testing.assert_allclose(a.nats, b.nats, atol=5e-5)


def test_draws_follow_the_filtered_softmax(params, plain):
    """The frequencies of first tokens, against the truth by hand."""
    prompt, n = ids("The cat"), 400
    sampling = generation.SamplingParams(max_tokens=1, temperature=1.5, top_k=6, top_p=0.9)
    found = generation.generate(RUN, MESH, params, [prompt] * n, BYTES, sampling)
    logits_V = plain(prompt)[-1].astype(np.float64) / 1.5
    order = np.argsort(-logits_V)[:6]
    share = np.exp(logits_V[order] - logits_V[order].max())
    share /= share.sum()
    kept = int(np.searchsorted(np.cumsum(share), 0.9) + 1)
    assert 1 < kept < 6
    share = share[:kept] / share[:kept].sum()
    counts = np.array([sum(one.tokens == [token] for one in found) for token in order[:kept]])
    assert counts.sum() == n
    assert (np.abs(counts / n - share) < 4 * np.sqrt(share * (1 - share) / n)).all()


def test_an_answer_ends_at_the_end_of_a_document_or_a_stop_string(params, plain):
    sampling = generation.SamplingParams(max_tokens=12)
    (free,) = generation.generate(RUN, MESH, params, [ids("The cat")], BYTES, sampling)
    assert free.why == "length" and len(free.tokens) == 12

    class Ends(tokenizers.ByteTokenizer):
        end = free.tokens[3]

    (ended,) = generation.generate(RUN, MESH, params, [ids("The cat")], Ends(), sampling)
    first = free.tokens.index(Ends.end)
    assert ended.why == "end" and ended.tokens == free.tokens[: first + 1]


def test_knobs_and_prompts_that_cannot_work_are_refused_in_a_line(params):
    for knob, value in (("temperature", -1.0), ("top_p", 0.0), ("max_tokens", 0), ("stop", ("",))):
        with pytest.raises(ValueError, match=f"^{knob}="):
            sampling = dataclasses.replace(generation.SamplingParams(), **{knob: value})
            generation.generate(RUN, MESH, params, [ids("a")], BYTES, sampling)
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        generation.generate(RUN, MESH, params, [ids("a"), []], BYTES)
    with pytest.raises(ValueError, match=r"answers\[0\] has 33 tokens"):
        scoring.score_answers(RUN, MESH, params, [ids("a")], [[1] * 33])


def test_learned_positions_are_read_through_the_cache_as_without():
    shape = dataclasses.replace(
        SHAPE, norm="layer", mlp="gelu", bias=True, qk_norm=False, learned_positions=32
    )
    run = dataclasses.replace(RUN, model=shape)
    params = jax.tree.map(
        lambda w: 2 * w + 0.01, jax.jit(lambda: transformer.init_params(shape, 0))()
    )
    compiled = jax.jit(lambda tokens_BT: transformer.compute_logits(shape, params, tokens_BT))
    prompts = [ids("The cat"), ids("a longer one")]
    said = generation.generate(
        run, MESH, params, prompts, BYTES, generation.SamplingParams(max_tokens=12)
    )
    scored = scoring.score_answers(run, MESH, params, prompts, [one.tokens for one in said])
    for prompt, one, its in zip(prompts, said, scored, strict=True):
        whole = np.zeros((1, 32), np.int32)
        text = prompt + one.tokens
        whole[0, : len(text)] = text
        logits_TV = np.asarray(compiled(whole))[0, len(prompt) - 1 : len(text) - 1]
        assert (logits_TV.argmax(-1) == one.tokens).all() and its.is_greedy
        np.testing.assert_allclose(one.nats, nats(logits_TV, one.tokens), atol=5e-5)
        np.testing.assert_allclose(its.nats, one.nats, atol=5e-5)


BYTES_TALK = tokenizers.ByteTokenizer()


def said(text: bytes, stop=(), max_tokens=99):
    """What is shown after each byte, and why it ends."""
    one, shown = generation.StreamingDecoder(BYTES_TALK, stop, max_tokens), []
    for byte in text:
        shown.append(one.add(byte))
        if one.why:
            break
    return shown, one.why


def test_a_character_is_shown_when_it_is_whole():
    assert said("é!".encode()) == (["", "é", "!"], "")


def test_a_broken_character_is_marked_at_the_end():
    assert said("aé".encode(), max_tokens=2) == (["a", "�"], "length")


def test_the_end_token_ends_and_shows_nothing():
    assert said(b"ab\0c") == (["a", "b", ""], "end")


@pytest.mark.parametrize("stop", [("\n\n",), ("zzz", "\n\n"), ("\n\nx", "\n\n")])
def test_a_stop_string_is_never_shown_not_even_its_beginning(stop):
    assert said(b"a\nb\n\nx", stop) == (["a", "", "\nb", "", ""], "stop")


def test_what_began_like_a_stop_string_is_shown_when_the_answer_ends():
    assert said(b"a\n", ("\n\n",), max_tokens=2) == (["a", "\n"], "length")
    assert said(b"a\n\0", ("\n\n",)) == (["a", "", "\n"], "end")


def test_a_stop_string_may_begin_and_end_within_tokens():
    bpe = tokenizers.train_bpe(iter(["one, two, three, four"] * 9), 290)
    text = "one, two, three, four"
    ids = bpe.encode(text)
    assert len(ids) < len(text) / 2
    one, shown = generation.StreamingDecoder(bpe, ("wo, th",), 99), ""
    for token in ids:
        shown += one.add(token)
        if one.why:
            break
    assert (shown, one.why) == ("one, t", "stop")
