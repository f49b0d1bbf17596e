"""Synthetic languages: the computed entropy is that of the text."""

import itertools

import numpy as np
import pytest

from lm.data.sources import synthetic_languages

SMALL = synthetic_languages.parse_language("machine?states=16&symbols=6&memory=3&megabytes=0.5")


def read(machine, text):
    """Nats of each letter for who knows the machine, and the state at each letter."""
    letters_A, p_SA, next_SA = synthetic_languages.automaton_of(machine)
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
        more, where = read(SMALL, text)
        assert len(text) == synthetic_languages.DOCUMENT
        nats += more
        states += where
    letters = synthetic_languages.entropy_rate(SMALL)
    ends = (
        np.log(synthetic_languages.DOCUMENT + 1) / synthetic_languages.DOCUMENT
        + 1 / synthetic_languages.DOCUMENT
    )
    assert np.mean(nats) == pytest.approx(letters - ends, abs=4 * np.std(nats) / len(nats) ** 0.5)
    found = np.bincount(
        states, minlength=len(synthetic_languages.stationary_distribution(SMALL))
    ) / len(states)
    assert np.abs(found - synthetic_languages.stationary_distribution(SMALL)).max() < 0.02


@pytest.mark.parametrize("zipf", [0.0, 1.0, 4.0])
def test_the_entropy_of_a_letter_is_that_of_its_probabilities(zipf):
    machine = synthetic_languages.parse_language(f"machine?zipf={zipf}&symbols=8")
    p_SA = synthetic_languages.automaton_of(machine).p_SA
    np.testing.assert_allclose(p_SA.sum(axis=1), 1)
    of_states = -(p_SA * np.log(p_SA)).sum(axis=1)
    np.testing.assert_allclose(of_states, of_states[0])
    assert synthetic_languages.entropy_rate(machine) == pytest.approx(of_states[0], abs=0.003)
    assert zipf or synthetic_languages.entropy_rate(machine) == pytest.approx(np.log(8), abs=0.003)


def test_entropy_bound_of_short_rows_equals_enumeration():
    machine = synthetic_languages.parse_language("machine?states=3&symbols=2&memory=2&zipf=2")
    _, p_SA, next_SA = synthetic_languages.automaton_of(machine)

    def probability(letters):
        belief_S = synthetic_languages.stationary_distribution(machine)
        for a in letters:
            belief_S = np.bincount(next_SA[:, a], belief_S * p_SA[:, a], len(belief_S))
        return belief_S.sum()

    def nats(n):
        p = np.array([probability(text) for text in itertools.product((0, 1), repeat=n)])
        return -(p * np.log(p)).sum()

    letters = -(p_SA[0] * np.log(p_SA[0])).sum()
    wanted = (nats(9) - nats(1)) / 8 - letters  # the price of not knowing the state, a token
    found, error = synthetic_languages.entropy_bound(machine, seq_len=8, n=2000)
    assert found - synthetic_languages.entropy_rate(machine) == pytest.approx(wanted, abs=4 * error)
    assert wanted > 8 * error


def test_longer_rows_have_a_lower_entropy_bound():
    short, _ = synthetic_languages.entropy_bound(SMALL, 16, n=150)
    long, error = synthetic_languages.entropy_bound(SMALL, 256, n=150)
    assert synthetic_languages.entropy_rate(SMALL) < long + 4 * error < short


def test_stored_value_changes_later_letters():
    _, p_SA, next_SA = synthetic_languages.automaton_of(SMALL)
    p_SA, next_SA = p_SA.reshape(16, 3, 6), next_SA.reshape(16, 3, 6) % 3
    assert (p_SA[1, 0] != p_SA[1, 1]).any() and (p_SA[2, 0] == p_SA[2, 1]).all()
    assert (next_SA[0] == np.arange(6) % 3).all()  # stores
    assert (next_SA[2] == np.arange(3)[:, None]).all()  # keeps


def text_of(language):
    return [
        text
        for n in range(synthetic_languages.generate_blocks(language))
        for text in synthetic_languages.generate_block(language, n)
    ]


def test_text_depends_only_on_the_seed():
    first = text_of(SMALL)
    assert text_of(SMALL) == first and len(first) == len(set(first)) == 122
    other = synthetic_languages.parse_language(
        "machine?states=16&symbols=6&memory=3&megabytes=0.5&seed=1"
    )
    assert synthetic_languages.generate_block(other, 0)[0] != first[0]
    few = synthetic_languages.parse_language("machine?states=16&symbols=6&memory=3&megabytes=0.1")
    assert text_of(few) == first[:24]


@pytest.mark.parametrize(
    "name, words",
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
def test_invalid_fields_are_named(name, words):
    with pytest.raises(ValueError, match=words):
        synthetic_languages.parse_language(name)


TINY = synthetic_languages.parse_language("grammar?words=3&kinds=2&depth=2&nest=0.3&stop=0.4")


def derived(grammar, depth=1):
    """Nats and letters of a phrase on average, summed over its rules: no automaton in it."""
    p_word = synthetic_languages.zipf_probabilities(grammar.words, grammar.zipf)
    nest = grammar.nest if depth < grammar.depth else 0.0
    rules = np.array([grammar.stop, nest, 1 - grammar.stop - nest])
    choices = -sum(p * np.log(p) for p in rules if p) / grammar.stop  # of as many as there are
    nats = np.log(grammar.kinds) + choices - rules[2] / grammar.stop * (p_word @ np.log(p_word))
    letters = 2 + rules[2] / grammar.stop * 3
    if nest:
        inner = derived(grammar, depth + 1)
        nats, letters = (
            nats + nest / grammar.stop * inner[0],
            letters + nest / grammar.stop * inner[1],
        )
    return nats, letters


@pytest.mark.parametrize(
    "dials", ["words=3&kinds=2&depth=2", "words=256", "words=500&kinds=1&depth=4&nest=0.4"]
)
def test_the_entropy_of_a_grammar_is_that_of_its_derivations(dials):
    grammar = synthetic_languages.parse_language(f"grammar?{dials}")
    nats, letters = derived(grammar)
    wanted = nats / letters  # phrases follow each other without memory
    n = synthetic_languages.DOCUMENT
    ends = np.log1p(-1 / (n + 1)) * n / (n + 1) + np.log(1 / (n + 1)) / (n + 1)
    found = (synthetic_languages.entropy_rate(grammar) + ends) * (n + 1) / n
    assert found == pytest.approx(wanted, rel=2e-3)  # a document is cut within a phrase


def test_grammar_entropy_equals_enumeration():
    letters, p_SA, next_SA = synthetic_languages.automaton_of(TINY)
    texts, before = {("", 0): 1.0}, 0.0
    now_S = np.eye(len(p_SA))[0]
    for _ in range(9):
        longer = {}
        for (text, state), p in texts.items():
            for a in np.flatnonzero(p_SA[state]):
                longer[text + letters[a], int(next_SA[state, a])] = p * p_SA[state, a]
        p = np.array(list(longer.values()))
        assert len({text for text, _ in longer}) == len(longer) and p.sum() == pytest.approx(1)
        block = -(p * np.log(p)).sum()
        of_states = -np.sum(p_SA * np.log(np.where(p_SA > 0, p_SA, 1)), axis=1)
        assert block - before == pytest.approx(now_S @ of_states)
        now_S = np.bincount(next_SA.ravel(), (now_S[:, None] * p_SA).ravel(), len(now_S))
        texts, before = longer, block


def test_grammar_text_has_matching_phrases_and_lexicon_words():
    grammar = synthetic_languages.parse_language("grammar?words=20&kinds=3&depth=2&megabytes=0.3")
    words, deepest = set(), 0
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
            deepest = max(deepest, len(stack))
    assert deepest == 2 and len({word for _, word in words}) == 20
    assert len(words) > 55  # each kind of phrase has all of them


@pytest.mark.parametrize("language", [SMALL, TINY], ids=["machine", "grammar"])
def test_token_nats_equal_those_of_exhaustive_enumeration(language):
    letters, p_SA, next_SA = synthetic_languages.automaton_of(language)
    text = synthetic_languages.generate_block(language, 1)[0][1000:1006]
    belief_S, p = synthetic_languages.stationary_distribution(language), [1.0]
    for letter in text:
        a = letters.index(letter)
        belief_S = np.bincount(next_SA[:, a], belief_S * p_SA[:, a], len(belief_S))
        p.append(belief_S.sum())  # of this beginning, over all states that it may have begun in
    found = synthetic_languages.token_nats(language, np.array([list(text.encode())]))[0]
    n = synthetic_languages.DOCUMENT + 1 - np.arange(1, 6)  # places where the document may end
    np.testing.assert_allclose(found, -np.diff(np.log(p))[1:] - np.log1p(-1 / n))


def test_after_the_end_of_a_document_the_reader_knows_the_state():
    letters, p_SA, next_SA = synthetic_languages.automaton_of(TINY)
    text = synthetic_languages.generate_block(TINY, 0)[0][:8]
    row = np.array(
        [[*synthetic_languages.generate_block(TINY, 1)[0][:5].encode(), 0, *text.encode()]]
    )
    found = synthetic_languages.token_nats(TINY, row)[0]
    state, wanted = 0, []
    for a in map(letters.index, text):
        wanted.append(-np.log(p_SA[state, a]))
        state = next_SA[state, a]
    np.testing.assert_allclose(found[5:], wanted)
    assert found[4] == pytest.approx(np.log(synthetic_languages.DOCUMENT + 1 - 5))


def test_entropy_bound_is_the_mean_of_token_nats():
    language = synthetic_languages.parse_language("grammar?words=10&kinds=2&depth=2&megabytes=0.3")
    text = "\0".join(text_of(language)).encode()
    rows = np.frombuffer(text[: len(text) // 65 * 65], np.uint8).reshape(-1, 65)[::20]
    found = synthetic_languages.token_nats(language, rows).mean(axis=1)
    floor, error = synthetic_languages.entropy_bound(language, 64, n=100)
    assert found.mean() == pytest.approx(floor, abs=4 * (found.std() / len(found) ** 0.5 + error))
