"""Gain of pre-training in each tuned task, by size, and the smallest size from which it pays.

    points = pretraining_gain.task_scores(rows)         # score of each task, size and method
    effects = pretraining_gain.compare_methods(points)    # with standard errors
    pretraining_gain.describe_gains(effects)              # one sentence per task and comparison

The methods of a run on conversations, of which it has one task or several:

    tuned, tuned on all tasks                 from the weights of a pre-trained run
    from scratch, from scratch on all tasks   from random weights, as many steps: equal FLOPs
    from scratch, total FLOPs                 with the FLOPs of pre-training and tuning together

If the fine-tuned runs of a size have several numbers of steps, the number with the most seeds of
all sizes is used. Runs with another of these numbers are left out, and runs of different steps are
not compared, except for equal total FLOPs. Of several learning rates, the one with the lowest mean
held-out loss is used, of those that all seeds of a size and method have. If the seeds have no
common rate, each seed has its best one. Runs on fewer training examples of the task are left out.

Scores are BLEU of generated translations, else accuracy in percent. The standard error of a mean
over seeds contains the error of the test items, which all seeds share, and the variance between
seeds. This variance is pooled over the sizes of a task and method, and over all methods of the task
for a method without a second seed. Test items are assumed to be independent between methods, which
overestimates the error of a gain. A gain pays from the smallest size at which this gain and those
of all larger sizes are significant: Welch's t-test (1947), level LEVEL, corrected for the number of
tested comparisons (Bonferroni). A comparison is a task and two methods. Without a second seed of
the task, nothing is tested.
"""

import collections
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from lm.data.sources import uri
from lm.reports import transfer_analysis
from lm.runs import records, run_selection, short_names, task_results

TUNED, TUNED_ON_ALL = "tuned", "tuned on all tasks"
SCRATCH, SCRATCH_ON_ALL = "from scratch", "from scratch on all tasks"
TOTAL_FLOPS = "from scratch, total FLOPs"
METHODS = (TUNED, SCRATCH, TOTAL_FLOPS, TUNED_ON_ALL, SCRATCH_ON_ALL)
COMPARISONS = (
    (TUNED, SCRATCH),
    (TUNED, TOTAL_FLOPS),
    (TUNED_ON_ALL, SCRATCH),
    (TUNED_ON_ALL, SCRATCH_ON_ALL),
)
BASELINE_METRICS = ("accuracy", "bleu", "chrf")
UNITS = {"accuracy": "%", "bleu": "BLEU", "bits_per_byte": "bits per byte"}
N_ERRORS = 2  # standard errors that a gain must exceed
LR_DIGITS = 5  # of equal learning rates: laws of two processors differ in the eighth
LEVEL = 0.05  # of all two-sided tests of the comparisons together


def is_tuned_on_prompts(row: Mapping) -> bool:
    """Return True if a run is done and was trained on answers of conversations."""
    return row["status"] == "done" and row.get("data.loss_on") == "answers"


def task_scores(rows: Sequence[Mapping], metric: str = "") -> list[dict]:
    """Return the score of each task, size and method, with its best baseline.

    metric: metric of the scores, such as bits_per_byte; by default BLEU of generated translations,
    and the accuracy in percent of other tasks. Return a list of {"task" (short name), "size",
    "method", "metric", "value", "se", "seed_variance" (part of the squared error), "seed_degrees"
    (its degrees of freedom), "n_runs" (seeds), "lr" (mean learning rate), "steps", "baseline" (NaN
    if the metric has none), "baseline_name"}.
    """
    tuned_rows = [row for row in rows if is_tuned_on_prompts(row)]
    steps = _tuned_steps(rows)
    groups: dict[tuple[str, float, str], list[Mapping]] = {}
    for row in tuned_rows:
        for task in task_results.task_names([row]):
            method = _method(row, steps)
            if method and np.isfinite(task_results.task_value(row, task, metric or "accuracy")):
                groups.setdefault((task, row[records.N_PARAMS], method), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: _order(*item[0]))
    names = _without_instructions(tuned_rows, list(dict.fromkeys(task for task, _, _ in groups)))
    labels = unique_labels(list(dict.fromkeys(names.values())))
    points = [
        {"task": labels[names[key[0]]]} | _score(*key, _best_runs(group), metric)
        for key, group in ordered
    ]
    return [
        _with_error(point, [p for p in points if p["task"] == point["task"]]) for point in points
    ]


def _without_instructions(rows: Sequence[Mapping], tasks: Sequence[str]) -> dict[str, str]:
    """Return {task: task without its instruction, if a run was tuned on this instruction}.

    Such a task is compared with models of this task alone, which may have no instruction. Several
    tests of a task that a run was tuned on keep their instructions.
    """
    tuned = {_instruction(source) for row in rows for source in transfer_analysis.learned(row)}
    names = {}
    for task in tasks:
        is_tuned = bool(_instruction(task)) and _instruction(task) in tuned
        names[task] = transfer_analysis.without_fields(task, "instruction") if is_tuned else task
    rows_by_task = {
        task: {row["name"] for row in rows if task in task_results.task_names([row])}
        for task in tasks
    }
    ambiguous = {
        name
        for task, name in names.items()
        for other in tasks
        if other != task and names[other] == name and rows_by_task[task] & rows_by_task[other]
    }
    return {task: task if name in ambiguous else name for task, name in names.items()}


def _instruction(name: str) -> str:
    """Return the decoded instruction of a source or a task, "" without one."""
    fields = uri.split_uri(name)[1].split("&")
    written = next((f for f in fields if f.startswith("instruction=")), "")
    return urllib.parse.unquote_plus(written.removeprefix("instruction="))


def task_label(task: str) -> str:
    """Return the name of a task with its prompt format: file:my/sst2?template=task -> sst2 (task).

    The template "chat" is left out. An instruction is written in words. Tasks of a file are named
    by its option `only`.
    """
    name, _, query = short_names.shorten_task(task).partition("?")
    options = dict(text.split("=", 1) for text in query.split("&") if "=" in text)
    template, selection = options.pop("template", "chat"), options.pop("only", "")
    instruction = urllib.parse.unquote_plus(options.pop("instruction", ""))
    name += f": {selection}" if selection else ""
    others = [f"{key}={value}" for key, value in options.items()]
    others += [template] if template != "chat" else []
    others += [instruction] if instruction else []
    return f"{name} ({', '.join(others)})" if others else name


def unique_labels(tasks: Sequence[str]) -> dict[str, str]:
    """Return {task: label}. Tasks with the same `task_label` have their folders and options.

    Such tasks may have other items: file:a/sst2?n=9 and file:b/sst2?n=9, or n=9 and n=500.
    """
    labels = {task: task_label(task) for task in tasks}
    names = list(labels.values())
    ambiguous = [task for task in tasks if names.count(labels[task]) > 1]
    sources = {task: task.partition("?")[0] for task in ambiguous}
    short_sources = short_names.shorten_sources(list(dict.fromkeys(sources.values())))
    longer = {
        task: task.replace(source, short_sources[source], 1) for task, source in sources.items()
    }
    return labels | longer


def compare_methods(points: Sequence[Mapping]) -> list[dict]:
    """Return the gain of the first method of each of COMPARISONS over the second.

    A gain is positive if the first method is better, also in bits per byte, where the lower value
    is better. points: result of task_scores. Return a list of {"task", "size", "metric", "method",
    "other", "gain", "gain_se", "seed_degrees" (of the error, after Welch and Satterthwaite)} for
    each task and size with both methods.
    """
    by_key = {(point["task"], point["size"], point["method"]): point for point in points}
    effects = []
    for task, size in dict.fromkeys((point["task"], point["size"]) for point in points):
        for method, other in COMPARISONS:
            pair = [by_key.get((task, size, name)) for name in (method, other)]
            if not (pair[0] and pair[1]):
                continue
            if pair[0]["steps"] == pair[1]["steps"] or other == TOTAL_FLOPS:
                sign = -1 if pair[0]["metric"] == "bits_per_byte" else 1
                effects.append(
                    {
                        "task": task,
                        "size": size,
                        "metric": pair[0]["metric"],
                        "method": method,
                        "other": other,
                        "gain": sign * (pair[0]["value"] - pair[1]["value"]),
                        "gain_se": float(np.hypot(pair[0]["se"], pair[1]["se"])),
                        "seed_degrees": _degrees([pair[0], pair[1]]),
                    }
                )
    return effects


def _degrees(pair: Sequence[Mapping]) -> float:
    """Return the degrees of freedom of the error of the difference of two scores, 0 without seeds.

    The error of the test items counts as known. Equal degrees are not added, because they may
    belong to one pooled variance.
    """
    parts, degrees = zip(*((p["seed_variance"], p["seed_degrees"]) for p in pair), strict=True)
    if not all(degrees):
        return 0.0
    if degrees[0] == degrees[1] or not any(parts):
        return float(min(degrees))
    total = sum(point["se"] ** 2 for point in pair)
    return total**2 / sum(part**2 / n for part, n in zip(parts, degrees, strict=True))


def paying_size(effects: Sequence[Mapping], n_tests: int = 0) -> float | None:
    """Return the size from which a gain pays, None if it does not pay at the largest size.

    effects: those of one task and comparison. n_tests: number of tests that are corrected for; by
    default, a gain must exceed N_ERRORS standard errors.
    """
    size = None
    for point in sorted(effects, key=lambda point: -point["size"]):
        n_errors = _critical_errors(n_tests, point["seed_degrees"]) if n_tests else N_ERRORS
        if point["gain"] <= n_errors * point["gain_se"]:
            break
        size = point["size"]
    return size


def describe_gains(
    effects: Sequence[Mapping], format_size: Callable[[float], str] = str
) -> list[str]:
    """Return a sentence for each task and comparison: the size from which the gain pays.

    format_size: function from a number of parameters to text. Without a second seed of the task,
    the sentence has no test.
    """
    curves: dict[tuple, list[Mapping]] = {}
    for g in sorted(effects, key=lambda point: point["size"]):
        curves.setdefault((g["task"], g["method"], g["other"]), []).append(g)
    order = dict.fromkeys((g["task"], g["method"], g["other"]) for g in effects)
    n_tested = sum(curve[-1]["seed_degrees"] > 0 for curve in curves.values())
    return [_describe_curve(curves[key], n_tested, format_size) for key in order]


def _describe_curve(
    curve: Sequence[Mapping], n_comparisons: int, format_size: Callable[[float], str]
) -> str:
    """Return the sentence of one task and comparison. curve: smallest size first."""
    last = curve[-1]
    pair = f"{last['task']}: {last['method']} against {last['other']}"
    gain = f"{format_gain(last)} at {format_size(last['size'])}"
    if not last["seed_degrees"]:
        return f"{pair} is not tested, because each size has one seed ({gain}, over items alone)"
    size, n_tests = paying_size(curve, n_comparisons), n_comparisons * len(curve)
    harmed = [
        format_size(p["size"])
        for p in curve
        if p["gain"] < -_critical_errors(n_tests, p["seed_degrees"]) * p["gain_se"]
    ]
    effect = f"pays from {format_size(size)} on" if size else "has no significant gain"
    return f"{pair} {effect} ({gain})" + (
        f", and is worse at {', '.join(harmed)}" if harmed else ""
    )


def _critical_errors(n_tests: int, degrees: float) -> float:
    """Return the standard errors that a difference must exceed in one of several tests."""
    from scipy import stats  # its import takes a second

    return float(stats.t.isf(LEVEL / 2 / n_tests, degrees))


def gain_unit(metric: str) -> str:
    """Return the unit of a gain. Accuracies in percent differ by points."""
    return "points" if metric == "accuracy" else UNITS.get(metric, metric)


def format_gain(effect: Mapping) -> str:
    """Format a result of compare_methods: "+5.3 ± 0.8 BLEU"."""
    digits, unit = _digits(effect), gain_unit(effect["metric"])
    return f"{effect['gain']:+.{digits}f} ± {effect['gain_se']:.{digits}f} {unit}"


def format_score(point: Mapping) -> str:
    """Format a result of task_scores: "21.3 ± 0.6"."""
    digits = _digits(point)
    return f"{point['value']:.{digits}f} ± {point['se']:.{digits}f}"


def _digits(point: Mapping) -> int:
    """Return the decimal places of a score: one of BLEU and percent, three of bits per byte."""
    return 3 if point["metric"] == "bits_per_byte" else 1


class _Steps(NamedTuple):
    """Numbers of steps of the runs on the same files."""

    compared: dict[float, int]  # size -> steps of the runs that are compared
    tuned: frozenset[int]  # all numbers of the fine-tuned runs


def _tuned_steps(rows: Sequence[Mapping]) -> dict[tuple, _Steps]:
    """Return {files: numbers of steps} of the runs on conversations.

    Fine-tuned runs that are not done count for sizes without others. Without fine-tuned runs of a
    size, its shortest run from scratch has their steps.
    """
    by_files: dict[tuple, list[Mapping]] = {}
    for row in rows:
        if row.get("data.loss_on") == "answers" and records.N_PARAMS in row:
            by_files.setdefault(transfer_analysis.size_and_files(row)[1:], []).append(row)
    return {files: _steps_of_files(runs) for files, runs in by_files.items()}


def _steps_of_files(rows: Sequence[Mapping]) -> _Steps:
    """Return the numbers of steps of runs on the same files."""
    tuned = [row for row in rows if run_selection.is_finetuned(row)]
    done = [row for row in tuned if row["status"] == "done"]
    n_runs = collections.Counter(row["steps"] for row in done)
    seeds = {(row["steps"], row[records.N_PARAMS], row["seed"]) for row in done}
    n_seeds = collections.Counter(steps for steps, _, _ in seeds)  # over all sizes
    compared = {}
    for size in {row[records.N_PARAMS] for row in rows}:
        of_size = [
            [r["steps"] for r in runs if r[records.N_PARAMS] == size] for runs in (done, tuned)
        ]
        if numbers := of_size[0] or of_size[1]:
            compared[size] = max(numbers, key=lambda n: (n_seeds[n], n_runs[n], n))
        else:
            compared[size] = min(row["steps"] for row in rows if row[records.N_PARAMS] == size)
    return _Steps(compared, frozenset(row["steps"] for row in tuned))


def _method(row: Mapping, tuned_steps: Mapping[tuple, _Steps]) -> str:
    """Return the method of a run, "" for a run that is left out. tuned_steps: `_tuned_steps`."""
    size, *files = transfer_analysis.size_and_files(row)
    steps = tuned_steps[tuple(files)]
    n_files, is_equal = len(files), row["steps"] == steps.compared[size]
    if run_selection.is_finetuned(row):
        return "" if not is_equal else TUNED if n_files == 1 else TUNED_ON_ALL
    if n_files > 1:
        return SCRATCH_ON_ALL if is_equal else ""
    if is_equal:
        return SCRATCH
    is_longer = row["steps"] > steps.compared[size] and row["steps"] not in steps.tuned
    return TOTAL_FLOPS if is_longer else ""


def _best_runs(rows: Sequence[Mapping]) -> list[Mapping]:
    """Return one run per seed, of those with the most text, with the best learning rate."""
    n_tokens = max(row.get("unique_tokens", 0) for row in rows)
    by_seed: dict[int, dict[float, Mapping]] = {}
    for row in sorted(rows, key=transfer_analysis.held_out_loss):
        if row.get("unique_tokens", 0) == n_tokens:
            rate = float(f"{row['optim.lr']:.{LR_DIGITS}g}")
            by_seed.setdefault(row["seed"], {}).setdefault(rate, row)
    common = set.intersection(*(set(by_rate) for by_rate in by_seed.values()))
    if not common:
        return [next(iter(by_rate.values())) for by_rate in by_seed.values()]

    def mean_loss(rate: float) -> float:
        runs = [by_rate[rate] for by_rate in by_seed.values()]
        return float(np.mean([transfer_analysis.held_out_loss(run) for run in runs]))

    best = min(sorted(common), key=mean_loss)
    return [by_rate[best] for by_rate in by_seed.values()]


def _order(task: str, size: float, method: str) -> tuple:
    """Return the sort key of a score: task, size and method."""
    return short_names.shorten_task(task), size, METHODS.index(method)


def _with_error(point: Mapping, points_of_task: Sequence[Mapping]) -> dict:
    """Return the dict of `task_scores`, with its error. points_of_task: results of `_score`."""
    of_method = [p for p in points_of_task if p["method"] == point["method"]]
    if all(p["n_runs"] == 1 for p in of_method):
        of_method = points_of_task
    degrees = sum(p["n_runs"] - 1 for p in of_method)
    squares = sum(np.square(p["values"] - p["values"].mean()).sum() for p in of_method)
    variance = float(squares) / max(degrees, 1) / point["n_runs"]
    entry = {k: v for k, v in point.items() if k not in ("values", "item_variance")}
    error = (point["item_variance"] + variance) ** 0.5
    return entry | {"se": error, "seed_variance": variance, "seed_degrees": degrees}


def _score(task: str, size: float, method: str, runs: Sequence[Mapping], metric: str = "") -> dict:
    """Return the score of one task, size and method, with its values. runs: one per seed."""
    if not metric:
        metric = "bleu" if task_results.task_result(runs[0], task, "bleu") else "accuracy"
    scale = 100.0 if metric == "accuracy" else 1.0
    results = [task_results.task_result(run, task, metric) for run in runs]
    values = scale * np.array([result["value"] for result in results if result])
    errors = scale * np.array([result["se"] for result in results if result])
    name, baseline = "", np.nan
    if metric in BASELINE_METRICS:
        name, baseline = task_results.best_baseline(runs[0], task, metric)
    return {
        "size": size,
        "method": method,
        "metric": metric,
        "value": float(values.mean()),
        "values": values,
        "item_variance": float((errors**2).mean()),
        "n_runs": len(values),
        "lr": float(np.mean([run["optim.lr"] for run in runs])),
        "steps": runs[0]["steps"],
        "baseline": scale * baseline,
        "baseline_name": name,
    }
