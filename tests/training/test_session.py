"""Records of a run that continues: damaged files, and evaluations of discarded weights."""

import contextlib
import dataclasses
import pathlib
import shutil

import conftest
import pytest
from fixtures import verified_sweep

from lm.runs import json_files, phase_timer, records
from lm.runs.integrity import run_notes
from lm.training import loop, preemption, session, vmapped_runs
from lm.training.programs import compilation


@pytest.fixture(scope="module")
def evaluated_run(text_file, tmp_path_factory):
    """Return a finished run with an evaluation and a checkpoint at each fourth step."""
    run = conftest.tiny_run(text_file, tmp_path_factory.mktemp("evaluated"))
    run.eval.interval = 4
    loop.train(run)
    return run


@pytest.fixture
def stopped_run(evaluated_run, tmp_path):
    """Return a copy of the run that continues after step 8."""
    run = dataclasses.replace(evaluated_run, dir=str(tmp_path / "runs"))
    folder = records.run_dir(run)
    shutil.copytree(records.run_dir(evaluated_run), folder)
    shutil.rmtree(folder / "checkpoints" / "12")
    records.write_facts(folder, status="lost")
    return run


def results(run) -> tuple[dict, dict]:
    """Return {step: loss} of the metrics and of the evaluations."""
    folder = records.run_dir(run)
    return tuple(
        {row["step"]: row["loss"] for row in rows}
        for rows in (records.load_metrics(folder), records.load_evals(folder))
    )


def flip_bit(file: pathlib.Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize("name", verified_sweep.RUN_FILES)
def test_resume_with_a_damaged_record_is_equal_or_refused(stopped_run, evaluated_run, name):
    folder = records.run_dir(stopped_run)
    if not (folder / name).exists():
        records.log_event(folder, 1, 4, "spike", "loss")
    flip_bit(folder / name)
    if name in ("config.json", "facts.json"):
        with pytest.raises(ValueError, match=rf"{name} is (damaged|not valid JSON).*") as error:
            loop.train(stopped_run)
        assert "\n" not in str(error.value)
        return
    loop.train(stopped_run)
    for values, expected in zip(results(stopped_run), results(evaluated_run), strict=True):
        assert values.items() <= expected.items()
        assert values.keys() == expected.keys() or name in ("metrics.jsonl", "evals.jsonl")
    (row,) = records.load_runs(folder)
    (expected,) = records.load_runs(records.run_dir(evaluated_run))
    assert row["eval.loss"] == expected["eval.loss"]
    notes = run_notes.folder_notes(records.load_folder(folder))
    assert notes or name == "heldout.npz"  # which the last evaluation replaced


def test_records_of_another_run_are_not_continued(stopped_run, evaluated_run, tmp_path):
    other = dataclasses.replace(evaluated_run, dir=str(tmp_path / "other"), seed=1)
    loop.train(other)
    folder = records.run_dir(stopped_run)
    for name in ("metrics.jsonl", "evals.jsonl"):
        shutil.copy(records.run_dir(other) / name, folder / name)
    loop.train(stopped_run)
    metrics, evaluations = results(stopped_run)
    expected_metrics, expected_evaluations = results(evaluated_run)
    assert metrics == {step: expected_metrics[step] for step in (10, 12)}
    assert evaluations == {step: expected_evaluations[step] for step in (8, 12)}
    notes = run_notes.folder_notes(records.load_folder(folder))
    assert "evals.jsonl: lines 1, 2, 3 are damaged" in str(notes)


def test_restart_without_checkpoints_repeats_all_evaluations(stopped_run):
    """The interval differs, so that the old evaluations would stay between the new ones."""
    folder = records.run_dir(stopped_run)
    shutil.rmtree(folder / "checkpoints")
    stopped_run.eval.interval = 6
    loop.train(stopped_run)
    rows = records.load_evals(folder)
    assert [(row["step"], row["attempt"]) for row in rows] == [(6, 2), (12, 2)]
    assert {row["attempt"] for row in records.load_metrics(folder)} == {2}
    assert records.read_facts(folder)["ends_at"] == 12


def test_resumed_run_repeats_evaluations_after_its_checkpoint(stopped_run, evaluated_run):
    before = results(stopped_run)
    loop.train(stopped_run)
    assert results(stopped_run) == before == results(evaluated_run)
    folder = records.run_dir(stopped_run)
    attempts = [row["attempt"] for row in records.load_evals(folder)]
    assert attempts == [1, 1, 2]
    content = json_files.read_file(folder / "evals.jsonl")
    assert len(content.rows) == 5 and not content.corrupt_lines  # with the restart


def test_lost_final_evaluation_is_repeated(evaluated_run, tmp_path):
    run = dataclasses.replace(evaluated_run, dir=str(tmp_path / "runs"))
    folder = shutil.copytree(records.run_dir(evaluated_run), records.run_dir(run))
    *lines, last = (folder / "evals.jsonl").read_text().splitlines()
    (folder / "evals.jsonl").write_text("\n".join([*lines, last[:40]]))
    assert not records.is_finished(run)
    loop.train(run)
    assert records.is_finished(run) and results(run) == results(evaluated_run)


def test_rewind_repeats_evaluations_with_the_new_batches(tiny, monkeypatch):
    """The run rewinds from step 10 to its checkpoint of step 8, and skips two batches."""
    tiny.eval.interval, tiny.optim.on_nonfinite = 3, "rewind"
    find_nonfinite = session.TrainingSession._nonfinite

    def fail_once(active_session):
        is_failure = active_session.done == 10 and active_session.attempt == 1
        return [{"loss": 1e9, "grad_norm": 0}] if is_failure else find_nonfinite(active_session)

    monkeypatch.setattr(session.TrainingSession, "_nonfinite", fail_once)
    loop.train(tiny)
    folder = records.run_dir(tiny)
    assert [skip["batches"] for skip in records.read_facts(folder)["passed_over"]] == [2]
    attempts = [(row["step"], row["attempt"]) for row in records.load_evals(folder)]
    assert attempts == [(3, 1), (6, 1), (9, 2), (12, 2)]
    stored = [row["loss"] for row in json_files.read_rows(folder / "evals.jsonl") if "loss" in row]
    assert len(stored) == 5 and stored[2] != stored[3]


@pytest.fixture
def progress_log(monkeypatch) -> list[tuple[int, int, int]]:
    """Record each report of progress: identity of the watchdog, long calls, evaluated batches."""
    log: list[tuple[int, int, int]] = []
    report, evaluate = preemption.StallWatchdog.record_progress, session.TrainingSession.evaluate
    n_evaluations = 0

    def record(watchdog):
        log.append((id(watchdog), watchdog._n_long_calls, n_evaluations))
        report(watchdog)

    def count(active_session, *args):
        nonlocal n_evaluations
        n_evaluations += active_session.is_evaluation_due
        evaluate(active_session, *args)
        n_evaluations -= n_evaluations > 0

    monkeypatch.setattr(preemption.StallWatchdog, "record_progress", record)
    monkeypatch.setattr(session.TrainingSession, "evaluate", count)
    return log


def test_each_batch_of_an_evaluation_reports_progress(tiny, progress_log):
    """Without reports, a run whose evaluation is longer than stall_seconds would never end."""
    tiny.eval.n_sequences, tiny.eval.tasks = 32, "copy?length=4&n=3&generate=1"
    loop.train(tiny)
    in_evaluation = [n_calls for _, n_calls, n_evaluations in progress_log if n_evaluations]
    assert len(in_evaluation) >= 4 + 3  # batches of held-out rows; tokens of generated answers
    assert min(in_evaluation) >= 1  # the programs of generation are compiled meanwhile


def test_restore_compilation_and_save_are_long_calls(tiny, monkeypatch):
    inside: dict[str, int] = {}
    n_open = 0

    @contextlib.contextmanager
    def long_call(watchdog):
        nonlocal n_open
        n_open += 1
        yield
        n_open -= 1

    def watch(owner, name):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            inside[name] = n_open
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    monkeypatch.setattr(preemption.StallWatchdog, "long_call", long_call)
    watch(session.checkpoints.CheckpointStore, "restore_newest")
    watch(session.checkpoints.CheckpointStore, "save")
    watch(session.checkpoints.CheckpointStore, "__exit__")
    watch(loop.compilation, "compile_all")
    watch(session.TrainingSession, "advance")
    loop.train(tiny)
    assert inside.pop("advance") == 0
    assert set(inside) == {"restore_newest", "save", "__exit__", "compile_all"}
    assert min(inside.values()) >= 1


def test_late_compilation_of_score_is_not_evaluation_time(tiny, monkeypatch):
    phases = []
    phase, compile_late = phase_timer.PhaseTimer.phase, compilation._compile_late

    @contextlib.contextmanager
    def record_phase(timer, name):
        phases.append(name)
        with phase(timer, name):
            yield
        phases.append("")

    def compile_and_record(lowered):
        compile_score = compile_late(lowered)

        def compile_once():
            phases.append(f"score in {phases[-1]}")
            return compile_score()

        return compile_once

    monkeypatch.setattr(phase_timer.PhaseTimer, "phase", record_phase)
    monkeypatch.setattr(compilation, "_compile_late", compile_and_record)
    tiny.steps = tiny.eval.interval = 1
    loop.train(tiny)
    assert {name for name in phases if name.startswith("score")} == {"score in compile"}


@pytest.mark.slow
def test_runs_of_one_program_share_a_watchdog(tiny, progress_log):
    """The evaluations of all runs follow each other, so each must count for all."""
    runs = [dataclasses.replace(tiny, name=name, steps=2, seed=i) for i, name in enumerate("ab")]
    vmapped_runs.train_vmapped(runs)
    assert len({watchdog for watchdog, *_ in progress_log}) == 1


def test_checkpoint_records_the_loss_of_the_next_step(evaluated_run, tiny):
    """A log interval of two steps contains the step after each checkpoint but the last."""
    folder = records.run_dir(evaluated_run)
    tiny.log_interval = 1
    tiny.name, tiny.eval.interval = "each-step", evaluated_run.eval.interval
    tiny.data = evaluated_run.data
    loop.train(tiny)
    losses, _ = results(tiny)
    proofs = json_files.read_latest_rows(folder / "checkpoints" / "proofs.jsonl")
    # metrics.jsonl has rounded losses of the step before its row.
    assert {row["step"] for row in proofs} == {4, 8}
    for row in proofs:
        assert row["next_loss"] == pytest.approx(losses[row["step"] + 1], rel=1e-4)
