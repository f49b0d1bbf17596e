"""Order of rows: exact mixture, keyed permutation, constant time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data import mixture

WEIGHTS = st.lists(st.floats(1, 100) | st.integers(1, 3), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(WEIGHTS)
def test_any_prefix_holds_the_weights_to_a_row(weights):
    counts = np.array(
        list(mixture.quantize_weights({str(i): w for i, w in enumerate(weights)}).values())
    )
    assert counts.sum() == mixture.PATTERN
    assert (
        np.abs(counts / mixture.PATTERN - np.array(weights) / sum(weights)).max()
        < 1 / mixture.PATTERN
    )
    chosen = mixture.source_pattern(list(counts))
    given = np.cumsum(chosen[:, None] == np.arange(len(counts)), axis=0)
    share = np.arange(1, mixture.PATTERN + 1)[:, None] * counts / mixture.PATTERN
    assert np.abs(given - share).max() < 1
    np.testing.assert_array_equal(given[-1], counts)


def test_a_share_too_small_to_be_kept_is_refused():
    with pytest.raises(ValueError, match=r"data.sources\['b'\]=1e-05 is too small a fraction"):
        mixture.quantize_weights({"a": 1.0, "b": 1e-5})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 10))
def test_the_keyed_permutation_is_one(n, key):
    found = mixture.keyed_permutation(np.arange(n), n, (key, "name"))
    assert sorted(found) == list(range(n))
    some = np.arange(n)[:: max(1, n // 7)]
    np.testing.assert_array_equal(mixture.keyed_permutation(some, n, (key, "name")), found[some])


def test_the_keyed_permutation_looks_random():
    n = 1000
    orders = np.array([mixture.keyed_permutation(np.arange(n), n, (key,)) for key in range(300)])
    # Means of 300 places, each uniform on 0..999: 16.7 is one standard error, neighbours apart.
    assert np.abs(orders.mean(axis=0) - 499.5).max() < 5 * 16.7
    assert np.abs(np.diff(orders)).mean() == pytest.approx(n / 3, rel=0.02)
    assert (orders == np.arange(n)).sum(axis=1).mean() == pytest.approx(1, abs=0.3)  # fixed points
    assert len(set(map(tuple, orders))) == 300


def test_permutation_of_a_huge_range_is_computed_at_once():
    n = 10**14 + 7
    places = np.arange(n - 1000, n)
    found = mixture.keyed_permutation(places, n, ("far",))
    assert len(set(found)) == 1000 and 0 <= found.min() and found.max() < n
