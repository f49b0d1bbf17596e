"""Synthetic language of nested phrases: a probabilistic grammar of bounded depth.

    text   -> phrase text
    phrase -> open(kind) items close(kind)           the kind is uniform over `kinds`
    items  -> "" | word(kind) items | phrase items   with probabilities `stop`, the rest, `nest`

    made(Grammar(words=100)).p_SA.shape        # (10115, 24)

A word has three letters from a to p. All kinds share one lexicon, and each kind ranks it in its own
order: the word of rank r has probability proportional to r^-zipf. A phrase of kind 0 opens with A
and closes with S, kind 1 with B and T, and so on. After an inner phrase has closed, words and
closing letter are those of the outer phrase again, however far back it was opened.

Every text has exactly one derivation, because each letter determines the rule that produced it. A
phrase at depth `depth` contains only words. The grammar is therefore a finite-state source: its
state is the kinds of the open phrases and the letters of the current word.
"""

import dataclasses
import itertools

import numpy as np

from lm import automaton

WORD_LETTERS, OPENS, CLOSES = "abcdefghijklmnop", "ABCDEFGH", "STUVWXYZ"
WORD = 3  # letters per word


@dataclasses.dataclass(frozen=True)
class Grammar:
    """Parameters of the grammar and of its text."""

    words: int = 256  # size of the lexicon; more words need more text and parameters to learn
    kinds: int = 4  # kinds of phrases; each ranks the words in its own order
    depth: int = 3  # maximum nesting depth of phrases; 1 allows no inner phrase
    zipf: float = 1.0  # exponent of the word frequencies; higher values give a lower entropy
    nest: float = 0.15  # probability of an inner phrase instead of a word, where it is allowed
    stop: float = 0.15  # probability that a phrase closes
    seed: int = 0  # seed of the lexicon and of the text
    megabytes: float = 16.0  # size of the text


LIMITS = {
    "words": (1, 2048),
    "kinds": (1, len(OPENS)),
    "depth": (1, 4),
    "zipf": (0, 20),
    "nest": (0, 0.4),
    "stop": (0.01, 0.5),
    "seed": (0, 2**32),
    "megabytes": (0.01, 1e6),
}


def made(grammar: Grammar) -> automaton.Automaton:
    """Build the finite-state source. Its state number is stack * number of prefixes + prefix."""
    stacks = [
        stack
        for depth in range(grammar.depth + 1)
        for stack in itertools.product(range(grammar.kinds), repeat=depth)
    ]
    spelling_WL, p_KW = _lexicon(grammar)
    prefixes = sorted({tuple(word[:n]) for word in spelling_WL.tolist() for n in range(WORD)})
    state_of = {key: i for i, key in enumerate(itertools.product(stacks, prefixes))}
    first_open, first_close = len(WORD_LETTERS), len(WORD_LETTERS) + grammar.kinds
    p_KBA, next_BA = _word_transitions(spelling_WL, p_KW, prefixes, first_close + grammar.kinds)

    n_prefixes = len(prefixes)
    p_SA = np.zeros((len(state_of), p_KBA.shape[2]))
    next_SA = np.zeros(p_SA.shape, np.int64)
    for number, stack in enumerate(stacks):
        rows = slice(number * n_prefixes, (number + 1) * n_prefixes)
        between = number * n_prefixes  # state between words: the empty prefix () sorts first
        next_SA[rows] = between + next_BA
        nest = grammar.nest if len(stack) < grammar.depth else 0.0
        if stack:
            p_SA[rows] = p_KBA[stack[-1]]
            p_SA[between] *= 1 - grammar.stop - nest
            p_SA[between, first_close + stack[-1]] = grammar.stop
            next_SA[between, first_close + stack[-1]] = state_of[stack[:-1], ()]
        if len(stack) < grammar.depth:
            p_open = (nest if stack else 1.0) / grammar.kinds
            for kind in range(grammar.kinds):
                p_SA[between, first_open + kind] = p_open
                next_SA[between, first_open + kind] = state_of[(*stack, kind), ()]
    letters = WORD_LETTERS + OPENS[: grammar.kinds] + CLOSES[: grammar.kinds]
    return automaton.Automaton(letters, p_SA, next_SA)


def _lexicon(grammar: Grammar) -> tuple[np.ndarray, np.ndarray]:
    """Return the letters of all words [W, L], all different, and their probabilities [K, W]."""
    rng = np.random.default_rng((grammar.seed, 3))
    codes = rng.permutation(len(WORD_LETTERS) ** WORD)[: grammar.words]
    spelling_WL = np.stack(np.unravel_index(codes, [len(WORD_LETTERS)] * WORD), axis=1)
    p_W = automaton.zipf(grammar.words, grammar.zipf)
    return spelling_WL, np.stack([rng.permutation(p_W) for _ in range(grammar.kinds)])


def _word_transitions(
    spelling_WL: np.ndarray, p_KW: np.ndarray, prefixes: list, n_letters: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return letter probabilities [K, B, A] and next prefixes [B, A] for each prefix of a word.

    The last letter of a word leads to the empty prefix ().
    """
    index_of = {prefix: i for i, prefix in enumerate(prefixes)}
    p_KBA = np.zeros((len(p_KW), len(prefixes), n_letters))
    next_BA = np.zeros(p_KBA.shape[1:], np.int64)
    for word, p_K in zip(spelling_WL.tolist(), p_KW.T, strict=True):
        for n, letter in enumerate(word):
            p_KBA[:, index_of[tuple(word[:n])], letter] += p_K
            next_BA[index_of[tuple(word[:n])], letter] = index_of.get(tuple(word[: n + 1]), 0)
    return p_KBA / p_KBA.sum(axis=2, keepdims=True), next_BA
