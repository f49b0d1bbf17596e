"""Task metrics from known log-likelihoods."""

import dataclasses
import importlib.util

import numpy as np
import pytest
from scipy import stats

from lm.evaluation import task_metrics, tasks


def token_scores(nats, hits=None):
    return task_metrics.TokenScores(
        np.array(nats, float), np.array(hits if hits else [False] * len(nats))
    )


def values(metrics):
    """Return metric -> value, and metric_se -> standard error."""
    errors = {f"{name}_se": m["se"] for name, m in metrics.items() if "se" in m}
    return {name: m["value"] for name, m in metrics.items()} | errors


def test_choices_are_compared_by_nats_and_nats_per_byte():
    example = tasks.Example(("q", "q"), ("ab", "abcdefgh"), right=1, chance=0.5)
    scores = [[token_scores([2.0]), token_scores([3.0])]]
    row = values(task_metrics.likelihood_metrics([example], scores, [[b"abcdefgh"]]))
    assert row["accuracy"] == 0 and row["accuracy_bytes"] == 1  # 3 nats for four times the bytes
    p = 1 / (1 + np.e)
    assert row["p_right"] == pytest.approx(p)
    assert row["brier"] == pytest.approx(2 * (1 - p) ** 2)
    assert row["bits_per_byte"] == pytest.approx(3 / np.log(2) / 8)
    assert row["chance"] == 0.5 and row["n"] == 1


def test_single_answer_needs_every_token_most_likely():
    example = tasks.Example(("q",), ("xyz",))
    pieces = [b"x", b"y", b"z"]
    scores = token_scores([0.1, 0.2, 0.3], [True, False, True])
    row = values(task_metrics.likelihood_metrics([example], [[scores]], [pieces]))
    assert row["accuracy"] == row["exact"] == 0 and row["token_accuracy"] == pytest.approx(2 / 3)
    assert row["token_probability"] == pytest.approx(np.exp(-0.2)) and row["tokens"] == 3
    assert row["p_right"] == pytest.approx(np.exp(-0.6))
    assert row["token_probability"] ** 3 == pytest.approx(row["p_right"])
    assert "accuracy_bytes" not in row
    scores = token_scores([0.1, 0.2, 0.3], [True] * 3)
    row = values(task_metrics.likelihood_metrics([example], [[scores]], [pieces]))
    assert row["accuracy"] == 1


def test_standard_errors_match_repeated_sampling():
    rng, example = np.random.default_rng(0), tasks.Example(("q",), ("x",))
    rows = []
    for _ in range(200):
        hits = rng.random(60) < 0.3
        scores = [[token_scores([0.5], [bool(hit)])] for hit in hits]
        rows.append(values(task_metrics.likelihood_metrics([example] * 60, scores, [[b"x"]] * 60)))
    deviation = np.std([row["accuracy"] for row in rows])
    assert deviation == pytest.approx(np.mean([row["accuracy_se"] for row in rows]), rel=0.15)


def test_keystrokes_are_saved_when_a_word_ends_correctly():
    pieces = [bytes([b]) for b in b" music x"]
    no, yes = np.zeros(8, bool), np.ones(8, bool)
    assert task_metrics.keystrokes_saved(no, pieces, yes) == 0
    assert task_metrics.keystrokes_saved(yes, pieces, no) == 0  # the model continues each word
    per_word = task_metrics.keystrokes_saved(yes, pieces, yes)  # one key press per word
    assert per_word == pytest.approx(1 - 2 / 8)
    hits = np.array([0, 0, 1, 1, 1, 1, 0, 0], bool)
    saved = task_metrics.keystrokes_saved(hits, pieces, yes)
    assert saved == pytest.approx(1 - (2 + 1 + 2) / 8)


def test_word_with_unknown_end_is_left_out_of_keystrokes():
    pieces, yes = [b" car", b" is", b" red"], np.ones(3, bool)
    assert task_metrics.keystrokes_saved(yes, pieces) == pytest.approx(1 - 2 / 7)
    hits = np.array([True, False, True])  # the word after " car" is not predicted
    assert task_metrics.keystrokes_saved(hits, pieces) == pytest.approx(1 - (4 + 3) / 7)
    assert task_metrics.keystrokes_saved(yes, pieces, yes[:2]) == pytest.approx(1 - 2 / 7)
    example = tasks.Example(("q",), (" car",))
    scores = [[token_scores([0.1], [True])]]
    assert "keystrokes_saved" not in task_metrics.likelihood_metrics([example], scores, [[b" car"]])


def test_keystrokes_are_characters_and_not_bytes():
    pieces = [bytes([byte]) for byte in "éab".encode()]
    hits = np.array([False, True, True, True])  # é is one key press
    saved = task_metrics.keystrokes_saved(hits, pieces, np.ones(4, bool))
    assert saved == pytest.approx(1 - 2 / 3)


def test_template_mark_ends_a_word():
    pieces = [b"c", b"ar", b"\x03"]
    assert task_metrics.keystrokes_saved(np.ones(3, bool), pieces) == pytest.approx(1 - 1 / 3)


def test_equal_choices_share_the_point():
    example = tasks.Example(("q",) * 3, (" a", " a", " b"), right=1, chance=1 / 3)
    rounding = 1e-9  # equal choices may be computed in different rows
    scores = [[token_scores([n]) for n in (1.0, 1.0 + rounding, 2.0)]]
    row = values(task_metrics.likelihood_metrics([example], scores, [[b" a"]]))
    assert row["accuracy"] == row["accuracy_bytes"] == 0.5
    pair = tasks.Example(("", ""), ("He runs.", "He run."), chance=0.5)
    for nats, accuracy in (((1.0, 2.0), 1), ((2.0, 1.0), 0), ((1.0, 1.0), 0.5)):
        scores = [[token_scores([n]) for n in nats]]
        row = values(task_metrics.likelihood_metrics([pair], scores, [[b"He runs."]]))
        assert row["accuracy"] == accuracy


def test_bytes_of_a_choice_exclude_space_and_template_mark():
    for suffix in ("", "\n", "\x03"):
        answers = (f" a{suffix}", f" abcdef{suffix}")
        example = tasks.Example(("q", "q"), answers, right=1, chance=0.5)
        scores = [[token_scores([1.0]), token_scores([4.0])]]
        row = values(task_metrics.likelihood_metrics([example], scores, [[b" abcdef"]]))
        assert row["accuracy_bytes"] == 1 and row["accuracy"] == 0  # 1.0 and 0.67 nats per byte
    example = tasks.Example(("q", "q"), (" é", " ab"), right=0, chance=0.5)
    scores = [[token_scores([1.5]), token_scores([2.0])]]
    row = values(task_metrics.likelihood_metrics([example], scores, [[b" ab"]]))
    assert row["acc_norm"] == 0 and row["accuracy_bytes"] == 1  # 1.5 and 1.0 nats per character


def test_chance_is_the_accuracy_of_the_best_constant_answer():
    def example(right, answers=(" no", " yes"), **fields):
        n = len(answers)
        return tasks.Example(("q",) * n, answers, right, 1 / n, **fields)

    labels = [example(right, has_fixed_choices=True) for right in (0, 1, 1, 1)]
    assert task_metrics.chance_accuracy(labels) == 0.75
    assert task_metrics.chance_accuracy([example(1)] * 4) == 1
    assert task_metrics.chance_accuracy([example(0), example(1)] * 2) == 0.5
    grades = [example(right, (" a", " b", " c"), has_fixed_choices=True) for right in (0, 1, 2)]
    assert task_metrics.chance_accuracy([*labels, *grades]) == pytest.approx((4 * 0.75 + 1) / 7)
    groups = [dataclasses.replace(one, group="x") for one in labels]
    groups += [dataclasses.replace(one, group="y") for one in grades]
    assert task_metrics.chance_accuracy(groups) == pytest.approx((0.75 + 1 / 3) / 2)


def test_group_is_the_mean_of_its_members():
    rng, n = np.random.default_rng(0), {"a": 40, "b": 10}
    examples, scores, by_group = [], [], {}
    for group, size in n.items():
        hits = rng.random(size) < 0.4
        by_group[group] = hits
        examples += [tasks.Example(("q",), ("x",), group=group)] * size
        scores += [[token_scores([0.5], [bool(hit)])] for hit in hits]
    row = values(task_metrics.likelihood_metrics(examples, scores, [[b"x"]] * 50))
    assert row["accuracy"] == pytest.approx(np.mean([hits.mean() for hits in by_group.values()]))
    errors = [hits.std(ddof=1) / len(hits) ** 0.5 for hits in by_group.values()]
    assert row["accuracy_se"] == pytest.approx(np.hypot(*errors) / 2) and row["n"] == 50


def test_edit_distance_counts_letters_to_change():
    task = tasks.Task("t", [tasks.Example(("q",), ("sitting",)), tasks.Example(("q",), (" a",))])
    row = values(task_metrics.text_metrics(task, ["kitten", "a"]))
    assert row["edit_distance"] == pytest.approx(3 / 7 / 2) and row["said_exactly"] == 0.5


def test_answer_may_match_any_reference():
    task = tasks.Task("t", [tasks.Example(("q",), ("vier",), others=("4",))])
    assert values(task_metrics.text_metrics(task, [" 4"]))["said_exactly"] == 1


def test_template_mark_is_no_part_of_a_reference(tmp_path):
    (tmp_path / "test.jsonl").write_text('{"question": "q", "answer": "vier", "aliases": "4"}')
    for template in ("", "chat", "question", "task", "plain"):
        task = tasks.load_task(f"file:{tmp_path}?generate=1&template={template}")
        for text in ("vier", "4"):
            row = values(task_metrics.text_metrics(task, [text]))
            assert row["said_exactly"] == 1 and row["edit_distance"] == 0


def test_squad_match_ignores_case_articles_and_punctuation():
    example = tasks.Example(("q",), (" the Eiffel Tower",), others=(" Tour Eiffel",))
    task = tasks.Task("t", [example], match="squad")
    for text, exact, f1 in (
        ("Eiffel tower.", 1, 1),
        ("An Eiffel-Tower!", 0, 0),
        ("the tall Eiffel Tower", 0, 0.8),
        ("tour eiffel", 1, 1),
        ("", 0, 0),
    ):
        row = values(task_metrics.text_metrics(task, [text]))
        assert (row["normalized_match"], row["said_exactly"]) == (exact, 0)
        assert row["f1"] == pytest.approx(f1)
    strict = values(task_metrics.text_metrics(dataclasses.replace(task, match="strict"), ["x"]))
    assert "f1" not in strict


def test_number_match_compares_the_last_number():
    task = tasks.Task("t", [tasks.Example(("q",), (" 1,234",))], match="number")
    for text, is_correct in (("5 + 6 is 1234.", 1), ("#### 1234.0", 1), ("1234 5", 0), ("no", 0)):
        assert values(task_metrics.text_metrics(task, [text]))["number_match"] == is_correct


def test_translation_metrics_have_bootstrap_errors():
    sacrebleu = pytest.importorskip("sacrebleu")
    rng, words = np.random.default_rng(0), np.array("ein Haus am See mit Garten und Hund".split())
    sentences = [" ".join(rng.permutation(words)) for _ in range(40)]
    outputs = [" ".join(sentence.split()[: 4 + i % 5]) for i, sentence in enumerate(sentences)]
    task = tasks.Task("t", [tasks.Example(("q",), (s,)) for s in sentences], True, True)
    metrics = task_metrics.text_metrics(task, outputs)
    assert metrics["bleu"]["value"] == sacrebleu.corpus_bleu(outputs, [sentences]).score
    assert metrics["chrf"]["value"] == sacrebleu.corpus_chrf(outputs, [sentences]).score
    scores = []
    for _ in range(200):
        i = rng.integers(40, size=40)
        chosen = [outputs[k] for k in i], [[sentences[k] for k in i]]
        scores.append(sacrebleu.corpus_bleu(*chosen).score)
    assert metrics["bleu"]["se"] == pytest.approx(np.std(scores), rel=0.2)
    assert 0 < metrics["chrf"]["se"] < 5
    empty = task_metrics.text_metrics(task, [""] * 40)
    assert empty["bleu"] == {"value": 0, "se": 0}


def test_translation_metrics_need_sacrebleu():
    task = tasks.Task("t", [tasks.Example(("q",), ("ein Haus am See",))] * 3, True, True)
    if importlib.util.find_spec("sacrebleu"):
        assert values(task_metrics.text_metrics(task, ["ein Haus am See"] * 3))[
            "chrf"
        ] == pytest.approx(100)
    else:
        with pytest.raises(ValueError, match="lm-scaling\\[translation\\]"):
            task_metrics.text_metrics(task, ["ein Haus am See"] * 3)


def test_chance_of_written_answers_is_that_of_the_most_frequent():
    def example(answer, chance=0.1):
        return tasks.Example(("q",), (answer,), 0, chance)

    answers = ["a"] * 3 + ["b"] * 2 + ["c"] * 3
    assert task_metrics.chance_accuracy(list(map(example, answers))) == 0.375
    several = [example("a"), *map(example, "bcdefghijkl")]
    assert task_metrics.chance_accuracy(several) == pytest.approx(0.1)
    different = [example(letter, chance=0.0) for letter in "abcd"]
    assert task_metrics.chance_accuracy(different) == 0


def test_constant_answer_that_is_a_choice_of_some_questions():
    def example(right, answers):
        return tasks.Example(("q",) * 2, answers, right, 0.5)

    examples = [example(0, (" x", f" {i}")) for i in range(6)]
    examples += [example(1, (f" {i}", f" {i + 10}")) for i in range(4)]
    assert task_metrics.chance_accuracy(examples) == pytest.approx(0.6 + 0.4 / 2)
    own_choices = [example(0, (f" {i}", f" {i + 50}")) for i in range(20)]
    assert task_metrics.chance_accuracy(own_choices) == 0.5


@pytest.mark.parametrize("name", ["brackets?depth=3", "brackets?depth=2", "addition?digits=1"])
def test_constant_answer_is_not_above_chance_on_synthetic_tasks(name):
    examples = tasks.load_task(name).examples
    rights = [example.answers[example.right] for example in examples]
    frequency = max(map(rights.count, rights)) / len(rights)
    assert task_metrics.chance_accuracy(examples) == pytest.approx(
        max(frequency, examples[0].chance)
    )


def test_standard_error_of_a_task_is_that_of_its_mean():
    example = tasks.Example(("q",), ("x",))
    nats = np.array([0.1, 0.5, 0.9, 1.7, 2.2])
    scores = [[token_scores([value], [value < 1])] for value in nats]
    row = values(task_metrics.likelihood_metrics([example] * 5, scores, [[b"x"]] * 5))
    for metric, samples in (
        ("bits_per_byte", nats / np.log(2)),
        ("accuracy", nats < 1),
        ("p_right", np.exp(-nats)),
    ):
        assert row[metric] == pytest.approx(np.mean(samples))
        assert row[f"{metric}_se"] == pytest.approx(stats.sem(samples))
    single = values(task_metrics.likelihood_metrics([example], scores[:1], [[b"x"]]))
    assert single["accuracy_se"] == 0


def test_edit_distance_equals_the_definition():
    """Compare with the recursion of Levenshtein on random words of three letters."""

    def distance(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(
            distance(a[1:], b) + 1,
            distance(a, b[1:]) + 1,
            distance(a[1:], b[1:]) + (a[0] != b[0]),
        )

    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abc"), length)) for length in (0, 1, 1, 2, 3, 4, 5, 5)]
    for a in words:
        for b in words:
            assert task_metrics._edit_distance(a, b) == distance(a, b)


def test_text_begins_with_a_word():
    """The first word of a text has no space before it; an empty piece begins no word."""
    yes = np.ones(5, bool)
    pieces = [b"ca", b"r", b"", b" re", b"d"]
    assert task_metrics.keystrokes_saved(yes, pieces, yes) == pytest.approx(1 - 2 / 7)
    no = np.zeros(5, bool)
    assert task_metrics.keystrokes_saved(no, pieces, yes) == 0
