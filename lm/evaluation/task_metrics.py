"""Task metrics, from the log-likelihoods of answers and from generated answers.

    metrics = task_metrics.likelihood_metrics(task.examples, scores, pieces)
    metrics["accuracy"]                                             # {"value": 0.4, "se": 0.05}
    metrics |= task_metrics.text_metrics(task, ["vier", "fünf"])    # from generated answers

All metrics of likelihood_metrics come from the same log-likelihoods, so they can be compared:

    accuracy           several choices: the most likely choice is correct; a single answer: each
                       token is the most likely token
    accuracy_bytes     accuracy by nats per byte of the answer (several choices only)
    p_right            probability of the correct answer, among the choices if there are several
    bits_per_byte      bits of the correct answer per byte
    brier              Brier score: sum over choices of the squared error, or (1 - p)^2
    exact              each token of the correct answer is the most likely token
    token_accuracy     fraction of answer tokens that are the most likely token
    token_probability  geometric mean of the probabilities of the answer tokens
    keystrokes_saved   fraction of key presses that word completion saves (single answers only)

"se" is the standard error over examples. Counts and chance have no "se".
"""

import importlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.evaluation import tasks

METRICS = (
    *("accuracy", "accuracy_bytes", "p_right", "bits_per_byte", "brier", "exact"),
    *("token_accuracy", "token_probability", "keystrokes_saved"),
)

Metrics = dict[str, dict[str, float]]  # metric -> {"value": mean, "se": standard error}


class TokenScores(NamedTuple):
    """Scores of one answer, one number per token."""

    nats: np.ndarray  # -log p
    hits: np.ndarray  # True where the token is the most likely token


def likelihood_metrics(
    examples: Sequence[tasks.Example],
    scores: Sequence[Sequence[TokenScores]],
    pieces: Sequence[Sequence[bytes]],
) -> Metrics:
    """Return the mean metrics over examples, and the columns n, chance and tokens.

    scores[i][c]: scores of choice c of example i. pieces[i]: bytes of each token of its correct
    answer.
    """
    rows = [
        _example_metrics(example, choice_scores, answer_pieces)
        for example, choice_scores, answer_pieces in zip(examples, scores, pieces, strict=True)
    ]
    metrics: Metrics = {
        "n": {"value": len(examples)},
        "chance": {"value": float(np.mean([example.chance for example in examples]))},
        "tokens": {"value": float(np.mean([len(tokens) for tokens in pieces]))},
    }
    for name in METRICS:
        values = np.array([row[name] for row in rows if name in row], float)
        if len(values):
            se = float(values.std(ddof=min(1, len(values) - 1)) / len(values) ** 0.5)
            metrics[name] = {"value": float(values.mean()), "se": se}
    return metrics


def text_metrics(task: tasks.Task, texts: Sequence[str]) -> Metrics:
    """Return metrics of generated answers, one text per example.

    edit_distance: Levenshtein distance to the nearest reference, as a fraction of the longer text.
    said_exactly: exact match with a reference. Translations also have chrF and BLEU of sacrebleu
    (Post 2018, arXiv 1804.08771), 0 to 100 over all examples. Raises ValueError if they need
    sacrebleu and it is not installed.
    """
    references = [
        [answer.strip() for answer in (example.answers[example.right], *example.others)]
        for example in task.examples
    ]
    outputs = [text.strip() for text in texts]
    pairs = list(zip(outputs, references, strict=True))
    distances = [
        min(_edit_distance(output, r) / max(len(output), len(r), 1) for r in correct)
        for output, correct in pairs
    ]
    exact = [float(output in correct) for output, correct in pairs]
    metrics: Metrics = {
        name: {"value": float(np.mean(values)), "se": float(np.std(values) / len(values) ** 0.5)}
        for name, values in (("edit_distance", distances), ("said_exactly", exact))
    }
    if task.is_translation:
        metrics |= _translation_metrics(task.name, outputs, references)
    return metrics


def _translation_metrics(name: str, outputs: list[str], references: list[list[str]]) -> Metrics:
    """Return chrF and BLEU of the outputs. references[i]: all references of output i."""
    try:
        sacrebleu = importlib.import_module("sacrebleu")
    except ImportError:
        raise ValueError(f"task {name} needs: pip install 'lm-scaling[translation]'") from None
    # sacrebleu expects one list per reference number. The last reference fills the gaps.
    n_references = max(map(len, references))
    by_number = [[r[min(i, len(r) - 1)] for r in references] for i in range(n_references)]
    return {
        "chrf": {"value": float(sacrebleu.corpus_chrf(outputs, by_number).score)},
        "bleu": {"value": float(sacrebleu.corpus_bleu(outputs, by_number).score)},
    }


def keystrokes_saved(hits: np.ndarray, pieces: Sequence[bytes]) -> float:
    """Return the fraction of key presses that word completion saves.

    hits: True where a token is the most likely token. The model predicts the rest of the word at
    every token. The user accepts a prediction by one key press as soon as all of it is correct. A
    word extends from a token that starts with white space to the next such token.
    """
    starts = [i for i, piece in enumerate(pieces) if i == 0 or piece[:1].isspace()]
    n_typed, n_total = 0, 0
    for start, end in zip(starts, [*starts[1:], len(pieces)], strict=True):
        sizes = [max(len(piece), 1) for piece in pieces[start:end]]
        wrong = np.flatnonzero(~np.asarray(hits[start:end], bool))
        first_completed = int(wrong[-1]) + 1 if len(wrong) else 0
        n_completed = sum(sizes[first_completed:])
        n_typed += sum(sizes[:first_completed]) + min(1, n_completed)
        n_total += sum(sizes)
    return 1 - n_typed / n_total


def _example_metrics(
    example: tasks.Example, scores: Sequence[TokenScores], pieces: Sequence[bytes]
) -> dict[str, float]:
    """Return the metrics of one example: see the module docstring.

    scores: of each choice. pieces: bytes of each token of the correct answer.
    """
    right, n_bytes = scores[example.right], np.array([len(a.encode()) for a in example.answers])
    nats = np.array([score.nats.sum() for score in scores])
    exact = float(np.all(right.hits))
    metrics = {
        "bits_per_byte": nats[example.right] / np.log(2) / n_bytes[example.right],
        "exact": exact,
        "token_accuracy": float(np.mean(right.hits)),
        "token_probability": float(np.exp(-np.mean(right.nats))),
    }
    if len(scores) == 1:
        p = float(np.exp(-nats[0]))
        metrics |= {"accuracy": exact, "p_right": p, "brier": (1 - p) ** 2}
        return metrics | {"keystrokes_saved": keystrokes_saved(right.hits, pieces)}
    p = np.exp(nats.min() - nats)
    p /= p.sum()
    one_hot = np.arange(len(p)) == example.right
    return metrics | {
        "accuracy": float(nats.argmin() == example.right),
        "accuracy_bytes": float((nats / n_bytes).argmin() == example.right),
        "p_right": float(p[example.right]),
        "brier": float(((p - one_hot) ** 2).sum()),
    }


def _edit_distance(a: str, b: str) -> int:
    """Return the number of letters to insert, delete or replace (Levenshtein 1966)."""
    row = np.arange(len(b) + 1)
    letters = np.array(list(b), dtype="U1")
    for letter in a:
        without_insertion = np.minimum(row[:-1] + (letters != letter), row[1:] + 1)
        row = np.r_[row[0] + 1, without_insertion]
        row = np.minimum.accumulate(row - np.arange(len(row))) + np.arange(len(row))
    return int(row[-1])
