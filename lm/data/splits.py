"""The training and the held-out split: the rule that assigns a document to one of them.

    split = plan_split("text:my/books", fraction=0.05)
    split.is_heldout(document)

The text of a document decides. A source of text files is split by file: the first piece of a file
decides for all its pieces. A source is split by piece if it has one file, or if all its files begin
with the same piece.
"""

import dataclasses
import hashlib
from collections.abc import Iterator

from lm.data.sources import documents, readers

FILE_PREFIX = "text:"  # sources whose documents are pieces of files
MIN_HELDOUT_GROUPS = 50  # fewer independent documents give unreliable standard errors


@dataclasses.dataclass(frozen=True)
class Split:
    """The rule that divides the documents of one source.

    fraction: requested fraction of held-out documents. has_files: documents are pieces of files,
    and each part of the source is a file. is_by_piece: each piece decides for itself. heldout_keys:
    keys of the held-out documents if the hash would leave one side empty, else None.
    """

    fraction: float
    has_files: bool = False
    is_by_piece: bool = False
    heldout_keys: frozenset[bytes] | None = None

    def is_heldout(self, document: readers.Document, digest: bytes | None = None) -> bool:
        """Return True if the document belongs to the held-out split.

        digest: SHA-256 of the text, or None to compute it.
        """
        key = self._key(document, digest)
        if self.heldout_keys is not None:
            return key in self.heldout_keys
        return _is_below(key, self.fraction)

    def group(self, document: readers.Document, digest: bytes) -> bytes:
        """Return the name of the documents that are not independent of this one.

        digest: SHA-256 of the text. The group is the file of a piece, or the common home.
        """
        return str(document.part).encode() if self.has_files else self._key(document, digest)

    @property
    def depends_on_all_files(self) -> bool:
        """True if another set of files may change the split of a file."""
        return self.is_by_piece or self.heldout_keys is not None

    def _key(self, document: readers.Document, digest: bytes | None) -> bytes:
        if document.home and not self.is_by_piece:
            return text_key(document.home)
        return digest or text_key(document.text)


def is_heldout(document: readers.Document, fraction: float, digest: bytes | None = None) -> bool:
    """Return True if the hash of the document is in the held-out fraction.

    fraction: fraction of held-out documents. digest: SHA-256 of the text, or None to compute it.
    The decision depends only on the hash of the document's home, or of its text if it has no home.
    It is the same in every source and on every machine. A larger fraction holds out a superset.
    """
    return Split(fraction).is_heldout(document, digest)


def plan_split(source: str, fraction: float) -> Split:
    """Return the rule for a source, so that each side has at least one file or piece.

    If the hashes of a text source would leave the held-out side empty, the file with the smallest
    hash is held out, but not the largest file. If they would leave the training side empty, the
    largest file is trained on. For several files, only first pieces are read. For a source split by
    piece, pieces are read until both sides have one. Raises ValueError for a missing source.
    """
    if not source.startswith(FILE_PREFIX):
        return Split(fraction)
    files = Split(fraction, has_files=True)
    pieces = dataclasses.replace(files, is_by_piece=True)
    shards = documents.list_shards(source)
    if not 0 < fraction < 1:
        return files
    if len(shards) > 1:
        sizes = [size for _, size, *_ in documents.source_fingerprint(source)]
        sizes_by_key: dict[bytes, int] = {}
        for shard, size in zip(shards, sizes, strict=True):
            first = next(_non_blank_documents(shard), None)
            if first:
                key = text_key(first.text)
                sizes_by_key[key] = sizes_by_key.get(key, 0) + size
                if _has_both_sides(sizes_by_key, fraction):
                    return files
        if len(sizes_by_key) > 1:
            return dataclasses.replace(files, heldout_keys=_balance(sizes_by_key, fraction))
    sizes_by_key = {}
    for shard in shards:
        for document in _non_blank_documents(shard):
            sizes_by_key[text_key(document.text)] = len(document.text)
            if _has_both_sides(sizes_by_key, fraction):
                return pieces
    if len(sizes_by_key) > 1:
        return dataclasses.replace(pieces, heldout_keys=_balance(sizes_by_key, fraction))
    return pieces


def split_facts(source: str) -> tuple[str, ...]:
    """Return the facts about the rule of a source that its prepared text depends on.

    They are part of the key of a prepared source, so that a change of the rule prepares it again.
    """
    return ("split by file",) if source.startswith(FILE_PREFIX) else ()


def describe_heldout(source: str, n_documents: int, n_groups: int) -> str:
    """Return the size of the held-out split, such as "15 pieces of 12 files"."""
    if source.startswith(FILE_PREFIX):
        return f"{_count(n_documents, 'piece')} of {_count(n_groups, 'file')}"
    if n_groups < n_documents:
        return f"{_count(n_documents, 'document')} in {_count(n_groups, 'group')}"
    return _count(n_documents, "document")


def heldout_warning(source: str, counts: dict[str, dict[str, int]], fraction: float) -> str:
    """Return a warning if a source has fewer than MIN_HELDOUT_GROUPS held-out groups, or "".

    counts: {"documents": {split: number}, "groups": {split: number}, ...}. Groups of documents are
    independent of each other.
    """
    groups = counts["groups"]
    if not fraction or groups["heldout"] >= MIN_HELDOUT_GROUPS:
        return ""
    unit = "files" if source.startswith(FILE_PREFIX) else "documents"
    remedy = f"add {unit}"
    if sum(groups.values()) >= MIN_HELDOUT_GROUPS:
        remedy += f", or raise data.heldout_fraction={fraction:g}"
    size = describe_heldout(source, counts["documents"]["heldout"], groups["heldout"])
    return (
        f"{source}: held-out split: {size}. Fewer than {MIN_HELDOUT_GROUPS} independent {unit} make"
        f" standard errors too small: {remedy}"
    )


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def _non_blank_documents(shard: readers.Shard) -> Iterator[readers.Document]:
    """Yield the documents of a shard up to its first error, which its preparation reports."""
    try:
        for document in shard(lambda message: None):
            if document.text.strip():
                yield document
    except ValueError:
        return


def text_key(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="replace")).digest()


def _is_below(key: bytes, fraction: float) -> bool:
    return int.from_bytes(key[:8], "big") / 2**64 < fraction


def _has_both_sides(keys: dict[bytes, int], fraction: float) -> bool:
    return len({_is_below(key, fraction) for key in keys}) == 2


def _balance(sizes: dict[bytes, int], fraction: float) -> frozenset[bytes]:
    """Return the held-out keys if the hashes of all keys are on one side of the fraction.

    sizes: bytes of at least two keys.
    """
    largest = max(sizes, key=lambda key: (sizes[key], key))
    others = [key for key in sizes if key != largest]
    return frozenset(others if _is_below(largest, fraction) else [min(others)])
