"""Log-likelihoods of answers: packing changes no score, and requests are validated."""

import numpy as np
import pytest
from fixtures import small_model
from fixtures.small_model import MESH, RUN, TOKENIZER, encode

from lm.data import tokenizers
from lm.evaluation import scoring

PROMPTS = ["The cat", "The cat", "x", "a longer one " * 4, "The cat", "The cat"]
ANSWERS = [" sat", " is on the mat", "y", "here", "", " sat on two mats now"]


@pytest.fixture(scope="module")
def params():
    return small_model.random_params()


def test_packed_answers_score_as_without_packing(params):
    prompts, answers = [[encode(text) for text in texts] for texts in (PROMPTS, ANSWERS)]
    logits = small_model.uncached_logits(params)
    rows, _ = scoring.pack_requests(prompts, answers, 32)
    assert len(rows) < 5 and max(len(row) for row in rows) > 1
    results = scoring.score_answers(RUN, MESH, params, prompts, answers)
    for scored, prompt, answer in zip(results, prompts, answers, strict=True):
        assert scored.n_truncated == max(0, len(prompt) + len(answer) - 33)
        if answer:
            ids = (prompt + answer)[-33:]
            logits_TV = logits(ids[:-1])[-len(answer) :]
            expected = small_model.token_nats(logits_TV, answer)
            np.testing.assert_allclose(scored.nats, expected, atol=5e-5)
            assert scored.is_greedy == (logits_TV.argmax(-1) == answer).all()
    assert results[4].is_greedy and len(results[4].nats) == 0


def test_equal_prompts_are_packed_once():
    answers = [encode("ab"), encode("c"), encode("def")]
    rows, length = scoring.pack_requests([encode("once")] * 3, answers, 32)
    (request,) = rows[0]
    assert len(rows) == 1 and request.length == 3 + 2 + 1 + 3 and length == 32
    batch, answer_slots = scoring.to_arrays(rows, answers, 1, length)
    assert bytes(batch["tokens"][0, :9].tolist()) == b"onc" + b"ea" + b"e" + b"ede"
    assert bytes(batch["targets"][0, 3:9].tolist()) == b"ab" + b"c" + b"def"
    assert batch["times"][0, :9].tolist() == [0, 1, 2, 3, 4, 3, 3, 4, 5]
    assert answer_slots == [(0, 0, 3), (1, 0, 5), (2, 0, 6)]


def test_too_long_answer_is_rejected(params):
    with pytest.raises(ValueError, match=r"answers\[0\] has 33 tokens"):
        scoring.score_answers(RUN, MESH, params, [encode("a")], [[1] * 33])


def test_next_power_of_two_respects_the_minimum():
    assert [scoring.next_power_of_two(n) for n in (1, 2, 3, 32, 33)] == [1, 2, 4, 32, 64]
    assert scoring.next_power_of_two(3, least=32) == 32


def test_encode_prompt_returns_end_for_empty_text():
    assert scoring.encode_prompt(TOKENIZER, "ab") == [97, 98]
    assert scoring.encode_prompt(TOKENIZER, "") == [TOKENIZER.end]


def test_encode_pair_moves_spaces_to_subword_answers():
    bpe = tokenizers.train_bpe(iter(["one two three four"] * 9), 290)
    prompt, answer = scoring.encode_pair(bpe, "one two ", "three")
    assert bpe.decode(prompt) == "one two" and bpe.decode(answer) == " three"
    assert [*prompt, *answer] == bpe.encode("one two three").tolist()


def test_encode_pair_leaves_spaces_in_byte_prompts():
    prompt, answer = scoring.encode_pair(TOKENIZER, "one ", "two")
    assert prompt == encode("one ") and answer == encode("two")


@pytest.mark.parametrize("prompt", ["", "  "])
def test_encode_pair_starts_a_document_without_prompt(prompt):
    """A subword prompt of white space alone is empty: its white space moves to the answer."""
    bpe = tokenizers.train_bpe(iter(["one two three four"] * 9), 290)
    ids, answer = scoring.encode_pair(bpe, prompt, "one")
    assert ids == [bpe.end] and bpe.decode(answer) == prompt + "one"


def test_validate_prompts_names_the_empty_prompt():
    scoring.validate_prompts([[1], [2, 3]])
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        scoring.validate_prompts([[1], []])
