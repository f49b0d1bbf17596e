"""Task evaluation: packing changes no score, and a perfect model has accuracy 1."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lm.config import schema
from lm.data import tokenizers
from lm.data.tokenization import token_healing
from lm.evaluation import scoring, task_eval, task_metrics, tasks
from lm.model import transformer
from lm.parallel import mesh
from lm.training import step

NAMES = ["copy?length=4&n=9", "addition?digits=2&choices=3&n=5&shots=1"]


def pairs_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return [
        token_healing.TokenPair(
            (0, *rng.integers(1, 256, rng.integers(1, 9)).tolist()),
            tuple(rng.integers(1, 256, rng.integers(1, 9)).tolist()),
        )
        for _ in range(n)
    ]


def test_every_pair_is_contiguous_in_its_own_segment():
    pairs = pairs_of(50)
    tokens_NT, segments_NT, answer_slots = task_eval.pack_examples(pairs, 32, end=0)
    assert tokens_NT.shape[1] == 33 and segments_NT.shape[1] == 32
    n_used = sum(len(pair.prompt) + len(pair.answer) - 1 for pair in pairs)
    assert n_used > 0.75 * segments_NT.size  # rows are nearly full
    n_pairs_NT = np.zeros(segments_NT.shape, int)
    for pair, (row, start, stop) in zip(pairs, answer_slots, strict=True):
        prompt, answer = pair.prompt, pair.answer
        assert (tokens_NT[row, start + 1 : stop + 1] == answer).all()
        first = start - len(prompt) + 1
        assert (tokens_NT[row, first : start + 1] == prompt).all()
        assert len(set(segments_NT[row, first:stop])) == 1
        n_pairs_NT[row, first:stop] += 1
        # The last token of the answer is an input, except in the last column.
        is_input = int(stop < segments_NT.shape[1])
        assert (segments_NT[row] == segments_NT[row, start]).sum() == stop - first + is_input
    assert n_pairs_NT.max() == 1


def test_too_long_prompt_is_truncated_at_its_beginning():
    pair = token_healing.TokenPair(tuple(range(1, 60)), tuple(range(60, 70)))
    tokens_NT, _, ((row, start, stop),) = task_eval.pack_examples([pair], 32, end=0)
    assert (tokens_NT[0] == np.arange(70 - 33, 70)).all() and stop == 32 and stop - start == 10


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    from lm.config import model_sizes

    run = schema.Run(name="exam", dir=str(tmp_path_factory.mktemp("runs")))
    run.model = model_sizes.ladder_model("10K", n_layers=2, vocab_size=256)
    run.data.seq_len, run.data.batch_size = 48, 8
    program = step.build_train_functions(run, mesh.make_mesh(run.mesh))
    with jax.set_mesh(program.mesh):
        return run, program, program.init(0)["params"]


def test_packed_answers_score_as_single_answers(built):
    run, program, params = built
    task_list = [tasks.load_task(name) for name in NAMES]
    tokenizer = tokenizers.ByteTokenizer()
    with jax.set_mesh(program.mesh):
        results = task_eval.evaluate_tasks(
            run, program.mesh, program.score, params, tokenizer, task_list
        )
        row = task_eval.to_columns(results)
        bits = []
        compute_logits = jax.jit(
            lambda ids_BT: transformer.compute_logits(run.model, params, ids_BT)
        )
        cross_entropy = jax.jit(transformer.cross_entropy)
        for example in task_list[0].examples:
            text = example.prompts[0] + example.answers[0]
            ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
            n, k = len(ids) - 1, len(example.answers[0])
            ids_BT = np.tile(np.pad(ids, (0, 49 - len(ids))), (8, 1))  # the mesh splits 8 rows
            logits = compute_logits(ids_BT[:, :-1])
            nats = np.asarray(cross_entropy(logits, ids_BT[:, 1:])[0])
            bits.append(float(nats[0, n - k : n].sum()) / np.log(2) / k)
    name = NAMES[0]
    assert row[f"task.{name}.bits_per_byte"] == pytest.approx(np.mean(bits), rel=1e-4)
    assert row[f"task.{name}.n"] == 9 and row[f"task.{name}.n_truncated"] == 0
    chance = task_metrics.chance_accuracy(task_list[1].examples)
    assert row[f"task.{NAMES[1]}.chance"] == pytest.approx(chance) and chance >= 1 / 3
    assert f"task_se.{name}.accuracy" in row


def test_accuracy_is_one_for_a_perfect_model_only(built):
    run, program, _ = built
    name, tokenizer = NAMES[0], tokenizers.ByteTokenizer()

    def columns(is_perfect: bool) -> dict:
        def score(params, batch):
            targets_BT = np.asarray(batch["tokens"])[:, 1:]
            nats_BT = np.full(targets_BT.shape, 0.1)
            return nats_BT, targets_BT if is_perfect else targets_BT + 1

        task_list = [tasks.load_task(name)]
        results = task_eval.evaluate_tasks(run, program.mesh, score, {}, tokenizer, task_list)
        return task_eval.to_columns(results)

    assert columns(is_perfect=True)[f"task.{name}.accuracy"] == 1
    assert columns(is_perfect=True)[f"task_se.{name}.accuracy"] == 0
    assert columns(is_perfect=False)[f"task.{name}.accuracy"] == 0


@pytest.mark.parametrize("following, saved", [("p", 0), (".", 1 - 1 / 4), ("\0", 1 - 1 / 4)])
def test_keystrokes_need_the_prediction_of_a_word_end(built, tmp_path, following, saved):
    """The model predicts " car" and, after it, `following`."""
    run, program, _ = built

    def score(params, batch):
        tokens_BT = np.asarray(batch["tokens"])
        best_BT = tokens_BT[:, 1:].copy()
        best_BT[tokens_BT[:, :-1] == ord("r")] = ord(following)
        return np.full(best_BT.shape, 0.1), best_BT

    (tmp_path / "test.jsonl").write_text('{"context": "My", "continuation": "car"}')
    task = tasks.load_task(f"file:{tmp_path}")
    arguments = (program.mesh, score, {}, tokenizers.ByteTokenizer(), [task])
    metrics = task_eval.evaluate_tasks(run, *arguments)[task.name]
    assert metrics["keystrokes_saved"]["value"] == saved
    assert metrics["accuracy"]["value"] == 1


def test_points_of_the_examples_are_collected(built, tmp_path):
    """Questions of one passage share a document. The mean of the points is the accuracy."""
    run, program, _ = built
    passages = ["The first passage of the set. " * 6, "A second one. " * 12]
    rows = [
        {"context": f"{passage}\nQuestion {i}:", "continuation": " yes"}
        for i, passage in enumerate([passages[0], passages[0], passages[1]])
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def score(params, batch):
        targets_BT = np.asarray(batch["tokens"])[:, 1:]
        return np.full(targets_BT.shape, 0.1), targets_BT

    task_list = [tasks.load_task(f"file:{tmp_path}"), tasks.load_task("copy?length=2&n=5")]
    details = task_eval.TaskDetails()
    arguments = program.mesh, score, {}, tokenizers.ByteTokenizer(), task_list, details
    results = task_eval.evaluate_tasks(run, *arguments)
    assert [item.task for item in details.items] == [task.name for task in task_list]
    for item in details.items:
        assert item.accuracy == results[item.task]["accuracy"]["value"] == 1
    assert sorted(np.bincount(details.items[0].documents)) == [1, 2]
    assert details.items[1].documents.tolist() == [0, 1, 2, 3, 4]
    again = task_eval.TaskDetails()
    task_eval.evaluate_tasks(run, *arguments[:-1], again)
    assert [i.digest for i in again.items] == [i.digest for i in details.items]


def test_too_long_examples_are_counted_or_rejected(built, tmp_path):
    run, program, params = built
    rows = ['{"context": "q", "continuation": "a"}']
    rows += ['{"context": "%s", "continuation": "a"}' % ("q" * 99)]
    rows += ['{"context": "q", "continuation": "%s"}' % ("a" * 99)]
    (tmp_path / "test.jsonl").write_text("\n".join(rows))
    task = tasks.load_task(f"file:{tmp_path}")
    arguments = (program.mesh, program.score, params, tokenizers.ByteTokenizer(), [task])
    with jax.set_mesh(program.mesh):
        row = task_eval.to_columns(task_eval.evaluate_tasks(run, *arguments))
    counts = [row[f"task.{task.name}.{name}"] for name in ("n", "n_truncated", "n_skipped")]
    assert counts == [2, 1, 1]
    run.eval.on_overflow = "error"
    with pytest.raises(ValueError, match="2 of 3 examples are longer than data.seq_len=48"):
        task_eval.evaluate_tasks(run, *arguments)
    run.eval.on_overflow = "truncate"


def test_task_eval_and_scoring_agree(built):
    run, program, params = built
    task, tokenizer = tasks.load_task(NAMES[0]), tokenizers.ByteTokenizer()
    with jax.set_mesh(program.mesh):
        results = task_eval.evaluate_tasks(
            run, program.mesh, program.score, params, tokenizer, [task]
        )
    metrics = results[task.name]
    prompts = [list(example.prompts[0].encode()) for example in task.examples]
    answers = [list(example.answers[0].encode()) for example in task.examples]
    scored = scoring.score_answers(run, program.mesh, params, prompts, answers)
    bits = [s.nats.sum() / np.log(2) / len(a) for s, a in zip(scored, answers, strict=True)]
    assert metrics["bits_per_byte"]["value"] == pytest.approx(np.mean(bits), rel=1e-4)
    assert metrics["exact"]["value"] == np.mean([s.is_greedy for s in scored])


def test_repeated_prompts_are_computed_once(built, monkeypatch):
    run, program, params = built
    names = [NAMES[0], "addition?digits=2&choices=5&n=20", "sort?choices=3&n=4&shots=2"]
    task_list, tokenizer = [tasks.load_task(name) for name in names], tokenizers.ByteTokenizer()
    batches = []

    def evaluate(least):
        batches.clear()
        monkeypatch.setattr(task_eval, "MIN_REPEATED_TOKENS", least)
        arguments = run, program.mesh, program.score, params, tokenizer, task_list
        with jax.set_mesh(program.mesh):
            return task_eval.evaluate_tasks(*arguments, on_progress=lambda: batches.append(1))

    separate = evaluate(10**9)
    assert not batches
    scored = []
    score_pairs = scoring.score_pairs
    monkeypatch.setattr(scoring, "score_pairs", lambda *a: scored.extend(a[3]) or score_pairs(*a))
    shared = evaluate(1)
    assert len(batches) > 0
    assert len(scored) == 20 * 5 + 4 * 3  # not the answers of the task without choices
    assert shared.keys() == separate.keys()
    for name in names:
        for metric, numbers in separate[name].items():
            assert shared[name][metric] == pytest.approx(numbers, rel=1e-4), (name, metric)


def test_generate_adds_metrics_of_generated_answers(built):
    run, program, params = built
    task = tasks.load_task("copy?length=2&n=4&generate=1")
    details = task_eval.TaskDetails()
    results = task_eval.evaluate_tasks(
        run, program.mesh, program.score, params, tokenizers.ByteTokenizer(), [task], details
    )
    answers = details.answers
    assert [answer["prompt"] for answer in answers] == [e.prompts[0] for e in task.examples]
    assert [[a["references"][0] + "\n"] for a in answers] == [[*e.answers] for e in task.examples]
    metrics = {name: numbers["value"] for name, numbers in results[task.name].items()}
    assert 0 <= metrics["edit_distance"] <= 1
    assert metrics["said_exactly"] == metrics["exact"]


def test_acc_norm_divides_by_characters_of_the_bare_choice():
    """lm-evaluation-harness divides by len(choice): without its delimiter, in characters."""
    choices = ["ééé", "abcd", "xy"]
    nats = [np.array([3.0]), np.array([1.0, 3.2]), np.array([2.5])]
    example = tasks.Example(("Q:",) * 3, tuple(f" {c}" for c in choices), 0, 1 / 3)
    log_p = -np.array([array.sum() for array in nats])
    expected = np.argmax(log_p / np.array([float(len(c)) for c in choices])) == 0
    scores = [task_metrics.TokenScores(array, array > 9) for array in nats]
    metrics = task_metrics.likelihood_metrics([example], [scores], [[b"eee"]])
    assert metrics["acc_norm"]["value"] == expected == 1
    n_bytes = np.array([len(f" {c}".encode()) for c in choices])
    assert np.argmax(log_p / n_bytes) == 0 and np.argmax(log_p) == 2


def test_counts_of_overlong_examples_equal_an_enumeration(tmp_path):
    """A row of n + 1 tokens contains the prompt and the answer, and n of them are targets."""
    run = schema.Run()
    sizes = [(prompt, answer) for prompt in (1, 3, 7, 8, 12) for answer in (1, 2, 6, 9)]
    rows = [{"context": "q" * prompt, "continuation": "a" * answer} for prompt, answer in sizes]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task, tokenizer = tasks.load_task(f"file:{tmp_path}"), tokenizers.ByteTokenizer()
    pairs = token_healing.encode_pairs(
        tokenizer, [(e.prompts[0], e.answers[0]) for e in task.examples]
    )
    lengths = [(len(pair.prompt), len(pair.answer)) for pair in pairs]
    for seq_len in range(1, 24):
        run.data.seq_len = seq_len
        encoded = task_eval._encode_task(run, task, tokenizer)
        skipped = [pair for pair in lengths if pair[1] > seq_len]
        truncated = [pair for pair in lengths if sum(pair) > seq_len + 1 and pair not in skipped]
        assert (encoded.n_truncated, encoded.n_skipped) == (len(truncated), len(skipped))
        assert len(encoded.pairs) == len(encoded.task.examples) == len(sizes) - len(skipped)


def test_pairs_are_scored_in_short_rows_by_an_own_program(built, tmp_path):
    """A run compiles the function of held-out rows for rows of data.seq_len tokens alone."""
    run, program, params = built
    long_run = dataclasses.replace(run, data=dataclasses.replace(run.data, seq_len=256))
    (tmp_path / "pairs.tsv").write_text("They run.\tThey runs.\nHe runs.\tHe run.\n" * 40)
    task = tasks.load_task(f"pair:{tmp_path}/pairs.tsv")
    tokenizer, n_batches = tokenizers.open_tokenizer("bytes"), []
    with jax.set_mesh(program.mesh):
        results = task_eval.evaluate_tasks(
            long_run,
            program.mesh,
            lambda params, batch: pytest.fail("called the function of held-out rows"),
            params,
            tokenizer,
            [task],
            on_progress=lambda: n_batches.append(1),
        )
        pairs = [
            scoring.score_pairs(run, program.mesh, params, choices)
            for choices in (
                token_healing.encode_pairs(tokenizer, [("", text) for text in example.answers])
                for example in task.examples[:2]
            )
        ]
    margins = [bad.nats.sum() - good.nats.sum() for good, bad in pairs]
    assert results[task.name]["margin"]["value"] == pytest.approx(np.mean(margins), abs=1e-5)
    assert len(n_batches) == 1
