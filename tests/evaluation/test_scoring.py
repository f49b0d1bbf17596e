"""Log-likelihoods of answers: packing changes no score, and requests are validated."""

import numpy as np
import pytest
from fixtures import small_model
from fixtures.small_model import MESH, RUN, encode

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


def test_validate_prompts_names_the_empty_prompt():
    scoring.validate_prompts([[1], [2, 3]])
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        scoring.validate_prompts([[1], []])


def test_rows_have_room_for_four_of_the_longest_requests():
    """The length is rounded up to a power of two, at least 32 and at most the context."""
    for n_tokens, context, expected in ((8, 512, 32), (9, 512, 64), (32, 512, 128), (32, 64, 64)):
        prompts = [encode("a" * (n_tokens - 1)), encode("bc")]
        answers = [encode("zz"), encode("z")]
        rows, length = scoring.pack_requests(prompts, answers, context)
        assert length == expected
        assert sorted(request.length for row in rows for request in row) == [2, n_tokens]


def test_answers_of_a_prompt_fill_the_context_exactly():
    """A request has the prompt without its last token, and each answer with that token."""
    prompt, answers = encode("abcde"), [encode("x" * 14), encode("y" * 14), encode("z")]
    rows, _ = scoring.pack_requests([prompt] * 3, answers, 32)
    requests = [request for row in rows for request in row]
    assert sorted((request.answers, request.length) for request in requests) == [
        ([0, 1], 4 + 28), ([2], 4 + 1),
    ]  # fmt: skip
