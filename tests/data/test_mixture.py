"""The order of rows has an exact mixture and a random permutation, computed for any position."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data import mixture

WEIGHTS = st.lists(st.floats(1, 100) | st.integers(1, 3), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(WEIGHTS)
def test_every_prefix_has_the_mixture_within_one_row(weights):
    quantized = mixture.quantize_weights({str(i): weight for i, weight in enumerate(weights)})
    counts = np.array(list(quantized.values()))
    assert counts.sum() == mixture.PATTERN
    deviations = counts / mixture.PATTERN - np.array(weights) / sum(weights)
    assert np.abs(deviations).max() < 1 / mixture.PATTERN
    sources = mixture.source_pattern(tuple(counts))
    n_rows = np.cumsum(sources[:, None] == np.arange(len(counts)), axis=0)
    expected = np.arange(1, mixture.PATTERN + 1)[:, None] * counts / mixture.PATTERN
    assert np.abs(n_rows - expected).max() < 1
    np.testing.assert_array_equal(n_rows[-1], counts)


def test_weight_of_less_than_one_row_is_rejected():
    with pytest.raises(ValueError, match=r"data.sources\['b'\]=1e-05 is too small a fraction"):
        mixture.quantize_weights({"a": 1.0, "b": 1e-5})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 10))
def test_keyed_permutation_contains_every_number_once(n, key):
    images = mixture.keyed_permutation(np.arange(n), n, (key, "name"))
    assert sorted(images) == list(range(n))
    subset = np.arange(n)[:: max(1, n // 7)]
    subset_images = mixture.keyed_permutation(subset, n, (key, "name"))
    np.testing.assert_array_equal(subset_images, images[subset])


def test_keyed_permutation_has_the_statistics_of_a_random_one():
    """Check means, distances of neighbors, fixed points and distinctness of 300 permutations.

    The mean of 300 numbers, uniform on 0 to 999, has a standard error of 16.7.
    """
    n = 1000
    images = np.array([mixture.keyed_permutation(np.arange(n), n, (key,)) for key in range(300)])
    assert np.abs(images.mean(axis=0) - 499.5).max() < 5 * 16.7
    assert np.abs(np.diff(images)).mean() == pytest.approx(n / 3, rel=0.02)
    assert (images == np.arange(n)).sum(axis=1).mean() == pytest.approx(1, abs=0.3)
    assert len(set(map(tuple, images))) == 300


def test_permutation_of_a_huge_range_needs_no_table():
    n = 10**14 + 7
    images = mixture.keyed_permutation(np.arange(n - 1000, n), n, ("huge",))
    assert len(set(images)) == 1000 and 0 <= images.min() and images.max() < n


def test_rows_of_any_range_are_those_of_single_rows(monkeypatch):
    """Each epoch of a source has each of its rows once; source b has 5 rows of 9 in its file."""
    monkeypatch.setattr(mixture, "PATTERN", 8)
    order = mixture.RowOrder({"a": 5, "b": 3}, 7, [4, 5], [4, 9])
    n = 8 * 20
    source, epoch, row = order.rows(0, n)
    for start, stop in ((0, 1), (3, 8), (8, 9), (7, 25), (16, 32), (150, 160)):
        for values, part in zip((source, epoch, row), order.rows(start, stop), strict=True):
            assert part.tolist() == values[start:stop].tolist()
    pattern = mixture.source_pattern((5, 3))
    assert source.tolist() == pattern.tolist() * 20 and not pattern.flags.writeable
    for i, n_rows in enumerate((4, 5)):
        epochs, rows = epoch[source == i], row[source == i]
        assert epochs.tolist() == [k // n_rows for k in range(len(epochs))]
        subsets = [tuple(sorted(rows[epochs == e])) for e in range(epochs[-1])]
        assert len(set(subsets)) == 1 and len(set(subsets[0])) == n_rows
        for k in (0, 1, 8, 37):
            name, expected = "ab"[i], (source[:k] == i).sum() / n_rows
            assert order.epochs(k)[name] == pytest.approx(expected)
    subset = set(row[source == 1])
    assert len(subset) == 5 and max(subset) < 9
    larger = mixture.RowOrder({"a": 5, "b": 3}, 1, [4, 6], [4, 9])
    sources, _, rows = larger.rows(0, n)
    assert subset < set(rows[sources == 1])
