"""Fields that may change when a run continues."""

import copy
import itertools
import shutil

import numpy as np
import pytest
from fixtures import verified_sweep

from lm.config import schema
from lm.runs import records
from lm.runs.integrity import changed_fields
from lm.training import loop, optimizer


def flat(**changes) -> dict:
    """Return the fields of a run of 100 steps. changes: name of a field in the group optim."""
    run = schema.Run(steps=changes.pop("steps", 100))
    for name, value in changes.items():
        setattr(run.optim, name, value)
    return schema.flatten(run)


def test_execution_fields_may_change():
    run = schema.Run()
    run.steps_per_call, run.resume_tolerance, run.log_interval = 7, 0.1, 3
    assert (
        changed_fields.find_conflicts(schema.flatten(schema.Run()), schema.flatten(run), 50) == []
    )


def test_missing_field_has_its_default():
    """A checkpoint of an older version has no value for a newer field."""
    old, new = flat(), flat()
    del old["optim.moment_dtype"], new["steps_per_call"]
    assert changed_fields.find_conflicts(old, new, 5) == []
    new["optim.moment_dtype"] = "bfloat16"
    assert changed_fields.find_conflicts(old, new, 5) == ["optim.moment_dtype"]
    assert changed_fields.find_conflicts(new, old, 5) == ["optim.moment_dtype"]


def test_removed_field_is_a_conflict():
    old, new = flat() | {"optim.removed": 1}, flat()
    assert changed_fields.find_conflicts(old, new, 5) == ["optim.removed"]


@pytest.mark.parametrize("schedule", ["constant", "wsd", "cosine", "linear"])
def test_allowed_lengths_have_equal_rates(schedule):
    """The rates of the completed steps are those of the schedule that training uses."""
    n_allowed = 0
    for steps, warmup, decay, n_done in itertools.product(
        (40, 100, 200), (0.0, 0.05, 0.1, 0.25), (0.2, 0.5), (1, 20, 50, 80, 81, 100)
    ):
        old = flat(schedule=schedule, warmup=0.1, decay=0.2)
        new = flat(schedule=schedule, warmup=warmup, decay=decay, steps=steps)
        is_allowed = changed_fields.find_conflicts(old, new, n_done) == []
        rates = []
        for values in (old, new):
            optim = schema.Optimizer(
                schedule=schedule, warmup=values["optim.warmup"], decay=values["optim.decay"]
            )
            rate = optimizer.learning_rate_schedule(optim, values["steps"])
            rates.append(
                np.asarray([rate(step) for step in range(0, n_done, 9)] + [rate(n_done - 1)])
            )
        n_allowed += is_allowed and old != new
        is_equal = np.array_equal(*rates) and n_done <= steps
        assert not is_allowed or is_equal
        if schedule in ("constant", "wsd"):
            assert is_allowed == is_equal, (steps, warmup, decay, n_done)
    assert bool(n_allowed) == (schedule in ("constant", "wsd"))


@pytest.mark.slow
def test_run_with_a_constant_rate_is_lengthened(tiny):
    """The longer run has the losses of a run that had the length from the start."""
    tiny.optim.schedule, tiny.optim.warmup, tiny.log_interval = "constant", 0.5, 1
    longer = copy.deepcopy(tiny)
    longer.steps, longer.optim.warmup = 18, 6 / 18
    uninterrupted = copy.deepcopy(longer)
    uninterrupted.name, uninterrupted.steps_per_call = "uninterrupted", 1
    loop.train(tiny)
    loop.train(uninterrupted)
    assert records.is_finished(tiny) and not records.is_finished(longer)
    longer.steps_per_call = 1
    loop.train(longer)
    rows = [records.load_metrics(records.run_dir(run)) for run in (longer, uninterrupted)]
    losses = [{row["step"]: row["loss"] for row in metrics} for metrics in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(losses[0]) == 18
    assert [row["step"] for row in records.load_evals(records.run_dir(longer))] == [12, 18]
    (row,) = records.load_runs(records.run_dir(longer))
    assert (row["status"], row["steps"], row["ends_at"]) == ("done", 18, 18)
    assert row["eval.step"] == 18 and row["tokens"] == 18 * 8 * 32


def test_length_with_other_rates_is_refused_in_one_line(finished_copy):
    longer = copy.deepcopy(finished_copy)
    longer.steps = 24
    with pytest.raises(ValueError, match="steps=12, now 24 .steps may change with") as error:
        loop.train(longer)
    assert "\n" not in str(error.value)


def test_changed_length_does_not_mix_evaluation_settings(tiny):
    """All evaluations of a curve have the same settings."""
    tiny.optim.schedule, tiny.optim.warmup = "constant", 0.0
    loop.train(tiny)
    longer = copy.deepcopy(tiny)
    longer.steps, longer.eval.n_sequences = 18, 8
    with pytest.raises(ValueError, match="eval.n_sequences=16, now 8: the evaluations of a run"):
        loop.train(longer)


def test_checkpoint_of_an_older_version_stores_steps_per_call(finished_copy):
    """Version 0.2 counted steps_per_call among the fields that determine the result."""
    folder = records.run_dir(finished_copy)
    shutil.rmtree(folder / "checkpoints" / "12")
    records.write_facts(folder, status="lost")
    store = loop.session.checkpoints.CheckpointStore
    expected_fields = loop.session.checkpoints.checkpoint_manifest.expected_fields
    assert "steps_per_call" not in expected_fields(finished_copy, False)
    with store(finished_copy, read_only=True) as old:
        old.fields = old.fields | {"steps_per_call": 3}
        old._check_fields(folder, {"config": expected_fields(finished_copy, False), "step": 8})


@pytest.mark.parametrize(
    ("schedule", "steps", "problem"),
    [
        ("constant", 40, "is done after 20 steps, and has no checkpoint to continue from: restore"),
        ("constant", 10, "steps=20, now 10"),
        ("wsd", 40, "steps=20, now 40"),
        ("wsd", 10, "steps=20, now 10"),
    ],
)
def test_done_run_without_checkpoints_keeps_its_length(tmp_path, schedule, steps, problem):
    run = schema.Run(name="a", dir=str(tmp_path), steps=verified_sweep.STEPS)
    run.optim.schedule, run.optim.warmup = schedule, 0.0
    folder = records.run_dir(run)
    records.start_run(run, {}, -1)
    verified_sweep.write_rows(folder, 1, (10, 20), 2.0)
    records.write_facts(folder, status="done", ends_at=20)
    records.check_same_config(run)
    changed = copy.deepcopy(run)
    changed.steps = steps
    with pytest.raises(ValueError, match=problem) as error:
        records.start_run(changed, {}, -1)
    assert "\n" not in str(error.value) and len(records.load_evals(folder)) == 2


def test_completed_steps_of_a_done_run_need_no_checkpoint(tmp_path):
    verified_sweep.write_rows(tmp_path, 1, (10, 20), 2.0)
    for facts, n_done in (({"status": "lost"}, 0), ({"status": "done"}, 20)):
        assert changed_fields.count_completed_steps(tmp_path, facts) == n_done
    facts = {"status": "done", "ends_at": 15}
    assert changed_fields.count_completed_steps(tmp_path, facts) == 15
