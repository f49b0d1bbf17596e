"""Evaluate a model on held-out text: loss, bits per byte, word completion.

    score = heldout.make_scorer(run, device_mesh)
    row = heldout.evaluate_heldout(run, device_mesh, score, params, text)
    row["loss"], row["loss_se"]                 # nats per token, standard error

Tensor names end in their axes: B batch, N sequences, T time, V vocabulary, G documents.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from lm.config import schema
from lm.data import dataset, heldout_documents, tokenizers
from lm.model import transformer
from lm.parallel import deterministic, mesh
from lm.runs import records

# True for bytes of a word: letters, digits, "_" and all non-ASCII bytes.
WORD = np.array([chr(i).isalnum() or chr(i) == "_" or i >= 128 for i in range(256)])

Estimate = tuple[float, float]  # value, standard error
WordMasks = tuple[np.ndarray, np.ndarray]  # see word_token_masks


class SourceScores(NamedTuple):
    """Nats and greedy predictions of the held-out sequences of one source."""

    tokens_NT: np.ndarray  # the sequences; one token more than the other arrays
    weights_NT: np.ndarray  # weight of each target
    nats_NT: np.ndarray  # -log p of each target
    best_NT: np.ndarray  # most likely next token
    document_NT: np.ndarray  # document of each target, -1 for padding


class DocumentSums(NamedTuple):
    """Sums over the targets of each document of one source."""

    documents_G: np.ndarray  # numbers of the documents
    nats_G: np.ndarray
    targets_G: np.ndarray  # weights of the targets
    n_bytes_G: np.ndarray
    entropy_G: np.ndarray | None = None  # nats of the best possible model, if known


def make_scorer(run: schema.Run, device_mesh: jax.sharding.Mesh) -> Callable:
    """Return the jitted function (params, batch) -> (nats_BT, best_BT).

    batch: tokens [B, T+1] and, optionally, segments [B, T]. nats_BT are -log p of each next token,
    best_BT the most likely next token.
    """
    rules = mesh.ShardingRules.from_config(run.mesh)

    def score(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        nats_BT, _, best_BT, _ = transformer.token_losses(
            run.model, params, batch["tokens"], batch.get("segments"), rules
        )
        return nats_BT, best_BT

    replicated = mesh.named_sharding(device_mesh)
    if not run.mesh.deterministic_shards:
        return jax.jit(score, out_shardings=replicated)
    by_shard = deterministic.map_over_shards(run.mesh.deterministic_shards, device_mesh, score)
    return jax.jit(by_shard, out_shardings=replicated, compiler_options=deterministic.OPTIONS)


def report_batches(score: Callable, on_progress: Callable[[], None]) -> Callable:
    """Return `score` that calls on_progress() before each batch."""

    def score_batch(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        on_progress()
        return score(params, batch)

    return score_batch


def evaluate_heldout(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    score: Callable,
    params: dict,
    text: dataset.TokenDataset,
    writer: records.Writer | None = None,
) -> dict:
    """Return one row of evals.jsonl from eval.n_sequences held-out sequences of each source.

    loss            nats per token, averaged over sources with their training weights; loss.SOURCE
                    of each source, with sources of weight 0, whose loss measures forgetting
    bits_per_byte   bits per byte of text, without tokens that end documents
    excess          nats per token above the entropy of the same rows; only if the probabilities of
                    all sources are known: see dataset.source_nats
    completion      fraction of words that greedy decoding completes: see completion_cuts
    completion_n    number of these words
    n_documents     number of documents in these sequences, as n_documents.SOURCE

    loss_se, loss_se.SOURCE, bits_per_byte_se, excess_se and completion_se are standard errors,
    clustered by document: see `ratio_with_error`. `heldout_documents.select_rows` describes the
    sequences. writer: receives heldout.npz, the nats and targets per document, for paired errors of
    runs (see reports.paired_errors). The file is that of the last evaluation.
    """
    completed: list[Estimate] = []  # (number of completed words, number of words) per document
    words = word_token_masks(text.tokenizer)
    n_words = -(-run.eval.n_completions // len(text.sources))
    others = [source for source in text.manifests if source not in text.sources]
    sums: dict[str, DocumentSums] = {}
    for seed, source in enumerate([*text.sources, *others]):
        scores = _score_source(run, device_mesh, score, params, text, source)
        sums[source] = _sum_by_document(scores, text, source)
        if source in text.shares:
            completed += _completions_by_document(scores, n_words, seed, words)
    shares = dict.fromkeys(others, 0.0) | text.shares
    row = {"n_sequences": run.eval.n_sequences} | _loss_columns(sums, shares)
    if completed:
        n_completed_G, n_words_G = np.array(completed).T
        row["completion"], row["completion_se"] = ratio_with_error(n_completed_G, n_words_G)
    if writer is not None:
        arrays = {name: (s.documents_G, s.nats_G, s.targets_G) for name, s in sums.items()}
        writer.write_file("heldout.npz", heldout_documents.encode_sums(shares, arrays))
    return row | {"completion_n": int(sum(n for _, n in completed))}


def _sum_by_document(scores: SourceScores, text: dataset.TokenDataset, source: str) -> DocumentSums:
    """Return the sums over the targets of each document."""
    n_bytes_NT = dataset.byte_lengths(text, source)[scores.tokens_NT[:, 1:]]
    entropy_NT = dataset.source_nats(text, source, scores.tokens_NT)
    arrays = [scores.nats_NT * scores.weights_NT, scores.weights_NT, n_bytes_NT * scores.weights_NT]
    arrays += [] if entropy_NT is None else [entropy_NT]
    return DocumentSums(*heldout_documents.sum_by_document(scores.document_NT, *arrays))


def _loss_columns(sums: dict[str, DocumentSums], shares: dict[str, float]) -> dict:
    """Return the columns of loss, bits per byte, excess and documents."""
    loss = {name: ratio_with_error(s.nats_G, s.targets_G) for name, s in sums.items()}
    bits = {name: ratio_with_error(s.nats_G / np.log(2), s.n_bytes_G) for name, s in sums.items()}
    excess = {
        name: ratio_with_error(s.nats_G - s.entropy_G, s.targets_G)
        for name, s in sums.items()
        if s.entropy_G is not None
    }
    row = _weighted_mean("loss", loss, shares) | _weighted_mean("bits_per_byte", bits, shares)
    if len(excess) == len(loss):
        row |= _weighted_mean("excess", excess, shares)
    for source, (mean, se) in loss.items():
        row |= {f"loss.{source}": mean, f"loss_se.{source}": se}
        row[f"n_documents.{source}"] = len(sums[source].documents_G)
    return row


def _completions_by_document(
    scores: SourceScores, n_words: int, seed: int, words: WordMasks
) -> list[Estimate]:
    """Return (number of completed words, number of words) of each document."""
    counts: dict[int, Estimate] = {}
    for row, cut, end in completion_cuts(scores.tokens_NT, n_words, seed, words):
        document = int(scores.document_NT[row, cut - 1])
        n_completed, n = counts.get(document, (0, 0))
        is_completed = is_word_completed(
            scores.tokens_NT[row], scores.best_NT[row], cut, end, words
        )
        counts[document] = n_completed + is_completed, n + 1
    return list(counts.values())


def _score_source(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    score: Callable,
    params: dict,
    text: dataset.TokenDataset,
    source: str,
) -> SourceScores:
    """Score the held-out sequences of one source, with its segments and target weights."""
    rows = heldout_documents.select_rows(text, source, run.eval.n_sequences)
    tokens_NT = text.heldout_files[source][rows].astype(np.int32)
    batch = dataset.add_segments_and_weights(text.data, text.tokenizer, tokens_NT)
    batch.setdefault("segments", np.zeros_like(tokens_NT[:, 1:]))
    weights_NT = batch.pop("weights", np.ones(tokens_NT[:, 1:].shape))
    nats_NT, best_NT = score_rows(run, device_mesh, score, params, batch)
    document_NT = heldout_documents.target_documents(text, source, rows)
    return SourceScores(tokens_NT, weights_NT, nats_NT, best_NT, document_NT)


def _weighted_mean(
    name: str, by_source: dict[str, Estimate], shares: dict[str, float]
) -> dict[str, float]:
    """Return the columns of a metric: its weighted mean over sources and the standard error."""
    mean = sum(shares[source] * value for source, (value, _) in by_source.items())
    variance = sum((shares[source] * se) ** 2 for source, (_, se) in by_source.items())
    return {name: mean, f"{name}_se": variance**0.5}


def ratio_with_error(sums_G: np.ndarray, sizes_G: np.ndarray) -> Estimate:
    """Return sum(sums) / sum(sizes) and its standard error, clustered by document.

    The error is that of the delta method (Miller 2024, arXiv:2411.00640, equation 4) times
    sqrt(G / (G - 1)). It describes other text of the same kind. Errors over sequences are two to
    three times too small, because sequences of one document are not independent. A single document
    has no error estimate: the result is 0.
    """
    n, mean = len(sums_G), sums_G.sum() / sizes_G.sum()
    residuals_G = sums_G - mean * sizes_G
    variance = (residuals_G**2).sum() * n / max(n - 1, 1)
    return float(mean), float(np.sqrt(variance) / sizes_G.sum())


def word_token_masks(tokenizer: tokenizers.Tokenizer) -> WordMasks:
    """Return two masks over the vocabulary, bool [V].

    has_word_V: the token contains a byte of a word. continues_word_V: the token begins with a byte
    of a word. "cat" and " cat" both contain a word, but only "cat" continues the word before it.
    """
    has_word_V = np.array([any(WORD[byte] for byte in piece) for piece in tokenizer.pieces])
    continues_word_V = np.array([bool(piece) and WORD[piece[0]] for piece in tokenizer.pieces])
    return has_word_V, continues_word_V


def completion_cuts(
    tokens_NT: np.ndarray, n: int, seed: int, words: WordMasks
) -> Iterator[tuple[int, int, int]]:
    """Yield up to n random positions in words, as (sequence, cut, end).

    The model receives the tokens before `cut` and must generate the rest of the word, the tokens
    from `cut` to `end`. Cuts are in the second half of a sequence, before any token that contains a
    byte of a word. Sequences alternate, and no cut is repeated. The result depends only on the
    arguments, so models of all sizes complete the same words. A tokenizer with longer tokens has
    fewer cuts per word: compare fractions for equal tokenizers only.
    """
    rng = np.random.default_rng((seed, n))
    has_word_NT, continues_word_NT = (mask_V[tokens_NT] for mask_V in words)
    half = tokens_NT.shape[1] // 2
    candidates = []
    for has_word_T, continues_word_T in zip(has_word_NT, continues_word_NT, strict=True):
        boundaries = np.flatnonzero(~continues_word_T)
        last = boundaries[-1] if len(boundaries) else 0  # a later word is cut off by the sequence
        candidates.append(rng.permutation(half + np.flatnonzero(has_word_T[half:last])))
    n_rounds = max((len(cuts) for cuts in candidates), default=0)
    in_order = (
        (row, cuts[i])
        for i in range(n_rounds)
        for row, cuts in enumerate(candidates)
        if i < len(cuts)
    )
    for (row, cut), _ in zip(in_order, range(n), strict=False):
        yield row, int(cut), int(cut + 1 + np.argmin(continues_word_NT[row, cut + 1 :]))


def is_word_completed(
    tokens_T: np.ndarray, best_T: np.ndarray, cut: int, end: int, words: WordMasks
) -> bool:
    """Return True if greedy decoding after tokens[:cut] gives the word up to `end` and ends it.

    best_T[t] is the most likely token after tokens[:t + 1]. While it equals the true token, the
    model input is the same as in greedy decoding, so one forward pass is enough. A word in other
    tokens than those of the tokenizer counts as wrong. With long tokens, the fraction of completed
    words is thus a lower bound.
    """
    _, continues_word_V = words
    predicted, expected = best_T[cut - 1 : end], tokens_T[cut:end]
    following = predicted[-1]
    # The model may have more logits than the tokenizer has tokens.
    is_ended = following >= len(continues_word_V) or not continues_word_V[following]
    return bool((predicted[:-1] == expected).all() and is_ended)


def score_rows(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    score: Callable,
    params: dict,
    batch: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Apply `score` to any number of sequences, in batches of data.batch_size.

    score: see make_scorer. Returns float64 nats and the most likely next tokens, [N, T]. Raises
    ValueError without sequences.
    """
    size, n = run.data.batch_size, len(batch["tokens"])
    if not n:
        raise ValueError("batch contains 0 sequences and must contain at least 1: check its source")
    results, pending = [], None
    for start in range(0, n, size):
        # The last batch is filled with sequences from the beginning.
        rows = (start + mesh.local_rows(device_mesh, size)) % n
        local_batch = {name: array[rows] for name, array in batch.items()}
        scores = score(params, mesh.put_batch(device_mesh, local_batch))
        if pending is not None:  # the devices compute the new batch during this copy
            results.append(jax.device_get(pending))
        pending = scores
    results.append(jax.device_get(pending))
    nats, best = zip(*results, strict=True)
    return np.concatenate(nats).astype(np.float64)[:n], np.concatenate(best)[:n]
