"""What every synthetic language is in the end: states, letters, probabilities.

The letter that is written decides the next state (the source is unifilar), hence the entropy rate
is exactly the mean entropy of a letter over the states (C. E. Shannon 1948, section 7).
"""

from typing import NamedTuple

import numpy as np


class Automaton(NamedTuple):
    """Documents start in state 0. S states, A letters."""

    letters: str  # [A]
    p_SA: np.ndarray  # probability of each letter in each state
    next_SA: np.ndarray  # the state after it, int64; anything where it has no probability


def zipf(n: int, exponent: float) -> np.ndarray:
    """Probabilities [n] in proportion to rank^-exponent (G. K. Zipf 1935)."""
    p = np.arange(1, n + 1) ** -float(exponent)
    return p / p.sum()
