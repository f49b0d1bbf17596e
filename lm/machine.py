"""Synthetic language of a hidden-state machine with a memory.

    made(Machine(states=16)).p_SA.shape        # (64, 16)

The machine is in one of `states` and stores one of `memory` values. Each state ranks the letters in
its own order and writes the letter of rank r with probability proportional to r^-zipf. The letter
determines the next state. Some states store the letter (modulo `memory`). In others the stored
value rotates the ranks, so a letter affects text far ahead. States differ in how often they are
visited: the language contains rare patterns as well as common ones.
"""

import dataclasses

import numpy as np

from lm import automaton

LETTERS = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SPECIAL = 8  # of 8 states, the first stores a letter and the second uses the stored value


@dataclasses.dataclass(frozen=True)
class Machine:
    """Parameters of the machine and of its text."""

    states: int = 64  # more states need more text and more model parameters to learn
    symbols: int = 16  # letters, including the space
    memory: int = 4  # number of values that can be stored; 1 removes the long-range dependence
    zipf: float = 1.5  # higher values give a lower entropy
    seed: int = 0  # seed of the machine and of its text
    megabytes: float = 16.0  # size of the text


LIMITS = {
    "states": (2, 65536),
    "symbols": (2, len(LETTERS)),
    "memory": (1, 64),
    "zipf": (0, 20),
    "seed": (0, 2**32),
    "megabytes": (0.01, 1e6),
}


def made(machine: Machine) -> automaton.Automaton:
    """Build the finite-state source. Its state number is state * memory + stored value."""
    rng = np.random.default_rng((machine.seed, 1))
    letter_order_NA = np.argsort(rng.random((machine.states, machine.symbols)), axis=1)
    role_N = np.arange(machine.states) % SPECIAL  # 0 stores a letter, 1 uses the stored value
    n, m = np.divmod(np.arange(machine.states * machine.memory), machine.memory)
    rotation_S = np.where(role_N[n] == 1, m, 0)
    rank_SA = (np.argsort(letter_order_NA, axis=1)[n] + rotation_S[:, None]) % machine.symbols
    p_A = automaton.zipf(machine.symbols, machine.zipf)

    rng = np.random.default_rng((machine.seed, 2))
    popularity = 1 / np.arange(1, machine.states + 1)  # low-numbered states are visited more often
    to_NA = rng.choice(
        machine.states, (machine.states, machine.symbols), p=popularity / popularity.sum()
    )
    # The first letter leads to the next state, so every state can be reached.
    to_NA[:, 0] = (np.arange(machine.states) + 1) % machine.states
    stored_SA = np.where(
        (role_N[n] == 0)[:, None], np.arange(machine.symbols) % machine.memory, m[:, None]
    )
    letters = LETTERS[: machine.symbols]
    return automaton.Automaton(letters, p_A[rank_SA], to_NA[n] * machine.memory + stored_SA)
