"""Task results of rows and evaluations."""

import math

from lm.runs import task_results


def test_task_results_of_rows_and_evaluations_are_nested():
    stored = {"step": 3, "loss.docs": 1.0}
    stored |= {"task.copy?length=4&p=0.5.accuracy": 0.5, "task.copy?length=4&p=0.5.n": 100}
    stored["task_se.copy?length=4&p=0.5.accuracy"] = 0.1
    task = {"accuracy": {"value": 0.5, "se": 0.1}, "n": {"value": 100.0, "se": 0.0}}
    row = {f"eval.{key}": value for key, value in stored.items()}
    for values in (stored, row):
        assert task_results.task_results(values) == {"copy?length=4&p=0.5": task}
    assert task_results.task_column("copy?length=4&p=0.5") in row
    assert task_results.task_result(row, "copy?length=4&p=0.5", "n") == task["n"]
    assert task_results.task_result(row, "sort") is None
    assert math.isnan(task_results.task_value({"task.a.brier": "nan"}, "a", "brier"))
