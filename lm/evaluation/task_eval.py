"""Evaluate tasks during training with the compiled program of the held-out loss.

    task_list = [tasks.load_task("copy?length=4")]
    results = task_eval.evaluate_tasks(run, device_mesh, score, params, tokenizer, task_list)
    results["copy?length=4"]["accuracy"]                         # {"value": 0.4, "se": 0.05}
    task_eval.to_columns(results)["task.copy?length=4.accuracy"]  # 0.4

Each pair of prompt and answer is a separate segment in rows of data.seq_len tokens. The tokens are
those of token_healing.py. scoring.score_pairs has the same results up to rounding: it computes
equal prompts only once, but needs an additional program. It scores the choices of tasks that repeat
at least MIN_REPEATED_TOKENS. Sentences of minimal pairs are packed into shorter rows, because
attention computes all pairs of positions of a row. Tensor names end in their axes: N rows or pairs,
T time, 2 sentences.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lm.config import schema
from lm.data import dataset, packing, tokenizers
from lm.data.tokenization import token_healing
from lm.evaluation import (
    coverings,
    decoding,
    generation,
    heldout,
    scoring,
    task_metrics,
    tasks,
)
from lm.evaluation.baselines import paired_tests, task_baselines
from lm.evaluation.minimal_pairs import pair_metrics
from lm.parallel import mesh
from lm.runs import records
from lm.runs.items import task_items

# Least number of tokens in a row of sentences. Fused kernels of accelerators need multiples of 128.
MIN_PAIR_ROW, MIN_FUSED_ROW = 64, 128
# Tokens of prompts that choices must repeat at least, so that another program is worth compiling.
MIN_REPEATED_TOKENS = 2**18
PASSAGE_CHARACTERS = 100  # of a first line that several questions may share
Results = dict[str, task_metrics.Metrics]  # task name -> metric -> {"value": ..., "se": ...}


@dataclasses.dataclass
class TaskDetails:
    """Details of an evaluation that the metrics do not contain.

    answers: generated answers, see task_metrics.answer_rows. items: points of the examples.
    """

    answers: list[dict] = dataclasses.field(default_factory=list)
    items: list[task_items.TaskItems] = dataclasses.field(default_factory=list)


class EncodedTask(NamedTuple):
    """A task with the examples that fit into a row, and counts of the other examples."""

    task: tasks.Task
    pairs: list[list[token_healing.TokenPair]]  # pairs[i][c]: choice c of example i
    n_truncated: int  # examples with a truncated prompt
    n_skipped: int  # examples with an answer that is too long for a row


def evaluate_tasks(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    score: Callable,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    task_list: Sequence[tasks.Task],
    details: TaskDetails | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Results:
    """Return the metrics of each task: see task_metrics and, for minimal pairs, pair_metrics.

    score: see heldout.make_scorer. details: receives the generated answers and the points of the
    examples. on_progress: called after each generated token and before each batch of sentences. If
    an example is longer than data.seq_len tokens, its prompt is truncated at the beginning (counted
    in n_truncated). If an answer alone is longer, the example is skipped (counted in n_skipped).
    Raises ValueError in both cases if eval.on_overflow is "error". The results have the baselines
    that a task contains, see task_baselines.add_baselines.
    """
    details = details or TaskDetails()
    encoded = [_encode_task(run, task, tokenizer) for task in task_list]
    examples = [e for task in encoded if not task.task.is_pairs for e in task.pairs]
    model = run, device_mesh, score, params, tokenizer
    scores = iter(_score_examples(*model, examples, on_progress))
    results: Results = {}
    for task, choices_of_examples, n_truncated, n_skipped in encoded:
        metrics: task_metrics.Metrics = {
            "n_truncated": {"value": n_truncated},
            "n_skipped": {"value": n_skipped},
        }
        if not choices_of_examples:
            metrics["n"] = {"value": 0}
            results[task.name] = metrics
            continue
        if task.is_pairs:
            arguments = run, device_mesh, params, tokenizer, choices_of_examples
            pair_scores = _score_sentences(*arguments, on_progress=on_progress)
            by_part = pair_metrics.pair_results(task, pair_scores)
            results |= by_part | {task.name: by_part[task.name] | metrics}
            points = pair_metrics.compare_sentences(pair_scores.nats_N2, pair_scores.is_same_N)
            details.items.append(_make_items(task, points))
            continue
        example_scores = [next(scores) for _ in choices_of_examples]
        points = np.array(list(map(task_metrics.example_accuracy, task.examples, example_scores)))
        details.items.append(_make_items(task, points))
        arguments = choices_of_examples, example_scores, points, tokenizer
        metrics |= _likelihood_metrics(task, *arguments)
        if task.generate:
            texts = _generate(
                (run, device_mesh, params), tokenizer, task, choices_of_examples, on_progress
            )
            metrics |= task_metrics.text_metrics(task, texts)
            details.answers += task_metrics.answer_rows(task, texts)
        results[task.name] = metrics
    return results


def _likelihood_metrics(
    task: tasks.Task,
    pairs: list[list[token_healing.TokenPair]],
    scores: list[list[task_metrics.TokenScores]],
    points: np.ndarray,
    tokenizer: tokenizers.Tokenizer,
) -> task_metrics.Metrics:
    """Return the metrics of likelihoods and the baselines.

    pairs, scores: see EncodedTask. points: accuracy of each example.
    """
    pieces = [
        choices[example.right].answer_pieces(tokenizer.pieces)
        for example, choices in zip(task.examples, pairs, strict=True)
    ]
    groups = [example.group for example in task.examples]
    metrics = task_metrics.likelihood_metrics(task.examples, scores, pieces)
    return metrics | paired_tests.baseline_metrics(groups, points, task.baselines)


def _make_items(task: tasks.Task, points: np.ndarray) -> task_items.TaskItems:
    """Return the points of the examples of a task. Questions of one passage share a document."""
    documents, groups = [], [example.group for example in task.examples]
    for i, example in enumerate(task.examples):
        passage = example.question.strip().partition("\n")[0]
        is_passage = len(passage) >= PASSAGE_CHARACTERS and passage != example.question.strip()
        documents.append(passage if is_passage else f"{i}")
    digest = task_items.digest_examples(
        [example.prompts, example.answers, example.right] for example in task.examples
    )
    return task_items.make_items(task.name, points, documents, groups, digest)


def evaluate_columns(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    score: Callable,
    params: dict,
    text: dataset.TokenDataset,
    task_list: Sequence[tasks.Task],
    on_progress: Callable[[], None],
    writer: records.Writer,
) -> dict[str, float]:
    """Return the results of evaluate_tasks with all baselines as columns, see `to_columns`.

    text: training text of the run. writer: receives tasks.npz, the points of the examples.
    """
    with_baselines = task_baselines.add_text_baselines(task_list, text)
    details = TaskDetails()
    arguments = run, device_mesh, score, params, text.tokenizer, with_baselines, details
    results = evaluate_tasks(*arguments, on_progress)
    writer.write_file(task_items.FILE, task_items.encode_items(details.items))
    return to_columns(results)


def validate_task_lengths(
    run: schema.Run, tokenizer: tokenizers.Tokenizer, task_list: Sequence[tasks.Task]
) -> None:
    """Raise ValueError if eval.on_overflow is "error" and an example is longer than a row."""
    if run.eval.on_overflow == "error":
        for task in task_list:
            _encode_task(run, task, tokenizer)


def to_columns(results: Results) -> dict[str, float]:
    """Return results as columns: task.NAME.METRIC, and task_se.NAME.METRIC for standard errors."""
    row = {}
    for task, metrics in results.items():
        for metric, numbers in metrics.items():
            row[f"task.{task}.{metric}"] = numbers["value"]
            if "se" in numbers:
                row[f"task_se.{task}.{metric}"] = numbers["se"]
    return row


def pack_examples(
    pairs: Sequence[token_healing.TokenPair], seq_len: int, end: int, newest_only: bool = True
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, int]]]:
    """Pack pairs into rows. Return tokens [N, T+1], segments [N, T] and the answer slots.

    seq_len: T. end: token id of the padding. The slot of an answer is (row, start, stop) of its
    targets. Pairs are sorted by decreasing length. Each is placed in the newest row, or in a new
    row if it does not fit. newest_only=False: in the row with the least space that is enough, which
    fills rows of short texts better.
    """
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i].prompt) - len(pairs[i].answer))
    prompts = {i: pairs[i].prompt[-max(1, seq_len + 1 - len(pairs[i].answer)) :] for i in order}
    sizes = [len(prompts[i]) + len(pairs[i].answer) for i in order]
    rows = packing.best_fit(sizes, seq_len + 1, newest_only=newest_only)
    n_rows = rows.max(initial=-1) + 1
    tokens_NT = np.full((n_rows, seq_len + 1), end, np.int32)
    segments_NT = np.zeros((n_rows, seq_len), np.int32)
    used, n_segments = np.zeros(n_rows, int), np.zeros(n_rows, int)
    answer_slots = [(0, 0, 0)] * len(pairs)
    for i, row, size in zip(order, rows.tolist(), sizes, strict=True):
        start, stop = used[row], used[row] + size
        n_segments[row] += 1
        tokens_NT[row, start:stop] = prompts[i] + pairs[i].answer
        segments_NT[row, start:stop] = n_segments[row]
        first = int(start) + len(prompts[i]) - 1
        answer_slots[i] = row, first, first + len(pairs[i].answer)
        used[row] = stop
    return tokens_NT, segments_NT, answer_slots


def _encode_task(run: schema.Run, task: tasks.Task, tokenizer: tokenizers.Tokenizer) -> EncodedTask:
    """Encode the examples of a task and skip those whose answers are too long for a row."""
    seq_len = run.data.seq_len
    texts = [
        pair
        for example in task.examples
        for pair in zip(example.prompts, example.answers, strict=True)
    ]
    pairs = iter(token_healing.encode_pairs(tokenizer, texts))
    encoded = [(example, [next(pairs) for _ in example.answers]) for example in task.examples]
    fitting = [
        row
        for row, (_, choices) in enumerate(encoded)
        if max(len(pair.answer) for pair in choices) <= seq_len
    ]
    n_truncated = sum(
        max(len(pair.prompt) + len(pair.answer) for pair in encoded[row][1]) > seq_len + 1
        for row in fitting
    )
    n_skipped = len(encoded) - len(fitting)
    if run.eval.on_overflow == "error" and (n_truncated or n_skipped):
        raise ValueError(
            f"task {task.name}: {n_truncated + n_skipped} of {len(encoded)} examples are longer "
            f"than data.seq_len={seq_len}: use fewer shots, or set eval.on_overflow='truncate'"
        )
    fitting_task = task.select_examples(fitting) if n_skipped else task
    return EncodedTask(fitting_task, [encoded[row][1] for row in fitting], n_truncated, n_skipped)


def _score_sentences(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    pairs: list[list[token_healing.TokenPair]],
    on_progress: Callable[[], None] | None = None,
) -> pair_metrics.PairScores:
    """Return the scores of the sentences of minimal pairs.

    The rows have at least as many tokens as the longest sentence, and at most data.seq_len. A batch
    has about as many tokens as in training. A run compiles its function of held-out rows for their
    shape alone, so sentences have an own program.
    """
    sentences = [sentence for pair in pairs for sentence in pair]
    longest = max(len(s.prompt) + len(s.answer) for s in sentences)
    is_cpu = device_mesh.devices.flat[0].platform == "cpu"
    row_tokens = (MIN_PAIR_ROW if is_cpu else MIN_FUSED_ROW) * run.mesh.sequence
    while row_tokens < longest:
        row_tokens *= 2
    row_tokens = min(row_tokens, run.data.seq_len)
    n_rows = run.data.batch_size * max(run.data.seq_len // row_tokens, 1)
    data = dataclasses.replace(run.data, batch_size=n_rows)
    tokens_NT, segments_NT, slots = pack_examples(
        sentences, row_tokens, tokenizer.end, newest_only=False
    )
    program = decoding.sentence_program(decoding.program_cache_key(run), device_mesh)

    def score(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        if on_progress is not None:
            on_progress()
        nats_BT = program(params, batch)
        return nats_BT, nats_BT

    batch = {"tokens": tokens_NT, "segments": segments_NT}
    short_run = dataclasses.replace(run, data=data)
    nats_NT, _ = heldout.score_rows(short_run, device_mesh, score, params, batch)
    nats = np.array([nats_NT[row, start:stop].sum() for row, start, stop in slots])
    n_tokens = np.array([len(sentence.answer) for sentence in sentences])
    is_same = np.array([good.answer == bad.answer for good, bad in pairs])
    return pair_metrics.PairScores(nats.reshape(-1, 2), n_tokens.reshape(-1, 2), is_same)


def _score_examples(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    score: Callable,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    examples: list[list[token_healing.TokenPair]],
    on_progress: Callable[[], None] | None = None,
) -> list[list[task_metrics.TokenScores]]:
    """Return the scores of the answer tokens of each choice of each example."""
    is_shared = [False] * len(examples)
    # The scoring program divides the rows of a batch between devices, but not the positions.
    if mesh.n_batch_devices(device_mesh) == device_mesh.size:
        repeated = [_count_repeated_tokens(choices) for choices in examples]
        if sum(repeated) >= MIN_REPEATED_TOKENS:
            is_shared = [n > 0 for n in repeated]

    def select(shared: bool) -> list[token_healing.TokenPair]:
        return [
            pair
            for choices, is_chosen in zip(examples, is_shared, strict=True)
            if is_chosen == shared
            for pair in choices
        ]

    own = iter(_score_pairs(run, device_mesh, score, params, tokenizer, select(False)))
    chosen = select(True)
    scored = scoring.score_pairs(run, device_mesh, params, chosen, on_progress) if chosen else []
    shared = (task_metrics.TokenScores(answer.nats, answer.hits) for answer in scored)
    return [
        [next(shared if is_chosen else own) for _ in choices]
        for choices, is_chosen in zip(examples, is_shared, strict=True)
    ]


def _count_repeated_tokens(choices: list[token_healing.TokenPair]) -> int:
    """Return the tokens of the prompts of an example that an earlier choice has too."""
    prompts = [pair.prompt for pair in choices]
    return sum(map(len, prompts)) - sum(map(len, set(prompts)))


def _score_pairs(
    run: schema.Run,
    device_mesh: jax.sharding.Mesh,
    score: Callable,
    params: dict,
    tokenizer: tokenizers.Tokenizer,
    pairs: list[token_healing.TokenPair],
) -> list[task_metrics.TokenScores]:
    """Return the scores of the answer tokens of each pair."""
    if not pairs:
        return []
    tokens_NT, segments_NT, answer_slots = pack_examples(pairs, run.data.seq_len, tokenizer.end)
    batch = {"tokens": tokens_NT, "segments": segments_NT}
    nats_NT, best_NT = heldout.score_rows(run, device_mesh, score, params, batch)
    hits_NT = best_NT == tokens_NT[:, 1:]
    _, continues_word_V = heldout.word_token_masks(tokenizer)
    # The model may have more logits than the tokenizer has tokens. These end a word.
    ends_word_V = np.append(~continues_word_V, True)
    ends_word_NT = ends_word_V[np.minimum(best_NT, len(continues_word_V))]
    scores = [
        (nats_NT[row, start:stop], hits_NT[row, start:stop]) for row, start, stop in answer_slots
    ]
    merged = coverings.merge_spanning_tokens(run, device_mesh, params, pairs, scores)
    # The prediction after the last token of a row is unknown: this slice is then shorter.
    ends_word = [
        ends_word_NT[row, start + pair.n_spanning : stop + 1]
        for pair, (row, start, stop) in zip(pairs, answer_slots, strict=True)
    ]
    return [
        task_metrics.TokenScores(nats, hits, ends)
        for (nats, hits), ends in zip(merged, ends_word, strict=True)
    ]


def _generate(
    model: tuple[schema.Run, jax.sharding.Mesh, dict],
    tokenizer: tokenizers.Tokenizer,
    task: tasks.Task,
    pairs: list[list[token_healing.TokenPair]],
    on_progress: Callable[[], None] | None,
) -> list[str]:
    """Generate an answer to each example, with up to twice the tokens of the longest answer."""
    prompts = [
        token_healing.encode_prompt(tokenizer, example.prompts[0]) for example in task.examples
    ]
    longest = max(len(pair.answer) for choices in pairs for pair in choices)
    sampling = generation.SamplingParams(max_tokens=2 * longest, stop=(task.stop,))
    generated = generation.generate(*model, prompts, tokenizer, sampling, on_progress)
    return [answer.text for answer in generated]
