"""Synthetic languages of known entropy, to compare a fitted irreducible loss with the true value.

    language = parse("grammar?words=64&depth=2")
    entropy(language)                    # lower bound of the loss, nats per token
    floor(language, seq_len=128)         # lower bound for rows with a random start; standard error
    nats(language, rows_NT)              # nats of each token of the given rows, [N, T-1]
    block(language, 0)[0]                # "CgecUCUBDVbpnehjjeifebdeloclehjndoTAjpnjpnjpn..."

    machine?states=N&...    hidden-state machine with a memory: machine.py
    grammar?words=N&...     nested phrases of several kinds: grammar.py

Both are finite-state sources (automaton.py), so the entropy rate is known exactly. The distribution
of the state after a row of text follows from forward filtering: a few sums per letter. Axes: S
states, A letters, N rows, T tokens. Tokens are bytes, and NUL ends a document.
"""

import dataclasses
import functools

import numpy as np

from lm import automaton, config, grammar, machine, uri

DOCUMENT = 4096  # letters per document
BLOCK = 64  # documents that are generated together

Language = machine.Machine | grammar.Grammar
KINDS = {"machine": machine.Machine, "grammar": grammar.Grammar}
MADE = {machine.Machine: machine.made, grammar.Grammar: grammar.made}
LIMITS = {machine.Machine: machine.LIMITS, grammar.Grammar: grammar.LIMITS}


def parse(name: str) -> Language:
    """Parse a name such as "machine?states=64&zipf=1.5".

    Raises ValueError for an unknown language, an unknown field, or a value outside its limits.
    """
    kind, _ = uri.split_uri(name)
    if kind not in KINDS:
        raise ValueError(f"synthetic:{name}: {config.unknown(kind, list(KINDS))}")
    limits = LIMITS[KINDS[kind]]
    fields = {
        field.name: uri.number(type(field.default), *limits[field.name])
        for field in dataclasses.fields(KINDS[kind])
    }
    return KINDS[kind](**uri.parse_uri(name, fields, "synthetic:").values)


def blocks(language: Language) -> int:
    """Return the number of blocks of the text. The last block may have fewer documents."""
    return -(-_n_documents(language) // BLOCK)


def block(language: Language, number: int) -> list[str]:
    """Generate the documents of block `number`. The text is the same on every machine."""
    source = automaton_of(language)
    cumulative_SA = np.cumsum(source.p_SA, axis=1)
    # Rounding may leave the sum below 1. The last possible letter gets the missing probability.
    cumulative_SA[cumulative_SA >= cumulative_SA[:, -1:]] = 1.0
    rng = np.random.default_rng((language.seed, number))
    state = np.zeros(BLOCK, np.int64)
    text = np.empty((BLOCK, DOCUMENT), np.int64)
    for t in range(DOCUMENT):
        text[:, t] = (rng.random(BLOCK)[:, None] >= cumulative_SA[state]).sum(axis=1)
        state = source.next_SA[state, text[:, t]]
    letters = np.array(list(source.letters))
    return ["".join(letters[row]) for row in text[: _n_documents(language) - number * BLOCK]]


def _n_documents(language: Language) -> int:
    return max(1, round(language.megabytes * 1e6 / DOCUMENT))


def entropy(language: Language) -> float:
    """Return the entropy in nats per token, document ends included.

    The reader knows the language and reads each document from its start.
    """
    p_SA = automaton_of(language).p_SA
    entropy_S = -np.sum(p_SA * np.log(p_SA, where=p_SA > 0, out=np.zeros_like(p_SA)), axis=1)
    letter_entropy = stationary(language) @ entropy_S
    p_end = 1 / (DOCUMENT + 1)  # fraction of tokens that end a document
    return float((1 - p_end) * (letter_entropy - np.log1p(-p_end)) - p_end * np.log(p_end))


def floor(language: Language, seq_len: int, n: int = 400) -> tuple[float, float]:
    """Return the lowest possible loss on rows with a random start, and its standard error.

    Both are in nats per token. The value exceeds `entropy` by the cost of inferring the state. The
    cost is estimated on n sampled rows, as the mean difference to a reader who knows the state. The
    loss of that reader is known exactly, so the error is small.
    """
    source = automaton_of(language)
    rng = np.random.default_rng((language.seed, seq_len, n))
    start = stationary(language)
    extra = np.empty(n)
    for row, state in enumerate(rng.choice(len(start), size=n, p=start)):
        belief, cost = (np.flatnonzero(start), start[start > 0]), []
        for _ in range(seq_len + 1):
            letter = rng.choice(len(source.letters), p=source.p_SA[state])
            p, belief = _update_belief(source, belief, letter)
            cost.append(np.log(source.p_SA[state, letter]) - np.log(p))
            state = source.next_SA[state, letter]
        extra[row] = np.mean(cost[1:])  # the first token of a row is an input, not a target
    return entropy(language) + float(extra.mean()), float(extra.std(ddof=1) / n**0.5)


def nats(language: Language, tokens_NT: np.ndarray) -> np.ndarray:
    """Return the nats of each token but the first for the best possible reader, [N, T-1].

    The reader knows the language and the length of documents, but not where in a document a row
    starts. Rows must be shorter than a document.
    """
    assert tokens_NT.shape[1] <= DOCUMENT, tokens_NT.shape
    source = automaton_of(language)
    start = stationary(language)
    index_of = {ord(letter): a for a, letter in enumerate(source.letters)}
    all_nats_NT = np.empty(tokens_NT.shape)
    for row_T, nats_T in zip(tokens_NT.tolist(), all_nats_NT, strict=True):
        # n_offsets: positions in the document at which the row may currently be.
        belief, n_offsets = (np.flatnonzero(start), start[start > 0]), DOCUMENT + 1
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


def _update_belief(
    source: automaton.Automaton, belief: Belief, letter: int
) -> tuple[float, Belief]:
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
def automaton_of(language: Language) -> automaton.Automaton:
    """Return the finite-state source of a language."""
    return MADE[type(language)](language)


@functools.lru_cache(maxsize=4)
def stationary(language: Language) -> np.ndarray:
    """Return the fraction of letters that are written in each state, [S].

    It is the average over documents of DOCUMENT letters that start in state 0, exact to 1e-12.
    """
    source = automaton_of(language)
    states, letters = np.nonzero(source.p_SA)
    p, next_states = source.p_SA[states, letters], source.next_SA[states, letters]
    now_S = np.zeros(len(source.p_SA))
    now_S[0] = 1
    total_S = np.zeros(len(source.p_SA))
    for t in range(DOCUMENT):
        total_S += now_S
        next_S = np.bincount(next_states, now_S[states] * p, len(now_S))
        if np.abs(next_S - now_S).sum() < 1e-14:
            total_S += next_S * (DOCUMENT - 1 - t)
            break
        now_S = next_S
    return total_S / DOCUMENT
