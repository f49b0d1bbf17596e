"""Results of minimal pairs: per paradigm, per phenomenon, and of all pairs.

    results = pair_metrics.pair_results(task, scores)
    results["pair:my/blimp#island_effects/wh_island"]["accuracy"]     # of a paradigm
    results["pair:my/blimp#island_effects"]                           # of a phenomenon
    results["pair:my/blimp"]                                          # of all paradigms

A pair is correct if the first sentence has the higher total log-probability as a document, without
the end of the document. A tie counts one half. The metrics of a paradigm are means over its pairs:

    accuracy          correct pairs
    accuracy_tokens   correct pairs by log-probability per token
    accuracy_equal    correct pairs, among the n_equal pairs whose sentences have as many tokens
    margin            log-probability of the first sentence minus that of the second, in nats
    p_right           1 / (1 + exp(-margin))
    bits_per_byte     bits of the first sentence per byte
    baseline_NAME     accuracy of a baseline, see task_baselines.py

Accuracy can change suddenly where the margin changes smoothly (Schaeffer et al. 2023,
arXiv:2304.15004). The metrics of phenomena and of all pairs are means over paradigms with equal
weights. n_paradigms is the number of paradigms, n the number of pairs. Their standard errors are
clustered by paradigm (Miller 2024, arXiv:2411.00640), because the pairs of a paradigm share a
template. A single paradigm has the standard error over its pairs.

p_above_baseline is the p-value of the hypothesis that the model is not better than all baselines,
and p_below_baseline that of the hypothesis that it is not worse than any of them, see
paired_tests.py.

Tensor names end in their axes: N pairs, 2 sentences.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lm.evaluation import task_metrics, tasks
from lm.evaluation.baselines import paired_tests

TIE_TOLERANCE = 1e-9  # relative difference of log-probabilities that are equal except for rounding


class PairScores(NamedTuple):
    """Scores of the sentences of minimal pairs."""

    nats_N2: np.ndarray  # -log p of each sentence
    n_tokens_N2: np.ndarray  # tokens of each sentence
    is_same_N: np.ndarray  # True if both sentences have the same tokens


def compare_sentences(nats_N2: np.ndarray, is_same_N: np.ndarray | None = None) -> np.ndarray:
    """Return the points of each pair, float64 [N]: 1 for a correct pair, 1/2 for a tie, else 0.

    is_same_N: pairs that are ties, because their sentences have the same tokens.
    """
    difference_N = nats_N2[:, 1] - nats_N2[:, 0]
    is_tie_N = np.abs(difference_N) <= TIE_TOLERANCE * np.abs(nats_N2).max(axis=1)
    if is_same_N is not None:
        is_tie_N = is_tie_N | is_same_N
    points_N = np.where(is_tie_N, 0.5, difference_N > 0)
    return np.where(np.isfinite(difference_N), points_N, 0.0)


def pair_results(task: tasks.Task, scores: PairScores) -> dict[str, task_metrics.Metrics]:
    """Return {name: metrics} of all pairs, of each phenomenon and of each paradigm.

    task: minimal pairs, with the points of its baselines. The name of a part of the task is
    TASK#PHENOMENON or TASK#PHENOMENON/PARADIGM. Without phenomena, it is TASK#PARADIGM. A task of
    one paradigm has no parts.
    """
    groups = [example.group for example in task.examples]
    paradigms = list(dict.fromkeys(groups))
    members = {name: np.flatnonzero(np.array(groups) == name) for name in paradigms}
    columns = _item_columns(task, scores)
    by_paradigm = {name: _paradigm(columns, rows) for name, rows in members.items()}
    if len(paradigms) == 1:
        return {task.name: by_paradigm[paradigms[0]]}
    phenomena: dict[str, list[str]] = {}
    for name in paradigms:
        if "/" in name:
            phenomena.setdefault(name.partition("/")[0], []).append(name)
    baselines = [baseline.name for baseline in task.baselines]
    results = {task.name: _mean_of_paradigms(columns, members, by_paradigm, baselines)}
    for phenomenon, names in phenomena.items():
        own_members = {name: members[name] for name in names}
        metrics = _mean_of_paradigms(columns, own_members, by_paradigm, baselines)
        results[f"{task.name}#{phenomenon}"] = metrics
    return results | {f"{task.name}#{name}": by_paradigm[name] for name in paradigms}


def _item_columns(task: tasks.Task, scores: PairScores) -> dict[str, np.ndarray]:
    """Return {metric: value per pair [N]}. A pair that a metric does not cover has NaN."""
    nats_N2, n_tokens_N2, is_same_N = scores
    margin_N = nats_N2[:, 1] - nats_N2[:, 0]
    points_N = compare_sentences(nats_N2, is_same_N)
    is_equal_N = n_tokens_N2[:, 0] == n_tokens_N2[:, 1]
    n_bytes_N = np.array([len(example.answers[0].encode()) for example in task.examples])
    columns = {
        "accuracy": points_N,
        "accuracy_tokens": compare_sentences(nats_N2 / n_tokens_N2, is_same_N),
        "accuracy_equal": np.where(is_equal_N, points_N, np.nan),
        "margin": margin_N,
        "p_right": 1 / (1 + np.exp(-np.clip(margin_N, -500, 500))),
        "bits_per_byte": nats_N2[:, 0] / np.log(2) / n_bytes_N,
        "tokens": n_tokens_N2.mean(axis=1),
    }
    return columns | {f"baseline_{b.name}": b.points for b in task.baselines}


def _paradigm(columns: dict[str, np.ndarray], rows: np.ndarray) -> task_metrics.Metrics:
    """Return the metrics of one paradigm. rows: its pairs."""
    metrics: task_metrics.Metrics = {
        "n": {"value": len(rows)},
        "n_equal": {"value": int(np.isfinite(columns["accuracy_equal"][rows]).sum())},
        "chance": {"value": 0.5},
    }
    baselines = {}
    for name, values_N in columns.items():
        values = values_N[rows][np.isfinite(values_N[rows])]
        if not len(values):
            continue
        metrics[name] = {"value": float(values.mean())}
        if name.startswith("baseline_"):
            baselines[name] = values
        elif name != "tokens":
            se = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0
            metrics[name]["se"] = float(se)
    points = columns["accuracy"][rows]
    return metrics | _as_metrics(paired_tests.sign_tests(points, list(baselines.values())))


def _mean_of_paradigms(
    columns: dict[str, np.ndarray],
    members: dict[str, np.ndarray],
    by_paradigm: dict[str, task_metrics.Metrics],
    baselines: Sequence[str],
) -> task_metrics.Metrics:
    """Return the means over paradigms, with standard errors clustered by paradigm."""
    parts = [by_paradigm[name] for name in members]
    if len(parts) == 1:
        only_part: task_metrics.Metrics = {"n_paradigms": {"value": 1}}
        return parts[0] | only_part
    metrics: task_metrics.Metrics = {
        "n_paradigms": {"value": len(parts)},
        "n": {"value": sum(part["n"]["value"] for part in parts)},
        "n_equal": {"value": sum(part["n_equal"]["value"] for part in parts)},
        "chance": {"value": 0.5},
    }
    for name in columns:
        values = np.array([part[name]["value"] for part in parts if name in part])
        if not len(values):
            continue
        metrics[name] = {"value": float(values.mean())}
        if not name.startswith("baseline_") and name != "tokens" and len(values) > 1:
            metrics[name]["se"] = float(values.std(ddof=1) / len(values) ** 0.5)
    improvements = []
    for name in baselines:
        gain_N = columns["accuracy"] - columns[f"baseline_{name}"]
        improvements.append(np.array([gain_N[rows].mean() for rows in members.values()]))
    return metrics | _as_metrics(paired_tests.mean_tests(improvements))


def _as_metrics(values: dict[str, float]) -> task_metrics.Metrics:
    return {name: {"value": value} for name, value in values.items()}
