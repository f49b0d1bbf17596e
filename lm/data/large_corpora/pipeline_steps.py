"""Steps of a datatrove pipeline: read, filter and encode the documents of a task.

A step is called with (documents, rank, number of tasks) and returns documents, as datatrove
requires. Task number r reads consecutive parts of a source, so the tasks in order give the
documents in the order of the source.
"""

import collections
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lm.config import schema
from lm.data import preprocessing, splits, tokenizers
from lm.data.large_corpora import task_records
from lm.data.sources import documents, readers

MINHASH = "minhash"
# Name -> module and class of a filter of datatrove, with its published thresholds.
FILTERS = {
    "gopher_quality": ("gopher_quality_filter", "GopherQualityFilter"),
    "gopher_repetition": ("gopher_repetition_filter", "GopherRepetitionFilter"),
    "c4_quality": ("c4_filters", "C4QualityFilter"),
    "fineweb_quality": ("fineweb_quality_filter", "FineWebQualityFilter"),
}


class ReadParts:
    """Read the documents of the parts of a task."""

    def __init__(self, source: str, on_error: str):
        self.source, self.on_error = source, on_error

    def __call__(self, _: Any, rank: int, world_size: int) -> Iterator[Any]:
        """Yield documents of datatrove. Raises ValueError unless errors are skipped."""
        document_type = importlib.import_module("datatrove.data").Document
        n_parts = len(documents.list_shards(self.source))
        parts = range(rank * n_parts // world_size, (rank + 1) * n_parts // world_size)
        errors: list[str] = []
        handler = readers.raise_error if self.on_error == "stop" else errors.append
        for document in documents.open_source(self.source, handler, parts.start, parts.stop):
            metadata = {"home": document.home, "part": document.part, "n_errors": len(errors)}
            errors.clear()
            yield document_type(text=document.text, id=document.name, metadata=metadata)
        if errors:
            metadata = {"home": "", "part": max(parts.stop - 1, 0), "n_errors": len(errors)}
            yield document_type(text="", id="", metadata=metadata | {"is_error": True})


class FilterDocuments:
    """Apply filters of datatrove by name, and count the dropped documents by filter."""

    def __init__(self, names: list[str]):
        self.names, self.n_passed = names, 0
        self.n_dropped: collections.Counter[str] = collections.Counter()

    def __call__(self, data: Iterable[Any], rank: int, world_size: int) -> Iterator[Any]:
        """Yield the documents that pass all filters. Errors and blank texts also pass."""
        filters = {name: _open_filter(name) for name in self.names}
        self.n_passed = 0
        self.n_dropped.clear()
        for document in data:
            reason = _failed_filter(document, filters) if document.text.strip() else ""
            if reason:
                self.n_dropped[reason] += 1
            else:
                self.n_passed += 1
                yield document


class EncodeDocuments:
    """Encode documents, and write the records of a task."""

    def __init__(
        self,
        folder: Path,
        data: schema.Data,
        tokenizer: tokenizers.Tokenizer,
        split: splits.Split,
        counted_filter: FilterDocuments,
    ):
        """counted_filter: an earlier step of the same pipeline."""
        self.folder, self.data, self.tokenizer, self.split = folder, data, tokenizer, split
        self.counted_filter = counted_filter

    def __call__(self, data: Iterable[Any], rank: int, world_size: int) -> Iterator[Any]:
        """Write the records of all documents. Yield nothing."""
        n_errors = n_received = part = 0
        with task_records.RecordWriter(record_path(self.folder, rank)) as writer:
            for chunk in preprocessing.split_into_chunks(map(_as_document, data)):
                n_errors += sum(int(document.error or 0) for document in chunk)
                part, n_received = chunk[-1].part, n_received + len(chunk)
                texts = [item._replace(error="") for item in chunk if item.name]
                writer.write(
                    preprocessing.encode_chunk(texts, self.tokenizer, self.data, self.split)
                )
            reasons = collections.Counter(self.counted_filter.n_dropped)
            reasons["near_copy"] = self.counted_filter.n_passed - n_received
            for reason, number in reasons.items():
                dropped = preprocessing.EncodedDocument("", part, rejection=reason)
                writer.write([dropped] * number)
            error = preprocessing.EncodedDocument("", part, error="unreadable")
            writer.write([error] * n_errors)
        return iter(())


def record_path(folder: Path, rank: int) -> Path:
    """Return the file of the encoded documents of a task."""
    return folder / f"task-{rank:05}.records"


def _as_document(document: Any) -> readers.Document:
    """Return a document of datatrove as a document of a source. error: number of errors."""
    metadata = document.metadata
    n_errors = str(metadata["n_errors"] or "")
    return readers.Document(
        document.text, document.id, metadata["home"], metadata["part"], n_errors
    )


def _open_filter(name: str) -> Any:
    module, kind = FILTERS[name]
    return getattr(importlib.import_module(f"datatrove.pipeline.filters.{module}"), kind)()


def _failed_filter(document: Any, filters: dict[str, Any]) -> str:
    """Return the name of the first filter that drops a document, or ""."""
    for name, document_filter in filters.items():
        result = document_filter.filter(document)
        if not (result[0] if isinstance(result, tuple) else result):
            return name
    return ""
