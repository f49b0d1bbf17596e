"""Answers have their exact probability under a model whose text probabilities are known.

The known model assigns a probability to each line of up to 4 letters. Its next-token probabilities
follow from the tokens of all lines.
"""

import functools
import itertools
import json

import numpy as np
import pytest
from fixtures import small_model
from tokenizers import Tokenizer, models

from lm.data import tokenizers
from lm.data.tokenization import token_healing
from lm.evaluation import coverings, decoding, generation, scoring

LINES = ["".join(x) + "\n" for n in range(1, 5) for x in itertools.product("abc", repeat=n)]
PROBABILITIES = dict(
    zip(LINES, np.random.default_rng(1).dirichlet(np.full(len(LINES), 0.5)), strict=True)
)


@functools.cache
def line_tokenizer() -> tokenizers.HFTokenizer:
    """Return a BPE tokenizer with merges that depend on the letters that follow."""
    pieces = ["\0", "\n", "a", "b", "c", "bc", "ab", "abc", "aa", "ca", "cab"]
    merges = [("b", "c"), ("a", "b"), ("a", "bc"), ("a", "a"), ("c", "a"), ("c", "ab")]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    content = json.loads(inner.to_str())
    return tokenizers.HFTokenizer(json.dumps(content))


@functools.cache
def tokens_of_lines() -> dict[tuple[int, ...], float]:
    """Return the probability of each token sequence."""
    return {tuple(line_tokenizer().encode(x).tolist()): p for x, p in PROBABILITIES.items()}


def log_p_next(context: tuple[int, ...]) -> np.ndarray:
    """Return the log probability of each next token after a context."""
    context = context[1:] if context[:1] == (0,) else context
    p = np.full(256, 1e-30)
    for ids, probability in tokens_of_lines().items():
        if len(ids) > len(context) and ids[: len(context)] == context:
            p[ids[len(context)]] += probability
    return np.log(p / p.sum())


@pytest.fixture
def known_model(monkeypatch):
    """Replace the compiled programs by the probabilities of the known model."""

    def next_tokens(params, rows):
        tokens_BT, length_B = np.asarray(rows["tokens"]), np.asarray(rows["length"])
        n = tokens_BT.shape[1]
        contexts = [
            tuple(row[n - k :].tolist()) for row, k in zip(tokens_BT, length_B, strict=True)
        ]
        return np.array([log_p_next(context) for context in contexts])

    def score_answers(run, device_mesh, params, prompts, answers, on_progress=None):
        results = []
        for prompt, answer in zip(prompts, answers, strict=True):
            rows = [log_p_next((*prompt, *answer[:i])) for i in range(len(answer))]
            nats = np.array([-row[token] for row, token in zip(rows, answer, strict=True)])
            hits = np.array([row.argmax() == t for row, t in zip(rows, answer, strict=True)])
            results.append(scoring.ScoredAnswer(nats, hits))
        return results

    monkeypatch.setattr(decoding, "next_token_program", lambda *_: next_tokens)
    monkeypatch.setattr(scoring, "score_answers", score_answers)
    return small_model.RUN, small_model.MESH, {}


def questions() -> list[tuple[str, str]]:
    """Return each line, split into a prompt and an answer at each position."""
    return [(line[:i], line[i:]) for line in LINES for i in range(1, len(line) - 1)]


def p_prefix(prompt: str) -> float:
    """Return the probability that a line begins with the prompt."""
    return sum(p for line, p in PROBABILITIES.items() if line.startswith(prompt))


def test_spanned_answers_have_their_exact_probability(known_model):
    pairs = token_healing.encode_pairs(line_tokenizer(), questions())
    spanned = [i for i, pair in enumerate(pairs) if pair.coverings is not None]
    assert len(spanned) > 50
    scored = scoring.score_pairs(*known_model, [pairs[i] for i in spanned])
    for i, answer in zip(spanned, scored, strict=True):
        prompt, text = questions()[i]
        exact = PROBABILITIES[prompt + text] / p_prefix(prompt)
        assert np.exp(-answer.nats.sum()) == pytest.approx(exact, rel=1e-6)
        assert len(answer.nats) == len(pairs[i].answer) - pairs[i].n_spanning + 1


def test_probabilities_of_prompts_are_sums_over_coverings(known_model):
    tokenizer, n_prompts = line_tokenizer(), 0
    for prompt in sorted({prompt for prompt, _ in questions()}):
        ids = tokenizer.encode(prompt).tolist()
        found_coverings = token_healing.find_coverings(tokenizer, ids)
        if found_coverings is not None:
            (scores,) = coverings.score_coverings(*known_model, [found_coverings])
            shared = [i for i in found_coverings.shared if i != tokenizer.end]
            p_shared = sum(
                p for x, p in tokens_of_lines().items() if list(x[: len(shared)]) == shared
            )
            assert np.exp(-scores.tail_nats) * p_shared == pytest.approx(p_prefix(prompt), rel=1e-6)
            n_prompts += 1
    assert n_prompts > 20


def test_healed_prompts_end_with_the_selected_covering(known_model):
    tokenizer = line_tokenizer()
    ids = tokenizer.encode("ca").tolist()
    prompt = token_healing.find_coverings(tokenizer, ids)
    assert prompt is not None
    (scores,) = coverings.score_coverings(*known_model, [prompt])
    healed = coverings.heal_prompts(*known_model, tokenizer, [ids, ids], lambda i, _: (1, 0)[i])
    assert list(healed) == [0]  # the other prompt ends at a token boundary
    covering_ids, n_tail_bytes = prompt.covering(1)
    assert healed[0].ids == [*prompt.shared, *covering_ids]
    assert healed[0].n_tail_bytes == n_tail_bytes
    assert healed[0].nats == pytest.approx(-scores.log_p[1] - scores.tail_nats)


def test_sampled_coverings_follow_their_probabilities():
    log_p_N = np.log([0.5, 0.3, 0.15, 0.05])

    def shares(**options) -> np.ndarray:
        sampling = generation.SamplingParams(**{"temperature": 1.0} | options)
        rng = np.random.default_rng(0)
        draws = [generation.sample_index(rng, log_p_N, sampling) for _ in range(2000)]
        return np.bincount(draws, minlength=4) / 2000

    np.testing.assert_allclose(shares(), np.exp(log_p_N), atol=0.04)
    np.testing.assert_allclose(shares(top_k=2), [0.625, 0.375, 0, 0], atol=0.04)
    np.testing.assert_allclose(shares(top_p=0.7), [0.625, 0.375, 0, 0], atol=0.04)
    assert shares(temperature=0.1)[0] > 0.98
