"""Tasks, scores, generation and lm-evaluation-harness agree for four kinds of tokenizers.

The reference is the tokenization and the protocol of lm-evaluation-harness 0.4, with log
probabilities of the training model: no packing, no cache (extra: harness).
"""

import dataclasses
import functools
import types

import numpy as np
import pytest
from fixtures import small_model, small_tokenizers
from fixtures.small_tokenizers import each_kind

from lm.config import schema
from lm.data import tokenizers
from lm.data.sources import example_formats
from lm.data.tokenization import token_healing
from lm.evaluation import coverings, generation, heldout, lm_eval_harness, scoring, task_eval, tasks

lm_eval_models = pytest.importorskip("lm_eval.api.model", reason="needs the extra harness")
lm_eval_utils = pytest.importorskip("lm_eval.utils", reason="needs the extra harness")

MODEL = dataclasses.replace(small_model.MODEL, vocab_size=512, n_layers=1)
RUN = schema.Run(model=MODEL)
RUN.data.seq_len, RUN.data.batch_size = small_model.CONTEXT, 4
SUBJECTS = ["The cat", "the dog", "a number", "France", "two cats", "the sum", "my close friend"]
VERBS = ["is", "was", "runs to", "sat on", "adds"]
ANSWERS = [" the mat", " Paris", " 12\n", "\nYes", " amused", "=b)", ", of course", " not", ")"]


@functools.cache
def params() -> dict:
    return small_model.random_params(MODEL)


@functools.cache
def logits():
    return small_model.uncached_logits(params(), MODEL)


def questions() -> list[tuple[str, str]]:
    """Return 200 questions; some prompts are empty, long, or end with white space."""
    rng, pairs = np.random.default_rng(0), []
    for i in range(200):
        prompt = f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)}" + (":", "", " ", "\n")[i % 4]
        prompt = "" if i % 25 == 0 else prompt * (4 if i % 20 == 1 else 1)
        pairs.append((prompt, str(rng.choice(ANSWERS))))
    return pairs


class Reference(lm_eval_models.TemplateLM):
    """The protocol of the harness."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        super().__init__()
        self.tokenizer, self.backend = tokenizer, "causal"

    @property
    def eot_token_id(self):
        return self.tokenizer.end

    def tok_encode(self, string, add_special_tokens=None, **_):
        return self.tokenizer.encode(string).tolist()

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **_):
        results = []
        for _, context, continuation in requests:
            ids = (context + continuation)[-(small_model.CONTEXT + 1) :]
            logits_TV = logits()(ids[:-1])[-len(continuation) :].astype(np.float64)
            log_p_TV = logits_TV - np.logaddexp.reduce(logits_TV, axis=-1, keepdims=True)
            is_greedy = bool((logits_TV.argmax(-1) == continuation).all())
            log_p = log_p_TV[np.arange(len(continuation)), continuation].sum()
            results.append((float(log_p), is_greedy))
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        results = []
        for request in requests:
            windows = lm_eval_utils.get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, small_model.CONTEXT, 1
            )
            pairs = [("", *lm_eval_utils.make_disjoint_window(window)) for window in windows]
            results.append(sum(log_p for log_p, _ in self._loglikelihood_tokens(pairs)))
        return results

    def generate_until(self, requests, disable_tqdm=False):
        texts = []
        for request in requests:
            ids = prompt = self.tok_encode(request.args[0]) or [self.eot_token_id]
            for _ in range(request.args[1]["max_gen_toks"]):
                logits_V = logits()(ids)[-1][: self.tokenizer.vocab_size]
                ids = [*ids, int(logits_V.argmax())]
                if ids[-1] == self.eot_token_id:
                    break
            pieces = self.tokenizer.pieces
            texts.append(b"".join(pieces[i] for i in ids[len(prompt) :]).decode(errors="replace"))
        return texts


def requests(arguments: list[tuple]) -> list[types.SimpleNamespace]:
    return [types.SimpleNamespace(args=args) for args in arguments]


@each_kind
def test_log_likelihoods_equal_those_of_the_harness(make):
    tokenizer = make()
    pairs = token_healing.encode_pairs(tokenizer, questions())
    at_boundary = [q for q, pair in zip(questions(), pairs, strict=True) if not pair.coverings]
    assert len(at_boundary) > 150
    adapter = lm_eval_harness.make_adapter(RUN, small_model.MESH, params(), tokenizer)
    results = adapter.loglikelihood(requests(at_boundary))
    expected = Reference(tokenizer).loglikelihood(requests(at_boundary), disable_tqdm=True)
    log_p, is_greedy = zip(*results, strict=True)
    np.testing.assert_allclose(log_p, [p for p, _ in expected], atol=1e-4)
    assert list(is_greedy) == [greedy for _, greedy in expected]


@each_kind
def test_rolling_likelihoods_equal_those_of_the_harness(make):
    texts = [((prompt + answer) * (1 + i % 3),) for i, (prompt, answer) in enumerate(questions())]
    adapter = lm_eval_harness.make_adapter(RUN, small_model.MESH, params(), make())
    results = adapter.loglikelihood_rolling(requests(texts[:60]))
    expected = Reference(make()).loglikelihood_rolling(requests(texts[:60]))
    np.testing.assert_allclose(results, expected, atol=1e-4)


@each_kind
def test_greedy_answers_equal_those_of_the_harness(make):
    """The answers are equal if the model selects the last tokens of the prompt itself."""
    tokenizer, options = make(), {"until": [], "max_gen_toks": 3}
    texts = sorted({prompt.strip() for prompt, _ in questions()})
    encoded = {text: token_healing.encode_prompt(tokenizer, text) for text in texts}
    encoded = {text: ids for text, ids in encoded.items() if len(ids) < small_model.CONTEXT - 3}
    model = (RUN, small_model.MESH, params())
    healed = coverings.heal_prompts(
        *model, tokenizer, list(encoded.values()), lambda _, log_p_N: int(log_p_N.argmax())
    )
    arguments = [(text, options) for i, text in enumerate(encoded) if i not in healed]
    assert len(arguments) > 10
    adapter = lm_eval_harness.make_adapter(*model, tokenizer)
    answers = adapter.generate_until(requests(arguments))
    expected = Reference(tokenizer).generate_until(requests(arguments))
    for (prompt, _), answer, reference in zip(arguments, answers, expected, strict=True):
        has_extra_space = tokenizer.adds_leading_space and not prompt
        assert answer == (reference.removeprefix(" ") if has_extra_space else reference)


@each_kind
def test_all_four_entries_give_the_same_number(make):
    """A task, the adapter and score_pairs agree, also if tokens span the boundary."""
    tokenizer = make()
    texts = [*questions()[:30], ("close ([=", "])\n"), ("close {=", "}\n"), ("hello wor", "ld")]
    texts = [(prompt, answer) for prompt, answer in texts if prompt]
    device_mesh = small_model.MESH
    adapter = lm_eval_harness.make_adapter(RUN, device_mesh, params(), tokenizer)
    log_p = [p for p, _ in adapter.loglikelihood(requests(texts))]
    score = heldout.make_scorer(RUN, device_mesh)
    pairs = token_healing.encode_pairs(tokenizer, texts)
    scored = scoring.score_pairs(RUN, device_mesh, params(), pairs)
    np.testing.assert_allclose([-answer.nats.sum() for answer in scored], log_p, atol=1e-5)
    fitting = [i for i, pair in enumerate(pairs) if len(pair.prompt + pair.answer) <= 33]
    examples = [example_formats.TaskExample((texts[i][0],), (texts[i][1],)) for i in fitting]
    results = task_eval.evaluate_tasks(
        RUN, device_mesh, score, params(), tokenizer,
        [tasks.Task(str(i), [example]) for i, example in enumerate(examples)],
    )  # fmt: skip
    for i, metrics in zip(fitting, results.values(), strict=True):
        assert metrics["p_right"]["value"] == pytest.approx(np.exp(log_p[i]), rel=1e-4)
        assert metrics["exact"]["value"] == scored[i].is_greedy


@pytest.mark.parametrize("name", ["bpe", "sentencepiece", "metaspace"])
@pytest.mark.parametrize("prompt", ["close ([=", "close {(=", "hello wor", "The "])
def test_generated_tokens_encode_prompt_and_answer(name, prompt):
    """The tokens of a greedy answer begin with a covering of the prompt, and score as greedy."""
    tokenizer = small_tokenizers.KINDS[name]()
    ids = token_healing.encode_prompt(tokenizer, prompt)
    sampling = generation.SamplingParams(max_tokens=3)
    model = (RUN, small_model.MESH, params())
    (answer,) = generation.generate(*model, [ids], tokenizer, sampling)
    assert token_healing.find_coverings(tokenizer, ids) is not None and len(answer.tokens) == 3
    pieces = b"".join(tokenizer.pieces[i] for i in answer.tokens)
    assert pieces.decode(errors="replace").endswith(answer.text)
    streamed = list(generation.stream(*model, [ids], tokenizer, sampling))
    assert "".join(token.text for token in streamed) == answer.text


def test_answers_that_span_the_boundary_can_be_generated(monkeypatch):
    """The answer is the rest of a token if the model prefers this token to all others."""
    bpe = small_tokenizers.byte_level_bpe()
    ids = token_healing.encode_prompt(bpe, "close ([=")
    prompt, closing = token_healing.find_coverings(bpe, ids), bpe.pieces.index(b"[=]")
    assert prompt is not None
    n = 1 + sum(len(path.next_ids) for path in prompt.paths)
    is_closing_N = np.array([prompt.covering(i)[0][-1] == closing for i in range(n)])
    scores = coverings.CoveringScores(np.log(np.where(is_closing_N, 0.9, 0.001)))
    monkeypatch.setattr(coverings, "score_coverings", lambda *_: [scores])
    for sampling in (
        generation.SamplingParams(max_tokens=1),
        generation.SamplingParams(max_tokens=3, stop=("]",)),
        generation.SamplingParams(max_tokens=4, temperature=0.1),
    ):
        model = (RUN, small_model.MESH, params())
        (answer,) = generation.generate(*model, [ids], bpe, sampling)
        assert answer.tokens[0] == closing and len(answer.tokens) <= sampling.max_tokens
        assert answer.text.startswith("]") or sampling.stop and answer.text == ""
