"""Our models as an LM of lm-evaluation-harness, so that each of its tasks can be asked of them.

    import lm_eval                                          # extra: harness
    ours = lm_eval_harness.adapter(run, device_mesh, params, tokenizer)
    lm_eval.simple_evaluate(model=ours, tasks=["lambada_openai"])

The numbers are those of scoring.score_answers and generation.generate: nothing is computed here.
"""

import importlib
from collections.abc import Sequence

import jax

from lm.config import schema
from lm.data import tokenizers
from lm.evaluation import generation, scoring

MAX_TOKENS = 256  # of an answer, where a task does not say


def adapter(
    run: schema.Run, device_mesh: jax.sharding.Mesh, params: dict, tokenizer: tokenizers.Tokenizer
):
    """An lm_eval.api.model.LM that answers all three kinds of request.

    Its n_cut counts requests whose context lost its left end, for which the model has no room.
    ValueError if the package is not installed.
    """
    try:
        api = importlib.import_module("lm_eval.api.model")
    except ImportError:
        raise ValueError("lm-evaluation-harness needs: pip install 'lm-scaling[harness]'") from None
    given = (run, device_mesh, params)

    class Adapter(api.LM):
        n_cut = 0

        def loglikelihood(self, requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            """(log p, whether it is greedy) of each (context, continuation)."""
            asked = [scoring.encode_pair(tokenizer, *request.args) for request in requests]
            scored = scoring.score_answers(*given, [a for a, _ in asked], [b for _, b in asked])
            self.n_cut += sum(one.n_cut > 0 for one in scored)
            return [(-float(one.nats.sum()), one.is_greedy) for one in scored]

        def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
            """log p of each whole text: windows of the context, each after what has room of it."""
            context, prompts, answers, owners = run.data.seq_len, [], [], []
            for owner, request in enumerate(requests):
                ids = [tokenizer.end, *(int(i) for i in tokenizer.encode(request.args[0]))]
                for start in range(1, len(ids), context):
                    answers.append(ids[start : start + context])
                    room = context + 1 - len(answers[-1])
                    prompts.append(ids[:start][-room:])
                    owners.append(owner)
            found = [0.0] * len(requests)
            for owner, one in zip(
                owners, scoring.score_answers(*given, prompts, answers), strict=True
            ):
                found[owner] -= float(one.nats.sum())
            return found

        def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
            """The answer to each (context, knobs), up to the first of its strings `until`."""
            alike: dict[generation.SamplingParams, list[int]] = {}
            for i, request in enumerate(requests):
                alike.setdefault(_sampling(request.args[1]), []).append(i)
            found = [""] * len(requests)
            for sampling, places in alike.items():
                prompts = [scoring.encode_prompt(tokenizer, requests[i].args[0]) for i in places]
                said = generation.generate(*given, prompts, tokenizer, sampling)
                for i, one in zip(places, said, strict=True):
                    found[i], self.n_cut = one.text, self.n_cut + (one.n_cut > 0)
            return found

    return Adapter()


def _sampling(knobs: dict) -> generation.SamplingParams:
    """The harness's words for ours; ValueError for a knob that we have not."""
    knobs = dict(knobs)
    until: str | Sequence[str] = knobs.pop("until", None) or ()
    is_random = knobs.pop("do_sample", float(knobs.get("temperature") or 0) > 0)
    n = next((knobs.pop(k) for k in ("max_gen_toks", "max_new_tokens") if k in knobs), MAX_TOKENS)
    temperature = float(knobs.pop("temperature", 1.0) or 0.0) if is_random else 0.0
    knobs.pop("temperature", None)
    top_k, top_p = int(knobs.pop("top_k", 0) or 0), float(knobs.pop("top_p", 1.0) or 1.0)
    if knobs:
        raise ValueError(f"generation_kwargs {sorted(knobs)} of this task are not supported")
    stop = (until,) if isinstance(until, str) else tuple(until)
    return generation.SamplingParams(int(n), temperature, top_k, top_p, tuple(s for s in stop if s))
