"""Evaluate tasks during training with the compiled program of the held-out loss.

    results = sit(run, device_mesh, score, params, tokenizer, [tasks.load_task("copy?length=4")])
    results["copy?length=4"]["accuracy"]            # {"value": 0.4, "se": 0.05}
    columns(results)["task.copy?length=4.accuracy"]  # 0.4

Each (prompt, answer) is a segment of its own in rows of data.seq_len tokens. It follows the token
that ends documents, like the start of a document in training. scoring.score_answers also computes
log-likelihoods of answers: it shares prompts, but needs a program of its own. Axes: N rows, T time.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lm.config import schema
from lm.data import packing, tokenizers
from lm.evaluation import generation, heldout, task_metrics, tasks

Pair = tuple[np.ndarray, np.ndarray]  # token ids of a prompt and of its answer
Results = dict[str, task_metrics.Metrics]  # task name -> metric -> {"value": ..., "se": ...}


class EncodedTask(NamedTuple):
    """A task with the examples that fit into a row, and counts of the others."""

    task: tasks.Task
    pairs: list[list[Pair]]  # choices of each example
    n_cut: int  # examples whose prompts are truncated
    n_left_out: int  # examples with an answer that is too long for a row


def evaluate_tasks(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    score: Callable,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    task_list: Sequence[tasks.Task],
) -> Results:
    """Evaluate tasks and return the metrics of each: see grade.

    An example longer than data.seq_len tokens loses the left end of its prompt. An example with an
    answer that is too long by itself is dropped. Raises ValueError for both if eval.on_overflow is
    "refuse".
    """
    encoded = [_encode_task(run, task, tokenizer) for task in task_list]
    pairs = [pair for task in encoded for choices in task.pairs for pair in choices]
    scores = iter(_score_pairs(run, device_mesh, score, params, tokenizer.end, pairs))
    results: Results = {}
    for task, choices_of_examples, n_cut, n_left_out in encoded:
        metrics: task_metrics.Metrics = {
            "n_cut": {"value": n_cut},
            "n_left_out": {"value": n_left_out},
        }
        if not choices_of_examples:
            metrics["n"] = {"value": 0}
            results[task.name] = metrics
            continue
        example_scores = [[next(scores) for _ in choices] for choices in choices_of_examples]
        pieces = [
            [tokenizer.pieces[i] for i in choices[example.right][1]]
            for example, choices in zip(task.examples, choices_of_examples, strict=True)
        ]
        metrics |= task_metrics.likelihood_metrics(task.examples, example_scores, pieces)
        if task.generate:
            texts = _generate(run, device_mesh, params, tokenizer, task, choices_of_examples)
            metrics |= task_metrics.text_metrics(task, texts)
        results[task.name] = metrics
    return results


def to_columns(results: Results) -> dict[str, float]:
    """Return the columns of a record: task.NAME.METRIC, and task_se.NAME.METRIC for its error."""
    row = {}
    for task, metrics in results.items():
        for metric, numbers in metrics.items():
            row[f"task.{task}.{metric}"] = numbers["value"]
            if "se" in numbers:
                row[f"task_se.{task}.{metric}"] = numbers["se"]
    return row


def pack_examples(
    pairs: Sequence[Pair], seq_len: int, end: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int]]]:
    """Pack pairs into rows. Return tokens [N, T+1], segments [N, T] and the answer positions.

    The position of an answer is (row, start, stop) of its targets. Longer pairs come first, and
    each goes into the newest row or a new one, so rows are nearly full.
    """
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    prompts = {i: pairs[i][0][-max(1, seq_len + 1 - len(pairs[i][1])) :] for i in order}
    sizes = [len(prompts[i]) + len(pairs[i][1]) for i in order]
    rows = packing.best_fit(sizes, seq_len + 1, newest_only=True)
    n_rows = rows.max(initial=-1) + 1
    tokens_NT = np.full((n_rows, seq_len + 1), end, np.int32)
    segments_NT = np.zeros((n_rows, seq_len), np.int32)
    used, n_segments = np.zeros(n_rows, int), np.zeros(n_rows, int)
    answer_slots = [(0, 0, 0)] * len(pairs)
    for i, row, size in zip(order, rows.tolist(), sizes, strict=True):
        start, stop = used[row], used[row] + size
        n_segments[row] += 1
        tokens_NT[row, start:stop] = np.r_[prompts[i], pairs[i][1]]
        segments_NT[row, start : stop - 1] = n_segments[row]  # the last token is only a target
        first = int(start) + len(prompts[i]) - 1
        answer_slots[i] = row, first, first + len(pairs[i][1])
        used[row] = stop
    return tokens_NT, segments_NT, answer_slots


def _encode_task(run: schema.Run, task: tasks.Task, tokenizer: tokenizers.Tokenizer) -> EncodedTask:
    """Encode the examples of a task and drop those whose answers are too long for a row."""
    seq_len = run.data.seq_len
    encoded = [_encode_example(example, tokenizer) for example in task.examples]
    fits = [max(len(answer) for _, answer in pairs) <= seq_len for pairs in encoded]
    n_cut = sum(
        is_short and max(len(prompt) + len(answer) for prompt, answer in pairs) > seq_len + 1
        for is_short, pairs in zip(fits, encoded, strict=True)
    )
    n_left_out = len(fits) - sum(fits)
    if run.eval.on_overflow == "error" and (n_cut or n_left_out):
        raise ValueError(
            f"task {task.name}: {n_cut + n_left_out} of {len(fits)} examples are longer than "
            f"data.seq_len={seq_len}: use fewer shots, or set eval.on_overflow='truncate'"
        )
    examples = [e for e, is_short in zip(task.examples, fits, strict=True) if is_short]
    pairs = [p for p, is_short in zip(encoded, fits, strict=True) if is_short]
    return EncodedTask(dataclasses.replace(task, examples=examples), pairs, n_cut, n_left_out)


def _encode_example(example: tasks.Example, tokenizer: tokenizers.Tokenizer) -> list[Pair]:
    """Return (prompt, answer) token ids of each choice. A prompt starts with the `end` token.

    Prompt and answer are encoded separately, so the answer does not change the prompt tokens.
    """
    ids = tokenizer.encode_all([*example.prompts, *example.answers])
    prompts, answers = ids[: len(example.prompts)], ids[len(example.prompts) :]
    return [
        (np.r_[tokenizer.end, p].astype(np.int32), a.astype(np.int32))
        for p, a in zip(prompts, answers, strict=True)
    ]


def _score_pairs(
    run, device_mesh, score, params, end: int, pairs: list[Pair]
) -> list[task_metrics.TokenScores]:
    """Return the nats and hits of the answer tokens of each pair."""
    if not pairs:
        return []
    tokens_NT, segments_NT, answer_slots = pack_examples(pairs, run.data.seq_len, end)
    batch = {"tokens": tokens_NT, "segments": segments_NT}
    nats_NT, best_NT = heldout.score_rows(run, device_mesh, score, params, batch)
    hits_NT = best_NT == tokens_NT[:, 1:]
    return [
        task_metrics.TokenScores(nats_NT[row, start:stop], hits_NT[row, start:stop])
        for row, start, stop in answer_slots
    ]


def _generate(
    run, device_mesh, params, tokenizer, task: tasks.Task, pairs: list[list[Pair]]
) -> list[str]:
    """Return the answers that the model writes, at most twice as long as the longest answer."""
    prompts = [[int(i) for i in choices[0][0]] for choices in pairs]
    longest = max(len(answer) for choices in pairs for _, answer in choices)
    limit = generation.SamplingParams(max_tokens=2 * longest, stop=(task.stop,))
    generated = generation.generate(run, device_mesh, params, prompts, tokenizer, limit)
    return [answer.text for answer in generated]
