"""Documents of held-out rows: selection of rows, and clusters for standard errors.

    rows = heldout_documents.select_rows(text, source, 512)            # numbers of rows
    document_NT = heldout_documents.target_documents(text, source, rows)

Targets of one document have correlated losses, so standard errors are clustered by document (Miller
2024, arXiv:2411.00640). The number of a document is unique within its source. It is the position of
its start in the token file, or its index for data.packing="documents".

Tensor names end in their axes: N rows, T time, G documents.
"""

import io

import numpy as np

from lm.data import dataset, mixture, packing
from lm.data.prepared import token_file

MIN_DOCUMENTS = 200  # documents of the held-out rows of a source, if it has as many
FileRows = np.ndarray | token_file.TokenRows
CANDIDATES_PER_ROW = 20  # rows that are examined per selected row, if documents are too few


def select_rows(text: dataset.TokenDataset, source: str, n: int) -> np.ndarray:
    """Return the numbers of up to n held-out rows of a source, int64 [N], the same for all seeds.

    The rows are those of `TokenDataset.heldout` if they contain MIN_DOCUMENTS documents or all rows
    of the source. Otherwise each document has at most c rows. c is the largest number for which n
    rows have MIN_DOCUMENTS documents, or as many documents as possible. Fewer than MIN_DOCUMENTS
    rows are not restricted.
    """
    file_rows = text.heldout_files[source]
    n_candidates = min(CANDIDATES_PER_ROW * n, len(file_rows))
    candidates = mixture.keyed_permutation(
        np.arange(n_candidates), max(len(file_rows), 1), ("heldout", source)
    )
    if n < MIN_DOCUMENTS or n >= len(candidates):
        return candidates[:n]
    document_NT = target_documents(text, source, candidates[:n])
    if len(np.unique(document_NT[document_NT >= 0])) >= MIN_DOCUMENTS:
        return candidates[:n]
    # The document in the middle of a row stands for the row: a long document fills whole rows.
    document_NT = target_documents(text, source, candidates)
    document_N = document_NT[:, document_NT.shape[1] // 2]
    rank_N = _occurrences(document_N)
    n_required = min(MIN_DOCUMENTS, n, len(np.unique(document_N)))
    for cap in range(int(rank_N.max()) + 1, 0, -1):
        selected = np.flatnonzero(rank_N < cap)[:n]
        if len(selected) < n:
            break
        best = selected
        if len(np.unique(document_N[selected])) >= n_required:
            break
    return candidates[best]


def _occurrences(values_N: np.ndarray) -> np.ndarray:
    """Return the number of earlier entries of equal value for each entry, int64 [N]."""
    order = np.argsort(values_N, kind="stable")
    ordered = values_N[order]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]]
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(ordered)), 0))
    ranks = np.empty(len(ordered), np.int64)
    ranks[order] = np.arange(len(ordered)) - first
    return ranks


def target_documents(text: dataset.TokenDataset, source: str, rows: np.ndarray) -> np.ndarray:
    """Return the number of the document of each target of held-out rows, int64 [N, T].

    rows: numbers of rows of the source, [N]. An `end` token belongs to the document before it. The
    number is -1 for padding.
    """
    file_rows, seq_len = text.heldout_files[source], text.data.seq_len
    document_NT = np.full((len(rows), seq_len), -1, np.int64)
    if isinstance(file_rows, packing.PackedDocuments):
        for document_T, row in zip(document_NT, rows, strict=True):
            items = file_rows.items(int(row))
            sizes = file_rows.stop[items] - file_rows.start[items] + file_rows.is_cut[items]
            documents = np.repeat(file_rows.document[items], sizes)
            document_T[: len(documents)] = documents
        return document_NT
    end = text.tokenizer.end
    previous_row, previous_start = 0, 0
    for i in np.argsort(rows):
        row = int(rows[i])
        start = _document_start(file_rows, previous_row, row, end)
        start = previous_start if start is None else start
        previous_row, previous_start = row, start
        # The document of a target starts after the last `end` token before the target.
        positions = row * seq_len + np.arange(seq_len) + 1
        is_end = file_rows[row][:-1] == end
        document_NT[i] = np.maximum.accumulate(np.where(is_end, positions, start))
    return document_NT


def _document_start(file_rows: FileRows, first: int, row: int, end: int) -> int | None:
    """Return the position after the last `end` token in rows first to row - 1, None without any."""
    n_rows, stop = 1, row
    while stop > first:
        begin = max(first, stop - n_rows)
        tokens_NT = file_rows[begin:stop][:, :-1]
        ends = np.flatnonzero(tokens_NT.ravel() == end)
        if len(ends):
            return begin * tokens_NT.shape[1] + int(ends[-1]) + 1
        stop, n_rows = begin, 2 * n_rows
    return None


def sum_by_document(document_NT: np.ndarray, *values_NT: np.ndarray) -> list[np.ndarray]:
    """Return the document numbers [G], ascending, and the sum of each array per document [G].

    Padding (document -1) is not counted.
    """
    is_text_NT = document_NT >= 0
    documents, index = np.unique(document_NT[is_text_NT], return_inverse=True)
    return [documents, *(np.bincount(index, values[is_text_NT]) for values in values_NT)]


def encode_sums(
    shares: dict[str, float], sums: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> bytes:
    """Return the bytes of heldout.npz, which `paired_errors.load_document_sums` reads.

    shares: weight of each source in the loss. sums: documents, nats and target weights of each
    source, [G]. The file stores a few kilobytes per source: sources, shares, and for source i
    documents_i, nats_i and targets_i.
    """
    arrays = {"sources": np.array(list(sums)), "shares": np.array([shares[name] for name in sums])}
    for i, (documents, nats, targets) in enumerate(sums.values()):
        arrays |= {f"documents_{i}": documents, f"nats_{i}": nats, f"targets_{i}": targets}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
