"""Properties of the synthetic languages: the entropy that is claimed is that of the text."""

import itertools

import numpy as np
import pytest

from lm import languages

SMALL = languages.parse("machine?states=16&symbols=6&memory=3&megabytes=0.5")


def read(machine, text):
    """Nats of each letter for who knows the machine, and the state at each letter."""
    p_SA, next_SA = languages.probabilities(machine), languages.successors(machine)
    state, nats, states = 0, [], []
    for letter in text:
        a = languages.LETTERS.index(letter)
        nats.append(-np.log(p_SA[state, a]))
        states.append(state)
        state = next_SA[state, a]
    return nats, states


def test_a_long_text_has_the_entropy_and_the_states_that_are_computed():
    nats, states = [], []
    for text in itertools.islice(languages.documents(SMALL), 60):
        more, where = read(SMALL, text)
        assert len(text) == languages.DOCUMENT
        nats += more
        states += where
    letters = languages.entropy(SMALL)
    ends = np.log(languages.DOCUMENT + 1) / languages.DOCUMENT + 1 / languages.DOCUMENT
    assert np.mean(nats) == pytest.approx(letters - ends, abs=4 * np.std(nats) / len(nats) ** 0.5)
    found = np.bincount(states, minlength=len(languages.stationary(SMALL))) / len(states)
    assert np.abs(found - languages.stationary(SMALL)).max() < 0.02


@pytest.mark.parametrize("zipf", [0.0, 1.0, 4.0])
def test_the_entropy_of_a_letter_is_that_of_its_probabilities(zipf):
    machine = languages.parse(f"machine?zipf={zipf}&symbols=8")
    p_SA = languages.probabilities(machine)
    np.testing.assert_allclose(p_SA.sum(axis=1), 1)
    of_states = -(p_SA * np.log(p_SA)).sum(axis=1)
    np.testing.assert_allclose(of_states, of_states[0])
    assert languages.entropy(machine) == pytest.approx(of_states[0], abs=0.003)
    assert zipf or languages.entropy(machine) == pytest.approx(np.log(8), abs=0.003)


def test_the_floor_of_short_rows_is_that_of_all_texts_there_are():
    machine = languages.parse("machine?states=3&symbols=2&memory=2&zipf=2")
    p_SA, next_SA = languages.probabilities(machine), languages.successors(machine)

    def probability(letters):
        belief_S = languages.stationary(machine)
        for a in letters:
            belief_S = np.bincount(next_SA[:, a], belief_S * p_SA[:, a], len(belief_S))
        return belief_S.sum()

    def nats(n):
        p = np.array([probability(text) for text in itertools.product((0, 1), repeat=n)])
        return -(p * np.log(p)).sum()

    letters = -(p_SA[0] * np.log(p_SA[0])).sum()
    wanted = (nats(9) - nats(1)) / 8 - letters  # the price of not knowing the state, a token
    found, error = languages.floor(machine, seq_len=8, n=4000)
    assert found - languages.entropy(machine) == pytest.approx(wanted, abs=4 * error)
    assert wanted > 8 * error


def test_longer_rows_have_a_lower_floor_above_the_entropy():
    short, _ = languages.floor(SMALL, 16)
    long, error = languages.floor(SMALL, 256)
    assert languages.entropy(SMALL) < long + 4 * error < short


def test_what_is_stored_counts_far_ahead():
    p_SA = languages.probabilities(SMALL).reshape(16, 3, 6)
    assert (p_SA[1, 0] != p_SA[1, 1]).any() and (p_SA[2, 0] == p_SA[2, 1]).all()
    next_SA = languages.successors(SMALL).reshape(16, 3, 6) % 3
    assert (next_SA[0] == np.arange(6) % 3).all()  # stores
    assert (next_SA[2] == np.arange(3)[:, None]).all()  # keeps


def test_the_text_is_the_same_again_and_another_with_another_seed():
    first = next(languages.documents(SMALL))
    assert next(languages.documents(SMALL)) == first
    other = languages.parse("machine?states=16&symbols=6&memory=3&megabytes=0.5&seed=1")
    assert next(languages.documents(other)) != first
    assert len(list(languages.documents(SMALL))) == 122
    few = languages.parse("machine?states=16&symbols=6&memory=3&megabytes=0.1")
    assert list(languages.documents(few)) == list(languages.documents(SMALL))[:24]


@pytest.mark.parametrize(
    "name, words",
    [
        ("grammar", "grammar does not exist: did you mean machine"),
        ("machine?size=3", "size does not exist: take states, symbols"),
        ("machine?states=many", "states=many must be a number"),
        ("machine?states=1", "states must be from 2 to 65536"),
        ("machine?symbols=64", "symbols must be from 2 to 63"),
    ],
)
def test_dials_that_cannot_be_are_named(name, words):
    with pytest.raises(ValueError, match=words):
        languages.parse(name)
