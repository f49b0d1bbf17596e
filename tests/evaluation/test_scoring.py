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
