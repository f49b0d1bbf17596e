"""Translation word by word with IBM model 1, and the words of texts.

    table = word_translation.fit_table(sources, targets)
    word_translation.translate_words(table, ["Two dogs run ."])       # ["Zwei Hunde rennen."]

IBM model 1 (Brown et al. 1993) has a probability t(f | e) for each pair of a target word f and a
source word e, or the empty word. N_ITERATIONS steps of expectation maximization fit it to pairs of
sentences. A translation has the most likely target word of each source word, in the order of the
source. A word that is in no training sentence is copied. Source words are in lower case. The first
word of a target sentence has its more frequent form inside sentences (truecasing).

Axes: L links, each a position of a target word and a source word of its sentence; K distinct pairs.
"""

import collections
import re
from collections.abc import Sequence

import numpy as np

N_ITERATIONS = 5
MAX_LINKS = 10_000_000  # bounds time and memory: about 60,000 pairs of sentences of 12 words
EMPTY = ""  # the empty source word of model 1
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_SPACE_BEFORE = re.compile(r"\s+([.,;:!?%)\]}…])")
_SPACE_AFTER = re.compile(r"([(\[{])\s+")


def split_words(text: str) -> list[str]:
    """Return the words, numbers and punctuation marks of a text."""
    return _WORD.findall(text)


def fit_table(sources: Sequence[str], targets: Sequence[str]) -> dict[str, str]:
    """Return {source word: most likely target word} of model 1.

    sources, targets: pairs of sentences, of which the first MAX_LINKS links are used. Raises
    ValueError without pairs.
    """
    if not sources or len(sources) != len(targets):
        raise ValueError(f"{len(sources)} sources and {len(targets)} targets: give pairs of texts")
    target_words = _truecase([split_words(text) for text in targets])
    source_ids: dict[str, int] = {EMPTY: 0}
    target_ids: dict[str, int] = {}
    columns = []
    n_links = n_positions = 0
    for source, words in zip(sources, target_words, strict=True):
        names = [word.lower() for word in split_words(source)]
        rows = [0, *(source_ids.setdefault(name, len(source_ids)) for name in names)]
        ids = np.array([target_ids.setdefault(w, len(target_ids)) for w in words], np.int64)
        n_links += len(rows) * len(ids)
        if n_links > MAX_LINKS and columns:
            break
        positions = np.arange(n_positions, n_positions + len(ids))
        n_positions += len(ids)
        links = np.repeat(np.stack([ids, positions]), len(rows), axis=1)
        columns.append(np.concatenate([np.tile(rows, len(ids))[None], links]))
    source_L, target_L, position_L = np.concatenate(columns, axis=1).astype(np.int64)
    pair_K, pair_L = np.unique(source_L * len(target_ids) + target_L, return_inverse=True)
    source_K, target_K = np.divmod(pair_K, max(len(target_ids), 1))
    probability_K = np.ones(len(pair_K))
    for _ in range(N_ITERATIONS):
        weight_L = probability_K[pair_L]
        weight_L /= np.bincount(position_L, weight_L, n_positions)[position_L]
        count_K = np.bincount(pair_L, weight_L, len(pair_K))
        probability_K = count_K / np.bincount(source_K, count_K)[source_K]
    order = np.lexsort((target_K, -probability_K, source_K))
    first = order[np.unique(source_K[order], return_index=True)[1]]
    source_names, target_names = list(source_ids), list(target_ids)
    table = zip(source_K[first].tolist(), target_K[first].tolist(), strict=True)
    return {source_names[e]: target_names[f] for e, f in table}


def translate_words(table: dict[str, str], texts: Sequence[str]) -> list[str]:
    """Return the translation of each text, word by word. table: see `fit_table`."""
    return [
        _join_words([table.get(word.lower(), word) for word in split_words(text)]) for text in texts
    ]


def _truecase(sentences: list[list[str]]) -> list[list[str]]:
    """Return the sentences with their first word in its more frequent form inside sentences."""
    counts = collections.Counter(word for words in sentences for word in words[1:])
    return [
        [min(words[0], words[0].lower(), key=lambda w: -counts[w]), *words[1:]] if words else words
        for words in sentences
    ]


def _join_words(words: list[str]) -> str:
    """Return a sentence of words, with a capital letter and without spaces before punctuation."""
    text = _SPACE_AFTER.sub(r"\1", _SPACE_BEFORE.sub(r"\1", " ".join(words)))
    return text[:1].upper() + text[1:]
