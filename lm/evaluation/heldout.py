"""What a model can do on text it has not seen: loss, bits per byte, and completing words.

Tensor names end in their axes: B batch, N sequences, T time, V vocabulary.
"""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from lm.config import schema
from lm.data import dataset, tokenizers
from lm.model import transformer
from lm.parallel import deterministic, mesh

WORD = np.array([chr(i).isalnum() or chr(i) == "_" or i >= 128 for i in range(256)])  # word bytes


def make_scorer(run: schema.Run, device_mesh: jax.sharding.Mesh) -> Callable:
    """jit of (params, batch) -> (nats_BT of each next token, best_BT the likeliest)."""

    rules = mesh.ShardingRules.of(run.mesh)

    def score(params: dict, batch: dict):
        nats_BT, _, best_BT, _ = transformer.token_losses(
            run.model, params, batch["tokens"], batch.get("segments"), rules
        )
        return nats_BT, best_BT

    whole = mesh.named_sharding(device_mesh)
    if not run.mesh.deterministic_shards:
        return jax.jit(score, out_shardings=whole)
    by_shard = deterministic.map_over_shards(run.mesh.deterministic_shards, device_mesh, score)
    return jax.jit(by_shard, out_shardings=whole, compiler_options=deterministic.OPTIONS)


def evaluate_heldout(
    run: schema.Run, device_mesh, score: Callable, params: dict, text: dataset.TokenDataset
) -> dict:
    """One row of evals.jsonl: every number with its standard error and its n.

    loss            nats a token over the first eval.n_sequences held-out sequences of each source,
                    sources weighted as in training; loss.SOURCE for each alone, those of weight 0
                    too: what a fine-tuned model forgets
    bits_per_byte   the same in bits for a byte of text (end-of-document marks are no text)
    excess          nats a token above the best reader of the same rows, where all of the text is of
                    languages whose probabilities are known; what is luck of these rows is not in it
    completion      share of cut words (see `completions`) that the model finishes exactly
    """
    loss, bits, excess, done = {}, {}, {}, []
    words = word_token_masks(text.tokenizer)
    n_words = -(-run.eval.n_completions // len(text.sources))
    others = [source for source in text.manifests if source not in text.sources]
    for seed, source in enumerate([*text.sources, *others]):
        tokens_NT = text.heldout(source, run.eval.n_sequences)
        batch = dataset.add_segments_and_weights(text.data, text.tokenizer, tokens_NT)
        batch.setdefault("segments", np.zeros_like(tokens_NT[:, 1:]))
        weights_NT = batch.pop("weights", np.ones(tokens_NT[:, 1:].shape))
        nats_NT, best_NT = score_rows(run, device_mesh, score, params, batch)
        nats_N, targets_NT = (nats_NT * weights_NT).sum(axis=1), tokens_NT[:, 1:]
        loss[source] = ratio_with_error(nats_N, weights_NT.sum(axis=1))
        n_bytes_N = (dataset.byte_lengths(text, source)[targets_NT] * weights_NT).sum(axis=1)
        bits[source] = ratio_with_error(nats_N / np.log(2), n_bytes_N)
        own_NT = dataset.source_nats(text, source, tokens_NT)
        if own_NT is not None:
            excess[source] = ratio_with_error(
                nats_N - own_NT.sum(axis=1), np.full(len(nats_N), own_NT.shape[1])
            )
        done += [
            is_word_completed(tokens_NT[row], best_NT[row], cut, end, words)
            for row, cut, end in completion_cuts(tokens_NT, n_words, seed, words)
            if source in text.shares
        ]
    row = {"n_sequences": run.eval.n_sequences}
    shares = dict.fromkeys(others, 0.0) | text.shares
    columns = {"loss": loss, "bits_per_byte": bits, "excess": excess}
    for name, by_source in columns.items():
        if len(by_source) < len(loss):
            continue  # not all of the text is of known entropy
        row[name] = sum(shares[s] * mean for s, (mean, _) in by_source.items())
        row[f"{name}_se"] = sum((shares[s] * se) ** 2 for s, (_, se) in by_source.items()) ** 0.5
    for source, (mean, se) in loss.items():
        row |= {f"loss.{source}": mean, f"loss_se.{source}": se}
    if done:
        share = float(np.mean(done))
        row |= {"completion": share, "completion_se": (share * (1 - share) / len(done)) ** 0.5}
    return row | {"completion_n": len(done)}


def ratio_with_error(sums_N: np.ndarray, sizes_N: np.ndarray) -> tuple[float, float]:
    """sum(sums) / sum(sizes) and its standard error over sequences (delta method)."""
    mean = sums_N.sum() / sizes_N.sum()
    spread = sums_N - mean * sizes_N
    return float(mean), float(np.sqrt((spread**2).sum()) / sizes_N.sum())


def word_token_masks(tokenizer: tokenizers.Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Of each token [V]: whether it holds a byte of a word, and whether it goes on with one.

    "cat" and " cat" hold one; only "cat" goes on with the word that a text before it may end in.
    """
    holds_V = np.array([any(WORD[byte] for byte in piece) for piece in tokenizer.pieces])
    goes_on_V = np.array([bool(piece) and WORD[piece[0]] for piece in tokenizer.pieces])
    return holds_V, goes_on_V


def completion_cuts(
    tokens_NT: np.ndarray, n: int, seed: int, words: tuple[np.ndarray, np.ndarray]
) -> Iterator[tuple[int, int, int]]:
    """At most n (sequence, cut, end): text cut at a random place in a word, and where that ends.

    The cut lies in the later half of the sequence, before any token of a word: at its first, the
    whole word is to be said. Sequences take turns; no place is used twice. A pure function of the
    arguments, so that models of every size complete the same words. With tokens of many bytes
    fewer places in a word can be cut: compare shares of one tokenizer only.
    """
    rng = np.random.default_rng((seed, n))
    holds_NT, goes_on_NT = (part_V[tokens_NT] for part_V in words)
    half = tokens_NT.shape[1] // 2
    places = []
    for holds_T, goes_on_T in zip(holds_NT, goes_on_NT, strict=True):
        ends = np.flatnonzero(~goes_on_T)
        last = ends[-1] if len(ends) else 0  # the word after it has no end in this sequence
        places.append(rng.permutation(half + np.flatnonzero(holds_T[half:last])))
    turns = max((len(p) for p in places), default=0)
    cuts = (
        (row, p[turn]) for turn in range(turns) for row, p in enumerate(places) if turn < len(p)
    )
    for (row, cut), _ in zip(cuts, range(n), strict=False):
        yield row, int(cut), int(cut + 1 + np.argmin(goes_on_NT[row, cut + 1 :]))


def is_word_completed(
    tokens_T: np.ndarray, best_T: np.ndarray, cut: int, end: int, words: tuple
) -> bool:
    """Whether the likeliest continuation of tokens[:cut] is the word up to `end`, and then stops.

    best_T[t] is the likeliest token after tokens[:t + 1]. As long as it is the true one, the model
    sees what it would have said itself: one forward pass answers for greedy generation. A word that
    is said in other tokens than the tokenizer's own is counted as wrong, so with tokens of many
    bytes the share is a lower bound of that of right words.
    """
    _, goes_on_V = words
    said, true = best_T[cut - 1 : end], tokens_T[cut:end]
    stops = said[-1] >= len(goes_on_V) or not goes_on_V[said[-1]]  # the head may be wider
    return bool((said[:-1] == true).all() and stops)


def score_rows(run, device_mesh, score, params, batch: dict) -> tuple[np.ndarray, np.ndarray]:
    """score() over sequences of any number, in batches of the run's size."""
    size, nats, best = run.data.batch_size, [], []
    n = len(batch["tokens"])
    for start in range(0, n, size):
        rows = (start + mesh.local_rows(device_mesh, size)) % n  # the last ones: again
        here = {name: array[rows] for name, array in batch.items()}
        nats_BT, best_BT = jax.device_get(score(params, mesh.put_batch(device_mesh, here)))
        nats.append(nats_BT.astype(np.float64))
        best.append(best_BT)
    return np.concatenate(nats)[:n], np.concatenate(best)[:n]
