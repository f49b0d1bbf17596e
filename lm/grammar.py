"""A language of phrases within phrases: a probabilistic grammar of bounded depth.

    text   -> phrase text
    phrase -> open(kind) items close(kind)         the kind is uniform over `kinds`
    items  -> "" | word(kind) items | phrase items   by `stop`, `nest` and the rest

    made(Grammar(words=100)).p_SA.shape        # (10115, 24)

A word has three letters from a to p; each kind of phrase prefers other words of the one lexicon,
the r-th in its order with a probability in proportion to r^-zipf. A phrase of kind 0 opens with A
and closes with S, kind 1 with B and T, and so on: after an inner phrase has closed, the words and
the close are again those of the outer one, however long ago that was opened.

Every text has one derivation, for each letter says which rule it came from, and a phrase at depth
`depth` holds words only: the grammar is an automaton whose state is the kinds of the open phrases
and the letters of the word so far.
"""

import dataclasses
import itertools

import numpy as np

from lm import automaton

WORD_LETTERS, OPENS, CLOSES = "abcdefghijklmnop", "ABCDEFGH", "STUVWXYZ"
WORD = 3  # letters


@dataclasses.dataclass(frozen=True)
class Grammar:
    words: int = 256  # of the lexicon; more take more text and parameters to learn
    kinds: int = 4  # of phrases, each with an order of words of its own
    depth: int = 3  # phrases within each other; 1: no phrase holds another
    zipf: float = 1.0  # of words; higher: fewer words likely, a lower entropy
    nest: float = 0.15  # probability of a phrase in place of a word, where one may stand
    stop: float = 0.15  # probability that a phrase closes rather than go on
    seed: int = 0  # of the lexicon and of the text
    megabytes: float = 16.0  # of text


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
    """S is stacks of open phrases times beginnings of words, rows are beginnings within stack."""
    stacks = [
        stack
        for depth in range(grammar.depth + 1)
        for stack in itertools.product(range(grammar.kinds), repeat=depth)
    ]
    spelt_WL, p_KW = _lexicon(grammar)
    beginnings = sorted({tuple(word[:n]) for word in spelt_WL.tolist() for n in range(WORD)})
    place = {key: i for i, key in enumerate(itertools.product(stacks, beginnings))}
    first_open, first_close = len(WORD_LETTERS), len(WORD_LETTERS) + grammar.kinds
    p_KBA, next_BA = _spelling(spelt_WL, p_KW, beginnings, first_close + grammar.kinds)

    size = len(beginnings)
    p_SA = np.zeros((len(place), p_KBA.shape[2]))
    next_SA = np.zeros(p_SA.shape, np.int64)
    for number, stack in enumerate(stacks):
        rows = slice(number * size, (number + 1) * size)
        between = number * size  # the state in which no word is begun: () sorts first
        next_SA[rows] = between + next_BA
        nest = grammar.nest if len(stack) < grammar.depth else 0.0
        if stack:
            p_SA[rows] = p_KBA[stack[-1]]
            p_SA[between] *= 1 - grammar.stop - nest
            p_SA[between, first_close + stack[-1]] = grammar.stop
            next_SA[between, first_close + stack[-1]] = place[stack[:-1], ()]
        if len(stack) < grammar.depth:
            share = (nest if stack else 1.0) / grammar.kinds
            for kind in range(grammar.kinds):
                p_SA[between, first_open + kind] = share
                next_SA[between, first_open + kind] = place[(*stack, kind), ()]
    letters = WORD_LETTERS + OPENS[: grammar.kinds] + CLOSES[: grammar.kinds]
    return automaton.Automaton(letters, p_SA, next_SA)


def _lexicon(grammar: Grammar) -> tuple[np.ndarray, np.ndarray]:
    """The letters of each word [W, L], all different, and its probability in each kind [K, W]."""
    rng = np.random.default_rng((grammar.seed, 3))
    codes = rng.permutation(len(WORD_LETTERS) ** WORD)[: grammar.words]
    spelt_WL = np.stack(np.unravel_index(codes, [len(WORD_LETTERS)] * WORD), axis=1)
    p_W = automaton.zipf(grammar.words, grammar.zipf)
    return spelt_WL, np.stack([rng.permutation(p_W) for _ in range(grammar.kinds)])


def _spelling(spelt_WL, p_KW, beginnings, n_letters: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each letter of a word after each beginning: probability [K, B, A], beginning then [B, A].

    After its last letter a word is done, which is the beginning ().
    """
    place = {beginning: i for i, beginning in enumerate(beginnings)}
    p_KBA = np.zeros((len(p_KW), len(beginnings), n_letters))
    next_BA = np.zeros(p_KBA.shape[1:], np.int64)
    for word, p_K in zip(spelt_WL.tolist(), p_KW.T, strict=True):
        for n, letter in enumerate(word):
            p_KBA[:, place[tuple(word[:n])], letter] += p_K
            next_BA[place[tuple(word[:n])], letter] = place.get(tuple(word[: n + 1]), 0)
    return p_KBA / p_KBA.sum(axis=2, keepdims=True), next_BA
