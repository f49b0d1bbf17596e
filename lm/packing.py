"""Prompts and answers of any length -> few rows of one length, an equal prompt written once.

    rows_, length = rows(prompts, answers, context=128)
    batch, places = arrays(rows_[:8], answers, size=8, length=length)

A row holds items one after the other. An item is a prompt without its last token, and then for each
of its answers that last token and the answer without its own: so each place has one target, the
next token of the answer. Answers see the prompt and themselves.
"""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

NAMES = ("tokens", "targets", "times", "segments", "roots")


@dataclasses.dataclass
class Item:
    """A prompt and as many of its answers as have room in a row with it."""

    prompt: tuple[int, ...]
    answers: list[int]  # their numbers
    length: int  # places in a row


def rows(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], context: int
) -> tuple[list[list[Item]], int]:
    """Rows of items, and their length: a power of two up to four items long, or the context.

    Prompts for which the context has no room lose their left end. An empty answer has no place.
    """
    mine: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if len(answer):
            end = tuple(int(x) for x in prompt[-(context + 1 - len(answer)) :])
            mine.setdefault(end, []).append(i)
    items = [item for prompt in mine for item in _items(prompt, mine[prompt], answers, context)]
    # With one item a row half of it might be empty; with four, a quarter.
    longest = max((item.length for item in items), default=1)
    length = min(power_of_two(4 * longest, least=32), context)
    packed, room = [], []  # room: sorted (places left, row)
    for item in sorted(items, key=lambda item: -item.length):  # best fit, the longest first
        at = bisect.bisect_left(room, (item.length, -1))
        left, row = room.pop(at) if at < len(room) else (length, len(packed))
        if row == len(packed):
            packed.append([])
        packed[row].append(item)
        bisect.insort(room, (left - item.length, row))
    return packed, length


def arrays(
    rows: list[list[Item]], answers: Sequence[Sequence[int]], size: int, length: int
) -> tuple[dict[str, np.ndarray], list[tuple[int, int, int]]]:
    """int32 [size, length] for each of NAMES, and (answer, row, place) of each answer.

    times: the place in the text of a prompt with one answer. segments: numbers of prompts and
    answers within a row; roots: the segment of the prompt of each.
    """
    batch = {name: np.zeros((size, length), np.int32) for name in NAMES}
    places = []
    for row, items in enumerate(rows):
        at, segment = 0, 0
        for item in items:
            root, trunk = segment + 1, len(item.prompt) - 1
            parts = [(item.prompt[:-1], None, 0)]
            parts += [((item.prompt[-1], *answers[i][:-1]), i, trunk) for i in item.answers]
            for ids, answer, time in parts:
                segment += 1
                span = slice(at, at + len(ids))
                batch["tokens"][row, span] = ids
                batch["times"][row, span] = np.arange(time, time + len(ids))
                batch["segments"][row, span] = segment
                batch["roots"][row, span] = root
                if answer is not None:
                    batch["targets"][row, span] = answers[answer]
                    places.append((answer, row, at))
                at += len(ids)
    return batch, places


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest that is not below n: few lengths, few programs."""
    return max(least, 1 << (int(n) - 1).bit_length())


def _items(prompt, mine: list[int], answers, context: int) -> Iterator[Item]:
    item = Item(prompt, [], len(prompt) - 1)
    for i in mine:
        if item.answers and item.length + len(answers[i]) > context:
            yield item
            item = Item(prompt, [], len(prompt) - 1)
        item.answers.append(i)
        item.length += len(answers[i])
    yield item
