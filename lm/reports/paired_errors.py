"""Paired standard errors: the difference between the held-out losses of runs on the same rows.

    difference, se = paired_errors.paired_difference([first_row], [second_row])

The losses of two runs on one text are correlated: hard documents are hard for both. The error of
their difference is therefore smaller than that of independent losses (Miller 2024,
arXiv:2411.00640, section 4.2). It is clustered by document.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.runs import filesystem, records
from lm.runs.items import array_files

FILE = "heldout.npz"  # in the run directory, written by each evaluation
# Runs with equal values and tokenizers are evaluated on the same rows.
SAME_ROWS = ("data.seq_len", "data.loss_on", "eval.n_sequences")
TOLERANCE = 1e-5  # relative, of the stored sums and the recorded loss


class SourceSums(NamedTuple):
    """Sums per document of one source in the last evaluation of a run."""

    share: float  # weight of the source in the loss
    documents: np.ndarray
    nats: np.ndarray
    targets: np.ndarray  # summed weights of the targets


def load_document_sums(row: Mapping) -> dict[str, SourceSums]:
    """Load the sums per document of each source. Return {} if they are absent.

    row: a row of records.load_runs. Sums of another evaluation than that of the row count as
    absent, because their loss differs. With eval.patience this is usual, because the file has the
    sums of the last evaluation. Otherwise it gives a warning, as a damaged file does.
    """
    path = filesystem.open_path(Path(str(row.get("dir", "")))) / FILE
    sums = array_files.read_undamaged(path, _read_sums) if row.get("dir") else None
    if sums is None:
        return {}
    loss = sum(s.share * s.nats.sum() / s.targets.sum() for s in sums.values())
    if abs(loss - row.get(records.LOSS, np.inf)) <= TOLERANCE * loss:
        return sums
    if row.get("status") == "done" and records.LOSS in row and not row.get("eval.patience"):
        warnings.warn(f"{path} belongs to another evaluation and is not used", stacklevel=2)
    return {}


def _read_sums(path: Path) -> dict[str, SourceSums]:
    """Read heldout.npz. The archive verifies the checksum of each array."""
    arrays = array_files.read_arrays(path)
    sources = enumerate(zip(arrays["sources"], arrays["shares"], strict=True))
    return {
        str(source): SourceSums(
            float(share), *(arrays[f"{name}_{i}"] for name in SourceSums._fields[1:])
        )
        for i, (source, share) in sources
    }


def paired_difference(
    first: Sequence[Mapping], second: Sequence[Mapping], source: str = ""
) -> tuple[float, float] | None:
    """Return the mean loss of `first` minus that of `second`, and its paired standard error.

    first, second: rows of records.load_runs, such as the seeds of two methods. source: compare the
    losses on this source; by default, on the mixture. The error is that of the held-out text,
    without the variance between seeds. Return None if the runs were not evaluated on the same rows,
    or if a run has no sums per document.
    """
    rows = [*first, *second]
    columns = SAME_ROWS if source else (*SAME_ROWS, "corpus.hash")
    tokenizers = {row.get("tokenizer.hash") or row.get("data.tokenizer") for row in rows}
    if len(tokenizers) > 1:  # two paths may have one tokenizer
        return None
    if any(len({str(row.get(column)) for row in rows}) > 1 for column in columns):
        return None
    loaded = [load_document_sums(row) for row in rows]
    names = [source] if source else [name for name, s in loaded[0].items() if s.share]
    signs = np.repeat([1 / len(first), -1 / len(second)], [len(first), len(second)])
    difference = variance = 0.0
    for name in names:
        sums = [run_sums[name] for run_sums in loaded if name in run_sums]
        if len(sums) < len(rows) or not all(_has_same_rows(sums[0], s) for s in sums):
            return None
        share, targets_G = (1.0 if source else sums[0].share), sums[0].targets
        nats_G = signs @ np.stack([s.nats for s in sums])
        mean = nats_G.sum() / targets_G.sum()
        correction = len(targets_G) / max(len(targets_G) - 1, 1)
        squares = correction * np.square(nats_G - mean * targets_G).sum()
        difference += share * mean
        variance += share**2 * squares / targets_G.sum() ** 2
    return (float(difference), float(variance**0.5)) if names else None


def _has_same_rows(first: SourceSums, second: SourceSums) -> bool:
    """Return True if two evaluations used the same targets of the same documents."""
    return np.array_equal(first.documents, second.documents) and np.array_equal(
        first.targets, second.targets
    )
