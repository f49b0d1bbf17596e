"""The rule that assigns a document to the held-out split."""

import hashlib

import pytest

from lm.data import splits
from lm.data.sources import readers

DOCUMENTS = [readers.Document(f"text {i}", f"file {i}") for i in range(2000)]


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_fraction_of_documents_is_held_out(fraction):
    share = sum(splits.is_heldout(document, fraction) for document in DOCUMENTS) / len(DOCUMENTS)
    assert share == pytest.approx(fraction, abs=0.03)


def test_larger_fraction_holds_out_a_superset():
    small, large = (
        {document.text for document in DOCUMENTS if splits.is_heldout(document, fraction)}
        for fraction in (0.1, 0.3)
    )
    assert small < large


def test_given_digest_equals_the_hash_of_the_text():
    for document in DOCUMENTS[:100]:
        digest = hashlib.sha256(document.text.encode()).digest()
        assert splits.is_heldout(document, 0.3, digest) == splits.is_heldout(document, 0.3)


def test_documents_of_one_home_share_a_split():
    documents = [readers.Document(f"text {i}", f"file {i}", home="conversation") for i in range(50)]
    assert len({splits.is_heldout(document, 0.5) for document in documents}) == 1
