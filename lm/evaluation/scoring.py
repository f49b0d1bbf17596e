"""Scoring requests: pack prompts and answers into few rows and write equal prompts once.

    packed_rows, length = rows(prompts, answers, context=128)
    batch, answer_slots = arrays(packed_rows[:8], answers, size=8, length=length)

A row contains items. An item is a prompt without its last token, followed by each of its answers:
the last token of the prompt and the answer without its last token. Each position of an answer thus
has one target, the next token. An answer attends to its prompt and to itself.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from lm.config import schema
from lm.data import packing, tokenizers
from lm.evaluation import decoding
from lm.parallel import mesh

NAMES = ("tokens", "targets", "times", "segments", "roots")


@dataclasses.dataclass
class ScoringRequest:
    """A prompt and as many of its answers as fit into a row with it."""

    prompt: tuple[int, ...]
    answers: list[int]  # indices of the answers
    length: int  # positions in a row


def pack_requests(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], context: int
) -> tuple[list[list[ScoringRequest]], int]:
    """Pack prompts and answers. Return the rows and their length.

    The length is a power of two, at most about four items long, or the context. Prompts that are
    too long for the context lose their left end. An empty answer takes no position.
    """
    answers_of: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if len(answer):
            truncated = tuple(int(x) for x in prompt[-(context + 1 - len(answer)) :])
            answers_of.setdefault(truncated, []).append(i)
    items = [
        item
        for prompt, indices in answers_of.items()
        for item in _items(prompt, indices, answers, context)
    ]
    # With one item per row, half of the row might be empty; with four, at most a quarter.
    longest = max((item.length for item in items), default=1)
    length = min(next_power_of_two(4 * longest, least=32), context)
    items.sort(key=lambda item: -item.length)  # best fit works best on decreasing sizes
    row_of_item = packing.best_fit([item.length for item in items], length)
    packed: list[list[ScoringRequest]] = [[] for _ in range(row_of_item.max(initial=-1) + 1)]
    for item, row in zip(items, row_of_item, strict=True):
        packed[row].append(item)
    return packed, length


def to_arrays(
    rows: list[list[ScoringRequest]], answers: Sequence[Sequence[int]], size: int, length: int
) -> tuple[dict[str, np.ndarray], list[tuple[int, int, int]]]:
    """Return int32 [size, length] for each of NAMES, and (answer, row, position) of each answer.

    times: position in the text of the prompt followed by one answer. segments: number of the prompt
    or answer within its row. roots: segment of the prompt that belongs to it.
    """
    batch = {name: np.zeros((size, length), np.int32) for name in NAMES}
    answer_slots = []
    for row, items in enumerate(rows):
        position, segment = 0, 0
        for item in items:
            root, n_shared = segment + 1, len(item.prompt) - 1
            parts = [(item.prompt[:-1], None, 0)]
            parts += [((item.prompt[-1], *answers[i][:-1]), i, n_shared) for i in item.answers]
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


def next_power_of_two(n: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least n: few lengths need few programs."""
    return max(least, 1 << (int(n) - 1).bit_length())


def _items(prompt, indices: list[int], answers, context: int) -> Iterator[ScoringRequest]:
    """Yield items of a prompt, each with as many of its answers as the context has room for."""
    item = ScoringRequest(prompt, [], len(prompt) - 1)
    for i in indices:
        if item.answers and item.length + len(answers[i]) > context:
            yield item
            item = ScoringRequest(prompt, [], len(prompt) - 1)
        item.answers.append(i)
        item.length += len(answers[i])
    yield item


@dataclasses.dataclass
class ScoredAnswer:
    nats: np.ndarray  # float64 [n]: -log p of each token of the answer
    is_greedy: bool  # whether each is the likeliest
    n_cut: int = 0  # tokens cut off the left of the prompt, for which the context has no room


# --- How likely is this answer? ---


def score_answers(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> list[ScoredAnswer]:
    """The nats of each answer after its prompt.

    Equal prompts are computed once: a row holds a prompt and then all of its answers, each of which
    sees the prompt and itself alone, and as many such items as fit. One program a call, whose row
    length is a power of two or data.seq_len. ValueError for an empty prompt, or an answer longer
    than data.seq_len.
    """
    context = run.data.seq_len
    validate_prompts(prompts)
    for i, answer in enumerate(answers):
        if len(answer) > context:
            raise ValueError(
                f"answers[{i}] has {len(answer)} tokens, more than data.seq_len={context}: cut it"
            )
    rows, length = pack_requests(prompts, answers, context)
    cut = [max(0, len(p) + len(a) - 1 - context) for p, a in zip(prompts, answers, strict=True)]
    found = [ScoredAnswer(np.zeros(0), True, n) for n in cut]
    split = mesh.n_batch_devices(device_mesh)
    size = split * max(1, run.data.batch_size * context // length // split)
    size = min(size, split * next_power_of_two(-(-len(rows) // split)))
    program = decoding.scoring_program(decoding.program_cache_key(run), device_mesh)
    for start in range(0, len(rows), size):
        batch, places = to_arrays(rows[start : start + size], answers, size, length)
        here = {name: array[mesh.local_rows(device_mesh, size)] for name, array in batch.items()}
        with jax.set_mesh(device_mesh):
            said = program(params, mesh.put_batch(device_mesh, here))
        nats_BT, is_best_BT = jax.device_get(said)
        for i, row, place in places:
            span = slice(place, place + len(answers[i]))
            found[i].nats = nats_BT[row, span].astype(np.float64)
            found[i].is_greedy = bool(is_best_BT[row, span].all())
    return found


def encode_prompt(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    """Return the token ids of a prompt. An empty prompt is the start of a document."""
    return [int(i) for i in tokenizer.encode(text)] or [tokenizer.end]


def encode_pair(
    tokenizer: tokenizers.Tokenizer, prompt: str, answer: str
) -> tuple[list[int], list[int]]:
    """Return the token ids of a prompt and of its answer, encoded as one text.

    With a subword tokenizer, spaces at the end of the prompt become part of the answer, because
    tokens begin with a space.
    """
    bare = prompt.rstrip() if tokenizer.vocab_size > 256 else prompt
    answer = prompt[len(bare) :] + answer
    prompt_ids = encode_prompt(tokenizer, bare)
    if not bare:
        return prompt_ids, [int(i) for i in tokenizer.encode(answer)]
    return prompt_ids, [int(i) for i in tokenizer.encode(bare + answer)][len(prompt_ids) :]


def validate_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """Raise ValueError if a prompt has no token."""
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompts[{i}] is empty: start it with the tokenizer's end token")
