"""Steps at which evaluations are due, the best evaluation, and early stopping."""

import pytest

from lm.config import schema
from lm.evaluation import early_stopping


def history(
    steps: int, interval: int, patience: int = 0, **losses
) -> early_stopping.EvaluationHistory:
    run = schema.Run(steps=steps)
    run.eval.interval, run.eval.patience = interval, patience
    evaluations = early_stopping.EvaluationHistory(run)
    for name, loss in losses.items():
        step = int(name.removeprefix("at"))
        evaluations.rows[step] = {"step": step, "loss": loss, "loss_se": 0.024}
    return evaluations


def due_steps(evaluations: early_stopping.EvaluationHistory) -> list[int]:
    return [step for step in range(1, evaluations.run.steps + 1) if evaluations.is_due(step)]


@pytest.mark.parametrize(
    ("steps", "interval", "expected"),
    [
        (101, 25, [25, 50, 75, 101]),  # eval.interval = steps // 4
        (103, 25, [25, 50, 75, 103]),
        (100, 25, [25, 50, 75, 100]),
        (12, 5, [5, 10, 12]),
        (5, 2, [2, 4, 5]),
        (3, 1, [1, 2, 3]),
        (100, 0, [100]),
        (10, 50, [10]),
    ],
)
def test_multiple_shortly_before_the_end_is_omitted(steps, interval, expected):
    assert due_steps(history(steps, interval)) == expected


def test_without_heldout_text_only_tasks_are_due():
    evaluations = history(20, 5)
    evaluations.run.data.heldout_fraction = 0.0
    assert due_steps(evaluations) == []
    evaluations.run.eval.tasks = "copy?length=4"
    assert due_steps(evaluations) == [20]
    evaluations.run.eval.task_interval = 10
    assert due_steps(evaluations) == [10, 20]


def test_best_step_has_the_lowest_loss():
    evaluations = history(400, 40, 3, at0=1.0, at40=2.0, at80=1.9, at120=1.95, at160=float("nan"))
    assert [evaluations.best_step(step) for step in (20, 40, 80, 160)] == [20, 40, 80, 80]
    assert [evaluations.is_new_best(step) for step in (20, 40, 80, 120)] == [
        False,
        True,
        True,
        False,
    ]
    assert not evaluations.is_patience_exhausted(120)
    evaluations.rows[200] = {"step": 200, "loss": "nan"}  # JSON stores NaN as a string
    assert evaluations.is_patience_exhausted(200) and not evaluations.is_patience_exhausted(160)


def test_row_without_a_loss_is_no_evaluation():
    evaluations = history(400, 40, 1, at40=2.0)
    evaluations.rows[80] = {"step": 80, "task.copy.accuracy": 0.5}
    assert evaluations.best_step(80) == 40 and not evaluations.is_patience_exhausted(80)


def test_stop_message_states_the_best_evaluation():
    evaluations = history(400, 40, 3, at200=1.8112, at240=1.82, at280=1.83, at320=1.834)
    assert evaluations.stop_message(320) == (
        "stopped early at step 320: the best evaluation is step 200 with 1.811 ± 0.024, whose"
        " checkpoint is the result"
    )
    assert evaluations.stop_message(400).startswith("ended at step 400: the best evaluation is")
    assert evaluations.stop_message(200) == "" and history(9, 3, at3=1.0).stop_message(9) == ""
