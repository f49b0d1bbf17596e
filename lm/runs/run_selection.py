"""Selection of rows for figures, tables and laws: finished, trunk and related runs, token budgets.

    rows = run_selection.largest_token_budget(records.load_runs("runs/real_ladder")).rows

`runs` are rows of records.load_runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lm.runs import records, task_results

MIN_BUDGETS = 3  # token budgets that a law of size and tokens needs
MIN_BUDGET_RATIO = 0.99  # token counts whose ratio is above this belong to one token budget


def describe_others(others: Sequence[Mapping]) -> str:
    """Return a sentence that names the runs that are not part of their sweep, "" for no runs."""
    if not others:
        return ""
    names = ", ".join(f"{row['dir']} ({row['status']})" for row in others)
    if len(others) == 1:
        return f"1 run here is not part of this sweep: {names}"
    return f"{len(others)} runs here are not part of this sweep: {names}"


def finished_with(runs: Iterable[dict], x: str, y: str) -> list[dict]:
    """Return the finished runs, except trunk runs, with finite columns x and y, sorted by x."""
    finished = [row for row in without_trunks(runs) if row["status"] == "done"]
    complete = [
        row for row in finished if records.is_finite(row.get(x)) and records.is_finite(row.get(y))
    ]
    return sorted(complete, key=lambda row: row[x])


def without_trunks(runs: Iterable[dict]) -> list[dict]:
    """Return all runs except trunk runs.

    A trunk run has a constant learning rate, and cooldown branches start from its checkpoints. A
    scaling law does not describe its final loss, which is higher than the loss after a cooldown.
    """
    runs = list(runs)
    trunks = {row.get("start.run") for row in runs if row.get("start.restore") == "full_state"}
    return [row for row in runs if row["name"] not in trunks]


def is_finetuned(row: Mapping) -> bool:
    """Return True if a run started from the weights of another run.

    A cooldown branch restores the full state of its trunk run and is no fine-tuned run.
    """
    return bool(row.get("start.run")) and row.get("start.restore") != "full_state"


def related_names(target: str, starts: Mapping[str, tuple[str, str]]) -> set[str]:
    """Return the names of a run, its ancestors, and all their descendants.

    These runs share training: a cooldown branch with its trunk run, and with the other branches of
    that run. starts: {name of a run: values of its fields start.run and start.restore}. An ancestor
    is a trunk run, also one without an entry, or another run with an entry. Pre-trained weights of
    another sweep are no shared training.
    """
    parents = {
        name: parent if restore == "full_state" or parent in starts else ""
        for name, (parent, restore) in starts.items()
    }
    related, name = set(), target
    while name and name not in related:
        related.add(name)
        name = parents.get(name, "")
    while children := {name for name in parents if parents[name] in related} - related:
        related |= children
    return related


def largest_run(runs: Iterable[dict]) -> dict:
    """Return the run with the most parameters, and of equal sizes the one with the most tokens.

    Raises ValueError if there is no run.
    """
    return max(runs, key=lambda row: (row[records.N_PARAMS], row[records.TOKENS]))


def compute_frontier(runs: Iterable[dict], y: str = records.LOSS) -> list[dict]:
    """Return the finished runs of least loss for their compute, sorted by FLOPs. y: the loss.

    No run with equal or fewer FLOPs has a loss as low as that of a returned run.
    """
    finished = finished_with(runs, records.FLOPS, y)
    frontier: list[dict] = []
    for row in sorted(finished, key=lambda row: (row[records.FLOPS], row[y])):
        if not frontier or row[y] < frontier[-1][y]:
            frontier.append(row)
    return frontier


def refuse_joint_law(runs: Iterable[dict]) -> str:
    """Return the reason why the runs do not determine a law of size and tokens, or ""."""
    finished = finished_with(runs, records.N_PARAMS, records.TOKENS)
    n_budgets = len({f"{row[records.TOKENS]:.2g}" for row in finished})
    if n_budgets >= MIN_BUDGETS:
        return ""
    count = "1 token budget does" if n_budgets == 1 else f"{n_budgets} token budgets do"
    return f"{count} not determine E, B and beta: use at least {MIN_BUDGETS}"


class BudgetSelection(NamedTuple):
    """Runs with comparable numbers of training tokens."""

    rows: list[dict]
    is_complete: bool  # True if no run was removed for its token budget
    n_tokens: float | None  # the budget of all selected runs; None if it depends on the size

    # "fine-tuned runs" or "runs from scratch" if the others were removed.
    only_kind: str = ""

    @property
    def has_two_starts(self) -> bool:
        """Return True if a size has fine-tuned runs and runs from scratch, which differ in text."""
        finished = [row for row in self.rows if row.get("status") == "done"]
        starts = {(row.get(records.N_PARAMS), is_finetuned(row)) for row in finished}
        return len(starts) > len({size for size, _ in starts})


def largest_token_budget(runs: Sequence[dict], x: str = records.N_PARAMS) -> BudgetSelection:
    """Select runs with comparable token budgets, which a plot against x may join with a line.

    If every size has a single token budget, select all runs. Otherwise select the finished runs of
    the largest budget. If fewer than half of the sizes have a run of this budget, select the runs
    of the largest budget of each size.
    """
    finished = finished_with(runs, x, records.TOKENS)
    largest: dict[float, float] = {}
    for row in finished:
        largest[row[x]] = max(largest.get(row[x], 0), row[records.TOKENS])

    def has_budget(row: dict, n_tokens: float) -> bool:
        return row[records.TOKENS] >= MIN_BUDGET_RATIO * n_tokens

    if all(has_budget(row, largest[row[x]]) for row in finished):
        return BudgetSelection(list(runs), True, None)
    n_tokens = max(largest.values())
    sizes = [size for size in largest if largest[size] >= MIN_BUDGET_RATIO * n_tokens]
    if 2 * len(sizes) >= len(largest):
        selected = [row for row in finished if has_budget(row, n_tokens)]
        return BudgetSelection(selected, False, n_tokens)
    selected = [row for row in finished if has_budget(row, largest[row[x]])]
    return BudgetSelection(selected, False, None)


def select_task_runs(runs: Sequence[dict], x: str = records.N_PARAMS) -> BudgetSelection:
    """Select runs whose task results are compared over sizes, as in `largest_token_budget`.

    If a size has fine-tuned runs and runs from scratch with task results, select the kind that has
    results of more sizes, or the fine-tuned runs: means over both kinds would describe neither. In
    a sweep of runs on conversations, the kind is selected before the token budget, because a run
    from scratch for the FLOPs of pre-training and tuning has the largest budget.
    """
    selection = largest_token_budget(runs, x)
    if len({is_finetuned(row) for row in runs}) < 2:
        return selection
    tested = [row for row in runs if task_results.task_names([row]) and row["status"] == "done"]
    if any(row.get("data.loss_on") != "answers" for row in tested):
        tested = [row for row in selection.rows if task_results.task_names([row])]
    if not selection._replace(rows=tested).has_two_starts:
        return selection
    sizes = {
        kind: {row[records.N_PARAMS] for row in tested if is_finetuned(row) == kind}
        for kind in (True, False)
    }
    are_finetuned = len(sizes[True]) >= len(sizes[False])
    selected = [row for row in runs if is_finetuned(row) == are_finetuned]
    return largest_token_budget(selected, x)._replace(
        only_kind="fine-tuned runs" if are_finetuned else "runs from scratch"
    )
