"""Compute the log-likelihood of given answers.

    pairs = token_healing.encode_pairs(tokenizer, [("2+2=", "4")])
    scored = scoring.score_pairs(run, device_mesh, params, pairs)
    -scored[0].nats.sum(), scored[0].is_greedy     # log-likelihood; True if greedy decoding agrees

Tasks, the adapter for lm-evaluation-harness and LoadedModel.score use the same tokens and the same
formula, so their log-likelihoods are equal. score_answers has token ids as arguments. Requests are
packed into few rows, and equal prompts are computed once. Each request in a row is a prompt without
its last token, followed by each of its answers: the last token of the prompt and the answer without
its last token. Each position of an answer thus has one target, the next token. An answer attends to
its prompt and to itself.

Tensor names end in their axes: B rows, T time.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from lm.config import schema
from lm.data import packing
from lm.data.tokenization import token_healing
from lm.evaluation import coverings, decoding
from lm.parallel import mesh

BATCH_NAMES = ("tokens", "targets", "times", "segments", "roots")  # arrays of a batch


@dataclasses.dataclass
class ScoringRequest:
    """A prompt and those of its answers that fit into one row with it."""

    prompt: tuple[int, ...]
    answers: list[int]  # indices of the answers
    length: int  # number of positions that the request occupies in a row


@dataclasses.dataclass
class ScoredAnswer:
    """The log-likelihood of one answer."""

    nats: np.ndarray  # float64 [n]: -log p of each token of the answer
    hits: np.ndarray  # bool [n]: True where the token is the most likely token
    n_truncated: int = 0  # tokens removed from the beginning of the prompt, to fit into the context

    @property
    def is_greedy(self) -> bool:
        """Return True if greedy decoding gives the answer, also for an empty answer."""
        return bool(self.hits.all())


def score_pairs(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    pairs: Sequence[token_healing.TokenPair],
    on_progress: Callable[[], None] | None = None,
) -> list[ScoredAnswer]:
    """Return the scores of the answers of token_healing.encode_pairs.

    on_progress: called before each batch.

    If tokens span the boundary, the first number of nats is that of all these tokens, given the
    tail of the prompt. Raises ValueError if an answer has more than data.seq_len tokens.
    """
    prompts, answers = [pair.prompt for pair in pairs], [pair.answer for pair in pairs]
    scored = score_answers(run, device_mesh, params, prompts, answers, on_progress)
    merged = coverings.merge_spanning_tokens(
        run, device_mesh, params, pairs, [(answer.nats, answer.hits) for answer in scored]
    )
    return [
        ScoredAnswer(nats, hits, answer.n_truncated)
        for answer, (nats, hits) in zip(scored, merged, strict=True)
    ]


def score_answers(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    on_progress: Callable[[], None] | None = None,
) -> list[ScoredAnswer]:
    """Return the nats of the tokens of each answer after its prompt.

    One call uses one compiled program. Its row length is a power of two or data.seq_len.
    on_progress: called before each batch. Raises ValueError for an empty prompt, or an answer of
    more than data.seq_len tokens.
    """
    context = run.data.seq_len
    validate_prompts(prompts)
    for i, answer in enumerate(answers):
        if len(answer) > context:
            raise ValueError(
                f"answers[{i}] has {len(answer)} tokens, more than data.seq_len={context}:"
                " shorten it"
            )
    rows, length = pack_requests(prompts, answers, context)
    excess = [len(p) + len(a) - 1 - context for p, a in zip(prompts, answers, strict=True)]
    results = [ScoredAnswer(np.zeros(0), np.zeros(0, bool), max(0, n)) for n in excess]
    n_devices = mesh.n_batch_devices(device_mesh)
    # A batch has as many tokens as in training, but not more rows than the requests need.
    size = n_devices * max(1, run.data.batch_size * context // length // n_devices)
    size = min(size, n_devices * decoding.next_power_of_two(-(-len(rows) // n_devices)))
    program = decoding.scoring_program(decoding.program_cache_key(run), device_mesh)
    for start in range(0, len(rows), size):
        if on_progress is not None:
            on_progress()
        batch, answer_slots = to_arrays(rows[start : start + size], answers, size, length)
        local_rows = mesh.local_rows(device_mesh, size)
        local_batch = {name: array[local_rows] for name, array in batch.items()}
        with jax.set_mesh(device_mesh):
            scores = program(params, mesh.put_batch(device_mesh, local_batch))
        nats_BT, hits_BT = jax.device_get(scores)
        for i, row, position in answer_slots:
            span = slice(position, position + len(answers[i]))
            results[i].nats = nats_BT[row, span].astype(np.float64)
            results[i].hits = hits_BT[row, span]
    return results


def pack_requests(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], context: int
) -> tuple[list[list[ScoringRequest]], int]:
    """Pack pairs of a prompt and an answer. Return the requests of each row and the row length.

    The length is the context, or a smaller power of two. A prompt that is too long for the context
    is truncated at its beginning. An empty answer is skipped.
    """
    answers_of: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if len(answer):
            truncated = tuple(int(x) for x in prompt[-(context + 1 - len(answer)) :])
            answers_of.setdefault(truncated, []).append(i)
    requests = [
        request
        for prompt, indices in answers_of.items()
        for request in _split_requests(prompt, indices, answers, context)
    ]
    # With one request per row, half of the row might be empty; with four, at most a quarter.
    longest = max((request.length for request in requests), default=1)
    length = min(decoding.next_power_of_two(4 * longest, least=32), context)
    requests.sort(key=lambda request: -request.length)  # best fit works best on decreasing sizes
    row_indices = packing.best_fit([request.length for request in requests], length)
    rows: list[list[ScoringRequest]] = [[] for _ in range(row_indices.max(initial=-1) + 1)]
    for request, row in zip(requests, row_indices, strict=True):
        rows[row].append(request)
    return rows, length


def to_arrays(
    rows: list[list[ScoringRequest]], answers: Sequence[Sequence[int]], size: int, length: int
) -> tuple[dict[str, np.ndarray], list[tuple[int, int, int]]]:
    """Return a batch and the (answer index, row, first position) of each answer.

    The batch has an int32 array [size, length] for each of BATCH_NAMES. times: position in the text
    of the prompt followed by one answer. segments: number of the prompt or answer within its row.
    roots: segment of the prompt to which a position belongs.
    """
    batch = {name: np.zeros((size, length), np.int32) for name in BATCH_NAMES}
    answer_slots = []
    for row, requests in enumerate(rows):
        position, segment = 0, 0
        for request in requests:
            root, prompt = segment + 1, request.prompt
            parts = [(prompt[:-1], None, 0)]
            parts += [((prompt[-1], *answers[i][:-1]), i, len(prompt) - 1) for i in request.answers]
            for ids, answer, time in parts:
                segment += 1
                span = slice(position, position + len(ids))
                batch["tokens"][row, span] = ids
                batch["times"][row, span] = np.arange(time, time + len(ids))
                batch["segments"][row, span] = segment
                batch["roots"][row, span] = root
                if answer is not None:
                    batch["targets"][row, span] = answers[answer]
                    answer_slots.append((answer, row, position))
                position += len(ids)
    return batch, answer_slots


def _split_requests(
    prompt: tuple[int, ...], indices: list[int], answers: Sequence[Sequence[int]], context: int
) -> Iterator[ScoringRequest]:
    """Yield requests of a prompt, each with as many of its answers as fit into the context."""
    request = ScoringRequest(prompt, [], len(prompt) - 1)
    for i in indices:
        if request.answers and request.length + len(answers[i]) > context:
            yield request
            request = ScoringRequest(prompt, [], len(prompt) - 1)
        request.answers.append(i)
        request.length += len(answers[i])
    yield request


def validate_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """Raise ValueError if a prompt has no token."""
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompts[{i}] is empty: use [tokenizer.end] to start a new document")
