"""Curves from run directories and from files."""

import dataclasses
import pathlib

import numpy as np
import pytest
from fixtures import training_curves

import lm
from lm.config import schema
from lm.laws.learning_curves import recorded_curves
from lm.runs import filesystem, records


def test_curves_of_run_directories_have_the_recorded_losses(tmp_path):
    curve = training_curves.curves(1)[0]
    (read,) = lm.laws.read_curves([training_curves.write_run(tmp_path, curve)])
    np.testing.assert_allclose(read.losses, curve.losses)
    np.testing.assert_array_equal(read.training_steps, curve.training_steps)
    np.testing.assert_allclose(read.rates, curve.rates)
    assert read.final_loss == curve.final_loss and read.batch_key == curve.batch_key
    row = training_curves.write_run(tmp_path / "b", curve.until(100), status="running")
    (unfinished,) = lm.laws.read_curves([row])
    assert not unfinished.is_finished and unfinished.last_step == 100


def test_curve_of_a_run_in_a_bucket_is_read(tmp_path, bucket):
    row = training_curves.write_run(tmp_path, training_curves.curves(1)[0])
    (local,) = lm.laws.read_curves([row])
    folder = pathlib.Path(row["dir"])
    row = row | {"dir": "gs://bucket/run"}
    for name in (recorded_curves.EVALUATIONS, recorded_curves.METRICS):
        filesystem.open_path(row["dir"]).joinpath(name).write_bytes((folder / name).read_bytes())
    (read,) = lm.laws.read_curves([row])
    np.testing.assert_array_equal(read.losses, local.losses)
    np.testing.assert_array_equal(read.training_losses, local.training_losses)


def test_curve_of_a_trained_run_has_its_schedule(finished_run):
    (row,) = records.load_runs(records.run_dir(finished_run))
    (curve,) = lm.laws.read_curves([row])
    assert curve.is_finished and curve.final_loss == row["eval.loss"]
    assert curve.rates.max() == pytest.approx(schema.Optimizer().lr)
    assert curve.settings["corpus.hash"] == row["corpus.hash"]
    (metrics,) = (
        {step: r["lr"] for r in records.load_metrics(row["dir"]) if (step := r["step"]) == 12},
    )
    assert curve.rates[11] == pytest.approx(metrics[12], rel=1e-5)


def test_file_of_curves_restores_them(tmp_path):
    curves = training_curves.curves(1)
    curves[1] = curves[1].until(100)
    recorded_curves.save_curves(curves, tmp_path / "curves.jsonl")
    loaded = lm.laws.load_curves(tmp_path / "curves.jsonl")
    for curve, other in zip(curves, loaded, strict=True):
        np.testing.assert_allclose(other.losses, curve.losses, rtol=1e-5)
        np.testing.assert_array_equal(other.rates, curve.rates)
        assert other.is_finished == curve.is_finished and other.batch_key == curve.batch_key


def test_damaged_line_of_a_file_is_named(tmp_path):
    path = tmp_path / "curves.jsonl"
    recorded_curves.save_curves(training_curves.curves(1), path)
    path.write_text(path.read_text() + '{"name": "a"}\n')
    with pytest.raises(ValueError, match=r"curves.jsonl:5 is no learning curve"):
        lm.laws.load_curves(path)


def test_row_without_a_schedule_is_refused(tmp_path):
    row = training_curves.write_run(tmp_path, training_curves.curves(1)[0])
    for column in ("optim.schedule", "optim.lr", "steps", "dir"):
        with pytest.raises(ValueError, match=f"{training_curves.run_names()[0]} has no {column}"):
            lm.laws.read_curves([{k: v for k, v in row.items() if k != column}])


def test_training_losses_replace_evaluations_by_their_means():
    curve = training_curves.curves(1)[0]
    flat = dataclasses.replace(curve, training_losses=np.full(len(curve.training_steps), 2.0))
    replaced = flat.with_training_losses()
    assert set(replaced.losses) == {2.0} and replaced.final_loss == curve.final_loss
    assert len(replaced.steps) == recorded_curves.N_BINS
