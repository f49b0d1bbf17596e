"""What earlier training is worth: pre-training against none, tuned tasks against unseen ones.

    for pair in pairs(rows): print(pair["tokens"], pair["gain"], pair["gain_se"])
    abilities(rows, {"tuned on": names, "never seen": others})     # a dict a size and tuning set

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
    learned = [source for source, weight in row["data.sources"].items() if weight]
    return sum(source.count("+") + 1 for source in learned if source.startswith("tasks:"))


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
