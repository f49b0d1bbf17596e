"""Synthetic languages whose entropy is known, so that a fitted floor can be held against the truth.

    language = parse("grammar?words=64&depth=2")
    entropy(language)                    # nats a token that no model can get below
    floor(language, seq_len=128)         # the same for rows that begin anywhere, with its error
    nats(language, rows_NT)              # nats of each token of these very rows, [N, T-1]
    block(language, 0)[0]                # "CgecUCUBDVbpnehjjeifebdeloclehjndoTAjpnjpnjpn..."

    machine?states=N&...    a machine of hidden states that stores and recalls: lm/machine.py
    grammar?words=N&...     phrases of several kinds within phrases: lm/grammar.py

Both are automata whose state and letter decide the next state: the entropy rate is then exactly the
mean entropy of a letter over the states (C. E. Shannon 1948, section 7), and what a reader knows of
the state is a sum of a few numbers a letter (forward filtering). S states, A letters, N rows, T
tokens: bytes, NUL the end of a document.
"""

import dataclasses
import functools

import numpy as np

from lm import automaton, grammar, machine

DOCUMENT = 4096  # letters in each
BLOCK = 64  # documents that are written at once

Language = machine.Machine | grammar.Grammar
KINDS = {"machine": machine.Machine, "grammar": grammar.Grammar}
MADE = {machine.Machine: machine.made, grammar.Grammar: grammar.made}
LIMITS = {machine.Machine: machine.LIMITS, grammar.Grammar: grammar.LIMITS}


def parse(name: str) -> Language:
    """Of "machine?states=64&zipf=1.5"; ValueError for a dial that does not exist or turn so far."""
    kind, _, dials = name.partition("?")
    if kind not in KINDS:
        words = " or ".join(KINDS)
        raise ValueError(f"synthetic:{name}: {kind} does not exist: did you mean {words}?")
    known = {field.name: type(field.default) for field in dataclasses.fields(KINDS[kind])}
    values = {}
    for dial in dials.split("&") if dials else []:
        key, _, value = dial.partition("=")
        if key not in known:
            raise ValueError(f"synthetic:{name}: {key} does not exist: take {', '.join(known)}")
        try:
            values[key] = known[key](value)
        except ValueError:
            raise ValueError(f"synthetic:{name}: {key}={value} must be a number") from None
    language = KINDS[kind](**values)
    for key, (low, high) in LIMITS[KINDS[kind]].items():
        if not low <= getattr(language, key) <= high:
            raise ValueError(f"synthetic:{name}: {key} must be from {low} to {high}")
    return language


def blocks(language: Language) -> int:
    """How many blocks of BLOCK documents its text has; the last may have fewer."""
    return -(-_documents(language) // BLOCK)


def block(language: Language, number: int) -> list[str]:
    """Its documents number * BLOCK and on, each DOCUMENT letters; the same on every machine."""
    made = automaton_of(language)
    cumulative_SA = np.cumsum(made.p_SA, axis=1)
    # Rounding may leave a sum below 1: the last letter that there is has what is missing.
    cumulative_SA[cumulative_SA >= cumulative_SA[:, -1:]] = 1.0
    rng = np.random.default_rng((language.seed, number))
    state = np.zeros(BLOCK, np.int64)
    text = np.empty((BLOCK, DOCUMENT), np.int64)
    for t in range(DOCUMENT):
        text[:, t] = (rng.random(BLOCK)[:, None] >= cumulative_SA[state]).sum(axis=1)
        state = made.next_SA[state, text[:, t]]
    letters = np.array(list(made.letters))
    return ["".join(letters[row]) for row in text[: _documents(language) - number * BLOCK]]


def _documents(language: Language) -> int:
    return max(1, round(language.megabytes * 1e6 / DOCUMENT))


def entropy(language: Language) -> float:
    """Nats a token, ends of documents included, for who has read the document from its start."""
    p_SA = automaton_of(language).p_SA
    of_states_S = -np.sum(p_SA * np.log(p_SA, where=p_SA > 0, out=np.zeros_like(p_SA)), axis=1)
    letters = stationary(language) @ of_states_S
    share = 1 / (DOCUMENT + 1)  # of tokens that end a document, wherever they may come
    return float((1 - share) * (letters - np.log1p(-share)) - share * np.log(share))


def floor(language: Language, seq_len: int, n: int = 400) -> tuple[float, float]:
    """Nats a token, and their standard error, of the best reader of rows that begin anywhere.

    Above `entropy` by what it costs to find out the state. Over n rows drawn from the language;
    what is averaged is the difference to a reader who knows the state, whose mean is known exactly.
    """
    made = automaton_of(language)
    rng = np.random.default_rng((language.seed, seq_len, n))
    start = stationary(language)
    extra = np.empty(n)
    for row, state in enumerate(rng.choice(len(start), size=n, p=start)):
        belief, cost = (np.flatnonzero(start), start[start > 0]), []
        for _ in range(seq_len + 1):
            letter = rng.choice(len(made.letters), p=made.p_SA[state])
            p, belief = _read(made, belief, letter)
            cost.append(np.log(made.p_SA[state, letter]) - np.log(p))
            state = made.next_SA[state, letter]
        extra[row] = np.mean(cost[1:])  # the first token of a row is read and not predicted
    return entropy(language) + float(extra.mean()), float(extra.std(ddof=1) / n**0.5)


def nats(language: Language, tokens_NT: np.ndarray) -> np.ndarray:
    """Of each token but the first of rows that begin anywhere, for the best reader; [N, T-1].

    It knows the language, and that documents have DOCUMENT letters, but not where a row begins.
    Rows must be shorter than a document.
    """
    assert tokens_NT.shape[1] <= DOCUMENT, tokens_NT.shape
    made = automaton_of(language)
    start = stationary(language)
    letter_of = {ord(letter): a for a, letter in enumerate(made.letters)}
    found_NT = np.empty(tokens_NT.shape)
    for row_T, nats_T in zip(tokens_NT.tolist(), found_NT, strict=True):
        belief, left = (np.flatnonzero(start), start[start > 0]), DOCUMENT + 1
        for t, token in enumerate(row_T):
            ends = 1 / left if left else 0.0  # of the places where the row may be in its document
            if token in letter_of:
                p, belief = _read(made, belief, letter_of[token])
                nats_T[t] = -np.log(p) - np.log1p(-ends)
                left = max(left - 1, 0)
            else:
                nats_T[t] = -np.log(ends)
                belief, left = (np.zeros(1, np.int64), np.ones(1)), 0  # the next end is far
    return found_NT[:, 1:]


Belief = tuple[np.ndarray, np.ndarray]  # states that are possible, and their probabilities


def _read(made: automaton.Automaton, belief: Belief, letter: int) -> tuple[float, Belief]:
    """Probability of a letter under a belief, and the belief after it."""
    states, p = belief
    joint = p * made.p_SA[states, letter]
    here = joint > 0
    joint, after = joint[here], made.next_SA[states[here], letter]
    if len(after) > 1:
        after, place = np.unique(after, return_inverse=True)
        joint = np.bincount(place, joint)
    total = float(joint.sum())
    return total, (after, joint / total)


@functools.lru_cache(maxsize=4)
def automaton_of(language: Language) -> automaton.Automaton:
    """Its states, letters and probabilities."""
    return MADE[type(language)](language)


@functools.lru_cache(maxsize=4)
def stationary(language: Language) -> np.ndarray:
    """Share of letters that are written in each state, [S].

    That of documents, to 1e-12: they all have DOCUMENT letters and start in the first state.
    """
    made = automaton_of(language)
    rows, letters = np.nonzero(made.p_SA)
    p, after = made.p_SA[rows, letters], made.next_SA[rows, letters]
    now_S = np.zeros(len(made.p_SA))
    now_S[0] = 1
    total_S = np.zeros(len(made.p_SA))
    for t in range(DOCUMENT):
        total_S += now_S
        next_S = np.bincount(after, now_S[rows] * p, len(now_S))
        if np.abs(next_S - now_S).sum() < 1e-14:
            total_S += next_S * (DOCUMENT - 1 - t)
            break
        now_S = next_S
    return total_S / DOCUMENT
