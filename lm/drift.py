"""What moves when models become wider or deeper: the best learning rate, the size of activations.

    best = drift.best(records.rows("runs/lr_transfer"))    # a dict a parametrization and shape
    drift.moves(best, "model.d_model")                     # doublings of it per doubling of width
    drift.growth(rows, "width")                            # of the rows of coordinates.measured

Learning rates are the knob optim.lr: what a parametrization makes of it at a shape is its affair.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lm import table

RATE, LOSS = "optim.lr", "eval.loss"
BY = ("model.parametrization", "model.d_model", "model.n_layers")
RULE, WIDTH, DEPTH = BY
LEVEL = 0.95  # of the intervals


def shared(rows: Sequence[Mapping]) -> list[dict]:
    """Rows, with those of the base shape once for each parametrization that other rows have.

    There all parametrizations are the same (lm/parametrization.py), so one run tells of each.
    """
    is_base = [
        row[WIDTH] == row["model.base_width"] and row[DEPTH] == row["model.base_depth"]
        for row in rows
    ]
    pairs = list(zip(rows, is_base, strict=True))
    once = {(row[RATE], row["seed"]): row for row, base in pairs if base}
    rules = sorted({row[RULE] for row in rows})
    copies = [dict(row) | {RULE: rule} for rule in rules for row in once.values()]
    return [dict(row) for row, base in pairs if not base] + copies


def is_asked(rows: Sequence[Mapping], along: str) -> bool:
    """Whether these rows hold three learning rates and more at shapes that differ in `along`."""
    others = [column for column in BY if column != along]
    rates: dict[tuple, dict] = {}
    for row in rows:
        line = rates.setdefault(tuple(row[column] for column in others), {})
        line.setdefault(row[along], set()).add(row[RATE])
    return any(sum(len(tried) > 2 for tried in line.values()) > 1 for line in rates.values())


def best(
    rows: Sequence[Mapping],
    by: Sequence[str] = BY,
    y: str = LOSS,
    reach: float = 2.0,
    bootstrap: int = 2000,
    seed: int = 0,
) -> list[dict]:
    """The learning rate of least loss in each group of rows that are equal in the columns `by`.

    The vertex of a parabola of log loss in log2 of the rate, through the rates within `reach`
    doublings of the one whose mean loss is least. A seed has a height of its own, for its weights
    and text make a run better or worse at every rate. The interval comes from noise added to the
    runs, as large as they lie from their parabolas in all groups. A dict a group: the columns of
    `by`, "n" runs, "lr", "lo", "hi", "loss", "rates" (first and last of the parabola), "draws"
    (log2 lr of each resample) and "doubt", which is empty where the minimum may be used.
    """
    done = [row for row in rows if row["status"] == "done" and np.isfinite(table.number(row[y]))]
    keys = [tuple(row[column] for column in by) for row in done]
    groups = [
        [row for row, its in zip(done, keys, strict=True) if its == key]
        for key in sorted(set(keys))
    ]
    found = [_parabola(group, by, y, reach) for group in groups]
    scale = _noise(found)
    rng = np.random.default_rng(seed)
    for one in found:
        design, fitted = one.pop("design"), one.pop("fitted")
        residuals = one.pop("residuals")
        one["draws"] = np.full(bootstrap, np.nan)
        if not one["doubt"]:
            noise = scale * rng.standard_normal((bootstrap, len(residuals)))
            *_, b, c = np.linalg.pinv(design) @ (fitted + noise).T
            low, high = np.log2(one["rates"])
            # A parabola that opens down has its least end at an edge: the interval must say so.
            ends = np.where(b + c * (low + high) > 0, low, high)
            vertex = -b / (2 * np.where(c > 0, c, 1.0))
            one["draws"] = np.where(c > 0, np.clip(vertex, low, high), ends)
            one["lo"], one["hi"] = (float(v) for v in 2 ** _ends(one["draws"]))
            if not scale:
                one["doubt"] = "these runs leave nothing to judge the noise by: try more rates"
            elif one["lo"] <= one["rates"][0] or one["hi"] >= one["rates"][1]:
                one["doubt"] = "its interval reaches the edge of the rates that were tried"
    return found


def moves(found: Sequence[Mapping], along: str, by: Sequence[str] = BY) -> list[dict]:
    """How the best learning rate moves per doubling of a column, the others of `by` kept.

    The slope of log2 lr* against log2 of the column, through what `best` gave without a doubt, each
    weighted by its own spread; 0 where the rate stays put, -1 where it halves. The interval is that
    of the resamples, wider where the rates scatter about the line by more. A dict for each line of
    two and more: the other columns, "along", "values", "slope", "lo", "hi", "doubts".
    """
    others = [column for column in by if column != along]
    lines = []
    keys = {tuple(one[column] for column in others) for one in found}
    for key in sorted(keys):
        mine = [one for one in found if tuple(one[column] for column in others) == key]
        used = [one for one in mine if not one["doubt"]]
        if len({one[along] for one in mine}) < 2:
            continue
        about = dict(zip(others, key, strict=True)) | {"along": along}
        about["values"] = sorted(one[along] for one in used)
        doubts = [f"{along}={one[along]}: {one['doubt']}" for one in mine if one["doubt"]]
        if len(used) < 2:
            nothing = {"slope": np.nan, "lo": np.nan, "hi": np.nan}
            lines.append(about | nothing | {"doubts": [*doubts, "a line needs two best rates"]})
            continue
        x = np.log2([table.number(one[along]) for one in used])
        draws = np.stack([one["draws"] for one in used], 1)
        at, sd = np.log2([one["lr"] for one in used]), np.maximum(draws.std(0), 1e-6)
        weight = (1 / sd**2) / (1 / sd**2).sum()
        lever = weight * (x - weight @ x) / (weight @ (x - weight @ x) ** 2)
        slope, middle = float(lever @ at), float(weight @ at)
        off = (at - middle - slope * (x - weight @ x)) / sd
        wider = max(1.0, float(off @ off) / max(len(used) - 2, 1)) ** 0.5
        slopes = draws @ lever
        lo, hi = (float(v) for v in slope + wider * _ends(slopes - slopes.mean()))
        if len(used) == 2:
            doubts.append("two shapes make a line without a check")
        lines.append(about | {"slope": slope, "lo": lo, "hi": hi, "doubts": doubts})
    return lines


def growth(rows: Sequence[Mapping], along: str) -> list[dict]:
    """How activations grow with "width" or "depth": exponents, for each rule, step and part.

    {"rule", "step", "part", "rms", "rms_se", "change", "change_se", "n"}: slopes of log scale
    against log `along`, means over n seeds with their standard errors, NaN for one seed, and for
    a change of nothing at all, as at step 0.
    """
    found = []
    known = {(row["rule"], row["step"], row["part"]) for row in rows}
    for rule, step, part in sorted(known, key=str):
        mine = [r for r in rows if (r["rule"], r["step"], r["part"]) == (rule, step, part)]
        one = {"rule": rule, "step": step, "part": part, "n": len({r["seed"] for r in mine})}
        for what in ("rms", "change"):
            slopes = [
                _slope([r[along] for r in of_seed], [r[what] for r in of_seed])
                for s in {r["seed"] for r in mine}
                for of_seed in [[r for r in mine if r["seed"] == s]]
            ]
            few = len(slopes) < 2
            one[what] = float(np.mean(slopes))
            one[f"{what}_se"] = (
                np.nan if few else float(np.std(slopes, ddof=1) / len(slopes) ** 0.5)
            )
        found.append(one)
    return found


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    if min(y) <= 0:
        return np.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _ends(draws: np.ndarray) -> np.ndarray:
    return np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])


def _parabola(group: Sequence[Mapping], by: Sequence[str], y: str, reach: float) -> dict:
    """The parabola of one group, without an interval."""
    rates = sorted({table.number(row[RATE]) for row in group})
    means = [np.mean([row[y] for row in group if row[RATE] == rate]) for rate in rates]
    lowest = rates[int(np.argmin(means))]
    near = [row for row in group if abs(np.log2(row[RATE] / lowest)) <= reach + 1e-9]
    t, log_loss = np.log2([row[RATE] for row in near]), np.log([row[y] for row in near])
    one = {column: group[0][column] for column in by} | {"n": len(group), "lr": lowest}
    one |= {"lo": np.nan, "hi": np.nan, "loss": float(min(means)), "doubt": ""}
    one |= {"rates": (float(2 ** t.min()), float(2 ** t.max()))}
    seeds = sorted({row["seed"] for row in near})
    heights = [[float(row["seed"] == seed) for row in near] for seed in seeds]
    one["design"] = np.stack([*heights, t, t**2], 1)
    one |= {"fitted": log_loss, "residuals": np.zeros_like(t)}
    if lowest in (rates[0], rates[-1]):
        side = "smallest" if lowest == rates[0] else "largest"
        return one | {"doubt": f"the least loss is at the {side} rate, {lowest:g}"}
    found = np.linalg.lstsq(one["design"], log_loss, rcond=None)[0]
    one["fitted"] = one["design"] @ found
    one["residuals"] = log_loss - one["fitted"]
    a, (b, c) = float(found[:-2].mean()), (float(v) for v in found[-2:])
    if c <= 0 or not t.min() < -b / (2 * c) < t.max():
        return one | {"doubt": "the parabola has no minimum within the rates that were tried"}
    return one | {"lr": float(2 ** (-b / (2 * c))), "loss": float(np.exp(a - b**2 / (4 * c)))}


def _noise(found: Sequence[Mapping]) -> float:
    """How far runs lie from their parabolas, as a standard deviation of log loss; 0 if unknown."""
    used = [one for one in found if not one["doubt"]]
    squares = sum(float(one["residuals"] @ one["residuals"]) for one in used)
    degrees = sum(max(one["design"].shape[0] - one["design"].shape[1], 0) for one in used)
    return float(np.sqrt(squares / degrees)) if degrees else 0.0
