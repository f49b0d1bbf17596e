"""Analysis of transfer: fine-tuned against from scratch, tuned against unseen tasks, forgetting.

    for pair in transfer_analysis.finetune_pairs(rows):
        print(pair["tokens"], pair["gain"], pair["gain_se"])
    transfer_analysis.mean_accuracy(rows, groups)       # accuracy of tuned and unseen tasks
    transfer_analysis.leave_one_cluster_out(rows)       # tuning with and without a task cluster
    transfer_analysis.forgetting(rows)                  # loss on the parent's text
    transfer_analysis.task_quality(rows)                # quality by training method and examples
    transfer_analysis.compute_saved(rows, evals)        # compute saved by fine-tuning

`rows` are those of records.load_runs. A run with start.run is fine-tuned. All functions use the
runs with status "done". NAME_se is the standard error of NAME.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lm.config.schedules import batch_size_schedule
from lm.data.sources import uri
from lm.laws import run_table
from lm.reports import paired_errors
from lm.runs import records, run_selection, short_names, task_results


def n_clusters(row: Mapping) -> int:
    """Return the number of task clusters that a run was fine-tuned on, 0 for other runs.

    A cluster is a task in the sources of the run: tasks:copy+sort has two.
    """
    return len(_tuned_tasks(row)) if run_selection.is_finetuned(row) else 0


def learned(row: Mapping) -> list[str]:
    """Return the sources with a positive weight in the training data of a run."""
    return [source for source, weight in row["data.sources"].items() if weight]


def learned_files(row: Mapping) -> set[str]:
    """Return the sources that a run learned, without their instructions and templates.

    A task with two instructions has two sources and is one task.
    """
    return {without_fields(source, "instruction", "template") for source in learned(row)}


def size_and_files(row: Mapping) -> tuple:
    """Return the size of a run and its `learned_files` in order."""
    return row.get(records.N_PARAMS), *sorted(learned_files(row))


def without_fields(name: str, *keys: str) -> str:
    """Return a source or a task without these fields: sst2?n=9&template=task -> sst2?n=9."""
    path, query = uri.split_uri(name)
    fields = [f for f in query.split("&") if f and f.partition("=")[0] not in keys]
    return "?".join([path, "&".join(fields)]) if fields else path


def task_base_name(task: str) -> str:
    """Return the name of a task without folder and options: file:my/sst2?n=100 -> sst2."""
    return short_names.shorten_task(task).partition("?")[0]


def finetune_pairs(
    rows: Sequence[Mapping], x: str = "unique_tokens", y: str = records.LOSS
) -> list[dict]:
    """Compare runs from scratch and fine-tuned runs of the same size and data amount x.

    Return a dict per size and amount that has both kinds of runs: {"size", "tokens" (value of x),
    "scratch", "tuned" (means of y), "gain", "gain_se"}. "gain" is scratch - tuned, positive if
    pre-training helped. "gain_se" contains the variance between seeds, and the paired error of the
    loss on the same held-out text: see `paired_errors.paired_difference`. Without its data, and for
    other columns, the standard errors are added as if they were independent, which overestimates
    the error.
    """
    results = []
    finished = [row for row in rows if row["status"] == "done"]
    for size, tokens in sorted({(row[records.N_PARAMS], row[x]) for row in finished}):
        runs = [row for row in finished if (row[records.N_PARAMS], row[x]) == (size, tokens)]
        scratch_runs = [row for row in runs if not run_selection.is_finetuned(row)]
        tuned_runs = [row for row in runs if run_selection.is_finetuned(row)]
        if scratch_runs and tuned_runs:
            scratch, scratch_se = _mean(scratch_runs, y)
            tuned, tuned_se = _mean(tuned_runs, y)
            pair = {"size": size, "tokens": tokens, "scratch": scratch, "tuned": tuned}
            paired = paired_errors.paired_difference(scratch_runs, tuned_runs)
            gain_se = float(np.hypot(scratch_se, tuned_se))
            if paired is not None and y == records.LOSS:
                losses = [[row[y] for row in group] for group in (scratch_runs, tuned_runs)]
                gain_se = float(np.sqrt(paired[1] ** 2 + sum(map(_seed_variance, losses))))
            results.append(pair | {"gain": scratch - tuned, "gain_se": gain_se})
    return results


def mean_accuracy(
    rows: Sequence[Mapping], groups: Mapping[str, Sequence[str]], metric: str = "accuracy"
) -> list[dict]:
    """Average a metric over each group of tasks, by model size and number of tuned clusters.

    groups: {name of group: tasks}. Return a list of {"size", "n_clusters", "group", "value", "se",
    "n_runs"}; for the clusters see `n_clusters`. Tasks without a result are skipped. "se" contains
    the sampling error of the questions and the variance between seeds.
    """
    points = []
    finished = [row for row in rows if row["status"] == "done"]
    for size, n in sorted({(row[records.N_PARAMS], n_clusters(row)) for row in finished}):
        runs = [row for row in finished if (row[records.N_PARAMS], n_clusters(row)) == (size, n)]
        for group, tasks in groups.items():
            means = [_mean_over_tasks(row, tasks, metric) for row in runs]
            means = [mean for mean in means if mean]
            if not means:
                continue
            values, errors = np.array(means).T
            point = {"size": size, "n_clusters": n, "group": group, "n_runs": len(values)}
            mean, se = _mean_of_seeds(values, errors)
            points.append(point | {"value": mean, "se": se})
    return points


def leave_one_cluster_out(rows: Sequence[Mapping], metric: str = "accuracy") -> list[dict]:
    """Compare each run that was tuned without a cluster of tasks with runs tuned on all clusters.

    Return a list of {"size", "cluster" (its tasks), "without", "without_se", "with", "with_se",
    "gap", "gap_se"}. "without" is the mean metric of the run over the cluster. "with" is the mean
    over the runs of the same size and parent that were tuned on the largest number of clusters.
    "gap" is with - without. A run is skipped if it was also evaluated on other unseen tasks.
    """
    points = []
    finished = [row for row in rows if row["status"] == "done"]
    tuned_runs = [row for row in finished if run_selection.is_finetuned(row)]
    for row in tuned_runs:
        key = row[records.N_PARAMS], row["start.run"]
        siblings = [r for r in tuned_runs if (r[records.N_PARAMS], r["start.run"]) == key]
        max_clusters = max(map(n_clusters, siblings))
        full_runs = [sibling for sibling in siblings if n_clusters(sibling) == max_clusters]
        unseen = {task for task in task_results.task_names([row]) if task not in _tuned_tasks(row)}
        cluster = [task for task in unseen if task in _tuned_tasks(full_runs[0])]
        if unseen and len(cluster) == len(unseen):
            points.append(_cluster_gap(row, full_runs, sorted(cluster), metric))
    return points


def _cluster_gap(
    row: Mapping, full_runs: Sequence[Mapping], cluster: list[str], metric: str
) -> dict:
    """Return the dict of `leave_one_cluster_out` for one run."""
    without, without_se = _mean_over_runs([row], cluster, metric)
    with_cluster, with_se = _mean_over_runs(full_runs, cluster, metric)
    return {
        "size": row[records.N_PARAMS],
        "cluster": cluster,
        "without": without,
        "without_se": without_se,
        "with": with_cluster,
        "with_se": with_se,
        "gap": with_cluster - without,
        "gap_se": float(np.hypot(with_se, without_se)),
    }


def _mean_over_runs(runs: Sequence[Mapping], tasks: list[str], metric: str) -> tuple[float, float]:
    """Return the mean of a metric over runs and tasks, and its standard error."""
    means = [_mean_over_tasks(run, tasks, metric) for run in runs]
    return _mean_of_seeds(*np.array([mean for mean in means if mean]).T)


def _mean_of_seeds(values: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Return the mean of the results of seeds and its standard error.

    errors: sampling errors. All seeds have the same examples or text, so that a mean over them has
    the same sampling error as one of them. The variance between seeds is divided by their number.
    """
    return float(values.mean()), float(np.sqrt((errors**2).mean() + _seed_variance(values)))


def _seed_variance(values: Sequence[float] | np.ndarray) -> float:
    """Return the variance of a mean over seeds, 0 for one seed."""
    return float(np.var(values, ddof=1)) / len(values) if len(values) > 1 else 0.0


def forgetting(rows: Sequence[Mapping]) -> list[dict]:
    """Compare the loss on each source of the parent run before and after fine-tuning.

    Return a dict per fine-tuned run and source: {"size", "source", "tokens" (unique tokens of
    fine-tuning), "before", "before_se", "after", "after_se", "change", "change_se"}. Losses are in
    nats per token on the same held-out rows. "change" is after - before. Its error is paired if the
    runs have sums per document: see `paired_errors.paired_difference`. Runs whose parent is not in
    `rows` are skipped.
    """
    by_name, points = {row["name"]: row for row in rows}, []
    for row in rows:
        parent = by_name.get(row.get("start.run", ""))
        if parent is None or row["status"] != "done":
            continue
        for source in learned(parent):
            column = f"{records.LOSS}.{source}"
            if column in row and column in parent:
                point = {"size": row[records.N_PARAMS], "source": source}
                points.append(point | _change(parent, row, source))
    return points


def _change(parent: Mapping, row: Mapping, source: str) -> dict:
    """Return the other items of the dict of `forgetting`."""
    column = f"{records.LOSS}.{source}"
    before_se, after_se = (task_results.standard_error(run, column) for run in (parent, row))
    paired = paired_errors.paired_difference([row], [parent], source)
    return {
        "tokens": row["unique_tokens"],
        "before": parent[column],
        "before_se": before_se,
        "after": row[column],
        "after_se": after_se,
        "change": row[column] - parent[column],
        "change_se": paired[1] if paired else float(np.hypot(before_se, after_se)),
    }


def task_quality(rows: Sequence[Mapping], metric: str = "bits_per_byte") -> list[dict]:
    """Return a metric of each model and task, with the training method.

    Return a list of {"size", "task", "method", "n_examples" (training conversations), "value",
    "se"}. The methods are:

    "tuned", "tuned on all tasks"   fine-tuned on this task, on several tasks
    "from scratch"                  trained from scratch on this task
    "from scratch, same FLOPs"      with more steps than the fine-tuned run on the same examples
    "prompted, K shots"             not trained on answers: K examples in the prompt
    """
    points = []
    finished = [row for row in rows if row["status"] == "done"]
    tuned = [row for row in rows if run_selection.is_finetuned(row) and learned(row)]
    # The last run of a key counts: the longest. It need not be done.
    tuned_steps = {
        size_and_files(row): row["steps"] for row in sorted(tuned, key=lambda row: row["steps"])
    }
    for row in finished:
        sources = learned(row)
        counts = [row.get(f"rows.n_documents.{source}", 0) for source in sources]
        for task in task_results.task_names([row]):
            result = task_results.task_results(row)[task][metric]
            points.append(
                {
                    "size": row[records.N_PARAMS],
                    "task": task_base_name(task),
                    "method": _training_method(row, task, tuned_steps),
                    "n_examples": sum(run_table.to_number(count) for count in counts),
                    "value": result["value"],
                    "se": result["se"],
                }
            )
    return points


def _training_method(row: Mapping, task: str, tuned_steps: Mapping[tuple, int]) -> str:
    """Return the method of a run, see `task_quality`. tuned_steps: {(size, *files): steps}."""
    if run_selection.is_finetuned(row):
        return "tuned" if len(learned_files(row)) == 1 else "tuned on all tasks"
    if row["data.loss_on"] != "answers":
        options = uri.split_uri(task)[1].split("&")
        shots = [text.removeprefix("shots=") for text in options if text.startswith("shots=")]
        return f"prompted, {''.join(shots) or 0} shots"
    is_longer = row["steps"] > tuned_steps.get(size_and_files(row), row["steps"])
    return "from scratch, same FLOPs" if is_longer else "from scratch"


def compute_saved(rows: Sequence[Mapping], evals: Mapping[str, Sequence[Mapping]]) -> list[dict]:
    """Compute the FLOPs from scratch, relative to fine-tuning, for an equal held-out loss.

    evals: {name of run: records.load_evals(row["dir"])}. Return a dict per size and task, at its
    largest number of examples: {"size", "task", "tuned_flops", "scratch_flops", "flops_ratio",
    "is_loss_reached", "pretraining_flops"}.

    tuned_flops are the FLOPs until the best held-out loss of the fine-tuned run. scratch_flops are
    the FLOPs until the longest run from scratch reaches this loss. flops_ratio is scratch / tuned.
    If the run from scratch does not reach the loss, scratch_flops are its total FLOPs and
    flops_ratio is a lower bound.
    """
    points: dict[tuple, dict] = {}
    finished = [row for row in rows if row["status"] == "done" and task_results.task_names([row])]
    # The last tuned run of a size and task counts: of those with the most examples, the best.
    for row in sorted(finished, key=lambda row: (row["unique_tokens"], -held_out_loss(row))):
        key = row[records.N_PARAMS], learned(row)
        siblings = [r for r in finished if (r[records.N_PARAMS], learned(r)) == key]
        scratch_runs = [sibling for sibling in siblings if not run_selection.is_finetuned(sibling)]
        if run_selection.is_finetuned(row) and scratch_runs:
            longest = max(scratch_runs, key=lambda run: run["steps"])
            point = _compute_saved(row, evals[row["name"]], evals[longest["name"]])
            points[point["size"], point["task"]] = point
    return list(points.values())


def held_out_loss(row: Mapping) -> float:
    """Return the held-out loss of a run, infinity if it has no finite loss."""
    return row[records.LOSS] if records.is_finite(row.get(records.LOSS)) else np.inf


def _compute_saved(row: Mapping, tuned_evals, scratch_evals) -> dict:
    """Return the dict of `compute_saved` for one fine-tuned run."""
    tuned = [(e["step"], e["loss"]) for e in tuned_evals if e["step"]]
    scratch = [(e["step"], e["loss"]) for e in scratch_evals if e["step"]]
    tuned_step, best_loss = min(tuned, key=lambda point: point[1])
    equal_steps = [step for step, loss in scratch if loss <= best_loss]
    scratch_step = min(equal_steps) if equal_steps else scratch[-1][0]
    count_tokens = batch_size_schedule.BatchSizeSchedule.from_row(row).count_tokens
    tuned_flops, scratch_flops = (
        row["flops_per_token.full"] * count_tokens(step) for step in (tuned_step, scratch_step)
    )
    return {
        "size": row[records.N_PARAMS],
        "task": task_base_name(task_results.task_names([row])[0]),
        "tuned_flops": tuned_flops,
        "scratch_flops": scratch_flops,
        "flops_ratio": scratch_flops / tuned_flops,
        "is_loss_reached": bool(equal_steps),
        "pretraining_flops": row.get("parent.flops", 0.0),
    }


def _tuned_tasks(row: Mapping) -> list[str]:
    """Return the synthetic tasks in the sources of a run: tasks:copy+sort -> copy, sort."""
    sources = [source for source in learned(row) if source.startswith("tasks:")]
    return [task for source in sources for task in source.removeprefix("tasks:").split("+")]


def _mean_over_tasks(row: Mapping, tasks: Sequence[str], metric: str) -> tuple[float, float] | None:
    """Return the mean of a metric over tasks and its standard error, None without results."""
    results = [task_results.task_result(row, task, metric) for task in tasks]
    values = [result["value"] for result in results if result]
    errors = [result["se"] for result in results if result]
    if not values:
        return None
    return float(np.mean(values)), float(np.sqrt(np.square(errors).sum()) / len(values))


def _mean(rows: Sequence[Mapping], y: str) -> tuple[float, float]:
    """Return the mean of a column over seeds and its standard error."""
    errors = [run_table.to_number(row.get(f"{y}_se", 0.0)) for row in rows]
    values = [run_table.to_number(row[y]) for row in rows]
    return _mean_of_seeds(np.array(values), np.array(errors))
