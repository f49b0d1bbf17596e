"""A language written by a machine of hidden states.

    made(Machine(states=16)).p_SA.shape        # (64, 16)

A machine is in one of `states` and holds one of `memory` values. A state has an order of its own
for the letters; of these it writes the r-th with a probability in proportion to r^-zipf, and the
letter decides the next state. Some states also store a letter (modulo `memory`), and in others what
is stored turns the order of the letters: so a letter counts far ahead. States are visited in
unequal shares, hence a language has rare things left to learn as it does common ones.
"""

import dataclasses

import numpy as np

from lm import automaton

LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SPECIAL = 8  # one state in so many stores a letter, and one recalls


@dataclasses.dataclass(frozen=True)
class Machine:
    states: int = 64  # more take more text and parameters to learn
    symbols: int = 16  # letters, the space among them
    memory: int = 4  # values that can be stored; 1: nothing far away counts
    zipf: float = 1.5  # higher: fewer letters likely, a lower entropy
    seed: int = 0  # of the machine and of its text
    megabytes: float = 16.0  # of text


LIMITS = {
    "states": (2, 65536),
    "symbols": (2, len(LETTERS)),
    "memory": (1, 64),
    "zipf": (0, 20),
    "seed": (0, 2**32),
    "megabytes": (0.01, 1e6),
}


def made(machine: Machine) -> automaton.Automaton:
    """S is states times memory values, rows are memory within state."""
    rng = np.random.default_rng((machine.seed, 1))
    order_NA = np.argsort(rng.random((machine.states, machine.symbols)), axis=1)
    special_N = np.arange(machine.states) % SPECIAL  # 0: it stores, 1: it recalls
    n, m = np.divmod(np.arange(machine.states * machine.memory), machine.memory)
    turn_S = np.where(special_N[n] == 1, m, 0)
    rank_SA = (np.argsort(order_NA, axis=1)[n] + turn_S[:, None]) % machine.symbols
    p_A = automaton.zipf(machine.symbols, machine.zipf)

    rng = np.random.default_rng((machine.seed, 2))
    shares = 1 / np.arange(1, machine.states + 1)  # some states are the end of many ways
    to_NA = rng.choice(machine.states, (machine.states, machine.symbols), p=shares / shares.sum())
    to_NA[:, 0] = (np.arange(machine.states) + 1) % machine.states  # and every one can be reached
    stored_SA = np.where(
        (special_N[n] == 0)[:, None], np.arange(machine.symbols) % machine.memory, m[:, None]
    )
    letters = LETTERS[: machine.symbols]
    return automaton.Automaton(letters, p_A[rank_SA], to_NA[n] * machine.memory + stored_SA)
