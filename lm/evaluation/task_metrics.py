"""Task metrics, from the log-likelihoods of answers and from generated answers.

    metrics = task_metrics.likelihood_metrics(task.examples, scores, pieces)
    metrics["accuracy"]                                             # {"value": 0.4, "se": 0.05}
    metrics |= task_metrics.text_metrics(task, ["vier", "fünf"])    # from generated answers

All metrics of likelihood_metrics come from the same log-likelihoods, so they can be compared:

    accuracy           several choices: the most likely choice is correct; a single answer: each
                       token is the most likely token. Choices of equal likelihood share the point
    acc_norm           accuracy by nats per character of the bare choice, without the white space
                       around it, as in lm-evaluation-harness (several choices only)
    accuracy_bytes     accuracy by nats per byte of the bare choice (several choices only)
    p_right            probability of the correct answer, among the choices if there are several
    bits_per_byte      bits of the correct answer per byte
    margin             log-probability of the correct choice minus that of the best other choice, in
                       nats (several choices only)
    brier              Brier score: sum over choices of the squared error, or (1 - p)^2
    exact              each token of the correct answer is the most likely token
    token_accuracy     fraction of answer tokens that are the most likely token
    token_probability  geometric mean of the probabilities of the answer tokens
    keystrokes_saved   fraction of key presses that word completion saves (single answers only)
    baseline_NAME      accuracy of a baseline on the same examples (baselines/task_baselines.py)
    p_above_baseline   p-value of "not better than all baselines" (baselines/paired_tests.py)
    p_below_baseline   p-value of "not worse than any baseline"

"chance" is the accuracy of the better of two guesses: a random choice, or the best constant answer,
both without the question. The random choice of a synthetic task without choices is that of its
generator. The constant answer is that of the evaluated examples. In a classification, it is the
most frequent answer of each set of choices: labels are a classification, and so are choices that
are equal in all examples, such as yes and no.

"se" is the standard error over examples. Counts and chance have no "se". In a group of tasks, each
value is the mean of the members' values with equal weights. Its standard error treats the members
as fixed: it is the root of the sum of their squared standard errors, divided by their number. n and
tokens are the total number of examples and the mean number of tokens.
"""

import collections
import importlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.data import tokenizers
from lm.evaluation import tasks
from lm.evaluation.baselines import paired_tests

METRICS = (
    *("accuracy", "acc_norm", "accuracy_bytes", "p_right", "margin", "bits_per_byte", "brier"),
    *("exact", "token_accuracy", "token_probability", "keystrokes_saved"),
)
N_BOOTSTRAP = 1000  # resamples of the examples for the standard errors of chrF and BLEU
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")

Metrics = dict[str, dict[str, float]]  # metric -> {"value": mean, "se": standard error}


class TokenScores(NamedTuple):
    """Scores of one answer, one number per token."""

    nats: np.ndarray  # -log p
    hits: np.ndarray  # True where the token is the most likely token
    # True where the most likely token after this token does not continue a word. The entry of the
    # last token may be missing. None: only `hits` are known.
    ends_word: np.ndarray | None = None


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
        "chance": {"value": chance_accuracy(examples)},
        "tokens": {"value": float(np.mean([len(tokens) for tokens in pieces]))},
    }
    means = _mean_over_groups([example.group for example in examples], rows)
    return metrics | {name: means[name] for name in METRICS if name in means}


def example_accuracy(example: tasks.Example, scores: Sequence[TokenScores]) -> float:
    """Return the metric `accuracy` of one example. scores: those of each choice."""
    if len(scores) == 1:
        return float(np.all(scores[0].hits))
    return _share_of_point(_choice_nats(example, scores), example.right)


def chance_accuracy(examples: Sequence[tasks.Example]) -> float:
    """Return the accuracy that is possible without the question: see the module docstring."""
    rights: dict[tuple[str, frozenset[str]], list[str]] = {}
    others: dict[str, list[tasks.Example]] = {}
    for example in examples:
        if example.has_fixed_choices:
            key = example.group, frozenset(example.answers)
            rights.setdefault(key, []).append(example.answers[example.right])
        else:
            others.setdefault(example.group, []).append(example)
    chances: dict[str, list[float]] = {}
    for group, members in others.items():
        guesses, constant = [e.chance for e in members], _constant_accuracy(members)
        is_better = constant > np.mean(guesses)
        chances[group] = [constant] * len(members) if is_better else guesses
    for (group, choices), answers in rights.items():
        n_most_frequent = max(collections.Counter(answers).values())
        chance = max(n_most_frequent / len(answers), 1 / len(choices))
        chances.setdefault(group, []).extend([chance] * len(answers))
    return float(np.mean([np.mean(values) for values in chances.values()]))


def _constant_accuracy(examples: Sequence[tasks.Example]) -> float:
    """Return the accuracy of the best constant answer, where it is a choice, else of a guess.

    An answer that is a choice of a single example is no constant answer.
    """
    excess: dict[str, float] = {}  # number of correct answers more than those of a guess
    n_examples: collections.Counter[str] = collections.Counter()
    n_guessed = 0.0
    for example in examples:
        has_choices = len(example.answers) > 1
        guess = example.chance if has_choices else 0.0
        n_guessed += guess
        for answer in set(example.answers):
            is_right = answer == example.answers[example.right]
            share = is_right / example.answers.count(answer)
            excess[answer] = excess.get(answer, 0.0) + share - guess
            n_examples[answer] += 1
    best = max((n for answer, n in excess.items() if n_examples[answer] > 1), default=0.0)
    return (n_guessed + max(best, 0.0)) / len(examples)


def text_metrics(task: tasks.Task, texts: Sequence[str]) -> Metrics:
    """Return metrics of generated answers, one text per example.

    The names of metrics of a baseline end in _baseline_NAME.

    edit_distance: Levenshtein distance to the nearest reference, as a fraction of the longer text.
    said_exactly: exact match with a reference, without the white space around both. Then, by
    `match` of the task, the best value over the references:

        squad     normalized_match and f1: exact match and the F1 score of the words after
                  normalize_answer (Rajpurkar et al. 2016, arXiv 1606.05250)
        number    number_match: the last number of the text is that of the reference, without
                  thousands separators (GSM8K, Cobbe et al. 2021, arXiv 2110.14168)

    Translations also have chrF and BLEU of sacrebleu (Post 2018, arXiv 1804.08771), 0 to 100 over
    all examples, with bootstrap standard errors. Raises ValueError if they need sacrebleu and it is
    not installed.
    """
    references = [_references(task, example) for example in task.examples]
    outputs = [text.strip() for text in texts]
    rows = [
        _answer_metrics(output, correct, task.match)
        for output, correct in zip(outputs, references, strict=True)
    ]
    metrics = _mean_over_groups([example.group for example in task.examples], rows)
    if task.is_translation:
        metrics |= _translation_metrics(task.name, outputs, references)
        metrics |= _translation_baselines(task, outputs, references)
    return metrics


def answer_rows(task: tasks.Task, texts: Sequence[str]) -> list[dict]:
    """Return a record of each generated answer: task, prompt, answer and references."""
    return [
        {
            "task": task.name,
            "prompt": example.prompts[0],
            "answer": text,
            "references": _references(task, example),
        }
        for example, text in zip(task.examples, texts, strict=True)
    ]


def _references(task: tasks.Task, example: tasks.Example) -> list[str]:
    """Return the correct answers without the mark or newline that ends them."""
    answers = (example.answers[example.right], *example.others)
    return [answer.removesuffix(task.stop).strip() for answer in answers]


def normalize_answer(text: str) -> str:
    """Return the text in lower case, without punctuation, English articles and extra spaces.

    This is the normalization of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250) and TriviaQA.
    """
    letters = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(word for word in letters.split() if word not in ("a", "an", "the"))


def _answer_metrics(output: str, references: list[str], match: str) -> dict[str, float]:
    """Return the metrics of one generated answer: see text_metrics."""
    distances = [_edit_distance(output, r) / max(len(output), len(r), 1) for r in references]
    metrics = {"edit_distance": min(distances), "said_exactly": float(output in references)}
    if match == "squad":
        answer, correct = normalize_answer(output), [normalize_answer(r) for r in references]
        metrics["normalized_match"] = float(answer in correct)
        metrics["f1"] = max(_word_f1(answer, reference) for reference in correct)
    elif match == "number":
        number = _last_number(output)
        is_equal = number is not None and number in [_last_number(r) for r in references]
        metrics["number_match"] = float(is_equal)
    return metrics


def _word_f1(answer: str, reference: str) -> float:
    """Return the F1 score of the words of the answer; 1 if both texts are empty."""
    words, correct = collections.Counter(answer.split()), collections.Counter(reference.split())
    n_words = words.total() + correct.total()
    return 2 * (words & correct).total() / n_words if n_words else 1.0


def _last_number(text: str) -> float | None:
    """Return the last number of a text, None if it has none. Commas are thousands separators."""
    numbers = _NUMBER.findall(text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def _translation_metrics(name: str, outputs: list[str], references: list[list[str]]) -> Metrics:
    """Return chrF and BLEU of the outputs. references[i]: all references of output i."""
    try:
        metrics = importlib.import_module("sacrebleu.metrics")
    except ImportError:
        raise ValueError(f"task {name} needs: uv sync --extra translation") from None
    # sacrebleu expects one list per reference number. The last reference fills the gaps.
    n_references = max(map(len, references))
    by_number = [[r[min(i, len(r) - 1)] for r in references] for i in range(n_references)]
    results: Metrics = {}
    for name, metric in (("chrf", metrics.CHRF()), ("bleu", metrics.BLEU())):
        score = metric.corpus_score(outputs, by_number, n_bootstrap=N_BOOTSTRAP)
        signature = str(metric.get_signature())
        # The half width of the 95% interval of the resamples is 1.96 standard errors. It is missing
        # if the score is 0 in all resamples.
        report = json.loads(score.format(width=9, signature=signature, is_json=True))
        se = report.get("confidence_var", 0.0) / 1.96
        results[name] = {"value": float(score.score), "se": se}
    return results


def _translation_baselines(
    task: tasks.Task, outputs: list[str], references: list[list[str]]
) -> Metrics:
    """Return the scores of the baselines with texts, and the tests of chrF against all of them."""
    metrics: Metrics = {}
    improvements = []
    for baseline in task.baselines:
        if baseline.texts is not None:
            texts = [text.strip() for text in baseline.texts]
            scores = _translation_metrics(task.name, texts, references)
            metrics |= {f"{key}_baseline_{baseline.name}": v for key, v in scores.items()}
            improvements.append(
                _sentence_chrf(outputs, references) - _sentence_chrf(texts, references)
            )
    tests = paired_tests.mean_tests(improvements)
    return metrics | {name: {"value": p} for name, p in tests.items()}


def _sentence_chrf(outputs: list[str], references: list[list[str]]) -> np.ndarray:
    """Return the chrF of each output, float64 [n]."""
    metric = importlib.import_module("sacrebleu.metrics").CHRF()
    pairs = zip(outputs, references, strict=True)
    return np.array([metric.sentence_score(text, correct).score for text, correct in pairs])


def _mean_over_groups(groups: Sequence[str], rows: Sequence[Mapping[str, float]]) -> Metrics:
    """Return the mean and standard error of each metric: see the module docstring.

    groups[i]: name of the group member of example i. A metric may be missing in some rows.
    """
    values: dict[str, dict[str, list[float]]] = {}
    for group, row in zip(groups, rows, strict=True):
        for metric, value in row.items():
            values.setdefault(metric, {}).setdefault(group, []).append(value)
    metrics = {}
    for metric, by_group in values.items():
        arrays = [np.array(numbers, float) for numbers in by_group.values()]
        variances = [array.var(ddof=min(1, len(array) - 1)) / len(array) for array in arrays]
        metrics[metric] = {
            "value": float(np.mean([array.mean() for array in arrays])),
            "se": float(np.sum(variances) ** 0.5 / len(arrays)),
        }
    return metrics


def keystrokes_saved(
    hits: np.ndarray, pieces: Sequence[bytes], ends_word: np.ndarray | None = None
) -> float:
    """Return the fraction of key presses that word completion saves.

    hits, ends_word: see TokenScores. The model predicts the rest of the word at every token. The
    user accepts a prediction by one key press as soon as all of it is correct, with the end of the
    word: a model that continues "car" as "carpet" saves nothing. A word extends from a token that
    starts with white space to the next such token. A key press is a character, not a byte.

    Without `ends_word`, a word is ended if the next token is the most likely token. The last word
    is left out if its end is not known. Returns NaN if no word remains.
    """
    # Control characters, such as those of chat templates, also separate words.
    starts = [i for i, piece in enumerate(pieces) if i == 0 or b"" < piece[:1] <= b" "]
    is_hit = np.asarray(hits, bool)
    is_end = is_hit[1:] if ends_word is None else np.asarray(ends_word, bool)
    # Each character has one byte that is not 0b10xxxxxx in UTF-8.
    n_keys = np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in pieces])
    n_typed, n_total = 0, 0
    for start, end in zip(starts, [*starts[1:], len(pieces)], strict=True):
        if end > len(is_end):
            continue
        wrong = np.flatnonzero(~is_hit[start:end])
        accepted = start + int(wrong[-1]) + 1 if len(wrong) else start
        accepted = accepted if is_end[end - 1] else end
        n_typed += int(n_keys[start:accepted].sum() + min(1, n_keys[accepted:end].sum()))
        n_total += int(n_keys[start:end].sum())
    return 1 - n_typed / n_total if n_total else float("nan")


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
        saved = keystrokes_saved(right.hits, pieces, right.ends_word)
        return metrics if np.isnan(saved) else metrics | {"keystrokes_saved": saved}
    nats = _choice_nats(example, scores)
    bare = [answer.strip(tokenizers.CHAT_TOKENS).strip() for answer in example.answers]
    n_bare_characters = np.array([len(answer) for answer in bare])
    n_bare_bytes = np.array([len(answer.encode()) for answer in bare])
    p = np.exp(nats.min() - nats)
    p /= p.sum()
    one_hot = np.arange(len(p)) == example.right
    least_wrong = nats[~one_hot].min()
    return metrics | {
        "accuracy": _share_of_point(nats, example.right),
        "acc_norm": _share_of_point(nats / n_bare_characters, example.right),
        "accuracy_bytes": _share_of_point(nats / n_bare_bytes, example.right),
        "p_right": float(p[example.right]),
        "margin": float(least_wrong - nats[example.right]),
        "brier": float(((p - one_hot) ** 2).sum()),
    }


def _choice_nats(example: tasks.Example, scores: Sequence[TokenScores]) -> np.ndarray:
    """Return the total nats of each choice.

    Equal choices have equal likelihoods, which may be computed with different rounding.
    """
    nats = np.array([score.nats.sum() for score in scores])
    pairs = list(zip(example.prompts, example.answers, strict=True))
    return nats[[pairs.index(pair) for pair in pairs]]


def _share_of_point(nats: np.ndarray, right: int) -> float:
    """Return 1 / n if the correct choice is among the n choices of the least nats, else 0."""
    is_best = nats == nats.min()
    return float(is_best[right] / max(is_best.sum(), 1))  # no choice is the best if nats are NaN


def _edit_distance(a: str, b: str) -> int:
    """Return the number of letters to insert, delete or replace (Levenshtein 1966)."""
    row = np.arange(len(b) + 1)
    letters = np.array(list(b), dtype="U1")
    for letter in a:
        without_insertion = np.minimum(row[:-1] + (letters != letter), row[1:] + 1)
        row = np.r_[row[0] + 1, without_insertion]
        row = np.minimum.accumulate(row - np.arange(len(row))) + np.arange(len(row))
    return int(row[-1])
