"""Tests of the decisions of a designed ladder and of their record, without training."""

import numpy as np
import pytest
from fixtures import predicted_sweep, verified_sweep

from configs import base
from lm.runs import archive, json_files, records
from lm.sweeps.designed_ladder import ladder_cells, ladder_loop, ladder_record, size_family

SIZES = ("10K", "25K", "60K", "100K")


def make_ladder(folder, max_error=0.1, seconds=1e6):
    """Return a ladder up to 1.5M for the target 2.5M, its goal and the seconds of its cells."""
    runs = []
    for size in SIZES:
        run = base.get_config(size)
        run.name, run.dir, run.steps = f"s/{size}", str(folder), verified_sweep.STEPS
        runs.append(run)
    goal = ladder_cells.LadderGoal("2.5M", max_error, seconds)
    ladder = ladder_cells.build_ladder([*runs, *size_family.extend_sizes(runs, "2.5M")], goal)
    return ladder, goal, np.array([1e-4 * cell.n_params for cell in ladder.cells])


class Trainer:
    """Write the records of runs. fail_at: number of the run that stops the training."""

    def __init__(self, fail_at=0, status="done"):
        self.names, self.fail_at, self.status = [], fail_at, status

    def __call__(self, run, members):
        self.names.append(run.name)
        assert run.name in [member.name for member in members]
        if len(self.names) == self.fail_at:
            raise KeyboardInterrupt
        noise = np.random.default_rng((len(run.name), run.seed)).standard_normal()
        predicted_sweep.write_records(run, loss_shift=0.002 * noise)
        seconds = 1e-4 * records.read_facts(records.run_dir(run))["params.non_embedding"]
        records.write_facts(records.run_dir(run), status=self.status, seconds=seconds)


def train(folder, trainer, **changes):
    ladder, goal, seconds = make_ladder(folder, **changes)
    (folder / "s").mkdir(exist_ok=True)
    return ladder_loop.train_ladder(ladder, goal, folder / "s", trainer, seconds)


def test_ladder_reaches_its_error_and_records_the_reasons(tmp_path):
    trainer = Trainer()
    state = train(tmp_path, trainer)
    assert state.is_reached and state.error <= 0.1
    decisions = ladder_record.read_decisions(tmp_path / "s")
    assert [d.run for d in decisions] == trainer.names and len({*trainer.names}) == len(decisions)
    assert [d.cell for d in decisions[:4]] == ["10K", "15K", "25K", "40K"]
    assert "0 of 4 sizes are trained" in decisions[0].reason
    assert "of the variance of the target in" in decisions[-1].reason
    assert all(d.error_after < d.error for d in decisions[4:])
    result = ladder_record.read_result(tmp_path / "s")
    assert result["is_reached"] and result["value"] == pytest.approx(state.value)
    names = [d.run for d in decisions]
    json_files.write_record(tmp_path / "s" / "sweep.json", {"runs": names})
    archive.archive_sweep(tmp_path / "s", tmp_path / "archive")
    assert ladder_record.read_decisions(tmp_path / "archive") == decisions


@pytest.mark.slow
def test_interrupted_ladder_continues_with_the_same_runs(tmp_path):
    (tmp_path / "whole").mkdir()
    trainer, first, second = Trainer(), Trainer(fail_at=4), Trainer()
    train(tmp_path / "whole", trainer)
    (tmp_path / "parts").mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", first)
    state = train(tmp_path / "parts", second)
    assert state.is_reached and [*first.names[:-1], *second.names] == trainer.names
    again = Trainer()
    assert train(tmp_path / "parts", again).is_reached and not again.names


@pytest.mark.slow
def test_stop_states_the_cost_of_the_goal(tmp_path):
    state = train(tmp_path, Trainer(), max_error=0.002, seconds=30.0)
    assert not state.is_reached and state.spent_seconds <= 30
    assert "0.20%" in state.reason
    assert " s more: " in state.reason or "add a larger size" in state.reason
    (tmp_path / "short").mkdir()
    state = train(tmp_path / "short", Trainer(), seconds=4.0)
    assert "it needs about" in state.reason and not np.isfinite(state.error)


def test_finished_runs_of_the_file_cost_no_time(tmp_path):
    ladder, _, _ = make_ladder(tmp_path)
    for cell in ladder.cells[:5]:
        Trainer()(cell.run(0), [cell.run(0)])
    trainer = Trainer()
    state = train(tmp_path, trainer)
    decisions = ladder_record.read_decisions(tmp_path / "s")
    assert [d.is_earlier for d in decisions[:5]] == [True] * 5
    assert not {d.run for d in decisions[:5]} & {*trainer.names}
    spent = sum(1e-4 * ladder.cell(d.cell).n_params for d in decisions if not d.is_earlier)
    assert state.spent_seconds == pytest.approx(spent)


def test_failed_run_stops_the_ladder_and_diverged_cells_are_left_out(tmp_path):
    with pytest.raises(ValueError, match=r"s/10K is failed .*remove the cause and repeat"):
        train(tmp_path, Trainer(status="failed"))
    (tmp_path / "other").mkdir()
    trainer = Trainer()
    write = trainer.__call__

    def train_run(run, members):
        write(run, members)
        if "/25K" in run.name:
            records.write_facts(records.run_dir(run), status="diverged")

    assert train(tmp_path / "other", train_run).is_reached
    assert sum("/25K" in name for name in trainer.names) == 1


def test_interrupted_run_continues_only_within_the_time(tmp_path):
    first, second = Trainer(fail_at=4), Trainer()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, first)
    state = train(tmp_path, second, seconds=1.0)
    assert not second.names and not state.is_reached and state.spent_seconds > 0
    assert f"too few for the interrupted run {first.names[-1]}, which needs" in state.reason
    assert ladder_record.read_result(tmp_path / "s")["reason"] == state.reason
    assert train(tmp_path, second).is_reached and second.names[0] == first.names[-1]
