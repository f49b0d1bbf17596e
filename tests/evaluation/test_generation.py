"""Answers are independent of each other and of the mesh; streamed text is complete."""

import dataclasses

import jax
import numpy as np
import pytest
from fixtures import small_model, small_tokenizers
from fixtures.small_model import MESH, MODEL, RUN, TOKENIZER, encode

from lm.config import schema
from lm.data import tokenizers
from lm.data.tokenization import bpe_training
from lm.evaluation import generation, scoring
from lm.model import transformer
from lm.parallel import mesh

RANDOM = generation.SamplingParams(max_tokens=40, temperature=0.9, top_k=50, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def params():
    return small_model.random_params()


@pytest.mark.parametrize("sampling", [generation.SamplingParams(max_tokens=40), RANDOM])
def test_answers_do_not_depend_on_other_prompts(params, sampling):
    texts = ("The cat", "quite another thing", "x", "The cat")
    prompts = [encode(text) for text in texts]
    together = generation.generate(RUN, MESH, params, prompts, TOKENIZER, sampling)
    alone = generation.generate(RUN, MESH, params, [prompts[2]], TOKENIZER, sampling)
    assert together[2].tokens == alone[0].tokens and len(alone[0].tokens) > 5
    np.testing.assert_allclose(together[2].nats, alone[0].nats, atol=1e-4)
    twice = generation.generate(RUN, MESH, params, [prompts[0]] * 2, TOKENIZER, sampling)
    assert [answer.tokens for answer in twice] == [together[0].tokens, together[3].tokens]
    assert (twice[0].tokens == twice[1].tokens) == (sampling.temperature == 0)


@pytest.mark.slow
def test_every_mesh_generates_and_scores_the_same(params):
    split_mesh = schema.Mesh(expert=2, tensor=2, rules={"embed": "expert", "vocab": []})
    split_run, device_mesh = dataclasses.replace(RUN, mesh=split_mesh), mesh.make_mesh(split_mesh)
    split_params = jax.tree.map(
        lambda w, names: jax.device_put(w, mesh.named_sharding(device_mesh, *names)),
        params,
        transformer.param_axes(MODEL),
    )
    prompts = [encode("The cat"), encode("x"), encode("dog")]
    replicated, split = (RUN, MESH, params), (split_run, device_mesh, split_params)
    answers = generation.generate(*replicated, prompts, TOKENIZER, RANDOM)
    split_answers = generation.generate(*split, prompts, TOKENIZER, RANDOM)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in split_answers]
    answer_tokens = [answer.tokens[:9] for answer in answers]
    for scored, split_scored in zip(
        scoring.score_answers(*replicated, prompts, answer_tokens),
        scoring.score_answers(*split, prompts, answer_tokens),
        strict=True,
    ):
        np.testing.assert_allclose(scored.nats, split_scored.nats, atol=5e-5)


def test_finish_reason_is_length_or_end(params):
    prompt, sampling = encode("The cat"), generation.SamplingParams(max_tokens=12)
    (unlimited,) = generation.generate(RUN, MESH, params, [prompt], TOKENIZER, sampling)
    assert unlimited.finish_reason == "length" and len(unlimited.tokens) == 12
    assert str(unlimited) == unlimited.text != ""

    class OtherEnd(tokenizers.ByteTokenizer):
        end = unlimited.tokens[3]

    (ended,) = generation.generate(RUN, MESH, params, [prompt], OtherEnd(), sampling)
    first = unlimited.tokens.index(OtherEnd.end)
    assert ended.finish_reason == "end" and ended.tokens == unlimited.tokens[: first + 1]


@pytest.mark.parametrize(
    "name, value", [("temperature", -1.0), ("top_p", 0.0), ("max_tokens", 0), ("stop", ("",))]
)
def test_invalid_sampling_options_are_rejected(params, name, value):
    sampling = dataclasses.replace(generation.SamplingParams(), **{name: value})
    with pytest.raises(ValueError, match=f"^{name}="):
        generation.generate(RUN, MESH, params, [encode("a")], TOKENIZER, sampling)


def test_empty_prompt_is_rejected(params):
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        generation.generate(RUN, MESH, params, [encode("a"), []], TOKENIZER)


def stream_bytes(text: bytes, stop=(), max_tokens=99) -> tuple[list[str], str]:
    """Return the text printed after each byte, and the finish reason."""
    decoder, printed = generation.StreamingDecoder(TOKENIZER, stop, max_tokens), []
    for byte in text:
        printed.append(decoder.add(byte))
        if decoder.finish_reason:
            break
    return printed, decoder.finish_reason


def test_characters_are_printed_when_complete():
    assert stream_bytes("é!".encode()) == (["", "é", "!"], "")


def test_incomplete_character_is_replaced_at_the_end():
    assert stream_bytes("aé".encode(), max_tokens=2) == (["a", "�"], "length")


def test_end_token_prints_nothing():
    assert stream_bytes(b"ab\0c") == (["a", "b", ""], "end")


@pytest.mark.parametrize("stop", [("\n\n",), ("zzz", "\n\n"), ("\n\nx", "\n\n")])
def test_no_part_of_a_stop_string_is_printed(stop):
    assert stream_bytes(b"a\nb\n\nx", stop) == (["a", "", "\nb", "", ""], "stop")


def test_incomplete_stop_string_is_printed_at_the_end():
    assert stream_bytes(b"a\n", ("\n\n",), max_tokens=2) == (["a", "\n"], "length")
    assert stream_bytes(b"a\n\0", ("\n\n",)) == (["a", "", "\n"], "end")


def test_stop_string_may_begin_and_end_inside_tokens():
    bpe = bpe_training.train_bpe(iter(["one, two, three, four"] * 9), 290)
    text = "one, two, three, four"
    ids = bpe.encode(text)
    assert len(ids) < len(text) / 2
    decoder, printed = generation.StreamingDecoder(bpe, ("wo, th",), 99), ""
    for token in ids:
        printed += decoder.add(token)
        if decoder.finish_reason:
            break
    assert (printed, decoder.finish_reason) == ("one, t", "stop")


def test_first_space_of_a_document_is_not_printed():
    """SentencePiece puts a space before a text, which is not in the text."""
    tokenizer = small_tokenizers.sentencepiece()
    ids = tokenizer.encode("The cat")
    for starts_text, expected in ((True, "The cat"), (False, " The cat")):
        decoder = generation.StreamingDecoder(tokenizer, (), 99, starts_text)
        assert "".join(decoder.add(int(i)) for i in ids) == expected
    bpe = small_tokenizers.byte_level_bpe()
    decoder = generation.StreamingDecoder(bpe, (), 99, starts_text=True)
    assert "".join(decoder.add(int(i)) for i in bpe.encode(" The")) == " The"


def test_bytes_of_the_prompt_are_not_printed():
    bpe = small_tokenizers.byte_level_bpe()
    decoder = generation.StreamingDecoder(bpe, ("]",), 99)
    assert decoder.add(bpe.pieces.index(b"[=]"), n_prompt_bytes=2) == ""
    assert decoder.finish_reason == "stop"


def test_other_stop_tokens_end_an_answer():
    class WithStops(tokenizers.ByteTokenizer):
        stops = (ord("!"),)

    decoder = generation.StreamingDecoder(WithStops(), (), 99)
    decoder.add(ord("a"))
    assert not decoder.finish_reason
    decoder.add(ord("!"))
    assert decoder.finish_reason == "end"
