"""Adapter for lm-evaluation-harness: evaluate a model on the tasks of the harness.

    import lm_eval                                          # extra: harness
    model = lm_eval_harness.make_adapter(run, device_mesh, params, tokenizer)
    lm_eval.simple_evaluate(model=model, tasks=["lambada_openai"])

Log-likelihoods come from scoring.score_pairs and texts from generation.generate. The tokens are
those of token_healing.py, which are equal to those of the harness if no token spans the
boundary of prompt and answer. lm/evaluation/harness evaluates tasks by their names.
"""

import collections
import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence

import jax

from lm.config import schema
from lm.data import tokenizers
from lm.data.sources import chat
from lm.data.tokenization import token_healing
from lm.evaluation import generation, scoring
from lm.model.hf import chat_templates, tokenizer_files

MAX_TOKENS = 256  # tokens per answer if a task sets no limit
Model = tuple[schema.Run, jax.sharding.Mesh, dict]  # run, mesh, weights


class RequestCounts:
    """Counts of the requests of tasks. Requests of no task have the task name "".

    n_truncated: requests of a task whose context was truncated at its beginning. choices: answers
    of each example of a task, {task: {example: {index: True if the prompt is empty}}}.
    """

    def __init__(self):
        self.n_truncated: collections.Counter[str] = collections.Counter()
        self.choices: dict[str, dict[int, dict[int, bool]]] = {}

    def add_truncated(
        self, requests: Sequence, answers: Sequence[scoring.ScoredAnswer | generation.Generated]
    ) -> None:
        """Count the requests whose answer has a truncated context."""
        for request, answer in zip(requests, answers, strict=True):
            self.n_truncated[getattr(request, "task_name", "")] += answer.n_truncated > 0

    def add_choices(self, requests: Sequence) -> None:
        """Add the answers of requests of log-likelihoods."""
        for request in requests:
            if task := getattr(request, "task_name", ""):
                examples = self.choices.setdefault(task, {})
                examples.setdefault(request.doc_id, {})[request.idx] = not request.args[0]


def make_adapter(
    run: schema.Run, device_mesh: jax.sharding.Mesh, params: dict, tokenizer: tokenizers.Tokenizer
):
    """Return an lm_eval.api.model.LM for all three kinds of request.

    Its attribute counts has the RequestCounts of its requests. Raises ValueError if lm_eval is not
    installed.
    """
    try:
        api = importlib.import_module("lm_eval.api.model")
    except ImportError:
        raise ValueError("lm-evaluation-harness needs: uv sync --extra harness") from None
    model = (run, device_mesh, params)
    template = chat_templates.chat_template(run, tokenizer)

    class Adapter(api.LM):
        tokenizer_name = tokenizer.hash
        counts = RequestCounts()  # this class has a single object

        def chat_template(self, chat_template: bool | str = False) -> str:
            """Return the chat template of the model. Raises ValueError if it has none."""
            if not template:
                raise ValueError(
                    f"{run.name} has no chat template: tune it on conversations, or leave out the"
                    " chat template of the harness"
                )
            return template

        def apply_chat_template(
            self, chat_history: Sequence[Mapping], add_generation_prompt: bool = True
        ) -> str:
            """Return the prompt of a conversation in the template of the model."""
            return chat_templates.render_prompt(
                self.chat_template(), chat_history, tokenizer, add_generation_prompt
            )

        def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            """Return (log p, is_greedy) of the answer of each (prompt, answer)."""
            texts = [request.args for request in requests]
            pairs = token_healing.encode_pairs(tokenizer, texts, are_prompts=True)
            scored = scoring.score_pairs(*model, pairs)
            self.counts.add_choices(requests)
            self.counts.add_truncated(requests, scored)
            return [(-float(answer.nats.sum()), answer.is_greedy) for answer in scored]

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
            """Return log p of each text, scored in windows of data.seq_len tokens.

            The prompt of a window is the text before it, as far as the context has room for it.
            """
            return _score_texts(model, tokenizer, [request.args[0] for request in requests])

        def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
            """Return the answer to each (prompt, options), up to its first `until` string."""
            answers = _generate_answers(model, tokenizer, [request.args for request in requests])
            self.counts.add_truncated(requests, answers)
            return [answer.text for answer in answers]

    return Adapter()


def _score_texts(
    model: Model, tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> list[float]:
    """Return log p of each text."""
    windows = [
        (owner, *window)
        for owner, text in enumerate(texts)
        for window in _rolling_windows(tokenizer, text, model[0].data.seq_len)
    ]
    owners, prompts, answers = zip(*windows, strict=True) if windows else ((), (), ())
    log_p = [0.0] * len(texts)
    for owner, answer in zip(owners, scoring.score_answers(*model, prompts, answers), strict=True):
        log_p[owner] -= float(answer.nats.sum())
    return log_p


def _generate_answers(
    model: Model, tokenizer: tokenizers.Tokenizer, requests: Sequence[tuple[str, dict]]
) -> list[generation.Generated]:
    """Return the answer to each (prompt, generation_kwargs).

    A run that was tuned on conversations also stops at the end of an answer, as its export does.
    """
    is_chat = bool(tokenizer_files.chat_template_name(model[0], tokenizer))
    stops = (chat.STOP,) if is_chat else ()
    by_sampling: dict[generation.SamplingParams, list[int]] = {}
    for i, (_, options) in enumerate(requests):
        by_sampling.setdefault(_to_sampling_params(options), []).append(i)
    answers: dict[int, generation.Generated] = {}
    for sampling, indices in by_sampling.items():
        prompts = [token_healing.encode_prompt(tokenizer, requests[i][0]) for i in indices]
        sampling = dataclasses.replace(sampling, stop=(*sampling.stop, *stops))
        generated = generation.generate(*model, prompts, tokenizer, sampling)
        answers |= zip(indices, generated, strict=True)
    return [answers[i] for i in range(len(requests))]


def _rolling_windows(
    tokenizer: tokenizers.Tokenizer, text: str, context: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (prompt, answer) of windows in which each token of a text is scored once."""
    first = tokenizer.end if tokenizer.start is None else tokenizer.start
    ids = [first, *(int(i) for i in tokenizer.encode(text))]
    for start in range(1, len(ids), context):
        answer = ids[start : start + context]
        yield ids[:start][-(context + 1 - len(answer)) :], answer


def _to_sampling_params(generation_kwargs: dict) -> generation.SamplingParams:
    """Convert the generation_kwargs of a task. Raises ValueError for an unsupported option."""
    options = dict(generation_kwargs)
    until: str | Sequence[str] = options.pop("until", None) or ()
    is_random = options.pop("do_sample", float(options.get("temperature") or 0) > 0)
    limit = "max_gen_toks" if "max_gen_toks" in options else "max_new_tokens"
    max_tokens = int(options.pop(limit, MAX_TOKENS))
    temperature = float(options.pop("temperature", 1.0) or 0.0)
    top_k, top_p = int(options.pop("top_k", 0) or 0), float(options.pop("top_p", 1.0) or 1.0)
    if options:
        raise ValueError(
            f"generation_kwargs {sorted(options)} of this task are not supported: remove them"
        )
    return generation.SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if is_random else 0.0,
        top_k=top_k,
        top_p=top_p,
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
    )
