"""Faulty versions of runs of configs/sweeps/learning_curves.py, for a fifth of the steps.

4x rate    the learning rates are 4 times those of the config
repeated   after 5% of the steps, half of each batch repeats random rows of the first 5%

Everything else is that of the config: the weights, the batches and the schedule of the whole run.
`train_faulty_runs` trains the runs of two sizes with the schedule wsd. Runs with 4 times half the
learning rate exist among the healthy runs, as those with twice the learning rate.

Hardware and time: 10 trained runs, 20 minutes on two busy CPU cores; the committed records have 8.
"""

import copy
import dataclasses
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from configs.sweeps import learning_curves
from experiments.common import console
from lm.config import schema
from lm.data import dataset
from lm.laws.learning_curves import recorded_curves
from lm.runs import records
from lm.training import loop, optimizer, step

FAULTS = ("trained, 4x rate", "trained, repeated")
RATE_FACTOR = 4.0
TRAINED_FRACTION = 0.2
TRAINED_SIZES, TRAINED_SCHEDULE = ("10K", "25K"), "wsd"
SLOW = "x0.5"  # 4 times its learning rates are those of the healthy run x2
REPEATED_FRACTION = 0.05  # of the steps, whose rows are repeated


def train_faulty_runs(path: str) -> None:
    """Train all faulty runs and write their curves. The name of a curve is FAULT:NAME."""
    curves = []
    step.CACHE.programs.clear()  # the schedule of the whole run is part of a compiled program
    for run in learning_curves.get_sweep():
        size, schedule, factor = split_name(run.name)
        if size not in TRAINED_SIZES or schedule != TRAINED_SCHEDULE:
            continue
        for fault in FAULTS[factor == SLOW :]:
            with tempfile.TemporaryDirectory() as folder:
                curves.append(train_faulty_run(run, fault, folder))
            console.print_line(f"{fault}: {run.name}")
            recorded_curves.save_curves(curves, path)
    console.print_line(f"faulty runs: {len(curves)}, written to {path}")


def split_name(name: str) -> tuple[str, str, str]:
    """Return size, schedule and factor of the learning rate of a run, such as 10K, wsd, x0.5."""
    size, schedule, factor = name.rpartition("/")[2].split("-")
    return size, schedule, factor


def train_faulty_run(run: schema.Run, fault: str, folder: str) -> recorded_curves.LearningCurve:
    """Train a run with a fault in a folder. Return its curve with the settings of the config."""
    trained = copy.deepcopy(run)
    trained.dir, trained.steps = folder, round(TRAINED_FRACTION * run.steps)
    trained.checkpoint_interval, trained.eval.interval = trained.steps, 0
    if fault == FAULTS[0]:
        trained.optim.lr *= RATE_FACTOR
    schedule = functools.partial(_whole_schedule, optimizer.learning_rate_schedule, run.steps)
    batch = functools.partial(_repeat_rows, dataset.TokenDataset.batch, run.steps)
    with mock.patch.object(optimizer, "learning_rate_schedule", schedule):
        if fault == FAULTS[1]:
            method = functools.partialmethod(_call_with_self, batch)
            with mock.patch.object(dataset.TokenDataset, "batch", method):
                loop.train(trained)
        else:
            loop.train(trained)
    (row,) = records.load_runs(Path(folder) / run.name)
    row |= {"steps": run.steps, "optim.lr": run.optim.lr}
    (curve,) = recorded_curves.read_curves([row])
    return dataclasses.replace(curve, name=f"{fault}:{run.name}")


def _whole_schedule(schedule: Callable, n_steps: int, optim: schema.Optimizer, _: int) -> Callable:
    """Return the learning rates of the whole run instead of those of the trained steps."""
    return schedule(optim, n_steps)


def _call_with_self(text: dataset.TokenDataset, function: Callable, *args) -> dict:
    """Call function(text, *args) as a method of the text."""
    return function(text, *args)


def _repeat_rows(
    batch: Callable,
    n_steps: int,
    text: dataset.TokenDataset,
    number: int,
    rows: slice | np.ndarray = slice(None),
) -> dict[str, np.ndarray]:
    """Return the batch of a step, whose last half repeats rows of the first steps."""
    arrays = {name: np.array(array) for name, array in batch(text, number, rows).items()}
    n_first = round(REPEATED_FRACTION * n_steps)
    if number < n_first:
        return arrays
    n_rows = text.data.batch_size
    generator = np.random.default_rng((7, number))
    steps, repeated = (
        generator.integers(n_first, size=n_rows),
        generator.integers(n_rows, size=n_rows),
    )
    for i, row in enumerate(np.arange(n_rows)[rows]):
        if row >= n_rows // 2:
            source = batch(text, int(steps[row]), repeated[[row]])
            for name, array in arrays.items():
                array[i] = source[name][0]
    return arrays
