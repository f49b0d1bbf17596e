"""Paired standard errors: the difference between the held-out losses of runs on the same rows.

    difference, se = paired_errors.paired_difference([first_row], [second_row])

The losses of two runs on one text are correlated: hard documents are hard for both. The error of
their difference is therefore smaller than that of independent losses (Miller 2024,
arXiv:2411.00640, section 4.2). It is clustered by document.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.runs import filesystem, records

FILE = "heldout.npz"  # in the run directory, written by each evaluation
# Runs with equal values are evaluated on the same rows.
SAME_ROWS = ("corpus.hash", "data.tokenizer", "data.seq_len", "data.loss_on", "eval.n_sequences")
TOLERANCE = 1e-5  # relative, of the stored sums and the recorded loss


class DocumentSums(NamedTuple):
    """Sums per document of the last evaluation of a run, by source."""

    shares: np.ndarray  # weight of each source in the loss
    documents: list[np.ndarray]
    nats: list[np.ndarray]
    targets: list[np.ndarray]  # summed weights of the targets

    @property
    def loss(self) -> float:
        """Nats per token, averaged over sources with their shares."""
        means = [n.sum() / t.sum() for n, t in zip(self.nats, self.targets, strict=True)]
        return float(self.shares @ np.array(means))


def load_document_sums(row: Mapping) -> DocumentSums | None:
    """Load the sums per document of a run. Return None if they are absent.

    row: a row of records.load_runs. Sums of another evaluation than that of the row count as
    absent, because their loss differs.
    """
    path = filesystem.open_path(Path(str(row.get("dir", "")))) / FILE
    if not row.get("dir") or not path.exists():
        return None
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
        indices = range(len(file["sources"]))
        columns = ([file[f"{name}_{i}"] for i in indices] for name in DocumentSums._fields[1:])
        sums = DocumentSums(file["shares"], *columns)
    is_current = abs(sums.loss - row.get(records.LOSS, np.inf)) <= TOLERANCE * sums.loss
    return sums if is_current else None


def paired_difference(
    first: Sequence[Mapping], second: Sequence[Mapping]
) -> tuple[float, float] | None:
    """Return the mean loss of `first` minus that of `second`, and its paired standard error.

    first, second: rows of records.load_runs, such as the seeds of two methods. The error is that of
    the held-out text, without the variance between seeds. Return None if the runs were not
    evaluated on the same rows, or if a run has no sums per document.
    """
    rows = [*first, *second]
    if any(len({str(row.get(column)) for row in rows}) > 1 for column in SAME_ROWS):
        return None
    sums = [load_document_sums(row) for row in rows]
    loaded = [s for s in sums if s is not None]
    if len(loaded) < len(rows) or not all(_has_same_rows(loaded[0], s) for s in loaded):
        return None
    signs = np.repeat([1 / len(first), -1 / len(second)], [len(first), len(second)])
    difference = variance = 0.0
    for i, share in enumerate(loaded[0].shares):
        nats_G = sum(sign * s.nats[i] for sign, s in zip(signs, loaded, strict=True))
        targets_G = loaded[0].targets[i]
        mean = np.sum(nats_G) / targets_G.sum()
        correction = len(targets_G) / max(len(targets_G) - 1, 1)
        squares = correction * np.square(nats_G - mean * targets_G).sum()
        difference += share * mean
        variance += share**2 * squares / targets_G.sum() ** 2
    return float(difference), float(variance**0.5)


def _has_same_rows(first: DocumentSums, second: DocumentSums) -> bool:
    """Return True if two evaluations used the same targets of the same documents."""
    pairs = zip(
        [first.shares, *first.documents, *first.targets],
        [second.shares, *second.documents, *second.targets],
        strict=False,
    )
    is_equal = len(first.documents) == len(second.documents)
    return is_equal and all(np.array_equal(a, b) for a, b in pairs)
