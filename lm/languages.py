"""Synthetic languages whose entropy is known, so that a fitted floor can be held against the truth.

    machine = parse("machine?states=64&zipf=1.5")
    entropy(machine)                     # nats a token that no model can get below: 1.862
    floor(machine, seq_len=128)          # the same for rows that begin anywhere: 1.874 +- 0.001
    next(documents(machine))             # "gcdgjfngilfcjcgigcgciacgcgfehnaleolf..."

A machine is in one of `states` and holds one of `memory` values. A state has an order of its own
for the letters; of these it writes the r-th with a probability in proportion to r^-zipf, and the
letter decides the next state. Some states also store a letter (modulo `memory`), and in others what
is stored turns the order of the letters: so a letter counts far ahead. States are visited in
unequal shares, hence a language has rare things left to learn as it does common ones.

State, memory and text decide the next state and memory (the source is unifilar), hence the entropy
rate is exactly the mean entropy of a letter over the states, which here is the same in all of them
(C. E. Shannon 1948, section 7). Arrays: S states times memory values, A letters.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
DOCUMENT = 4096  # letters in each
BLOCK = 64  # documents that are written at once
SPECIAL = 8  # one state in so many stores a letter, and one recalls


@dataclasses.dataclass(frozen=True)
class Machine:
    states: int = 64  # more take more text and parameters to learn
    symbols: int = 16  # letters, the space among them
    memory: int = 4  # values that can be stored; 1: nothing far away counts
    zipf: float = 1.5  # higher: fewer letters likely, a lower entropy
    seed: int = 0  # of the machine and of its text
    megabytes: float = 16.0  # of text


def parse(name: str) -> Machine:
    """Of "machine?states=64&zipf=1.5"; ValueError for a dial that does not exist or turn so far."""
    kind, _, dials = name.partition("?")
    known = {field.name: type(field.default) for field in dataclasses.fields(Machine)}
    if kind != "machine":
        raise ValueError(f"synthetic:{name}: {kind} does not exist: did you mean machine?")
    values = {}
    for dial in dials.split("&") if dials else []:
        key, _, value = dial.partition("=")
        if key not in known:
            raise ValueError(f"synthetic:{name}: {key} does not exist: take {', '.join(known)}")
        try:
            values[key] = known[key](value)
        except ValueError:
            raise ValueError(f"synthetic:{name}: {key}={value} must be a number") from None
    machine = Machine(**values)
    for key, low, high in (
        ("states", 2, 65536), ("symbols", 2, len(LETTERS)), ("memory", 1, 64), ("zipf", 0, 20),
        ("seed", 0, 2**32), ("megabytes", 0.01, 1e6),
    ):  # fmt: skip
        if not low <= getattr(machine, key) <= high:
            raise ValueError(f"synthetic:{name}: {key} must be from {low} to {high}")
    return machine


def documents(machine: Machine) -> Iterator[str]:
    """The text, DOCUMENT letters at a time; the same on every machine."""
    cumulative_SA = np.cumsum(probabilities(machine), axis=1)
    next_SA = successors(machine)
    letters = np.array(list(LETTERS[: machine.symbols]))
    n_documents = max(1, round(machine.megabytes * 1e6 / DOCUMENT))
    for block in range(-(-n_documents // BLOCK)):
        rng = np.random.default_rng((machine.seed, block))
        state = np.zeros(BLOCK, np.int64)
        text = np.empty((BLOCK, DOCUMENT), np.int64)
        for t in range(DOCUMENT):
            drawn = (rng.random(BLOCK)[:, None] >= cumulative_SA[state]).sum(axis=1)
            text[:, t] = np.minimum(drawn, machine.symbols - 1)  # rounding may leave a sum below 1
            state = next_SA[state, text[:, t]]
        for row in text[: n_documents - block * BLOCK]:
            yield "".join(letters[row])


def entropy(machine: Machine) -> float:
    """Nats a token, ends of documents included, for who has read the document from its start."""
    p_A = _zipf(machine)
    letters = float(-(p_A * np.log(p_A)).sum())
    share = 1 / (DOCUMENT + 1)  # of tokens that end a document, wherever they may come
    return float((1 - share) * (letters - np.log1p(-share)) - share * np.log(share))


def floor(machine: Machine, seq_len: int, n: int = 400) -> tuple[float, float]:
    """Nats a token, and their standard error, of the best reader of rows that begin anywhere.

    Above `entropy` by what it costs to find out the state. Over n rows drawn from the machine; what
    is averaged is the difference to a reader who knows the state, whose mean is known exactly.
    """
    p_SA, next_SA = probabilities(machine), successors(machine)
    rng = np.random.default_rng((machine.seed, seq_len, n))
    belief_S = stationary(machine)
    flat = np.arange(len(belief_S))
    extra = np.empty(n)
    for row, state in enumerate(rng.choice(flat, size=n, p=belief_S)):
        belief, cost = belief_S, []
        for _ in range(seq_len + 1):
            letter = rng.choice(machine.symbols, p=p_SA[state])
            joint = belief * p_SA[:, letter]
            cost.append(np.log(p_SA[state, letter]) - np.log(joint.sum()))
            belief = np.bincount(next_SA[:, letter], joint / joint.sum(), len(flat))
            state = next_SA[state, letter]
        extra[row] = np.mean(cost[1:])  # the first token of a row is read and not predicted
    return entropy(machine) + float(extra.mean()), float(extra.std(ddof=1) / n**0.5)


@functools.lru_cache(maxsize=4)
def probabilities(machine: Machine) -> np.ndarray:
    """Of each letter in each state and memory, [S, A]; rows are memory within state."""
    order_NA, special_N = _orders(machine)
    n, m = np.divmod(np.arange(machine.states * machine.memory), machine.memory)
    turn_S = np.where(special_N[n] == 1, m, 0)
    rank_SA = (np.argsort(order_NA, axis=1)[n] + turn_S[:, None]) % machine.symbols
    return _zipf(machine)[rank_SA]


@functools.lru_cache(maxsize=4)
def successors(machine: Machine) -> np.ndarray:
    """The state and memory after each letter, int64 [S, A]."""
    _, special_N = _orders(machine)
    rng = np.random.default_rng((machine.seed, 2))
    shares = 1 / np.arange(1, machine.states + 1)  # some states are the end of many ways
    to_NA = rng.choice(machine.states, (machine.states, machine.symbols), p=shares / shares.sum())
    to_NA[:, 0] = (np.arange(machine.states) + 1) % machine.states  # and every one can be reached
    n, m = np.divmod(np.arange(machine.states * machine.memory), machine.memory)
    stored_SA = np.where(
        (special_N[n] == 0)[:, None], np.arange(machine.symbols) % machine.memory, m[:, None]
    )
    return to_NA[n] * machine.memory + stored_SA


@functools.lru_cache(maxsize=4)
def stationary(machine: Machine) -> np.ndarray:
    """Share of letters that are written in each state and memory, [S].

    Exactly that of documents: they all have DOCUMENT letters and start in the first state.
    """
    p_SA, next_SA = probabilities(machine), successors(machine)
    now_S = np.zeros(len(p_SA))
    now_S[0] = 1
    total_S = np.zeros(len(p_SA))
    for _ in range(DOCUMENT):
        total_S += now_S
        now_S = np.bincount(next_SA.ravel(), (now_S[:, None] * p_SA).ravel(), len(now_S))
    return total_S / DOCUMENT


def _zipf(machine: Machine) -> np.ndarray:
    """Probability of the r-th letter in a state's order, [A]."""
    p_A = np.arange(1, machine.symbols + 1) ** -float(machine.zipf)
    return p_A / p_A.sum()


def _orders(machine: Machine) -> tuple[np.ndarray, np.ndarray]:
    """The order of the letters in each state [N, A]; 0 where it stores, 1 where it recalls [N]."""
    rng = np.random.default_rng((machine.seed, 1))
    order_NA = np.argsort(rng.random((machine.states, machine.symbols)), axis=1)
    return order_NA, np.arange(machine.states) % SPECIAL
