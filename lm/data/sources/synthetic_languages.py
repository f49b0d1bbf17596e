"""Synthetic languages of known entropy, to compare a fitted irreducible loss with the true value.

    language = parse_language("grammar?words=64&depth=2")
    entropy_rate(language)               # lower bound of the loss, nats per token
    entropy_bound(language, 128)         # lower bound for rows with a random start; standard error
    token_nats(language, rows_NT)        # nats of each token of the given rows, [N, T-1]
    generate_block(language, 0)[0]       # "CgecUCUBDVbpnehjjeifebdeloclehjndoTAjpnjpnjpn..."

Names of languages:

    machine?states=N&...                 hidden-state machine with a memory: MachineParameters
    grammar?words=N&...                  nested phrases of several kinds: GrammarParameters

Both languages are finite-state sources: the state and the written letter determine the next state
(the source is unifilar). The entropy rate is therefore exactly the mean entropy of a letter over
the states (C. E. Shannon 1948, section 7). Forward filtering gives the exact distribution of the
state after a row of text.

Tokens are bytes, and NUL ends a document. Axes: S states, A letters, N rows, T tokens. In the
machine, N also counts states without memory. In the grammar, K counts kinds of phrases, W words,
L letters of a word, and B prefixes of words.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np

from lm.config import field_names
from lm.data.sources import uri


class FiniteStateSource(NamedTuple):
    """Finite-state source with S states and A letters. Each document starts in state 0."""

    letters: str  # A letters
    p_SA: np.ndarray  # probability of each letter in each state
    next_SA: np.ndarray  # state after the letter, int64; arbitrary where the probability is 0


def zipf_probabilities(n: int, exponent: float) -> np.ndarray:
    """Return probabilities [n] proportional to rank^-exponent (G. K. Zipf 1935)."""
    p = np.arange(1, n + 1) ** -float(exponent)
    return p / p.sum()


LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
ROLE_PERIOD = 8  # of 8 states, the first stores a letter and the second uses the stored value


@dataclasses.dataclass(frozen=True)
class MachineParameters:
    """Parameters of a hidden-state machine with a memory, and of its text.

    The machine is in one of `states` and stores one of `memory` values. Each state ranks the
    letters in its own order, and writes the letter of rank r with probability proportional to
    r^-zipf. The letter determines the next state. Some states store the letter (modulo `memory`).
    In others, the stored value rotates the ranks, so a letter affects text far ahead. States
    differ in how often they are visited: the language has rare patterns as well as common ones.
    """

    states: int = 64  # more states need more text and more model parameters to learn
    symbols: int = 16  # letters, including the space
    memory: int = 4  # number of values that can be stored; 1 removes the long-range dependence
    zipf: float = 1.5  # higher values give a lower entropy
    seed: int = 0  # seed of the machine and of its text
    megabytes: float = 16.0  # size of the text


MACHINE_LIMITS = {
    "states": (2, 65536),
    "symbols": (2, len(LETTERS)),
    "memory": (1, 64),
    "zipf": (0, 20),
    "seed": (0, 2**32),
    "megabytes": (0.01, 1e6),
}


def build_machine(machine: MachineParameters) -> FiniteStateSource:
    """Build the finite-state source of a machine.

    The number of a source state is machine state * memory + stored value.
    """
    rng = np.random.default_rng((machine.seed, 1))
    letter_order_NA = np.argsort(rng.random((machine.states, machine.symbols)), axis=1)
    role_N = np.arange(machine.states) % ROLE_PERIOD  # 0 stores a letter, 1 uses the stored value
    n_states = machine.states * machine.memory
    state_S, stored_S = np.divmod(np.arange(n_states), machine.memory)
    rotation_S = np.where(role_N[state_S] == 1, stored_S, 0)
    rank_SA = (np.argsort(letter_order_NA, axis=1)[state_S] + rotation_S[:, None]) % machine.symbols
    p_A = zipf_probabilities(machine.symbols, machine.zipf)

    rng = np.random.default_rng((machine.seed, 2))
    popularity = 1 / np.arange(1, machine.states + 1)  # low-numbered states are visited more often
    next_NA = rng.choice(
        machine.states, (machine.states, machine.symbols), p=popularity / popularity.sum()
    )
    # The first letter leads to the next state, so every state can be reached.
    next_NA[:, 0] = (np.arange(machine.states) + 1) % machine.states
    next_stored_SA = np.where(
        (role_N[state_S] == 0)[:, None],
        np.arange(machine.symbols) % machine.memory,
        stored_S[:, None],
    )
    next_SA = next_NA[state_S] * machine.memory + next_stored_SA
    return FiniteStateSource(LETTERS[: machine.symbols], p_A[rank_SA], next_SA)


WORD_LETTERS, OPENS, CLOSES = "abcdefghijklmnop", "ABCDEFGH", "STUVWXYZ"
WORD_LENGTH = 3  # letters per word


@dataclasses.dataclass(frozen=True)
class GrammarParameters:
    """Parameters of a probabilistic grammar of nested phrases, and of its text.

        text   -> phrase text
        phrase -> open(kind) items close(kind)           the kind is uniform over `kinds`
        items  -> "" | word(kind) items | phrase items   probabilities: stop, 1 - stop - nest, nest

    A word has three letters from a to p. All kinds share one lexicon, and each kind ranks it in its
    own order: the word of rank r has probability proportional to r^-zipf. A phrase of kind 0 opens
    with A and closes with S, kind 1 with B and T, and so on. After an inner phrase has closed,
    words and closing letter are those of the outer phrase again.

    Every text has exactly one derivation, because each letter determines the rule that produced it.
    A phrase at depth `depth` contains only words. The grammar is therefore a finite-state source:
    its state is the kinds of the open phrases and the letters of the current word.
    """

    words: int = 256  # size of the lexicon; more words need more text and parameters to learn
    kinds: int = 4  # kinds of phrases; each ranks the words in its own order
    depth: int = 3  # maximum nesting depth of phrases; 1 allows no inner phrase
    zipf: float = 1.0  # exponent of the word frequencies; higher values give a lower entropy
    nest: float = 0.15  # probability of an inner phrase instead of a word, where it is allowed
    stop: float = 0.15  # probability that a phrase closes
    seed: int = 0  # seed of the lexicon and of the text
    megabytes: float = 16.0  # size of the text


GRAMMAR_LIMITS = {
    "words": (1, 2048),
    "kinds": (1, len(OPENS)),
    "depth": (1, 4),
    "zipf": (0, 20),
    "nest": (0, 0.4),
    "stop": (0.01, 0.5),
    "seed": (0, 2**32),
    "megabytes": (0.01, 1e6),
}


def build_grammar(grammar: GrammarParameters) -> FiniteStateSource:
    """Build the finite-state source of a grammar.

    The number of a source state is stack * number of prefixes + prefix. A stack is the kinds of the
    open phrases. A prefix is the letters of the current word.
    """
    stacks = [
        stack
        for depth in range(grammar.depth + 1)
        for stack in itertools.product(range(grammar.kinds), repeat=depth)
    ]
    spelling_WL, p_KW = _grammar_lexicon(grammar)
    prefixes = sorted(
        {tuple(word[:n]) for word in spelling_WL.tolist() for n in range(WORD_LENGTH)}
    )
    state_of = {key: i for i, key in enumerate(itertools.product(stacks, prefixes))}
    first_open, first_close = len(WORD_LETTERS), len(WORD_LETTERS) + grammar.kinds
    p_KBA, next_BA = _word_transitions(spelling_WL, p_KW, prefixes, first_close + grammar.kinds)

    n_prefixes = len(prefixes)
    p_SA = np.zeros((len(state_of), p_KBA.shape[2]))
    next_SA = np.zeros(p_SA.shape, np.int64)
    for number, stack in enumerate(stacks):
        rows = slice(number * n_prefixes, (number + 1) * n_prefixes)
        # The state between words is the first of a stack, because the empty prefix () sorts first.
        between = number * n_prefixes
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
    return FiniteStateSource(letters, p_SA, next_SA)


def _grammar_lexicon(grammar: GrammarParameters) -> tuple[np.ndarray, np.ndarray]:
    """Return the letters of all words [W, L], all different, and their probabilities [K, W]."""
    rng = np.random.default_rng((grammar.seed, 3))
    codes = rng.permutation(len(WORD_LETTERS) ** WORD_LENGTH)[: grammar.words]
    spelling_WL = np.stack(np.unravel_index(codes, [len(WORD_LETTERS)] * WORD_LENGTH), axis=1)
    p_W = zipf_probabilities(grammar.words, grammar.zipf)
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


DOCUMENT_LETTERS = 4096  # letters per document
BLOCK = 64  # documents per block, which are generated together

Language = MachineParameters | GrammarParameters
LANGUAGES = {"machine": MachineParameters, "grammar": GrammarParameters}
BUILDERS = {MachineParameters: build_machine, GrammarParameters: build_grammar}
LANGUAGE_LIMITS = {MachineParameters: MACHINE_LIMITS, GrammarParameters: GRAMMAR_LIMITS}


def parse_language(name: str) -> Language:
    """Parse a name such as "machine?states=64&zipf=1.5".

    Raises ValueError for an unknown language, an unknown field, or a value outside its limits.
    """
    kind, _ = uri.split_uri(name)
    if kind not in LANGUAGES:
        raise ValueError(f"synthetic:{name}: {field_names.suggest_names(kind, list(LANGUAGES))}")
    limits = LANGUAGE_LIMITS[LANGUAGES[kind]]
    fields = {
        field.name: uri.number(type(field.default), *limits[field.name])
        for field in dataclasses.fields(LANGUAGES[kind])
    }
    return LANGUAGES[kind](**uri.parse_uri(name, fields, "synthetic:").values)


def count_blocks(language: Language) -> int:
    """Return the number of blocks of the text. The last block may have fewer documents."""
    return -(-_n_documents(language) // BLOCK)


def generate_block(language: Language, number: int) -> list[str]:
    """Generate the documents of block `number`. The text is the same on every machine."""
    source = finite_state_source(language)
    cumulative_SA = np.cumsum(source.p_SA, axis=1)
    # Rounding may leave the sum below 1. The last possible letter gets the missing probability.
    cumulative_SA[cumulative_SA >= cumulative_SA[:, -1:]] = 1.0
    rng = np.random.default_rng((language.seed, number))
    state = np.zeros(BLOCK, np.int64)
    text = np.empty((BLOCK, DOCUMENT_LETTERS), np.int64)
    for t in range(DOCUMENT_LETTERS):
        text[:, t] = (rng.random(BLOCK)[:, None] >= cumulative_SA[state]).sum(axis=1)
        state = source.next_SA[state, text[:, t]]
    letters = np.array(list(source.letters))
    return ["".join(letters[row]) for row in text[: _n_documents(language) - number * BLOCK]]


def _n_documents(language: Language) -> int:
    return max(1, round(language.megabytes * 1e6 / DOCUMENT_LETTERS))


def entropy_rate(language: Language) -> float:
    """Return the entropy in nats per token, document ends included.

    The reader knows the language and reads each document from its start.
    """
    p_SA = finite_state_source(language).p_SA
    entropy_S = -np.sum(p_SA * np.log(p_SA, where=p_SA > 0, out=np.zeros_like(p_SA)), axis=1)
    letter_entropy = stationary_distribution(language) @ entropy_S
    p_end = 1 / (DOCUMENT_LETTERS + 1)  # fraction of tokens that end a document
    return float((1 - p_end) * (letter_entropy - np.log1p(-p_end)) - p_end * np.log(p_end))


def entropy_bound(language: Language, seq_len: int, n: int = 400) -> tuple[float, float]:
    """Return the lowest possible loss on rows with a random start, and its standard error.

    Both are in nats per token. The bound exceeds `entropy_rate` by the cost of inferring the state.
    The cost is estimated on n sampled rows, as the mean difference to a reader who knows the state.
    The loss of that reader is known exactly, so the error is small.
    """
    source = finite_state_source(language)
    rng = np.random.default_rng((language.seed, seq_len, n))
    start = stationary_distribution(language)
    extra_N = np.empty(n)
    for row, state in enumerate(rng.choice(len(start), size=n, p=start)):
        belief, cost = (np.flatnonzero(start), start[start > 0]), []
        for _ in range(seq_len + 1):
            letter = rng.choice(len(source.letters), p=source.p_SA[state])
            p, belief = _update_belief(source, belief, letter)
            cost.append(np.log(source.p_SA[state, letter]) - np.log(p))
            state = source.next_SA[state, letter]
        extra_N[row] = np.mean(cost[1:])  # the first token of a row is an input, not a target
    return entropy_rate(language) + float(extra_N.mean()), float(extra_N.std(ddof=1) / n**0.5)


def token_nats(language: Language, tokens_NT: np.ndarray) -> np.ndarray:
    """Return the nats of each token except the first for the best possible reader, [N, T-1].

    The reader knows the language and the length of documents. It does not know the position in a
    document at which a row starts. Rows must not be longer than a document.
    """
    assert tokens_NT.shape[1] <= DOCUMENT_LETTERS, tokens_NT.shape
    source = finite_state_source(language)
    start = stationary_distribution(language)
    index_of = {ord(letter): a for a, letter in enumerate(source.letters)}
    all_nats_NT = np.empty(tokens_NT.shape)
    for row_T, nats_T in zip(tokens_NT.tolist(), all_nats_NT, strict=True):
        # n_offsets: positions in the document at which the row may currently be.
        belief, n_offsets = (np.flatnonzero(start), start[start > 0]), DOCUMENT_LETTERS + 1
        for t, token in enumerate(row_T):
            p_end = 1 / n_offsets if n_offsets else 0.0
            if token in index_of:
                p, belief = _update_belief(source, belief, index_of[token])
                nats_T[t] = -np.log(p) - np.log1p(-p_end)
                n_offsets = max(n_offsets - 1, 0)
            else:
                nats_T[t] = -np.log(p_end)
                # A new document starts in state 0. It cannot end within this row.
                belief, n_offsets = (np.zeros(1, np.int64), np.ones(1)), 0
    return all_nats_NT[:, 1:]


Belief = tuple[np.ndarray, np.ndarray]  # possible states and their probabilities


def _update_belief(source: FiniteStateSource, belief: Belief, letter: int) -> tuple[float, Belief]:
    """Return the probability of a letter under a belief, and the belief after the letter."""
    states, p = belief
    joint = p * source.p_SA[states, letter]
    is_possible = joint > 0
    joint, next_states = joint[is_possible], source.next_SA[states[is_possible], letter]
    if len(next_states) > 1:
        next_states, inverse = np.unique(next_states, return_inverse=True)
        joint = np.bincount(inverse, joint)
    total = float(joint.sum())
    return total, (next_states, joint / total)


@functools.lru_cache(maxsize=4)
def finite_state_source(language: Language) -> FiniteStateSource:
    """Return the finite-state source of a language."""
    return BUILDERS[type(language)](language)


@functools.lru_cache(maxsize=4)
def stationary_distribution(language: Language) -> np.ndarray:
    """Return the fraction of letters that are written in each of the S states, float64 [S].

    The fraction is the average over documents of DOCUMENT_LETTERS letters that start in state 0.
    Its absolute error is below 1e-12.
    """
    source = finite_state_source(language)
    states, letters = np.nonzero(source.p_SA)
    p, next_states = source.p_SA[states, letters], source.next_SA[states, letters]
    now_S = np.zeros(len(source.p_SA))
    now_S[0] = 1
    total_S = np.zeros(len(source.p_SA))
    for t in range(DOCUMENT_LETTERS):
        total_S += now_S
        next_S = np.bincount(next_states, now_S[states] * p, len(now_S))
        if np.abs(next_S - now_S).sum() < 1e-14:
            total_S += next_S * (DOCUMENT_LETTERS - 1 - t)
            break
        now_S = next_S
    return total_S / DOCUMENT_LETTERS
