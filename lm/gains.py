"""What earlier training is worth: pre-training against none, tuned tasks against unseen ones.

    for pair in pairs(rows): print(pair["tokens"], pair["gain"], pair["gain_se"])
    abilities(rows, {"tuned on": names, "never seen": others})     # a dict a size and tuning set
    left_out(rows)                       # a dict a size and cluster of tasks that tuning left out
    forgotten(rows)                      # a dict a tuned run: loss on its parent's text, both times
    qualities(rows)                      # a dict a model and task: way, examples, bits a byte
    saved(rows, evals)                   # a dict a size and task: compute that tuning saves

Rows are those of records.rows; a run with start.run is tuned, one without is not.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lm import mastery, table

SIZE = "params.non_embedding"


def is_tuned(row: Mapping) -> bool:
    """Whether a run started from another's weights."""
    return bool(row.get("start.run"))


def n_clusters(row: Mapping) -> int:
    """Tasks that a tuned run was tuned on, by the names of its sources; 0 before tuning."""
    if not is_tuned(row):
        return 0
    return sum(source.count("+") + 1 for source in learned(row) if source.startswith("tasks:"))


def learned(row: Mapping) -> list[str]:
    """The sources that a run trained on."""
    return [source for source, weight in row["data.sources"].items() if weight]


def subject(task: str) -> str:
    """What a task asks, without its dials: file:my/sst2?n=100 and file:sst2 are sst2."""
    return task.partition("?")[0].rpartition("/")[2].removeprefix("file:")


def pairs(rows: Sequence[Mapping], x: str = "unique_tokens", y: str = "eval.loss") -> list[dict]:
    """Of each size and amount of data: y from scratch, y tuned, and their difference.

    Only for what both ways were tried with. gain is scratch less tuned, above 0 where pre-training
    helped; gain_se adds both standard errors as those of independent numbers, which is too much for
    losses of the same held-out text. Of several runs of a kind the means are taken.
    """
    found = []
    done = [row for row in rows if row["status"] == "done"]
    keys = sorted({(row[SIZE], row[x]) for row in done})
    for size, tokens in keys:
        mine = [row for row in done if (row[SIZE], row[x]) == (size, tokens)]
        ways = [[row for row in mine if is_tuned(row) == way] for way in (False, True)]
        if all(ways):
            (scratch, a), (tuned, b) = (_mean(way, y) for way in ways)
            pair = {"size": size, "tokens": tokens, "scratch": scratch, "tuned": tuned}
            found.append(pair | {"gain": scratch - tuned, "gain_se": float(np.hypot(a, b))})
    return found


def abilities(
    rows: Sequence[Mapping], groups: Mapping[str, Sequence[str]], metric: str = "accuracy"
) -> list[dict]:
    """Mean of a metric over the tasks of each group, by size and number of clusters tuned on.

    {"size", "n_clusters", "group", "value", "se", "n_runs"}. A task that a run was not set does not
    count. se holds the questions' own error and how far runs of several seeds lie apart.
    """
    found = []
    done = [row for row in rows if row["status"] == "done"]
    for size, n in sorted({(row[SIZE], n_clusters(row)) for row in done}):
        mine = [row for row in done if (row[SIZE], n_clusters(row)) == (size, n)]
        for group, tasks in groups.items():
            means = [mean for row in mine if (mean := _over_tasks(row, tasks, metric))]
            if means:
                values, errors = np.array(means).T
                apart = values.var(ddof=1) if len(values) > 1 else 0.0
                se = float(np.sqrt(((errors**2).mean() + apart) / len(values)))
                point = {"size": size, "n_clusters": n, "group": group}
                point |= {"value": float(values.mean()), "se": se, "n_runs": len(values)}
                found.append(point)
    return found


def left_out(rows: Sequence[Mapping], metric: str = "accuracy") -> list[dict]:
    """What tuning on a cluster of tasks adds for these tasks: the gap of seen and unseen.

    Of each run that was asked for what others of its size and parent were tuned on and it was not:
    {"size", "cluster" (these tasks), "without", "with" (mean over those others), "gap" (with less
    without)}, numbers with NAME_se.
    """
    found = []
    tuned = [row for row in rows if row["status"] == "done" and is_tuned(row)]
    for row in tuned:
        others = [r for r in tuned if (r[SIZE], r["start.run"]) == (row[SIZE], row["start.run"])]
        whole = [r for r in others if n_clusters(r) == max(map(n_clusters, others))]
        lacks = {task for task in mastery.tasks([row]) if task not in _families(row)}
        cluster = [task for task in lacks if task in _families(whole[0])]
        if lacks and len(cluster) == len(lacks):
            point: dict = {"size": row[SIZE], "cluster": sorted(cluster)}
            for name, runs in (("without", [row]), ("with", whole)):
                means = [mean for run in runs if (mean := _over_tasks(run, cluster, metric))]
                values, errors = np.array(means).T
                error = float(np.sqrt((errors**2).sum())) / len(values)
                point |= {name: float(values.mean()), f"{name}_se": error}
            gap_se = float(np.hypot(point["with_se"], point["without_se"]))
            found.append(point | {"gap": point["with"] - point["without"], "gap_se": gap_se})
    return found


def forgotten(rows: Sequence[Mapping]) -> list[dict]:
    """Of each tuned run and each source of its parent that it looked at: nats before and after.

    {"size", "source", "tokens" (unique ones that it was tuned on), "before", "after", each with
    NAME_se}. Both are of the same held-out rows. A run whose parent is not there is left out.
    """
    by_name, found = {row["name"]: row for row in rows}, []
    for row in rows:
        parent = by_name.get(row.get("start.run", ""), {})
        for source in learned(parent) if parent and row["status"] == "done" else ():
            column, se = f"eval.loss.{source}", f"eval.loss_se.{source}"
            if column in row and column in parent:
                point = {"size": row[SIZE], "source": source, "tokens": row["unique_tokens"]}
                point |= {"before": parent[column], "before_se": parent.get(se, 0.0)}
                found.append(point | {"after": row[column], "after_se": row.get(se, 0.0)})
    return found


def qualities(rows: Sequence[Mapping], metric: str = "bits_per_byte") -> list[dict]:
    """What each model makes of each task that it was set, by where its skill comes from.

    {"size", "task", "way", "examples", "value", "se"}. way: tuned (on the task alone), tuned on all
    (several tasks), alone (from scratch), alone, same FLOPs (the one that took more steps than the
    tuned one of the same examples), prompted, K shots. examples: conversations learned from.
    """
    found = []
    done = [row for row in rows if row["status"] == "done"]
    steps = {(row[SIZE], *learned(row)): row["steps"] for row in done if is_tuned(row)}
    for row in done:
        sources = learned(row)
        for task in mastery.tasks([row]):
            shots = [dial[6:] for dial in task.split("?")[-1].split("&") if dial[:6] == "shots="]
            if is_tuned(row):
                way = "tuned" if len(sources) == 1 else "tuned on all"
            elif row["data.score"] != "answers":
                way = f"prompted, {''.join(shots) or 0} shots"
            else:
                is_longer = row["steps"] > steps.get((row[SIZE], *sources), row["steps"])
                way = "alone, same FLOPs" if is_longer else "alone"
            n = sum(table.number(row.get(f"rows.n_documents.{source}", 0)) for source in sources)
            value, se = row[mastery.column(task, metric)], f"eval.task_se.{task}.{metric}"
            point = {"size": row[SIZE], "task": subject(task), "way": way}
            found.append(point | {"examples": n, "value": value, "se": row.get(se, 0.0)})
    return found


def saved(rows: Sequence[Mapping], evals: Mapping[str, Sequence[Mapping]]) -> list[dict]:
    """Compute until a model from scratch is as good as a tuned one at its best, over the tuned's.

    Of each size and task at its most examples, by held-out losses of the same rows along both runs:
    {"size", "task", "tuned" and "alone" (FLOPs), "saved" (their ratio), "reached", "pretraining"
    (FLOPs)}. reached is False where none from scratch came as far: then alone is all that the
    longest spent, and saved a lower bound. evals: the evaluations of each run by its name.
    """
    found: dict[tuple, dict] = {}
    done = [row for row in rows if row["status"] == "done" and mastery.tasks([row])]
    for row in sorted(done, key=lambda row: row["unique_tokens"]):
        same = [r for r in done if (r[SIZE], learned(r)) == (row[SIZE], learned(row))]
        alone = [r for r in same if not is_tuned(r)]
        if not is_tuned(row) or not alone:
            continue
        longest = max(alone, key=lambda r: r["steps"])
        tuned, scratch = (
            [(line["step"], line["loss"]) for line in evals[r["name"]] if line["step"]]
            for r in (row, longest)
        )
        step, best = min(tuned, key=lambda one: one[1])
        met = [at for at, loss in scratch if loss <= best]
        per_step = row["flops_per_token.full"] * row["data.batch_size"] * row["data.seq_len"]
        spent = {"tuned": step * per_step, "alone": min(met or [scratch[-1][0]]) * per_step}
        key = row[SIZE], subject(mastery.tasks([row])[0])
        found[key] = dict(zip(("size", "task"), key, strict=True)) | spent
        found[key] |= {"saved": spent["alone"] / spent["tuned"], "reached": bool(met)}
        found[key] |= {"pretraining": row.get("parent.flops", 0.0)}
    return list(found.values())


def _families(row: Mapping) -> list[str]:
    """The synthetic tasks that a run was tuned on."""
    names = [name.removeprefix("tasks:") for name in learned(row) if name.startswith("tasks:")]
    return [family for name in names for family in name.split("+")]


def _over_tasks(row: Mapping, tasks: Sequence[str], metric: str) -> tuple[float, float] | None:
    asked = [task for task in tasks if mastery.column(task, metric) in row]
    if not asked:
        return None
    values = [table.number(row[mastery.column(task, metric)]) for task in asked]
    errors = [table.number(row.get(f"eval.task_se.{task}.{metric}", 0.0)) for task in asked]
    return float(np.mean(values)), float(np.sqrt(np.square(errors).sum()) / len(asked))


def _mean(rows: Sequence[Mapping], y: str) -> tuple[float, float]:
    """Of a column, and its standard error: that of the questions, over the root of the runs."""
    errors = [table.number(row.get(f"{y}_se", 0.0)) for row in rows]
    mean = float(np.mean([table.number(row[y]) for row in rows]))
    return mean, float(np.mean(errors)) / len(rows) ** 0.5
