"""Selection of the runs of two recipes, and their pairs of equal size, tokens and seed.

    selection = paired_runs.pair_runs(rows_a, rows_b)
    selection.ladder("flops")                   # arrays for multiplier.fit_multiplier

A pair with the same seed has the same initial values and data order, so a part of its noise
cancels. Runs without a partner of the same seed are paired in order. Rows of several learning rates
are tuned first, see selection_bias.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lm.config.schedules import batch_size_schedule
from lm.laws import comparability, run_table
from lm.laws.recipe_comparison import multiplier, selection_bias

LOSS, BITS_PER_BYTE = "eval.loss", "eval.bits_per_byte"
COST, TOKENS = "flops", "tokens"
# Costs of a multiplier -> text of the unit.
COSTS = {"flops": "FLOPs", "seconds": "seconds", "params.non_embedding": "parameters"}
# Columns that identify a size -> relative tolerance. The first that pairs the most sizes is used.
SIZE_COLUMNS = {"params.non_embedding": 0.02, "flops": 0.1, "params.total": 0.02, "params": 0.02}
TOKEN_TOLERANCE = 0.02
DEVICE_COLUMNS = ("devices.kind", "devices")  # runs on other devices have other seconds
# Columns of the held-out rows that both recipes must share.
HELDOUT_COLUMNS = (
    "data.heldout_fraction",
    "data.seq_len",
    "data.loss_on",
    "data.on_overflow",
    "eval.n_sequences",
)


class Size(NamedTuple):
    """Pairs of finished runs of one size, and the runs of A and of B with the best settings."""

    name: str
    pairs: list[tuple[Mapping, Mapping]]
    tuned: tuple[list[Mapping], list[Mapping]]


@dataclass(frozen=True)
class Selection:
    """Pairs of runs of both recipes per common size, smallest first, and notes about them."""

    y: str
    sizes: list[Size]
    notes: list[str] = field(default_factory=list)

    @property
    def n_pairs(self) -> int:
        return sum(len(size.pairs) for size in self.sizes)

    def costs(self) -> list[str]:
        """Return the columns of COSTS that all paired runs have."""
        rows = [row for size in self.sizes for pair in size.pairs for row in pair]
        # A cooldown branch records only its own seconds, without those of its trunk run.
        has_seconds = not any(comparability.trunk_name(row) for row in rows)
        has_seconds &= all(len(_values(rows, column)) < 2 for column in DEVICE_COLUMNS)
        return [
            column
            for column in COSTS
            if (has_seconds or column != "seconds")
            and all(_is_positive(row.get(column)) for row in rows)
        ]

    def ladder(self, cost: str) -> multiplier.PairedLadder:
        """Return the arrays of a fit for one of `costs`."""
        x = self._log_costs(cost)
        order = np.argsort(x.mean(1), kind="stable")
        pairs = [(k, pair) for k, i in enumerate(order) for pair in self.sizes[i].pairs]
        losses = np.array([[_number(row, self.y) for row in pair] for _, pair in pairs])
        index = np.array([k for k, _ in pairs])
        return multiplier.PairedLadder(index, losses[:, 0], losses[:, 1], x[order, 0], x[order, 1])

    def ordered_names(self, cost: str) -> list[str]:
        """Return the names of the sizes in the order of `ladder`."""
        order = np.argsort(self._log_costs(cost).mean(1), kind="stable")
        return [self.sizes[i].name for i in order]

    def _log_costs(self, cost: str) -> np.ndarray:
        """Return the mean log cost of A and of B at each size, [K, 2]."""
        sizes = [[[_number(row, cost) for row in pair] for pair in s.pairs] for s in self.sizes]
        return np.array([np.log(costs).mean(0) for costs in sizes])


def pair_runs(rows_a: run_table.Rows, rows_b: run_table.Rows, y: str = "") -> Selection:
    """Return the pairs of finished runs of two recipes at their common sizes.

    rows_a, rows_b: rows of records.load_runs or of a table. y: column of the loss; by default, the
    held-out loss, or bits per byte for different tokenizers.

    Raises ValueError, in one line that states what to run, for recipes that are not comparable, for
    fewer than two common sizes, and for too few runs to estimate the noise.
    """
    all_rows = [run_table.to_rows(rows) for rows in (rows_a, rows_b)]
    for name, rows in zip("AB", all_rows, strict=True):
        if not rows:
            raise ValueError(f"{name} has no runs: pass the folder of a sweep with finished runs")
    y = _loss_column(all_rows, y)
    cost = COST if all(any(COST in row for row in rows) for rows in all_rows) else ""
    tables = [
        _select_finished(name, rows, y, cost) for name, rows in zip("AB", all_rows, strict=True)
    ]
    _check_comparable(*tables)
    notes = _identity_notes(*tables)
    size_column, groups, missing = _match_sizes(*tables)
    if size_column == "name" and len(groups) > 1:
        notes.append("sizes of equal names are compared: their parameters or tokens differ")
    sizes = []
    for name, pair_of_groups in groups:
        selected, tuned = [], []
        for recipe, rows in zip("AB", pair_of_groups, strict=True):
            rows, best_rows, text = selection_bias.select_tuned_rows(recipe, name, rows, y)
            selected.append(rows)
            tuned.append(best_rows)
            notes += [text] if text else []
        notes += selection_bias.describe_tuning_effort(name, *pair_of_groups)
        pairs, unpaired = _pair_by_seed(*selected)
        notes += [f"{name}: {unpaired}"] if unpaired else []
        sizes.append(Size(name, pairs, (tuned[0], tuned[1])))
    if all(len(size.pairs) == 1 for size in sizes):
        notes.append(
            "each size has one pair of runs, so the noise of seeds is not measured: it is estimated"
            " from deviations from the fitted laws"
        )
    selection = Selection(y, sizes, list(dict.fromkeys(notes)))
    _check_enough(selection, missing)
    return selection


def _loss_column(all_rows: Sequence[Sequence[Mapping]], y: str) -> str:
    """Return the column of the loss. Raises ValueError if no column compares the recipes."""
    tokenizers = [_values(rows, "data.tokenizer") for rows in all_rows]
    is_same = not all(tokenizers) or tokenizers[0] == tokenizers[1]
    if y and (is_same or y != LOSS):
        return y
    default = "loss" if not any(LOSS in row for rows in all_rows for row in rows) else LOSS
    if is_same:
        return default
    has_bits = [any(_is_positive(row.get(BITS_PER_BYTE)) for row in rows) for rows in all_rows]
    if all(has_bits) and not y:
        return BITS_PER_BYTE
    names = " in A and ".join(", ".join(sorted(values)) for values in tokenizers)
    lacking = " and ".join(name for name, has in zip("AB", has_bits, strict=True) if not has)
    remedy = (
        f"{lacking} has no {BITS_PER_BYTE}: run experiments.evaluate on its runs"
        if lacking
        else f"compare {BITS_PER_BYTE}"
    )
    raise ValueError(
        f"data.tokenizer is {names} in B, and losses per token of different tokenizers are not"
        f" comparable: {remedy}"
    )


def _select_finished(name: str, rows: list[Mapping], y: str, cost: str) -> list[Mapping]:
    """Return the finished rows of a recipe without trunk runs. An error names the recipe."""
    try:
        columns = [y, cost] if cost else [y]
        return run_table.select_columns(rows, columns, mixed=("tokenizer",)).rows
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_comparable(rows_a: Sequence[Mapping], rows_b: Sequence[Mapping]) -> None:
    """Raise ValueError if the corpus or the held-out rows of the recipes differ."""
    for column in HELDOUT_COLUMNS:
        first, second = _values(rows_a, column), _values(rows_b, column)
        if first and second and first != second:
            a, b = (", ".join(sorted(values)) for values in (first, second))
            raise ValueError(
                f"{column} is {a} in A and {b} in B, so their held-out rows differ: train or"
                f" evaluate B with {column}={a}"
            )
    is_same_tokenizer = _values(rows_a, "data.tokenizer") == _values(rows_b, "data.tokenizer")
    # The hash of a corpus covers its tokens, so tokenizers have different hashes of equal text.
    column = "corpus.hash" if is_same_tokenizer else "data.sources"
    first, second = _values(rows_a, column), _values(rows_b, column)
    if first and second and first != second:
        a, b = (_shorten(values) for values in (first, second))
        raise ValueError(
            f"{column} is {a} in A and {b} in B, so the recipes have different corpora: train B on"
            " the corpus of A, with equal data.sources and the same prepared text"
        )


def _identity_notes(rows_a: Sequence[Mapping], rows_b: Sequence[Mapping]) -> list[str]:
    """Return warnings about equal sweeps, data orders and texts of the recipes."""
    notes = []
    folders = [{str(row["dir"]) for row in rows if row.get("dir")} for rows in (rows_a, rows_b)]
    if any(first is second for first in rows_a for second in rows_b) or folders[0] & folders[1]:
        notes.append("A and B contain the same runs: pass two different sweeps")
    sizes = [_values(rows, "data.batch_size") for rows in (rows_a, rows_b)]
    if all(sizes) and sizes[0] != sizes[1]:
        notes.append("data.batch_size differs, so runs of equal seeds have different batches")
    warmup = batch_size_schedule.FIELD  # rows without it have a constant batch size
    first, second = (
        {comparability.cell_text(row.get(warmup)) for row in rows} for rows in (rows_a, rows_b)
    )
    if first != second:
        notes.append(f"{warmup} differs, so runs of equal seeds have different batches")
    tokenizers = [_values(rows, "data.tokenizer") for rows in (rows_a, rows_b)]
    if all(tokenizers) and tokenizers[0] != tokenizers[1]:
        notes.append(
            "the tokenizers differ, so eval.n_sequences rows cover different amounts of held-out"
            " text, and pairs share no data order"
        )
    return notes


def _match_sizes(
    rows_a: Sequence[Mapping], rows_b: Sequence[Mapping]
) -> tuple[str, list[tuple[str, list[list[Mapping]]]], str]:
    """Return the matching column, (name, rows of A and of B) per common size, and other sizes.

    A size with runs of several common token budgets is represented by the largest. If no column
    matches two sizes, sizes of equal names are common.
    """
    parts = _largest_common_budget(rows_a, rows_b)
    best: tuple[str, dict] = ("name", {})
    for column, tolerance in SIZE_COLUMNS.items():
        if all(_is_positive(row.get(column)) for part in parts for row in part):
            groups = _group_rows(parts, column, tolerance)
            best = (column, groups) if len(groups) > len(best[1]) else best
    if len(best[1]) < 2:
        groups = _group_rows((rows_a, rows_b), "name", 0.0)
        best = ("name", groups) if len(groups) > len(best[1]) else best
    column, groups = best
    matched = [row for group in groups.values() for part in group for row in part]
    names = [
        sorted({size_name(row) for row in rows} - {size_name(row) for row in matched})
        for rows in (rows_a, rows_b)
    ]
    texts = [f"{', '.join(part)} in {n}" for part, n in zip(names, "AB", strict=True) if part]
    named = [(_common_name(group), group) for group in groups.values()]
    if len({name for name, _ in named}) < len(named):  # names without the size
        named = [(f"{_number(group[0][0], column):.3g} {column}", group) for _, group in named]
    return column, named, "; ".join(texts)


def _largest_common_budget(
    rows_a: Sequence[Mapping], rows_b: Sequence[Mapping]
) -> tuple[list[Mapping], list[Mapping]]:
    """Return the rows of both recipes with the largest common token budget of each own size."""
    rows = [*rows_a, *rows_b]
    budgets = _labels([_number(row, TOKENS) for row in rows], TOKEN_TOLERANCE)
    common = {*budgets[: len(rows_a)]} & {*budgets[len(rows_a) :]}
    column = next((c for c in SIZE_COLUMNS if all(_is_positive(row.get(c)) for row in rows)), "")
    parts: tuple[list[Mapping], list[Mapping]] = ([], [])
    for is_b, part in enumerate(parts):
        members = range(len(rows_a), len(rows)) if is_b else range(len(rows_a))
        largest: dict[Any, int] = {}
        for i in members:
            if budgets[i] in common:
                size = _number(rows[i], column) if column else size_name(rows[i])
                largest[size] = max(largest.get(size, -1), budgets[i])
        for i in members:
            size = _number(rows[i], column) if column else size_name(rows[i])
            part.extend([rows[i]] if largest.get(size) == budgets[i] else [])
    return parts


def _group_rows(
    parts: Sequence[Sequence[Mapping]], column: str, tolerance: float
) -> dict[Any, list[list[Mapping]]]:
    """Return {size: [rows of A, rows of B]} of the sizes and budgets that both recipes have."""
    rows = [*parts[0], *parts[1]]
    if column == "name":
        keys: list[Any] = [size_name(row) for row in rows]
    else:
        labels = _labels([_number(row, column) for row in rows], tolerance)
        budgets = _labels([_number(row, TOKENS) for row in rows], TOKEN_TOLERANCE)
        keys = list(zip(labels, budgets, strict=True))
    groups: dict[Any, list[list[Mapping]]] = {}
    for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
        groups.setdefault(key, [[], []])[i >= len(parts[0])].append(row)
    common = {key: group for key, group in groups.items() if all(group)}
    return dict(sorted(common.items())) if column != "name" else common


def size_name(row: Mapping) -> str:
    """Return the name of a run without its sweep and its seed: s/100K-seed2 is 100K."""
    name = str(row.get("name") or row.get("run") or "")
    seed = comparability.cell_text(row.get("seed"))
    parts = name.rpartition("/")[2].split("-")
    others = [part for part in parts[1:] if part not in (f"seed{seed}", seed)]
    return "-".join([*parts[:1], *others]) or f"{_number(row, 'params'):.3g}"


def _common_name(group: Sequence[Sequence[Mapping]]) -> str:
    """Return the parts of the name of a size that all its runs share: 60K of 60K-x1 and 60K-x2."""
    names = [size_name(row).split("-") for rows in group for row in rows]
    parts = [part for part in names[0] if all(part in name for name in names)]
    return "-".join(parts or names[0])


def _pair_by_seed(
    rows_a: list[Mapping], rows_b: list[Mapping]
) -> tuple[list[tuple[Mapping, Mapping]], str]:
    """Return pairs of equal seeds, then pairs in order, and a note about them."""
    unpaired_a, unpaired_b, pairs = list(rows_a), list(rows_b), []
    for first in rows_a:
        seed = comparability.cell_text(first.get("seed"))
        partner = next(
            (row for row in unpaired_b if comparability.cell_text(row.get("seed")) == seed), None
        )
        if partner is not None:
            pairs.append((first, partner))
            unpaired_a = [row for row in unpaired_a if row is not first]
            unpaired_b = [row for row in unpaired_b if row is not partner]
    n_in_order = min(len(unpaired_a), len(unpaired_b))
    pairs += list(zip(unpaired_a, unpaired_b, strict=False))
    n_unused = len(unpaired_a) + len(unpaired_b) - 2 * n_in_order
    texts = [f"{n_in_order} pairs have different seeds"] if n_in_order else []
    texts += [f"{n_unused} runs have no partner and are not used"] if n_unused else []
    return pairs, "; ".join(texts)


def _check_enough(selection: Selection, missing: str) -> None:
    """Raise ValueError for fewer than two common sizes, and for pairs without residuals."""
    n_sizes = len(selection.sizes)
    others = f"; sizes without a partner: {missing}" if missing else ""
    if n_sizes < 2:
        known = f" ({selection.sizes[0].name})" if selection.sizes else ""
        raise ValueError(
            f"A and B have {n_sizes} common size{'' if n_sizes == 1 else 's'}{known} of equal"
            f" {TOKENS}, and a trend needs at least 2{others}: train both recipes at another size"
        )
    if selection.n_pairs < 3:
        raise ValueError(
            f"A and B have one pair of runs at each of 2 sizes, which leaves no estimate of the"
            f" noise{others}: train both recipes with a second seed at {selection.sizes[0].name}"
        )


def _labels(values: Sequence[float], tolerance: float) -> list[int]:
    """Return equal integers for neighboring values within a relative tolerance, 0 for no value."""
    array = np.nan_to_num(np.asarray(values, float))
    order = np.argsort(array, kind="stable")
    is_new = np.diff(array[order]) > tolerance * array[order][:-1]
    labels = np.zeros(len(array), int)
    labels[order[1:]] = np.cumsum(is_new)
    return labels.tolist()


def _values(rows: Sequence[Mapping], column: str) -> set[str]:
    return {text for row in rows if (text := comparability.cell_text(row.get(column)))}


def _shorten(values: set[str]) -> str:
    return ", ".join(value if len(value) <= 60 else f"{value[:12]}..." for value in sorted(values))


def _number(row: Mapping, column: str) -> float:
    return run_table.to_number(row.get(column))


def _is_positive(value: Any) -> bool:
    number = run_table.to_number(value)
    return math.isfinite(number) and number > 0
