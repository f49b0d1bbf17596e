"""Do branches of a trunk end where runs do that are trained alone?

    for one in kin.agreement(records.rows("runs/branches")): print(one["tokens"], one["apart"])

A branch takes most of its training from a trunk (sizes.branches); a run alone goes the whole way by
itself, with the same schedule. What tells them apart is what seeds do to runs alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from lm import table

SIZE, TOKENS, LOSS = "params.non_embedding", "tokens", "eval.loss"
LEVEL = 0.95  # of the intervals


def agreement(
    rows: Sequence[Mapping], y: str = LOSS, tolerance: float = 0.02, level: float = LEVEL
) -> list[dict]:
    """Each branch beside the runs alone of its size and, within a share, its tokens.

    {"size", "tokens", "branch", "alone", "n", "apart", "lo", "hi", "agrees"}: apart is log loss of
    the branch less the mean of n runs alone, lo to hi where that of one more run alone would lie,
    by Student's t and the spread of seeds, pooled over all budgets. ValueError for no pair, or
    where no budget has two runs alone.
    """
    done = [row for row in rows if row["status"] == "done" and np.isfinite(table.number(row[y]))]
    trunks = {table.trunk_of(row) for row in rows}
    branches = [row for row in done if table.trunk_of(row)]
    alone = [row for row in done if not row.get("start.run") and row["name"] not in trunks]
    found, residuals, degrees = [], [], 0
    for branch in sorted(branches, key=lambda row: (row[SIZE], row[TOKENS])):
        logs = np.log([row[y] for row in alone if _alike(row, branch, tolerance)])
        if len(logs):
            residuals, degrees = [*residuals, *(logs - logs.mean())], degrees + len(logs) - 1
            one = {"size": branch[SIZE], "tokens": branch[TOKENS], "branch": branch[y]}
            one |= {"alone": float(np.exp(logs.mean())), "n": len(logs)}
            found.append(one | {"apart": float(np.log(branch[y]) - logs.mean())})
    if not degrees:
        raise ValueError(
            f"{len(branches)} branches, {len(alone)} runs alone: a branch needs two runs of its"
            f" size and tokens, of different seeds, as in configs/sweeps/branches.py"
        )
    sd = float(np.sqrt(np.square(residuals).sum() / degrees))
    for one in found:
        reach = float(stats.t.ppf((1 + level) / 2, degrees)) * sd * (1 + 1 / one["n"]) ** 0.5
        one |= {"lo": -reach, "hi": reach, "agrees": abs(one["apart"]) <= reach}
    return found


def _alike(row: Mapping, branch: Mapping, tolerance: float) -> bool:
    return row[SIZE] == branch[SIZE] and abs(row[TOKENS] / branch[TOKENS] - 1) <= tolerance
