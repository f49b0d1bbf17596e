"""The training and the held-out split: the rule that assigns a document to one of them."""

import hashlib

from lm.data.sources import readers


def is_heldout(document: readers.Document, fraction: float, digest: bytes | None = None) -> bool:
    """Return True if the document belongs to the held-out split.

    fraction: fraction of held-out documents. digest: SHA-256 of the text, or None to compute it.
    The decision depends only on the hash of the document's home, or of its text if it has no home.
    It is the same in every source and on every machine. A larger fraction holds out a superset.
    """
    if document.home:
        digest = hashlib.sha256(document.home.encode()).digest()
    elif digest is None:
        digest = hashlib.sha256(document.text.encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction
