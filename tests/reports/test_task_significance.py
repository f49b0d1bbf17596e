"""Tasks above and below their baseline, of synthetic results with known properties."""

import numpy as np
from scipy import stats

from lm.reports import task_significance
from lm.runs import task_results


def run_of(accuracies, chance=0.25, n=200, **metrics) -> dict:
    """Return a run with the tasks t0, t1, ... metrics: further metrics of all tasks."""
    row = {"name": "s/1", "params.non_embedding": 1e5, "status": "done"}
    for i, accuracy in enumerate(accuracies):
        values = {"accuracy": accuracy, "chance": chance, "n": n} | metrics
        row |= {f"eval.task.t{i}.{name}": value for name, value in values.items()}
    return row


def test_rows_of_guesses_have_tasks_above_baseline_as_rarely_as_the_rate():
    rng = np.random.default_rng(0)
    rows = [run_of(rng.binomial(200, 0.25, 10) / 200) for _ in range(300)]
    n_above = [len(task_significance.tasks_above_baseline(row)) > 0 for row in rows]
    n_below = [len(task_significance.tasks_below_baseline(row)) > 0 for row in rows]
    assert 0 < np.mean(n_above) <= task_significance.FALSE_DISCOVERY_RATE + 0.02
    assert 0 < np.mean(n_below) <= task_significance.FALSE_DISCOVERY_RATE + 0.02
    above = [task_significance.is_above_chance(row, "t0") for row in rows]
    assert np.mean(above) <= task_significance.P_VALUE + 0.01


def test_tasks_above_baseline_exclude_those_by_luck():
    lucky = run_of([0.35] + [0.25] * 30)  # p = 0.001, 31 tests
    able = run_of([0.35, 0.6, 0.7, 0.8, 0.9, 0.9] + [0.25] * 25)
    marginal = run_of([0.33] + [0.25] * 30)
    assert task_significance.is_above_chance(marginal, "t0")
    assert task_significance.tasks_above_baseline(marginal) == set()
    assert task_significance.tasks_above_baseline(lucky) == {"t0"}
    assert task_significance.tasks_above_baseline(able) == {f"t{i}" for i in range(6)}
    assert task_significance.tasks_above_baseline({}) == set()


def test_stored_tests_decide_together_with_chance():
    better_than_bigram = {"p_above_baseline": 1e-6, "baseline_bigram": 0.5}
    assert task_significance.tasks_above_baseline(run_of([0.9], **better_than_bigram)) == {"t0"}
    assert not task_significance.tasks_above_baseline(run_of([0.26], **better_than_bigram))
    like_bigram = {"p_above_baseline": 0.3, "p_below_baseline": 1e-4, "baseline_bigram": 0.9}
    row = run_of([0.88], **like_bigram)
    assert not task_significance.tasks_above_baseline(row)
    assert task_significance.tasks_below_baseline(row) == {"t0"}
    assert task_significance.tasks_below_baseline(run_of([0.02])) == {"t0"}
    assert task_significance.tasks_below_baseline(run_of([0.25])) == set()


def test_generated_translations_are_compared_by_chrf():
    better = {"chrf": 40, "chrf_baseline_copy": 10, "p_above_baseline": 1e-9}
    row = run_of([0.0], chance=0.0, **better)
    assert task_significance.tasks_above_baseline(row) == {"t0"}
    assert (
        task_significance.tasks_below_baseline(row | {"eval.task.t0.p_below_baseline": 1}) == set()
    )
    assert task_results.best_baseline(row, "t0", "chrf") == ("copy", 10)


def test_correct_answers_by_luck_are_not_above_chance():
    (task,) = task_results.task_names([run_of([0.01])])
    assert not task_significance.is_above_chance(run_of([0.01], chance=0.0, n=100), task)
    assert task_significance.is_above_chance(run_of([0.06], chance=0.0, n=100), task)
    without_n = {k: v for k, v in run_of([0.9]).items() if not k.endswith(".n")}
    assert not task_significance.is_above_chance(without_n, task)


def test_mastery_is_half_the_distance_from_the_best_baseline_to_one():
    def is_mastered(accuracy, **metrics):
        (counted,) = task_significance.count_tasks([run_of([accuracy], **metrics)])
        return counted["tasks.mastered"] == 1

    assert not is_mastered(0.60) and is_mastered(0.65)
    assert not is_mastered(0.65, baseline_bigram=0.4) and is_mastered(0.71, baseline_bigram=0.4)
    assert not is_mastered(1.0, chance=1.0)
    assert not is_mastered(1.0, n=1)  # not significant
    row = run_of([0.6], baseline_bag_of_words=0.4, baseline_unigram=0.3)
    assert task_results.best_baseline(row, "t0") == ("bag of words", 0.4)
    assert task_results.best_baseline(run_of([0.6]), "t0") == ("chance", 0.25)
    assert task_results.best_baseline(run_of([0.6]), "t0", "bleu") == ("chance", 0.0)
    row = run_of([0.6], bleu_baseline_copy=0.5)
    assert task_results.best_baseline(row, "t0", "bleu") == ("copy", 0.5)
    assert task_results.best_baseline(row, "t0") == ("chance", 0.25)


def pairs_of(accuracies, means) -> dict:
    """Return a run with minimal pairs: {"phenomenon/paradigm": accuracy}, {"phenomenon": mean}."""
    row = {"name": "s/1", "params.non_embedding": 1e5, "status": "done"}
    for part, value in (accuracies | means).items():
        metrics = {"accuracy": value, "chance": 0.5, "n": 1000}
        metrics |= {"n_paradigms": 4} if part in means else {}
        row |= {f"eval.task.pair:x?n=9#{part}.{key}": number for key, number in metrics.items()}
        row[f"eval.task_se.pair:x?n=9#{part}.accuracy"] = 0.02
    return row


def test_means_over_paradigms_are_no_tasks_and_tested_apart():
    row = pairs_of({"a/1": 0.9, "a/2": 0.5, "b/3": 0.9}, {"a": 0.7, "b": 0.52})
    assert task_results.task_names([row]) == [f"pair:x?n=9#{p}" for p in ("a/1", "a/2", "b/3")]
    assert task_results.paradigm_means([row]) == ["pair:x?n=9#a", "pair:x?n=9#b"]
    assert task_results.summary_tasks([row]) == ["pair:x?n=9#a", "pair:x?n=9#b"]
    above = task_significance.tasks_above_baseline(row)
    assert above == {"pair:x?n=9#a/1", "pair:x?n=9#b/3", "pair:x?n=9#a"}
    (counted,) = task_significance.count_tasks([row])
    assert counted["tasks.n"] == 3 and counted["tasks.above_baseline"] == 2
    assert counted["tasks.above_baseline.a"] == 1 and counted["tasks.mastered.b"] == 1


def test_tasks_are_counted_per_run_by_size():
    rows = [run_of([0.9, 0.9]) | {"name": "s/2", "params.non_embedding": 2e5}, run_of([0.3, 0.9])]
    counted = task_significance.count_tasks([*rows, {"name": "s/3"}])
    assert [row["tasks.mastered"] for row in counted] == [1, 2]
    assert [row["tasks.n"] for row in counted] == [2, 2]


def test_family_is_the_phenomenon_or_the_name_without_options():
    families = {
        "pair:my/blimp?n=9#islands/wh": "islands",
        "pair:my/blimp#wh": "blimp",
        "brackets?depth=2": "brackets",
        "file:my/sets/piqa?shots=2": "piqa",
    }
    assert {task: task_results.task_family(task) for task in families} == families


def test_harness_results_without_chance_are_not_tested():
    values = {"accuracy": 0.6, "n": 2376}
    row = {f"eval.task.harness:arc_easy.{name}": value for name, value in values.items()}
    assert not task_significance.tasks_above_baseline(row)
    assert not task_significance.is_above_chance(row, "harness:arc_easy")
    assert not task_significance.has_mastery_accuracy(row, "harness:arc_easy")
    row["eval.task.harness:arc_easy.chance"] = 0.25
    assert task_significance.tasks_above_baseline(row) == {"harness:arc_easy"}
    row["eval.task.harness:arc_easy.accuracy"] = 0.25
    assert not task_significance.tasks_above_baseline(row)


def test_binomial_tails_are_those_of_scipy():
    for n, chance in ((1, 0.5), (40, 0.25), (1000, 0.01)):
        for k in {0, 1, n // 4, n - 1, n}:
            tails = [task_significance._binomial_p_value(k, n, chance, side) for side in (0, 1)]
            exact = stats.binom.sf(k - 1, n, chance), stats.binom.cdf(k, n, chance)
            np.testing.assert_allclose(tails, exact, rtol=1e-11)


def test_results_with_an_undefined_chance_are_not_tested():
    for n_correct in (0, 40):
        values = {"accuracy": n_correct / 40, "n": 40, "chance": float("nan")}
        row = {f"eval.task.t.{name}": value for name, value in values.items()}
        assert task_significance.p_above_baseline(row, "t") == 1
        assert task_significance.p_below_baseline(row, "t") == 1
        assert not task_significance.has_mastery_accuracy(row, "t")
        known = row | {"eval.task.t.chance": 0.25}
        assert task_significance.chance_accuracy_of([row, known], "t") == 0.25


def test_results_changed_in_a_row_are_tested_again():
    row = run_of([0.9, 0.25])
    task_significance.tasks_above_baseline(row).clear()  # a result belongs to its caller
    assert task_significance.tasks_above_baseline(row) == {"t0"}
    row["eval.task.t1.accuracy"] = 0.9
    assert task_significance.tasks_above_baseline(row) == {"t0", "t1"}
    row["eval.task.t0.accuracy"] = None
    assert task_significance.tasks_above_baseline(row) == {"t1"}
    row["eval.task.t1.n_paradigms"] = 5
    assert task_results.task_names([row]) == []
    assert task_results.paradigm_means([row]) == ["t1"]
