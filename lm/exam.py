"""Sets tasks to a model: examples packed into the rows that it is scored on anyway.

row = sit(run, device_mesh, score, params, tokenizer, [tasks.load("copy?length=4")])
row["task.copy?length=4.accuracy"], row["task_se.copy?length=4.accuracy"]

Every (prompt, answer) is a segment of its own in rows of data.seq_len tokens, after the token that
ends documents, as the start of a document is in training. So tasks need no program but the one
that gives the held-out loss. Axes: N rows, T time.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from lm import config, evaluate, grade, sample, tasks, tokens


def sit(
    run: config.Run,
    device_mesh: jax.sharding.Mesh,
    score: Callable,
    params: dict,
    tokenizer: tokens.Tokenizer,
    asked: Sequence[tasks.Task],
) -> dict[str, float]:
    """{"task.NAME.METRIC": value, "task_se.NAME.METRIC": standard error}: see lm/grade.py.

    What does not fit into data.seq_len tokens loses the left of its prompt, and n_cut counts the
    examples; an answer that does not fit by itself leaves its example out, and n_left_out counts.
    With eval.too_long="refuse" either is a ValueError.
    """
    found, pairs, kept = {}, [], []
    for task in asked:
        encoded = [_encoded(example, tokenizer) for example in task.examples]
        longest = [max(len(answer) for _, answer in pair) for pair in encoded]
        fits = [n <= run.data.seq_len for n in longest]
        n_cut = sum(
            fit and max(len(p) + len(a) for p, a in pair) > run.data.seq_len + 1
            for fit, pair in zip(fits, encoded, strict=True)
        )
        n_left_out = len(fits) - sum(fits)
        if run.eval.too_long == "refuse" and (n_cut or n_left_out):
            raise ValueError(
                f"task {task.name}: {n_cut + n_left_out} of {len(fits)} examples are longer than "
                f"data.seq_len={run.data.seq_len}: take fewer shots, or eval.too_long='cut'"
            )
        found |= {f"task.{task.name}.n_cut": n_cut, f"task.{task.name}.n_left_out": n_left_out}
        kept.append([(e, p) for e, p, fit in zip(task.examples, encoded, fits, strict=True) if fit])
        pairs += [pair for _, choices in kept[-1] for pair in choices]
    said = iter(_said(run, device_mesh, score, params, tokenizer, pairs))
    for task, chosen in zip(asked, kept, strict=True):
        if not chosen:
            found[f"task.{task.name}.n"] = 0
            continue
        examples = [example for example, _ in chosen]
        answers = [[next(said) for _ in choices] for _, choices in chosen]
        pieces = [[tokenizer.pieces[i] for i in choices[e.right][1]] for e, choices in chosen]
        marks = grade.likelihoods(examples, answers, pieces)
        if task.generate:
            prompts = [[int(i) for i in choices[0][0]] for _, choices in chosen]
            longest = max(len(answer) for _, choices in chosen for _, answer in choices)
            limit = sample.Sampling(max_tokens=2 * longest, stop=(task.stop,))
            texts = sample.generate(run, device_mesh, params, prompts, tokenizer, limit)
            asked_of = tasks.Task(task.name, examples, True, task.is_translation)
            marks |= grade.words(asked_of, [text.text for text in texts])
        for name, value in marks.items():
            place = "task_se" if name.endswith("_se") else "task"
            found[f"{place}.{task.name}.{name.removesuffix('_se')}"] = value
    return found


def _encoded(
    example: tasks.Example, tokenizer: tokens.Tokenizer
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(prompt, answer) of each choice in token ids; a prompt begins with the end of a document.

    Encoded apart, so that where an answer begins does not depend on the answer.
    """
    texts = tokenizer.encode_all([*example.prompts, *example.answers])
    prompts, answers = texts[: len(example.prompts)], texts[len(example.prompts) :]
    return [
        (np.r_[tokenizer.end, p].astype(np.int32), a.astype(np.int32))
        for p, a in zip(prompts, answers, strict=True)
    ]


def packed(pairs: Sequence, seq_len: int, end: int) -> tuple[np.ndarray, np.ndarray, list]:
    """tokens [N, T+1], segments [N, T] and, of each pair, (row, start, stop) of its answer's nats.

    The longest come first and each goes to the row that is open, so rows are nearly full.
    """
    tokens_NT: list[np.ndarray] = []
    segments_NT: list[np.ndarray] = []
    places: list = [None] * len(pairs)
    free, number = 0, 0
    for i in sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1])):
        prompt, answer = pairs[i]
        prompt = prompt[-max(1, seq_len + 1 - len(answer)) :]
        size = len(prompt) + len(answer) - 1  # inputs; the last token is only a target
        if size > free:
            tokens_NT.append(np.full(seq_len + 1, end, np.int32))
            segments_NT.append(np.zeros(seq_len, np.int32))
            free, number = seq_len, 0
        start, number = seq_len - free, number + 1
        tokens_NT[-1][start : start + size + 1] = np.r_[prompt, answer]
        segments_NT[-1][start : start + size] = number
        first = start + len(prompt) - 1
        places[i] = len(tokens_NT) - 1, first, first + len(answer)
        free -= size + 1  # the next one begins behind the last target
    return np.array(tokens_NT), np.array(segments_NT), places


def _said(run, device_mesh, score, params, tokenizer, pairs) -> list[grade.Said]:
    """Of each pair the nats and hits of its answer's tokens."""
    if not pairs:
        return []
    tokens_NT, segments_NT, places = packed(pairs, run.data.seq_len, tokenizer.end)
    batch = {"tokens": tokens_NT, "segments": segments_NT}
    nats_NT, best_NT = evaluate.score_all(run, device_mesh, score, params, batch)
    hits_NT = best_NT == tokens_NT[:, 1:]
    return [grade.Said(nats_NT[r, a:b], hits_NT[r, a:b]) for r, a, b in places]
