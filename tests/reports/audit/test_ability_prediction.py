"""Predicted abilities: calibration on a simulated ladder, refusals, back-test and results."""

import functools

import numpy as np
import pytest
from scipy import stats

from lm.reports import task_significance
from lm.reports.audit import ability_backtest, ability_prediction, prediction_results
from lm.runs import task_results

N_TASKS, N_ITEMS = 36, 1000
SIZES = (1e4, 3e4, 1e5, 3e5, 1e6)
BUDGETS = (2.5e6, 5e6, 1e7)
TARGET = 4e6
NOTHING: dict = {}


@functools.cache
def ladder(seed: int = 0) -> list[dict]:
    """Return branches of all sizes and of the target, with minimal pairs of six phenomena."""
    rng = np.random.default_rng(seed)
    baselines = 0.5 + np.abs(rng.normal(0, 0.1, N_TASKS))
    level, slope = rng.normal(0.3, 0.5, N_TASKS), rng.normal(-0.8, 0.4, N_TASKS)
    rows = []
    for size in (*SIZES, TARGET):
        trunk_noise = rng.standard_normal(N_TASKS)
        for tokens in BUDGETS:
            loss = 2.8 + 1.5 * (size / 1e4) ** -0.25 + 1.2 * (tokens / 2.5e6) ** -0.4
            noise = 0.15 * (trunk_noise + rng.standard_normal(N_TASKS))
            logits = level + slope * (loss - 4.4) + noise
            accuracies = rng.binomial(N_ITEMS, 1 / (1 + np.exp(-logits))) / N_ITEMS
            trunk = f"s/{size:g}-trunk"
            row = {"name": f"s/{size:g}-{tokens:g}", "status": "done", "eval.loss": loss}
            row |= {"params.non_embedding": size, "tokens": tokens}
            row |= {"start.run": trunk, "start.restore": "full_state"}
            for i, (accuracy, baseline) in enumerate(zip(accuracies, baselines, strict=True)):
                gain = accuracy - baseline
                error = (0.35 / N_ITEMS) ** 0.5
                metrics = {"accuracy": accuracy, "n": N_ITEMS, "chance": 0.5}
                metrics["baseline_bigram"] = baseline
                metrics["p_above_baseline"] = float(stats.norm.sf(gain / error))
                name = f"eval.task.pair:x#f{i % 6}/p{i}"
                row |= {f"{name}.{key}": value for key, value in metrics.items()}
            for family in range(6):
                mean = {"accuracy": accuracies[family::6].mean(), "n": N_ITEMS, "n_paradigms": 6}
                name = f"eval.task.pair:x#f{family}"
                row |= {f"{name}.{key}": value for key, value in mean.items()}
            rows.append(row)
    return rows


def split(rows) -> tuple[list[dict], dict]:
    """Return the rows of smaller sizes, and the target with the largest budget."""
    return [row for row in rows if row["params.non_embedding"] < TARGET], rows[-1]


def total_of(row) -> dict:
    loss = row["eval.loss"]
    return {"value": loss + 0.01, "lo": loss - 0.05, "hi": loss + 0.05}


def predict(rows, target, total=None) -> dict:
    total = total_of(target) if total is None else total
    return ability_prediction.predict_abilities(rows, total, TARGET, target["tokens"])


def test_forecast_beats_the_outcome_of_the_previous_size():
    brier, coverage, n_errors = [], [], []
    for seed in range(3):
        smaller, target = split(ladder(seed))
        compared = ability_backtest.compare_run(predict(smaller, target), target)
        brier.append([compared[name]["brier"] for name in ("two_step", "previous", "base_rate")])
        coverage.append([compared["two_step"][k] for k in ("coverage", "coverage_means")])
        n_errors.append(compared["two_step"]["n_error"])
    main, previous, base_rate = np.mean(brier, axis=0)
    assert main < previous and main < base_rate
    assert np.mean(coverage, axis=0) == pytest.approx([0.9, 0.9], abs=0.12)
    assert np.abs(n_errors).max() < 6


def test_prediction_has_both_methods_and_repeats_exactly():
    smaller, target = split(ladder())
    entry = predict(smaller, target)
    assert entry == predict(list(smaller), target) and entry["level"] == 0.9
    assert entry["previous_runs"] == ["s/1e+06-1e+07"]
    above = task_significance.tasks_above_baseline(smaller[-1])
    assert entry["previous"] == {t: float(t in above) for t in task_results.task_names(smaller)}
    for method in ability_prediction.METHODS:
        assert len(entry[method]["scores"]) == N_TASKS + 6
        assert set(entry[method]["above"]) == set(task_results.task_names(smaller))
        assert entry[method]["n_above"]["n_tasks"] == N_TASKS
        assert all(score["lo"] < score["hi"] for score in entry[method]["scores"].values())


def test_refused_loss_leaves_the_direct_method():
    smaller, target = split(ladder())
    entry = predict(smaller, target, {"refused": "too few sizes"})
    assert entry["two_step"] == {"refused": "the loss is not predicted: too few sizes"}
    assert "n_above" in entry["direct"]
    assert (
        "no interval" in predict(smaller, target, {"value": 3.0, "lo": None})["two_step"]["refused"]
    )
    assert predict([{"name": "a", "status": "done"}], target) == {}


def test_task_with_results_of_few_runs_is_refused_alone():
    smaller, target = split(ladder())
    column = "eval.task.pair:x#f0/p0.accuracy"
    rows = [
        row if i > 11 else {k: v for k, v in row.items() if k != column}
        for i, row in enumerate(smaller)
    ]
    entry = predict(rows, target)["two_step"]
    assert list(entry["refused_scores"]) == [column] and column not in entry["scores"]
    assert "pair:x#f0/p0" not in entry["above"] and len(entry["above"]) == N_TASKS - 1


def test_translation_is_predicted_in_chrf_and_bleu():
    rows = []
    for row in ladder():
        value = 70 - 10 * row["eval.loss"]
        own = {k: v for k, v in row.items() if ".task." not in k}
        metrics = {"accuracy": 0.0, "chrf": value, "bleu": value / 2, "chrf_baseline_copy": 30.0}
        metrics |= {"n": 500, "p_above_baseline": float(stats.norm.sf((value - 30.0) / 1.5))}
        rows.append(own | {f"eval.task.file:t.{key}": v for key, v in metrics.items()})
    smaller, target = split(rows)
    entry = predict(smaller, target)["two_step"]
    assert list(entry["scores"]) == ["eval.task.file:t.chrf", "eval.task.file:t.bleu"]
    predicted = entry["scores"]["eval.task.file:t.chrf"]
    assert predicted["lo"] < target["eval.task.file:t.chrf"] < predicted["hi"]
    assert ability_prediction._difference_error(rows, "file:t", "chrf") == pytest.approx(1.5)


def test_backtest_predicts_the_largest_sizes_from_smaller_ones():
    smaller, target = split(ladder())
    sizes = []

    def predict_total(rows, size) -> dict:
        sizes.append((size, max(row["params.non_embedding"] for row in rows)))
        outcome = [row for row in smaller if row["params.non_embedding"] == size][-1]
        return total_of(outcome)

    scores = ability_backtest.backtest_abilities(smaller, predict_total, target["tokens"])
    assert sizes == [(1e6, 3e5)] and scores["two_step"]["n_runs"] == 1
    assert scores["two_step"]["brier"] < scores["base_rate"]["brier"]
    few = [row for row in smaller if row["params.non_embedding"] > 1e4]
    assert ability_backtest.backtest_abilities(few, predict_total, 1e7) == {}


def test_brier_scores_cover_common_tasks_and_runs():
    smaller, target = split(ladder())
    abilities = predict(smaller, target)
    names = list(abilities["previous"])
    few = {task: abilities["two_step"]["above"][task] for task in names[:5]}
    partial = abilities | {"two_step": abilities["two_step"] | {"above": few}}
    compared = ability_backtest.compare_run(partial, target)
    assert {scores["n_tasks"] for scores in compared.values()} == {5}
    above = task_significance.tasks_above_baseline(target)
    errors = [abilities["direct"]["above"][task] - (task in above) for task in few]
    assert compared["direct"]["brier"] == pytest.approx(np.square(errors).mean())
    larger = [row | {"params.non_embedding": 2e6, "name": row["name"] + "b"} for row in ladder()]
    rows = smaller + [row for row in larger if row["name"].startswith("s/1e+06")]

    def predict_total(_, size) -> dict:
        return {"refused": "no law"} if size == 1e6 else {"value": 4.0, "lo": 3.9, "hi": 4.1}

    scores = ability_backtest.backtest_abilities(rows, predict_total, target["tokens"])
    assert {method["n_runs"] for method in scores.values()} == {1}
    assert {method["n_tasks"] for method in scores.values()} == {N_TASKS}


def test_metrics_are_those_of_the_last_row_with_the_task():
    translated = {f"eval.task.t.{key}": 1.0 for key in ("accuracy", "chrf", "chrf_baseline_copy")}
    rows = [translated, {"eval.task.other.accuracy": 0.5}]
    assert ability_prediction.score_metrics(rows, "t") == ["chrf"]
    assert ability_prediction.score_metrics(rows, "other") == ["accuracy"]


def test_equal_results_may_differ_in_words_and_rounding():
    smaller, target = split(ladder())
    prediction = {"target": target["name"], "y": "eval.loss", "level": 0.95, "value": 4.0}
    prediction |= {"lo": 3.9, "hi": 3.95, "abilities": predict(smaller, target)}
    results = prediction_results.describe_results(prediction, target)
    brier = {method: score * (1 + 1e-12) for method, score in results["brier"].items()}
    reworded = results | {"right": ["Other words."], "wrong": [], "brier": brier}
    for name in (prediction_results.N_BRIER_TASKS, prediction_results.ERRORS):
        reworded.pop(name)  # files of earlier versions
    assert prediction_results.has_equal_numbers(reworded, results)
    for changed in (
        {"brier": results["brier"] | {"direct": results["brier"]["direct"] + 1e-4}},
        {"quantities": results["quantities"][1:]},
        {"target": "s/other"},
    ):
        assert not prediction_results.has_equal_numbers(results | changed, results)
    missing = {name: value for name, value in results.items() if name != "brier"}
    assert not prediction_results.has_equal_numbers(missing, results)


def test_errors_of_accuracies_are_compared_with_those_of_the_previous_size():
    smaller, target = split(ladder())
    prediction = {"target": target["name"], "y": "eval.loss", "level": 0.95, "value": 4.0}
    abilities = predict(smaller, target)
    prediction |= {"lo": 3.9, "hi": 3.95, "abilities": abilities}
    rows = {row["name"]: row for row in [*smaller, target]}
    errors = prediction_results.describe_sweep(prediction, [], rows)["errors"]
    means = task_results.paradigm_means([target])
    names = {"means": means, "tasks": task_results.task_names([target])}
    assert len(names["tasks"]) == N_TASKS and means
    previous = [rows[name] for name in abilities["previous_runs"]]
    for group, tasks in names.items():
        columns = [task_results.task_column(task) for task in tasks]
        measured = np.array([target[column] for column in columns])
        repeated = np.mean([[row[column] for column in columns] for row in previous], axis=0)
        expected = {"previous": repeated} | {
            method: [abilities[method]["scores"][column]["value"] for column in columns]
            for method in ("two_step", "direct")
        }
        assert errors[group] == pytest.approx(
            {name: np.abs(values - measured).mean() for name, values in expected.items()}
        )
    alone = prediction_results.describe_results(prediction, target)["errors"]
    assert set(alone["tasks"]) == {"two_step", "direct"}


def test_invalid_result_leaves_out_its_task_alone():
    row = {"status": "done", "eval.loss": 4.0}
    row |= {f"eval.task.copy?length={n}.accuracy": 0.5 for n in (4, 40)}
    entry = {"value": 0.5, "lo": 0.4, "hi": 0.6}
    prediction = {"target": "s/t", "y": "eval.loss", "value": 4.0, "lo": 3.9, "hi": 4.1}
    prediction["tasks"] = {f"copy?length={n}": entry for n in (4, 40)}
    marked = row | {"invalid_results": {"task.copy?length=4": "leaked"}}
    quantities = prediction_results.describe_results(prediction, marked)["quantities"]
    names = [quantity["name"] for quantity in quantities]
    assert "eval.task.copy?length=40.accuracy" in names
    assert "eval.task.copy?length=4.accuracy" not in names


def test_abilities_are_scored_if_the_law_of_the_loss_is_refused():
    smaller, target = split(ladder())
    refused = {"target": target["name"], "y": "eval.loss", "refused": "two sizes"}
    assert prediction_results.describe_results(refused, target) == NOTHING
    abilities = predict(smaller, target, refused)
    results = prediction_results.describe_results(refused | {"abilities": abilities}, target)
    assert {q["method"] for q in results["quantities"]} == {"direct"}
    assert set(results["brier"]) == {"direct", "previous", "base_rate"}


def test_results_list_right_and_wrong_predictions():
    smaller, target = split(ladder())
    prediction = {"target": target["name"], "y": "eval.loss", "level": 0.95, "value": 4.0}
    prediction |= {"lo": 3.9, "hi": 3.95, "abilities": predict(smaller, target)}
    assert (
        prediction_results.describe_results(prediction, target | {"status": "running"}) == NOTHING
    )
    results = prediction_results.describe_results(prediction, target)
    loss, *others = results["quantities"]
    assert (loss["name"], loss["is_inside"]) == ("eval.loss", 3.9 <= target["eval.loss"] <= 3.95)
    assert len(others) == 2 * (N_TASKS + 6 + 1)
    assert set(results["brier"]) == {"two_step", "direct", "previous", "base_rate"}
    above = task_significance.tasks_above_baseline(target)
    assert {p["task"] for p in results["paradigms"] if p["is_above"]} == above & set(
        task_results.task_names([target])
    )
    # Each score has one method in the sentences, and a probability is neither right nor wrong.
    listed = [q for q in results["quantities"] if q["method"] != "direct"]
    assert len(results["wrong"]) == sum(not q["is_inside"] for q in listed)
    assert 0 < len(results["right"]) <= 7 and "(direct)" not in str(results)
    assert any(t.startswith("The held-out loss was") and "outside" in t for t in results["wrong"])
    marked = target | {"invalid_results": {"task.pair:x#f0/p0": "leaked"}}
    assert len(prediction_results.describe_results(prediction, marked)["quantities"]) == (
        len(results["quantities"]) - 2
    )
