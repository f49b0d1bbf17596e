"""Baselines of each kind of task, and their place in the records of a run."""

import json

import numpy as np
import pytest

from lm.data import tokenizers
from lm.evaluation import task_eval, task_metrics, tasks
from lm.evaluation.baselines import ngram_counts, task_baselines
from lm.runs import records, task_results
from lm.training import loop

TEXT = b"the cat sat on the mat\0 the cat ran on the mat\0"
BYTES = tokenizers.ByteTokenizer()


def counts() -> ngram_counts.NgramCounts:
    ids = np.frombuffer(3 * TEXT, np.uint8).astype(int)
    bigrams, n = np.unique(ids[:-1] * 256 + ids[1:], return_counts=True)
    return ngram_counts.NgramCounts(np.bincount(ids, minlength=256), bigrams, n)


def load(tmp_path, name: str = "file", train=(), **rows: list) -> tasks.Task:
    lines = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if train:
        (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, train)))
    return tasks.load_task(f"{name}:{tmp_path}")


def baselines_of(task: tasks.Task, has_counts=True) -> dict[str, list[float]]:
    (task,) = task_baselines.add_baselines([task], BYTES, counts() if has_counts else None)
    return {baseline.name: baseline.points.tolist() for baseline in task.baselines}


def test_words_in_another_order_are_ties_of_the_unigram_model(tmp_path):
    good, bad = ["the cat sat", "the mat"], ["eht tac tas", "the zzz"]
    task = load(tmp_path, "pair", sentence_good=good, sentence_bad=bad)
    in_file_order = sorted(range(2), key=lambda i: good.index(task.examples[i].answers[0]))
    points = baselines_of(task)
    assert [points["unigram"][i] for i in in_file_order] == [0.5, 1]
    assert [points["bigram"][i] for i in in_file_order] == [1, 1]
    assert baselines_of(task, has_counts=False) == {}


def test_choices_and_exact_answers_have_ngram_baselines(tmp_path):
    choices = [["cat", "qqq"]]
    task = load(tmp_path, query=["the"], choices=choices, answer=[1])
    assert baselines_of(task) == {"unigram": [0], "bigram": [0]}
    task = load(tmp_path, context=["the ca", "the"], continuation=["t", "x"])
    by_answer = {e.answers[0]: i for i, e in enumerate(task.examples)}
    points = baselines_of(task)["bigram"]
    assert points[by_answer[" x"]] == 0 and set(baselines_of(task)) == {"unigram", "bigram"}


def test_classification_with_training_examples_has_a_bag_of_words(tmp_path):
    rows: dict = {"text": ["so good", "so bad", "awful"], "label_name": ["yes", "no", "no"]}
    train = [{"text": "good", "label_name": "yes"}, {"text": "bad awful", "label_name": "no"}]
    assert set(baselines_of(load(tmp_path, **rows))) == {"unigram", "bigram"}
    task = load(tmp_path, train=train, **rows)
    assert baselines_of(task)["bag_of_words"] == [1, 1, 1]
    with_template = tasks.load_task(f"file:{tmp_path}?template=chat&shots=1")
    assert baselines_of(with_template)["bag_of_words"] == [1, 1, 1]


def test_translation_is_compared_with_a_copy_of_its_source(tmp_path):
    pytest.importorskip("sacrebleu", reason="needs the extra translation")
    task = load(tmp_path, src=["A cat .", "Two dogs ."], tgt=["A cat .", "Zwei Hunde ."])
    (task,) = task_baselines.add_baselines([task], BYTES, counts())
    (copied,) = task.baselines
    assert copied.texts == [e.prompts[0].removesuffix("\n=>") for e in task.examples]
    correct = [example.answers[0].strip() for example in task.examples]
    metrics = task_metrics.text_metrics(task, correct)
    assert metrics["chrf"]["value"] == pytest.approx(100)
    assert metrics["chrf_baseline_copy"]["value"] < 90
    assert 0 <= metrics["p_above_baseline"]["value"] <= 1
    assert task_results.select_baseline(metrics, "bleu")[0] == "copy"


def test_test_of_a_translation_is_against_all_baselines(tmp_path):
    pytest.importorskip("sacrebleu", reason="needs the extra translation")
    train = [{"src": f"A {x}", "tgt": f"Ein {x}"} for x in ("Hund", "Kater", "Baum", "Haus")]
    sources, targets = ["A Hund Baum", "A Baum Haus"], ["Ein Hund Baum", "Ein Baum Haus"]
    task = load(tmp_path, train=train, src=sources, tgt=targets)
    (task,) = task_baselines.add_baselines([task], BYTES, counts())
    assert [baseline.name for baseline in task.baselines] == ["copy", "nearest", "word_by_word"]
    correct = [example.answers[0].strip() for example in task.examples]
    metrics = task_metrics.text_metrics(task, correct)
    # The copies are worse than the answers, and the translations word by word are equal to them.
    assert metrics["chrf_baseline_word_by_word"]["value"] == pytest.approx(100)
    assert metrics["p_above_baseline"]["value"] == 1
    assert task_results.select_baseline(metrics, "chrf")[0] == "word by word"


def test_records_of_a_run_contain_the_baselines(tiny, tmp_path):
    (tmp_path / "pairs.tsv").write_text("The fox jumps.\tThe fox jump.\nIt sleeps.\tSleeps it.\n")
    (tmp_path / "other.tsv").write_text("A while.\tWhile a.\n" + "x" * 40 + "\ty\n")
    name = f"pair:{tmp_path}"
    tiny.eval.tasks, tiny.data.cache_dir = f"copy?length=3&n=5 {name}", str(tmp_path / "cache")
    loop.train(tiny)
    (row,) = records.load_runs(tiny.dir)
    names = task_results.task_names([row])
    assert names == ["copy?length=3&n=5", f"{name}#other", f"{name}#pairs"]
    assert task_results.paradigm_means([row]) == [name]
    for task in (name, f"{name}#pairs", "copy?length=3&n=5"):
        metrics = task_results.task_results(row)[task]
        assert {"baseline_unigram", "baseline_bigram", "p_above_baseline"} <= metrics.keys()
    assert task_results.task_value(row, name, "n_skipped") == 1
    assert task_results.task_value(row, f"{name}#other", "n") == 1


def test_baselines_of_skipped_examples_are_left_out(tmp_path):
    task = load(tmp_path, context=["a", "b", "c"], continuation=["x", "y", "z"])
    (task,) = task_baselines.add_baselines([task], BYTES, counts())
    selected = task.select_examples([2, 0])
    assert selected.examples == [task.examples[2], task.examples[0]]
    assert selected.baselines[0].points.tolist() == task.baselines[0].points[[2, 0]].tolist()
    assert task_eval.to_columns({"t": {"n": {"value": 2}}}) == {"task.t.n": 2}
