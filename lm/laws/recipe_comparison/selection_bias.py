"""Tuned settings without selection bias: each run is selected by the runs of other seeds.

The lowest of several noisy losses is too low on average. Therefore the run of a seed has the
settings with the lowest mean loss of the other seeds.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lm.laws import comparability, run_table


def select_tuned_rows(
    recipe: str, size: str, rows: list[Mapping], y: str
) -> tuple[list[Mapping], list[Mapping], str]:
    """Return rows without selection bias, the rows of the best settings, and a note.

    Each of the first rows has the best settings of the other seeds. The second ones have the best
    settings of all seeds, which further seeds repeat. The note names a bias, or is "". Only seeds
    with runs of all settings compare settings, because further seeds often have only the best ones.
    """
    by_settings: dict[tuple, dict[str, list[Mapping]]] = {}
    for row in rows:
        seeds = by_settings.setdefault(comparability.training_settings(row), {})
        seeds.setdefault(comparability.cell_text(row.get("seed")), []).append(row)
    if len(by_settings) == 1:
        return rows, rows, ""
    seeds = {seed for part in by_settings.values() for seed in part}
    complete = set.intersection(*(set(part) for part in by_settings.values()))
    best = _best_settings(by_settings, complete or seeds, y)
    selected = [row for part in best.values() for row in part]
    fair = [
        row
        for seed in sorted(seeds)
        if complete - {seed}
        for row in _best_settings(by_settings, complete - {seed}, y).get(seed, [])
    ]
    if fair:
        return fair, selected, ""
    name = comparability.run_name(selected[0], 0)
    note = (
        f"{recipe}, {size}: all seeds of {name} also selected it among {len(by_settings)} settings,"
        " so its loss is too low on average: train it with another seed"
    )
    return selected, selected, note


def _best_settings(
    by_settings: Mapping[tuple, Mapping[str, list[Mapping]]], seeds: set[str], y: str
) -> Mapping[str, list[Mapping]]:
    """Return the rows by seed of the settings with the lowest mean loss of some seeds."""
    losses = {}
    for settings, part in by_settings.items():
        rows = [row for seed in part if seed in seeds for row in part[seed]]
        losses[settings] = np.mean([run_table.to_number(row.get(y)) for row in rows])
    return by_settings[min(losses, key=lambda settings: losses[settings])]


def describe_tuning_effort(
    name: str, rows_a: Sequence[Mapping], rows_b: Sequence[Mapping]
) -> list[str]:
    """Return a note about an unequal tuning effort."""
    counts = [
        len({comparability.training_settings(row) for row in rows}) for rows in (rows_a, rows_b)
    ]
    if counts[0] == counts[1]:
        return []
    return [
        f"{name}: A has {counts[0]} and B has {counts[1]} tried settings, so the tuning effort"
        " differs: train the same number of learning rates"
    ]
