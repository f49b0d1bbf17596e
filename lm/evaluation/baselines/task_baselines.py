"""Baselines of each kind of task, as points per example.

    task_list = task_baselines.add_baselines(task_list, tokenizer, counts)
    task_list[0].baselines[0].name, task_list[0].baselines[0].points.mean()

The kind of a task determines its baselines:

    minimal pairs, choices, exact answers    unigram and bigram model of the training tokens
    classification with training examples    also bag_of_words: naive Bayes, see bag_of_words.py
    translation                              copy: the source text as the answer
    translation with training examples       also nearest and word_by_word, see translations.py

The points of an example are those of the model in the metric `accuracy`. Constant and random
answers are not among them, because the metric `chance` contains them for all tasks. The baselines
depend on the text and the tasks alone and not on the model.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm.data import dataset, staging, tokenizers
from lm.data.tokenization import token_healing
from lm.evaluation import task_metrics, tasks
from lm.evaluation.baselines import bag_of_words, ngram_counts, ngram_models, translations
from lm.evaluation.minimal_pairs import pair_metrics

# Nats are rounded to multiples of a power of two, whose sums are exact: the same tokens in another
# order are a tie of the unigram model.
NATS_STEP = 2.0**-20


def add_baselines(
    task_list: Sequence[tasks.Task],
    tokenizer: tokenizers.Tokenizer,
    counts: ngram_counts.NgramCounts | None,
    cache: Path | None = None,
) -> list[tasks.Task]:
    """Return the tasks with their baselines. Without counts, n-gram baselines are left out.

    cache: folder of stored translations; None stores none.
    """
    models = {} if counts is None else ngram_models.fit_models(counts)
    return [
        dataclasses.replace(task, baselines=tuple(_baselines(task, tokenizer, models, cache)))
        for task in task_list
    ]


def add_text_baselines(
    task_list: Sequence[tasks.Task], text: dataset.TokenDataset
) -> list[tasks.Task]:
    """Return the tasks with their baselines. The n-gram models are those of the training text."""
    counts = ngram_counts.count_ngrams(text) if task_list else None
    return add_baselines(task_list, text.tokenizer, counts, staging.local_folder(text.data))


def _baselines(
    task: tasks.Task,
    tokenizer: tokenizers.Tokenizer,
    models: dict[str, ngram_models.NgramModel],
    cache: Path | None,
) -> list[tasks.Baseline]:
    """Return the baselines of a task."""
    if task.is_translation:
        return [
            tasks.Baseline(name, _exact_points(task, texts), texts)
            for name, texts in translations.translate_task(task, cache).items()
        ]
    baselines = _ngram_baselines(task, tokenizer, models) if models else []
    return baselines + (_bag_of_words(task) if task.training_examples else [])


def _exact_points(task: tasks.Task, texts: Sequence[str]) -> np.ndarray:
    """Return 1 for each text that is the correct answer, else 0."""
    answers = [e.answers[e.right].removesuffix(task.stop).strip() for e in task.examples]
    pairs = zip(texts, answers, strict=True)
    return np.array([float(text.strip() == answer) for text, answer in pairs])


def _ngram_baselines(
    task: tasks.Task,
    tokenizer: tokenizers.Tokenizer,
    models: dict[str, ngram_models.NgramModel],
) -> list[tasks.Baseline]:
    """Return the points of n-gram models, which score the answers as the model does."""
    texts = [pair for e in task.examples for pair in zip(e.prompts, e.answers, strict=True)]
    pairs = token_healing.encode_pairs(tokenizer, texts)
    lengths = [len(pair.answer) for pair in pairs]
    token_N = np.array([i for pair in pairs for i in pair.answer])
    previous_N = np.array([i for pair in pairs for i in (pair.prompt[-1], *pair.answer[:-1])])
    baselines, ends = [], np.cumsum(lengths)[:-1]
    for name, model in models.items():
        nats_N = np.round(model.token_nats(previous_N, token_N) / NATS_STEP) * NATS_STEP
        if task.is_pairs:
            starts = np.concatenate([[0], ends]).astype(int)
            nats_N2 = np.add.reduceat(nats_N, starts).reshape(-1, 2)
            baselines.append(tasks.Baseline(name, pair_metrics.compare_sentences(nats_N2)))
            continue
        scores = zip(
            np.split(nats_N, ends),
            np.split(model.best_tokens(previous_N) == token_N, ends),
            strict=True,
        )
        answer_scores = [task_metrics.TokenScores(nats, hits) for nats, hits in scores]
        points, start = [], 0
        for example in task.examples:
            stop = start + len(example.answers)
            points.append(task_metrics.example_accuracy(example, answer_scores[start:stop]))
            start = stop
        baselines.append(tasks.Baseline(name, np.array(points)))
    return baselines


def _bag_of_words(task: tasks.Task) -> list[tasks.Baseline]:
    """Return the points of naive Bayes, trained separately for each set of labels and group."""

    def key(example: tasks.Example) -> tuple:
        return example.group, frozenset(example.answers)

    points = np.array([example.chance for example in task.examples])
    trained: dict[tuple, list[tasks.Example]] = {}
    for example in task.training_examples:
        trained.setdefault(key(example), []).append(example)
    rows_of: dict[tuple, list[int]] = {}
    for row, example in enumerate(task.examples):
        rows_of.setdefault(key(example), []).append(row)
    for group, rows in rows_of.items():
        if group in trained:
            labels = bag_of_words.classify(
                [example.question for example in trained[group]],
                [example.answers[example.right] for example in trained[group]],
                [task.examples[row].question for row in rows],
            )
            for row, label in zip(rows, labels, strict=True):
                example = task.examples[row]
                points[row] = float(label == example.answers[example.right])
    return [tasks.Baseline("bag_of_words", points)] if trained.keys() & rows_of.keys() else []
