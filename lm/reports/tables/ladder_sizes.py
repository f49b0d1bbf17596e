"""Names of model sizes: the sizes of the ladder that a sweep has, and the nearest size.

The ladder is the list of sizes of this project, model_sizes.LADDER. A sweep has some of them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from lm.config import model_sizes
from lm.runs import records

TOLERANCE = 0.02  # largest relative difference between the parameters of a run and its size


def nearest_ladder_size(n_params: float) -> str:
    """Return the dense size of the ladder with the nearest number of parameters."""
    counts = _count_parameters()
    return min(counts, key=lambda size: abs(np.log(counts[size] / n_params)))


def trained_sizes(rows: Sequence[Mapping]) -> list[str]:
    """Return the names of the sizes of the ladder that any of the runs has, smallest first."""
    counts = _count_parameters()
    sizes = {row[records.N_PARAMS] for row in rows if row.get(records.N_PARAMS)}
    nearest = {size: nearest_ladder_size(size) for size in sorted(sizes)}
    return list(
        dict.fromkeys(
            name for size, name in nearest.items() if abs(counts[name] / size - 1) < TOLERANCE
        )
    )


def describe_ladder(rows: Sequence[Mapping]) -> str:
    """Return sentences about the ladder and the sizes of a sweep."""
    names = ", ".join(trained_sizes(rows)) or "none of them"
    return (
        "The ladder is the list of model sizes of this project, lm/config/model_sizes.py. The sweep"
        f" has {names}."
    )


def _count_parameters() -> dict[str, int]:
    """Return {size: parameters without embeddings}, which do not depend on the vocabulary."""
    models = {size: model_sizes.ladder_model(size, vocab_size=256) for size in model_sizes.LADDER}
    return {s: model_sizes.count_parameters(m)["non_embedding"] for s, m in models.items()}
