"""Synthetic languages: the computed entropy equals the entropy of the text."""

import itertools

import numpy as np
import pytest

from lm.data.sources import synthetic_languages

SMALL = synthetic_languages.parse_language("machine?states=16&symbols=6&memory=3&megabytes=0.5")


def read(machine, text):
    """Return the nats of each letter for a reader who knows the machine, and its states."""
    letters_A, p_SA, next_SA = synthetic_languages.finite_state_source(machine)
    state, nats, states = 0, [], []
    for letter in text:
        a = letters_A.index(letter)
        nats.append(-np.log(p_SA[state, a]))
        states.append(state)
        state = next_SA[state, a]
    return nats, states


def test_long_text_has_the_computed_entropy_and_states():
    nats, states = [], []
    for text in synthetic_languages.generate_block(SMALL, 0)[:60]:
        text_nats, text_states = read(SMALL, text)
        assert len(text) == synthetic_languages.DOCUMENT_LETTERS
        nats += text_nats
        states += text_states
    n = synthetic_languages.DOCUMENT_LETTERS
    end_nats = np.log(n + 1) / n + 1 / n  # nats of the document ends, per letter
    letter_nats = synthetic_languages.entropy_rate(SMALL) - end_nats
    assert np.mean(nats) == pytest.approx(letter_nats, abs=4 * np.std(nats) / len(nats) ** 0.5)
    expected_S = synthetic_languages.stationary_distribution(SMALL)
    frequencies_S = np.bincount(states, minlength=len(expected_S)) / len(states)
    assert np.abs(frequencies_S - expected_S).max() < 0.02


@pytest.mark.parametrize("zipf", [0.0, 1.0, 4.0])
def test_entropy_rate_follows_from_letter_probabilities(zipf):
    machine = synthetic_languages.parse_language(f"machine?zipf={zipf}&symbols=8")
    p_SA = synthetic_languages.finite_state_source(machine).p_SA
    np.testing.assert_allclose(p_SA.sum(axis=1), 1)
    entropy_S = -(p_SA * np.log(p_SA)).sum(axis=1)
    np.testing.assert_allclose(entropy_S, entropy_S[0])
    entropy_rate = synthetic_languages.entropy_rate(machine)
    assert entropy_rate == pytest.approx(entropy_S[0], abs=0.003)
    assert zipf or entropy_rate == pytest.approx(np.log(8), abs=0.003)


def test_entropy_bound_of_short_rows_equals_enumeration():
    machine = synthetic_languages.parse_language("machine?states=3&symbols=2&memory=2&zipf=2")
    _, p_SA, next_SA = synthetic_languages.finite_state_source(machine)

    def probability(letters):
        belief_S = synthetic_languages.stationary_distribution(machine)
        for a in letters:
            belief_S = np.bincount(next_SA[:, a], belief_S * p_SA[:, a], len(belief_S))
        return belief_S.sum()

    def nats(n):
        p = np.array([probability(text) for text in itertools.product((0, 1), repeat=n)])
        return -(p * np.log(p)).sum()

    letter_entropy = -(p_SA[0] * np.log(p_SA[0])).sum()
    expected = (nats(9) - nats(1)) / 8 - letter_entropy  # nats per token for the unknown state
    bound, error = synthetic_languages.entropy_bound(machine, seq_len=8, n=2000)
    cost = bound - synthetic_languages.entropy_rate(machine)
    assert cost == pytest.approx(expected, abs=4 * error)
    assert expected > 8 * error


def test_longer_rows_have_a_lower_entropy_bound():
    short, _ = synthetic_languages.entropy_bound(SMALL, 16, n=150)
    long, error = synthetic_languages.entropy_bound(SMALL, 256, n=150)
    assert synthetic_languages.entropy_rate(SMALL) < long + 4 * error < short


def test_stored_value_changes_later_letters():
    _, p_SA, next_SA = synthetic_languages.finite_state_source(SMALL)
    p_SA, next_SA = p_SA.reshape(16, 3, 6), next_SA.reshape(16, 3, 6) % 3
    assert (p_SA[1, 0] != p_SA[1, 1]).any() and (p_SA[2, 0] == p_SA[2, 1]).all()
    assert (next_SA[0] == np.arange(6) % 3).all()  # state 0 stores the letter
    assert (next_SA[2] == np.arange(3)[:, None]).all()  # state 2 does not change the stored value


def all_texts(language):
    """Return all documents of a language."""
    return [
        text
        for n in range(synthetic_languages.count_blocks(language))
        for text in synthetic_languages.generate_block(language, n)
    ]


def test_text_depends_only_on_the_seed():
    texts = all_texts(SMALL)
    assert all_texts(SMALL) == texts and len(texts) == len(set(texts)) == 122
    other = synthetic_languages.parse_language(
        "machine?states=16&symbols=6&memory=3&megabytes=0.5&seed=1"
    )
    assert synthetic_languages.generate_block(other, 0)[0] != texts[0]
    small = synthetic_languages.parse_language("machine?states=16&symbols=6&memory=3&megabytes=0.1")
    assert all_texts(small) == texts[:24]


@pytest.mark.parametrize(
    "name, message",
    [
        ("gramma", "gramma does not exist: did you mean grammar"),
        ("grammar?states=3", "states does not exist: use one of the fields words, kinds"),
        ("grammar?depth=9", "depth=9 must be a whole number from 1 to 4"),
        ("machine?size=3", "size does not exist: use one of the fields states, symbols"),
        ("machine?states=many", "states=many must be a whole number"),
        ("machine?states=1", "states=1 must be a whole number from 2 to 65536"),
        ("machine?symbols=64", "symbols=64 must be a whole number from 2 to 63"),
    ],
)
def test_invalid_field_error_names_the_field(name, message):
    with pytest.raises(ValueError, match=message):
        synthetic_languages.parse_language(name)


TINY = synthetic_languages.parse_language("grammar?words=3&kinds=2&depth=2&nest=0.3&stop=0.4")


def phrase_nats(grammar, depth=1):
    """Return the mean nats and mean letters of a phrase, summed over the rules of the grammar.

    The result does not depend on the finite-state source.
    """
    p_word = synthetic_languages.zipf_probabilities(grammar.words, grammar.zipf)
    nest = grammar.nest if depth < grammar.depth else 0.0
    rules = np.array([grammar.stop, nest, 1 - grammar.stop - nest])
    # A phrase applies 1 / stop rules on average.
    choices = -sum(p * np.log(p) for p in rules if p) / grammar.stop
    nats = np.log(grammar.kinds) + choices - rules[2] / grammar.stop * (p_word @ np.log(p_word))
    letters = 2 + rules[2] / grammar.stop * 3
    if nest:
        inner_nats, inner_letters = phrase_nats(grammar, depth + 1)
        nats += nest / grammar.stop * inner_nats
        letters += nest / grammar.stop * inner_letters
    return nats, letters


@pytest.mark.parametrize(
    "fields", ["words=3&kinds=2&depth=2", "words=256", "words=500&kinds=1&depth=4&nest=0.4"]
)
def test_grammar_entropy_equals_that_of_its_rules(fields):
    grammar = synthetic_languages.parse_language(f"grammar?{fields}")
    nats, letters = phrase_nats(grammar)
    expected = nats / letters  # phrases follow each other without memory
    n = synthetic_languages.DOCUMENT_LETTERS
    end_nats = -np.log1p(-1 / (n + 1)) * n / (n + 1) - np.log(1 / (n + 1)) / (n + 1)
    letter_nats = (synthetic_languages.entropy_rate(grammar) - end_nats) * (n + 1) / n
    # The tolerance covers the last phrase of a document, which is truncated.
    assert letter_nats == pytest.approx(expected, rel=2e-3)


def test_grammar_entropy_equals_enumeration():
    letters, p_SA, next_SA = synthetic_languages.finite_state_source(TINY)
    texts, previous_entropy = {("", 0): 1.0}, 0.0  # (text, state) -> probability
    now_S = np.eye(len(p_SA))[0]
    for _ in range(9):
        longer = {}
        for (text, state), p in texts.items():
            for a in np.flatnonzero(p_SA[state]):
                longer[text + letters[a], int(next_SA[state, a])] = p * p_SA[state, a]
        p = np.array(list(longer.values()))
        assert len({text for text, _ in longer}) == len(longer) and p.sum() == pytest.approx(1)
        entropy = -(p * np.log(p)).sum()
        entropy_S = -np.sum(p_SA * np.log(np.where(p_SA > 0, p_SA, 1)), axis=1)
        assert entropy - previous_entropy == pytest.approx(now_S @ entropy_S)
        now_S = np.bincount(next_SA.ravel(), (now_S[:, None] * p_SA).ravel(), len(now_S))
        texts, previous_entropy = longer, entropy


def test_grammar_text_has_matching_phrases_and_lexicon_words():
    grammar = synthetic_languages.parse_language("grammar?words=20&kinds=3&depth=2&megabytes=0.3")
    words, max_depth = set(), 0
    for text in synthetic_languages.generate_block(grammar, 0):
        stack, word = [], ""
        for letter in text:
            if letter in "ABC":
                assert word == ""
                stack.append(letter)
            elif letter in "STU":
                assert word == "" and "ABC"["STU".index(letter)] == stack.pop()
            else:
                word += letter
                if len(word) == 3:
                    words.add((stack[-1], word))
                    word = ""
            max_depth = max(max_depth, len(stack))
    assert max_depth == 2 and len({word for _, word in words}) == 20
    assert len(words) > 55  # each kind of phrase uses almost all words


@pytest.mark.parametrize("language", [SMALL, TINY], ids=["machine", "grammar"])
def test_token_nats_equal_those_of_enumeration(language):
    letters, p_SA, next_SA = synthetic_languages.finite_state_source(language)
    text = synthetic_languages.generate_block(language, 1)[0][1000:1006]
    belief_S, p = synthetic_languages.stationary_distribution(language), [1.0]
    for letter in text:
        a = letters.index(letter)
        belief_S = np.bincount(next_SA[:, a], belief_S * p_SA[:, a], len(belief_S))
        p.append(belief_S.sum())  # probability of the letters up to this one
    nats = synthetic_languages.token_nats(language, np.array([list(text.encode())]))[0]
    n = synthetic_languages.DOCUMENT_LETTERS + 1 - np.arange(1, 6)  # possible positions of the end
    np.testing.assert_allclose(nats, -np.diff(np.log(p))[1:] - np.log1p(-1 / n))


def test_state_is_known_after_the_end_of_a_document():
    letters, p_SA, next_SA = synthetic_languages.finite_state_source(TINY)
    text = synthetic_languages.generate_block(TINY, 0)[0][:8]
    previous_text = synthetic_languages.generate_block(TINY, 1)[0][:5]
    row_NT = np.array([[*previous_text.encode(), 0, *text.encode()]])
    nats = synthetic_languages.token_nats(TINY, row_NT)[0]
    state, expected = 0, []
    for a in map(letters.index, text):
        expected.append(-np.log(p_SA[state, a]))
        state = next_SA[state, a]
    np.testing.assert_allclose(nats[5:], expected)
    assert nats[4] == pytest.approx(np.log(synthetic_languages.DOCUMENT_LETTERS + 1 - 5))


def test_entropy_bound_is_the_mean_of_token_nats():
    language = synthetic_languages.parse_language("grammar?words=10&kinds=2&depth=2&megabytes=0.3")
    text = "\0".join(all_texts(language)).encode()
    rows = np.frombuffer(text[: len(text) // 65 * 65], np.uint8).reshape(-1, 65)[::20]
    nats = synthetic_languages.token_nats(language, rows).mean(axis=1)
    bound, error = synthetic_languages.entropy_bound(language, 64, n=100)
    assert nats.mean() == pytest.approx(bound, abs=4 * (nats.std() / len(nats) ** 0.5 + error))


def test_parameters_of_a_machine_are_allowed_up_to_their_limits():
    limits = {"states": (2, 65536), "symbols": (2, 63), "memory": (1, 64), "seed": (0, 2**32)}
    for name, (low, high) in limits.items():
        for value in (low, high):
            language = synthetic_languages.parse_language(f"machine?{name}={value}")
            assert getattr(language, name) == value
        for value in (low - 1, high + 1):
            with pytest.raises(ValueError, match=f"{name}={value} must be a whole number"):
                synthetic_languages.parse_language(f"machine?{name}={value}")
