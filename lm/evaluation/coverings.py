"""Probabilities of the coverings of a prompt's end: see lm/data/tokenization/token_healing.py.

    scores = coverings.score_coverings(run, device_mesh, params, [prompt_coverings])
    scores[0].tail_nats, scores[0].best         # -log p of the tail; likeliest covering

Tensor names end in their axes: B rows, T time, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lm.config import schema
from lm.data import tokenizers
from lm.data.tokenization import token_healing
from lm.evaluation import decoding
from lm.parallel import mesh

TokenScores = tuple[np.ndarray, np.ndarray]  # nats and hits of the tokens of one answer
MAX_ROWS = 64  # largest number of rows in one batch


@dataclasses.dataclass
class CoveringScores:
    """The probabilities of the coverings of one prompt."""

    log_p: np.ndarray  # float64 [n], by the index of token_healing.Coverings

    @property
    def tail_nats(self) -> float:
        """Return -log p of the tail: of the sum over all coverings."""
        return -float(np.logaddexp.reduce(self.log_p))

    @property
    def best(self) -> int:
        """Return the index of the most likely covering."""
        return int(self.log_p.argmax())


class HealedPrompt(NamedTuple):
    """A prompt whose last token spans the end of its text."""

    ids: list[int]
    n_tail_bytes: int  # first bytes of the last token, which belong to the prompt
    nats: float  # -log p of the selected covering, given the tail


class _NextTokenQueries:
    """Collect queries of next-token probabilities, so that equal contexts are computed once."""

    def __init__(self):
        self.context_index: dict[token_healing.Ids, int] = {}
        self.token_ids: list[list[np.ndarray]] = []  # queried tokens of each context

    def add(self, context: token_healing.Ids, token_ids: np.ndarray) -> tuple[int, int]:
        """Add a query. Return the indices of its context and of the query within the context."""
        index = self.context_index.setdefault(context, len(self.context_index))
        if index == len(self.token_ids):
            self.token_ids.append([])
        self.token_ids[index].append(token_ids)
        return index, len(self.token_ids[index]) - 1


def merge_spanning_tokens(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    pairs: Sequence[token_healing.TokenPair],
    scores: Sequence[TokenScores],
) -> list[TokenScores]:
    """Return the scores of each answer with one number for all tokens that contain the tail.

    scores: (nats, hits) of the tokens of each answer. The merged nats are -log p of the tokens,
    given the tail. The merged hit is True if the tokens are the most likely covering of the tail.
    """
    merged = list(scores)
    indices = [i for i, pair in enumerate(pairs) if pair.coverings is not None]
    prompts = [prompt for pair in pairs if (prompt := pair.coverings) is not None]
    tails = score_coverings(run, device_mesh, params, prompts)
    for i, prompt, tail in zip(indices, prompts, tails, strict=True):
        (nats, hits), n = scores[i], pairs[i].n_spanning
        is_best = prompt.index(pairs[i].answer[:n]) == tail.best
        # The difference of two programs may be slightly below 0.
        first_nats = max(0.0, float(nats[:n].sum()) - tail.tail_nats)
        merged[i] = (np.r_[first_nats, nats[n:]], np.r_[is_best, hits[n:]])
    return merged


def heal_prompts(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    prompts: Sequence[Sequence[int]],
    select: Callable[[int, np.ndarray], int],
) -> dict[int, HealedPrompt]:
    """Return {index: healed prompt} for the prompts that continue inside of a token.

    select: function of the index of a prompt and the log probabilities of its coverings. It returns
    the index of a covering. A prompt whose selected covering ends with the prompt is not returned.
    """
    distinct = dict.fromkeys(map(tuple, prompts))
    coverings_of = {ids: token_healing.find_coverings(tokenizer, ids) for ids in distinct}
    candidates = {ids: prompt for ids, prompt in coverings_of.items() if prompt is not None}
    scores = score_coverings(run, device_mesh, params, list(candidates.values()))
    scores_of = dict(zip(candidates, scores, strict=True))
    healed = {}
    for i, ids in enumerate(map(tuple, prompts)):
        if ids in candidates:
            prompt, log_p = candidates[ids], scores_of[ids].log_p
            index = select(i, log_p)
            covering_ids, n_tail_bytes = prompt.covering(index)
            nats = -float(log_p[index]) - scores_of[ids].tail_nats
            if index:
                healed[i] = HealedPrompt([*prompt.shared, *covering_ids], n_tail_bytes, nats)
    return healed


def score_coverings(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    prompts: Sequence[token_healing.Coverings],
) -> list[CoveringScores]:
    """Return the log probability of each covering after the tokens `shared` of its prompt."""
    if not prompts:
        return []
    queries = _NextTokenQueries()
    slots_of_prompts = []  # for each prompt and each of its paths: the queries of its factors
    for prompt in prompts:
        slots = []
        for ids, next_ids in [
            (prompt.tail[:-1], np.array(prompt.tail[-1:])),
            *((path.ids, path.next_ids) for path in prompt.paths),
        ]:
            factors = [
                queries.add(prompt.shared + ids[:i], np.array([token]))
                for i, token in enumerate(ids)
            ]
            slots.append([*factors, queries.add(prompt.shared + ids, next_ids)])
        slots_of_prompts.append(slots)
    answers = _next_token_log_probs(run, device_mesh, params, queries)
    return [
        CoveringScores(
            np.concatenate([sum(answers[i][j] for i, j in factors) for factors in slots])
        )
        for slots in slots_of_prompts
    ]


def _next_token_log_probs(
    run: schema.Run, device_mesh: jax.sharding.Mesh, params: dict, queries: _NextTokenQueries
) -> list[list[np.ndarray]]:
    """Return the log probabilities of the queried tokens, float64, by context and query.

    A context that is longer than data.seq_len tokens is truncated at its beginning.
    """
    context_size = run.data.seq_len
    contexts = [np.array(ids[-context_size:], np.int32) for ids in queries.context_index]
    order = sorted(range(len(contexts)), key=lambda i: -len(contexts[i]))
    n_devices = mesh.n_batch_devices(device_mesh)
    n_rows = n_devices * decoding.next_power_of_two(-(-min(len(order), MAX_ROWS) // n_devices))
    program = decoding.next_token_program(decoding.program_cache_key(run), device_mesh)
    results: list[list[np.ndarray]] = [[] for _ in contexts]
    for start in range(0, len(order), n_rows):
        batch = order[start : start + n_rows]
        width = min(decoding.next_power_of_two(len(contexts[batch[0]]), 32), context_size)
        tokens_BT, length_B = np.zeros((n_rows, width), np.int32), np.ones(n_rows, np.int32)
        for row, i in enumerate(batch):
            tokens_BT[row, width - len(contexts[i]) :], length_B[row] = (
                contexts[i],
                len(contexts[i]),
            )
        local_rows = mesh.local_rows(device_mesh, n_rows)
        arrays = {"tokens": tokens_BT[local_rows], "length": length_B[local_rows]}
        with jax.set_mesh(device_mesh):
            log_p_BV = jax.device_get(program(params, mesh.put_batch(device_mesh, arrays)))
        for row, i in enumerate(batch):
            results[i] = [log_p_BV[row, ids].astype(np.float64) for ids in queries.token_ids[i]]
    return results
