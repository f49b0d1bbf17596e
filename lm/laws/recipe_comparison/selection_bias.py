"""Tuned settings without selection bias: each run is selected by the runs of other seeds.

The lowest of several noisy losses is too low on average. Therefore the run of a seed has the
settings with the lowest mean loss of the other seeds.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lm.laws import comparability, run_table


def select_tuned_rows(
    recipe: str, size: str, rows: list[Mapping], y: str
) -> tuple[list[Mapping], str]:
    """Return rows of the best settings, each selected by other seeds, and a note of a bias."""
    by_settings: dict[tuple, dict[str, list[Mapping]]] = {}
    for row in rows:
        seeds = by_settings.setdefault(comparability.training_settings(row), {})
        seeds.setdefault(comparability.cell_text(row.get("seed")), []).append(row)
    if len(by_settings) == 1:
        return rows, ""
    seeds = {seed for part in by_settings.values() for seed in part}
    fair = [row for seed in sorted(seeds) for row in _tuned_on_others(by_settings, seed, y)]
    if fair:
        return fair, ""
    losses = {
        settings: np.mean(
            [run_table.to_number(row.get(y)) for rows in part.values() for row in rows]
        )
        for settings, part in by_settings.items()
    }
    tuned = by_settings[min(losses, key=lambda settings: losses[settings])]
    selected = [row for part in tuned.values() for row in part]
    return selected, (
        f"{recipe}, {size}: all seeds of {comparability.run_name(selected[0], 0)} also selected it"
        f" among {len(by_settings)} settings, so its loss is too low on average: train it with"
        " another seed"
    )


def _tuned_on_others(
    by_settings: Mapping[tuple, Mapping[str, list[Mapping]]], seed: str, y: str
) -> list[Mapping]:
    """Return the rows of a seed that have the best settings of the other seeds.

    The list is empty if the other seeds do not have all settings, because the settings that have
    several seeds may have been selected with this seed.
    """
    losses = {}
    for settings, part in by_settings.items():
        others = [
            run_table.to_number(row.get(y))
            for other in part
            if other != seed
            for row in part[other]
        ]
        if not others:
            return []
        losses[settings] = float(np.mean(others))
    return by_settings[min(losses, key=lambda settings: losses[settings])].get(seed, [])


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
