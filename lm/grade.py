"""Grades: what a model's log-likelihoods, and its own words, are worth on a task's examples.

    row = likelihoods(task.examples, said)     # {"accuracy": 0.4, "accuracy_se": 0.05, ...}
    row |= words(task, ["vier", "fünf"])       # of answers that the model wrote itself

All numbers of `likelihoods` come from the same log-likelihoods, so that they can be compared:

    accuracy           several choices: the likeliest is right; one: each token is the likeliest
    accuracy_bytes     the same, of nats a byte of the answer (several choices only)
    p_right            probability of the right answer, among the choices if there are several
    bits_per_byte      bits of the right answer a byte of it
    brier              squared error of the probabilities: sum over choices, or (1 - p)^2
    exact              each token of the right answer is the likeliest
    token_accuracy     share of its tokens that are
    token_probability  geometric mean of their probabilities
    keystrokes_saved   share of key presses that a completion of words would save: see `saved`

Each with NAME_se, its standard error over examples; n and chance stand beside them.
"""

import importlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm import tasks

METRICS = (
    *("accuracy", "accuracy_bytes", "p_right", "bits_per_byte", "brier", "exact"),
    *("token_accuracy", "token_probability", "keystrokes_saved"),
)


class Said(NamedTuple):
    """What a model makes of an answer, a number a token."""

    nats: np.ndarray  # -log p
    hits: np.ndarray  # whether it is the likeliest


def likelihoods(
    examples: Sequence[tasks.Example],
    said: Sequence[Sequence[Said]],
    pieces: Sequence[Sequence[bytes]],
) -> dict[str, float]:
    """Means over examples. said[i][c] is of choice c; pieces[i] are the right answer's tokens."""
    marks = [_marks(e, s, p) for e, s, p in zip(examples, said, pieces, strict=True)]
    row: dict[str, float] = {"n": len(examples)}
    row["chance"] = float(np.mean([example.chance for example in examples]))
    row["tokens"] = float(np.mean([len(part) for part in pieces]))
    for name in METRICS:
        values = np.array([mark[name] for mark in marks if name in mark], float)
        if len(values):
            row[name] = float(values.mean())
            row[f"{name}_se"] = float(values.std(ddof=min(1, len(values) - 1)) / len(values) ** 0.5)
    return row


def words(task: tasks.Task, texts: Sequence[str]) -> dict[str, float]:
    """Of what the model wrote: edit distance (share of the longer text), exact match; chrF, BLEU.

    The last two for translations, by sacrebleu (Post 2018), 0 to 100 over all examples.
    """
    right = [[a.strip() for a in (e.answers[e.right], *e.others)] for e in task.examples]
    pairs = list(zip([text.strip() for text in texts], right, strict=True))
    off = [min(_distance(s, r) / max(len(s), len(r), 1) for r in rs) for s, rs in pairs]
    exact = [float(s in rs) for s, rs in pairs]
    row = {}
    for name, values in (("edit_distance", off), ("said_exactly", exact)):
        row[name] = float(np.mean(values))
        row[f"{name}_se"] = float(np.std(values) / len(values) ** 0.5)
    if task.is_translation:
        try:
            sacrebleu = importlib.import_module("sacrebleu")
        except ImportError:
            needs = "needs: pip install 'lm-scaling[translation]'"
            raise ValueError(f"task {task.name} {needs}") from None
        said = [s for s, _ in pairs]
        most = max(map(len, right))
        by_place = [[rs[min(i, len(rs) - 1)] for rs in right] for i in range(most)]
        row["chrf"] = float(sacrebleu.corpus_chrf(said, by_place).score)
        row["bleu"] = float(sacrebleu.corpus_bleu(said, by_place).score)
    return row


def saved(hits: np.ndarray, pieces: Sequence[bytes]) -> float:
    """Share of key presses saved by who takes a right completion of a word with one key.

    The model offers the rest of the word at every token; it is taken as soon as all of it is right.
    A word is a run of tokens from one that begins with white space to the next such.
    """
    starts = [i for i, piece in enumerate(pieces) if i == 0 or piece[:1].isspace()]
    typed, total = 0, 0
    for start, end in zip(starts, [*starts[1:], len(pieces)], strict=True):
        sizes = [max(len(piece), 1) for piece in pieces[start:end]]
        wrong = np.flatnonzero(~np.asarray(hits[start:end], bool))
        first = int(wrong[-1]) + 1 if len(wrong) else 0  # from here on all is right
        rest = sum(sizes[first:])
        typed += sum(sizes[:first]) + min(1, rest)
        total += sum(sizes)
    return 1 - typed / total


def _marks(example: tasks.Example, said: Sequence[Said], pieces: Sequence[bytes]) -> dict:
    """Of one example; accuracy_bytes only where there are choices."""
    right, n_bytes = said[example.right], np.array([len(a.encode()) for a in example.answers])
    nats = np.array([one.nats.sum() for one in said])
    exact = float(np.all(right.hits))
    found = {
        "bits_per_byte": nats[example.right] / np.log(2) / n_bytes[example.right],
        "exact": exact,
        "token_accuracy": float(np.mean(right.hits)),
        "token_probability": float(np.exp(-np.mean(right.nats))),
    }
    if len(said) == 1:
        p = float(np.exp(-nats[0]))
        found |= {"accuracy": exact, "p_right": p, "brier": (1 - p) ** 2}
        return found | {"keystrokes_saved": saved(right.hits, pieces)}
    p = np.exp(nats.min() - nats)
    p /= p.sum()
    one_hot = np.arange(len(p)) == example.right
    return found | {
        "accuracy": float(nats.argmin() == example.right),
        "accuracy_bytes": float((nats / n_bytes).argmin() == example.right),
        "p_right": float(p[example.right]),
        "brier": float(((p - one_hot) ** 2).sum()),
    }


def _distance(a: str, b: str) -> int:
    """Fewest letters to insert, delete or change (Levenshtein 1966)."""
    row = np.arange(len(b) + 1)
    letters = np.array(list(b), dtype="U1")
    for letter in a:
        other = np.minimum(row[:-1] + (letters != letter), row[1:] + 1)
        row = np.r_[row[0] + 1, other]
        row = np.minimum.accumulate(row - np.arange(len(row))) + np.arange(len(row))
    return int(row[-1])
