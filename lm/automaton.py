"""Finite-state source of text: the common form of all synthetic languages.

The state and the written letter determine the next state (the source is unifilar). Its entropy rate
is therefore exactly the mean entropy of a letter over the states (C. E. Shannon 1948, section 7).
"""

from typing import NamedTuple

import numpy as np


class Automaton(NamedTuple):
    """Finite-state source with S states and A letters. Each document starts in state 0."""

    letters: str  # [A]
    p_SA: np.ndarray  # probability of each letter in each state
    next_SA: np.ndarray  # state after the letter, int64; arbitrary where the probability is 0


def zipf(n: int, exponent: float) -> np.ndarray:
    """Return probabilities [n] proportional to rank^-exponent (G. K. Zipf 1935)."""
    p = np.arange(1, n + 1) ** -float(exponent)
    return p / p.sum()
