"""What a model can do on text it has not seen: loss, bits per byte, and completing words.

Tensor names end in their axes: B batch, N sequences, T time, V vocabulary.
"""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, data, mesh, model

WORD = np.array([chr(i).isalnum() or chr(i) == "_" or i >= 128 for i in range(256)])  # word bytes


def scorer(run: config.Run, device_mesh: jax.sharding.Mesh) -> Callable:
    """jit of (params, tokens [B, T+1]) -> (nats_BT of each next token, best_BT the likeliest)."""

    def score(params: dict, tokens_BT: jax.Array):
        logits_BTV = model.logits(run.model, params, tokens_BT[:, :-1])
        nats_BT, _ = model.nats(logits_BTV, tokens_BT[:, 1:])
        return nats_BT, jnp.argmax(logits_BTV, axis=-1)

    return jax.jit(score, out_shardings=mesh.sharding(device_mesh))


def evaluate(run: config.Run, device_mesh, score: Callable, params: dict, text: data.Text) -> dict:
    """One row of evals.jsonl: every number with its standard error and its n.

    loss            nats a token over the first eval.n_sequences held-out sequences of each source,
                    sources weighted as in training; loss.SOURCE for each alone
    bits_per_byte   the same in bits for a byte of text (end-of-document marks are no text)
    completion      share of cut words (see `completions`) that the model finishes exactly
    """
    loss, bits, done = {}, {}, []
    byte_lengths = text.tokenizer.byte_lengths()
    n_words = -(-run.eval.n_completions // len(text.sources))
    for seed, source in enumerate(text.sources):
        tokens_NT = text.heldout(source, run.eval.n_sequences)
        nats_NT, best_NT = _score_all(run, device_mesh, score, params, tokens_NT)
        nats_N, targets_NT = nats_NT.sum(axis=1), tokens_NT[:, 1:]
        loss[source] = ratio(nats_N, np.full(len(nats_N), targets_NT.shape[1]))
        bits[source] = ratio(nats_N / np.log(2), byte_lengths[targets_NT].sum(axis=1))
        done += [
            is_completed(tokens_NT[row], best_NT[row], cut, end)
            for row, cut, end in completions(tokens_NT, n_words, seed)
        ]
    row = {"n_sequences": run.eval.n_sequences}
    for name, by_source in (("loss", loss), ("bits_per_byte", bits)):
        row[name] = sum(text.weights[s] / data.PATTERN * mean for s, (mean, _) in by_source.items())
        row[f"{name}_se"] = (
            sum((text.weights[s] / data.PATTERN * se) ** 2 for s, (_, se) in by_source.items())
            ** 0.5
        )
    for source, (mean, se) in loss.items():
        row |= {f"loss.{source}": mean, f"loss_se.{source}": se}
    if done:
        share = float(np.mean(done))
        row |= {"completion": share, "completion_se": (share * (1 - share) / len(done)) ** 0.5}
    return row | {"completion_n": len(done)}


def ratio(sums_N: np.ndarray, sizes_N: np.ndarray) -> tuple[float, float]:
    """sum(sums) / sum(sizes) and its standard error over sequences (delta method)."""
    mean = sums_N.sum() / sizes_N.sum()
    spread = sums_N - mean * sizes_N
    return float(mean), float(np.sqrt((spread**2).sum()) / sizes_N.sum())


def completions(tokens_NT: np.ndarray, n: int, seed: int) -> Iterator[tuple[int, int, int]]:
    """At most n (sequence, cut, end): text cut at a random place in a word, and where that ends.

    The cut lies in the later half of the sequence, before any byte of a word: at its first, the
    whole word is to be said. Sequences take turns; no place is used twice. A pure function of the
    arguments, so that models of every size complete the same words. For byte tokens.
    """
    rng = np.random.default_rng((seed, n))
    word_NT = WORD[tokens_NT]
    half = tokens_NT.shape[1] // 2
    places = []
    for in_word_T in word_NT:
        outside = np.flatnonzero(~in_word_T)
        last = outside[-1] if len(outside) else 0  # the word after it has no end in this sequence
        places.append(rng.permutation(half + np.flatnonzero(in_word_T[half:last])))
    turns = max((len(p) for p in places), default=0)
    cuts = (
        (row, p[turn]) for turn in range(turns) for row, p in enumerate(places) if turn < len(p)
    )
    for (row, cut), _ in zip(cuts, range(n), strict=False):
        yield row, int(cut), int(cut + np.argmin(word_NT[row, cut:]))


def is_completed(tokens_T: np.ndarray, best_T: np.ndarray, cut: int, end: int) -> bool:
    """Whether the likeliest continuation of tokens[:cut] is the word up to `end`, and then stops.

    best_T[t] is the likeliest token after tokens[:t + 1]. As long as it is the true one, the model
    sees what it would have said itself: one forward pass answers for greedy generation.
    """
    said, true = best_T[cut - 1 : end], tokens_T[cut:end]
    return bool((said[:-1] == true).all() and not WORD[said[-1]])


def _score_all(run, device_mesh, score, params, tokens_NT) -> tuple[np.ndarray, np.ndarray]:
    """score() over sequences of any number, in batches of the run's size."""
    size, nats, best = run.data.batch_size, [], []
    for start in range(0, len(tokens_NT), size):
        part = tokens_NT[start : start + size]
        padded = np.zeros((size, tokens_NT.shape[1]), np.int32)
        padded[: len(part)] = part
        here = padded[mesh.rows_here(size)]
        nats_BT, best_BT = jax.device_get(score(params, mesh.place(device_mesh, here)))
        nats.append(nats_BT[: len(part)].astype(np.float64))
        best.append(best_BT[: len(part)])
    return np.concatenate(nats), np.concatenate(best)
