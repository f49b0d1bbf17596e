"""Scoring requests: pack prompts and answers into few rows and write equal prompts once.

    packed_rows, length = rows(prompts, answers, context=128)
    batch, answer_slots = arrays(packed_rows[:8], answers, size=8, length=length)

A row contains items. An item is a prompt without its last token, followed by each of its answers:
the last token of the prompt and the answer without its last token. Each position of an answer thus
has one target, the next token. An answer attends to its prompt and to itself.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from lm import whole

NAMES = ("tokens", "targets", "times", "segments", "roots")


@dataclasses.dataclass
class Item:
    """A prompt and as many of its answers as fit into a row with it."""

    prompt: tuple[int, ...]
    answers: list[int]  # indices of the answers
    length: int  # positions in a row


def rows(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], context: int
) -> tuple[list[list[Item]], int]:
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
    length = min(power_of_two(4 * longest, least=32), context)
    items.sort(key=lambda item: -item.length)  # best fit works best on decreasing sizes
    row_of_item = whole.best_fit([item.length for item in items], length)
    packed: list[list[Item]] = [[] for _ in range(row_of_item.max(initial=-1) + 1)]
    for item, row in zip(items, row_of_item, strict=True):
        packed[row].append(item)
    return packed, length


def arrays(
    rows: list[list[Item]], answers: Sequence[Sequence[int]], size: int, length: int
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


def power_of_two(n: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least n: few lengths need few programs."""
    return max(least, 1 << (int(n) - 1).bit_length())


def _items(prompt, indices: list[int], answers, context: int) -> Iterator[Item]:
    """Yield items of a prompt, each with as many of its answers as the context has room for."""
    item = Item(prompt, [], len(prompt) - 1)
    for i in indices:
        if item.answers and item.length + len(answers[i]) > context:
            yield item
            item = Item(prompt, [], len(prompt) - 1)
        item.answers.append(i)
        item.length += len(answers[i])
    yield item
