"""What a ladder of models can do: tasks mastered, how far each task can be trusted, and by what.

    tally(rows)            # one dict a run: tasks above chance, tasks mastered, of how many
    verdicts(rows, evals)  # one dict a task: signal, noises, "predictable from 60K on", "at chance"
    correlations(rows)     # metric -> task -> rank correlation with accuracy over the ladder
    curves(rows)           # task -> the law from held-out loss to its accuracy, or why none
    foretell(rows, 6e5)    # task -> what a model of that size should reach, or why none can say

Rows are those of records.rows, with columns eval.task.NAME.METRIC as lm/exam.py writes them; evals
are the evaluations of each run by its name, records.evals(row["dir"]).

The rule. A task is above chance where an exact binomial test of its right answers against chance
(LUCK at least) has p < LEVEL, one-sided; it is mastered where, besides, the accuracy has come at
least SHARE of the way from chance to 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from lm import config, laws, records, table

LEVEL, SHARE = 0.01, 0.5
LUCK = (
    0.01  # of whoever always gives the commonest answer, where guessing is said never to be right
)
TAIL = 1 / 3  # of a run: the evaluations between which accuracy moves by noise, and along a line
SIZE = "params.non_embedding"
# Metrics that grow smoothly, and the sign with which they should follow accuracy.
CONTINUOUS = {
    "p_right": 1, "bits_per_byte": -1, "brier": -1, "token_accuracy": 1, "token_probability": 1,
    "keystrokes_saved": 1,
}  # fmt: skip


def column(task: str, metric: str = "accuracy") -> str:
    """Of a row: eval.task.NAME.METRIC."""
    return f"eval.task.{task}.{metric}"


def tasks(rows: Sequence[Mapping]) -> list[str]:
    """Names of the tasks that any run was set, in the order in which they were."""
    start, end = column("|").split("|")
    found = (key for row in rows for key in row if key.startswith(start) and key.endswith(end))
    return list(dict.fromkeys(key[len(start) : -len(end)] for key in found))


def is_above_chance(row: dict, task: str) -> bool:
    """Whether guessing would do as well with a probability below LEVEL."""
    accuracy, n = row.get(column(task)), row.get(column(task, "n"))
    if not n or accuracy is None:
        return False
    chance = max(row[column(task, "chance")], LUCK)
    return bool(stats.binom.sf(round(accuracy * n) - 1, int(n), chance) < LEVEL)


def is_mastered(row: dict, task: str) -> bool:
    """See the rule above."""
    if not is_above_chance(row, task):
        return False
    accuracy, chance = row[column(task)], row[column(task, "chance")]
    return chance < 1 and (accuracy - chance) / (1 - chance) >= SHARE


def tally(rows: Sequence[dict]) -> list[dict]:
    """Of each run that was set tasks, smallest first: name, size, mastered, above_chance, n."""
    asked = tasks(rows)
    ladder = sorted((row for row in rows if tasks([row])), key=lambda row: row.get(SIZE, 0))
    return [
        row
        | {
            "tasks.mastered": sum(is_mastered(row, task) for task in asked),
            "tasks.above_chance": sum(is_above_chance(row, task) for task in asked),
            "tasks.n": len(tasks([row])),
        }
        for row in ladder
    ]


def verdicts(rows: Sequence[dict], evals: Mapping[str, Sequence[dict]] = {}) -> list[dict]:
    """Of each task: what its accuracies over the ladder are worth.

    signal      standard deviation of the mean accuracy of each size, over sizes
    sampling, checkpoint, seed
                see `noises`
    noise       of one measured accuracy: sampling and, of the other two, the larger (what differs
                between seeds differs between moments too), as the root of their squares' sum
    to_noise    signal / noise (Heineman et al. 2025, arXiv:2508.13144)
    verdict     "at chance": no size is above it; "predictable from SIZE on": from there on all are
                above chance and none lies below the best smaller one by more than 2 noises, three
                sizes at least; "noisy" otherwise, and where the signal is below 2 noises
    """
    found = []
    for task in tasks(rows):
        asked = [row for row in rows if table.number(row.get(column(task))) >= 0]
        sizes = sorted({row[SIZE] for row in asked})
        groups = [[row for row in asked if row[SIZE] == size] for size in sizes]
        means = np.array([np.mean([row[column(task)] for row in group]) for group in groups])
        parts = noises(asked, task, evals)
        others = max(parts["checkpoint"] or 0.0, parts["seed"] or 0.0)
        noise = max(float(np.hypot(parts["sampling"], others)), 1e-9)
        signal = float(np.std(means))
        above = [all(is_above_chance(row, task) for row in group) for group in groups]
        found.append(
            {
                "task": task,
                "chance": float(np.mean([row[column(task, "chance")] for row in asked])),
                "best": float(means.max()),
                "signal": signal,
                **parts,
                "noise": noise,
                "to_noise": signal / noise,
                "verdict": _verdict(groups, means, above, signal, noise),
            }
        )
    return found


def noises(rows: Sequence[dict], task: str, evals: Mapping[str, Sequence[dict]]) -> dict:
    """Standard deviations of a task's accuracy, by what they come from; None where it is unknown.

    sampling    which examples were asked: root mean square of the standard errors
    checkpoint  when it was asked: about a line through the evaluations in the last TAIL of a run,
                three at least, pooled over runs; asked the same examples, so without sampling
    seed        between runs that differ in nothing but seed, pooled
    """
    errors = [row.get(f"eval.task_se.{task}.accuracy", 0.0) for row in rows]
    tails = [_tail(evals.get(row["name"], ()), f"task.{task}.accuracy") for row in rows]
    about = [
        (values - np.polyval(np.polyfit(steps, values, 1), steps), 2)
        for steps, values in tails
        if len(steps) > 2
    ]
    alike: dict[str, list[float]] = {}
    for row in rows:
        alike.setdefault(_but_seed(row), []).append(row[column(task)])
    between = [(np.array(v) - np.mean(v), 1) for v in alike.values() if len(v) > 1]
    return {
        "sampling": float(np.sqrt(np.mean(np.square(errors)))),
        "checkpoint": _pooled(about),
        "seed": _pooled(between),
    }


def correlations(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Metric -> {task: Spearman's rank correlation with accuracy over the runs}.

    Signed so that 1 is a metric that orders the runs as accuracy does. Tasks whose accuracies are
    all the same, or that no run has above chance, are left out: there is nothing to follow.
    """
    found: dict[str, dict[str, float]] = {metric: {} for metric in CONTINUOUS}
    for task in tasks(rows):
        if not any(is_above_chance(row, task) for row in rows):
            continue
        for metric, sign in CONTINUOUS.items():
            pairs = [(row.get(column(task)), row.get(column(task, metric))) for row in rows]
            known = np.array([pair for pair in pairs if None not in pair], float)
            if len(known) > 2 and np.ptp(known, axis=0).all():
                ranks = stats.rankdata(known, axis=0)
                found[metric][task] = sign * float(np.corrcoef(ranks.T)[0, 1])
    return {metric: by_task for metric, by_task in found.items() if by_task}


def curves(rows: Sequence[dict], x: str = "eval.loss", bootstrap: int = 200) -> dict[str, tuple]:
    """Task -> (laws.ability of its accuracy in the column x, "") or (None, why there is none)."""
    found: dict[str, tuple] = {}
    for task in tasks(rows):
        chance = max(table.number(row.get(column(task, "chance"), 0.0)) for row in rows)
        try:
            fit = laws.ability(rows, x, column(task), chance=chance, bootstrap=bootstrap)
            found[task] = fit, ""
        except ValueError as refusal:
            found[task] = None, str(refusal)
    return found


def foretell(rows: Sequence[dict], size: float, bootstrap: int = 200) -> dict[str, dict]:
    """Task -> {"value", "lo", "hi"} of its accuracy in a model of that size, or {"refused": why}.

    In two steps (Bhagia et al. 2024, arXiv:2412.04403): a power law from size to the task's bits
    per byte, a sigmoid from these to its accuracy; 95% intervals hold the doubts of both. Refused
    where no run of the two largest sizes is above chance: a sigmoid through noise climbs anywhere.
    """
    found: dict[str, dict] = {}
    sizes = sorted({row[SIZE] for row in rows})
    largest = [row for row in rows if row[SIZE] in sizes[-2:]]
    for task in tasks(rows):
        if not any(is_above_chance(row, task) for row in largest):
            words = f"{task}: no run of the two largest sizes is above chance (p < {LEVEL:g})"
            found[task] = {"refused": f"{words}; ask more questions, or train larger models"}
            continue
        bits, accuracy = column(task, "bits_per_byte"), column(task)
        chance = max(table.number(row.get(column(task, "chance"))) for row in rows)
        try:
            step1 = laws.power(rows, x=SIZE, y=bits, bootstrap=bootstrap)
            step2 = laws.ability(rows, bits, accuracy, chance=chance, bootstrap=bootstrap)
            said = laws.chain(step1, step2).predict(size)
            found[task] = {k: float(getattr(said, k)) for k in ("value", "lo", "hi")}
        except ValueError as refusal:
            found[task] = {"refused": str(refusal)}
    return found


def median(values) -> float:
    """Of numbers in any collection."""
    return float(np.median(list(values)))


def steepest(rows: Sequence[dict], n: int = 3) -> list[str]:
    """The tasks of answers of several tokens whose exact match grows most over the rows."""
    found = {}
    for task in tasks(rows):
        asked = [row for row in rows if row.get(column(task, "tokens"), 0) >= 3]
        exact = [row[column(task, "exact")] for row in asked]
        found |= {task: max(exact) - min(exact)} if exact else {}
    return sorted(found, key=lambda task: -found[task])[:n]


def jumps(rows: Sequence[dict], n: int = 3) -> list[dict]:
    """Where exact match of the steepest tasks rises most from a size to the next, and what p does.

    {"task", "tokens" (k of an answer), "from", "to" (names of runs)} and, each as a pair of before
    and after: "exact", "exact_lo", "exact_hi" (Wilson's 95% interval), "p" of a token, "power"
    (p^k), "p_right" (of a whole answer, meant over examples). Where exact follows power and p rises
    less, the jump is the metric's (arXiv:2304.15004). p_right far above power: tokens of an answer
    are right together; exact far above p_right: the likeliest token is right before it is likely.
    """
    found = []
    for task in steepest(rows, n):
        asked = [row for row in rows if column(task, "exact") in row]
        asked = sorted(asked, key=lambda row: row[SIZE])
        at = int(np.argmax(np.diff([row[column(task, "exact")] for row in asked])))
        both = asked[at : at + 2]
        values = {
            name: [float(row.get(column(task, name), np.nan)) for row in both]
            for name in ("exact", "token_probability", "p_right", "tokens", "n")
        }
        sure = [
            stats.binomtest(round(share * m), int(m)).proportion_ci(method="wilson")
            for share, m in zip(values["exact"], values["n"], strict=True)
        ]
        k, ps = values["tokens"][0], values["token_probability"]
        point: dict = {"task": task, "tokens": k, "from": both[0]["name"], "to": both[1]["name"]}
        point |= {"exact_lo": [float(ci.low) for ci in sure]}
        point |= {"exact_hi": [float(ci.high) for ci in sure]}
        point |= {"exact": values["exact"], "p": ps, "power": [p**k for p in ps]}
        found.append(point | {"p_right": values["p_right"]})
    return found


def _tail(evaluations: Sequence[dict], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the last TAIL of a run."""
    asked = [(line["step"], line[key]) for line in evaluations if key in line]
    last = [(step, value) for step, value in asked if step >= (1 - TAIL) * asked[-1][0]]
    return [step for step, _ in last], [value for _, value in last]


def _but_seed(row: dict) -> str:
    """What runs have in common that are each other's repeats."""
    knobs = config.flatten(config.Run()).keys() - records.FREE - {"name", "seed"}
    return repr([row.get(SIZE), *((name, row.get(name)) for name in sorted(knobs))])


def _pooled(residuals: list) -> float | None:
    """Standard deviation of several sets of residuals, each with the parameters it has cost."""
    if not residuals:
        return None
    freedom = sum(len(values) - cost for values, cost in residuals)
    return float(np.sqrt(sum(float(values @ values) for values, _ in residuals) / freedom))


def _verdict(groups, means, above, signal: float, noise: float) -> str:
    if not any(above):
        return "at chance"
    best = np.maximum.accumulate(means)
    good = [a and m >= b - 2 * noise for a, m, b in zip(above, means, best, strict=True)]
    first = len(good) - next((i for i, one in enumerate(reversed(good)) if not one), len(good))
    if len(groups) - first < 3 or signal < 2 * noise:
        return "noisy"
    return f"predictable from {groups[first][0]['name'].rsplit('/', 1)[-1]} on"
