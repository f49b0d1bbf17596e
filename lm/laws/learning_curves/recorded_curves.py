"""Learning curves of runs: from run directories, or from a file of curves.

    curves = recorded_curves.read_curves(records.load_runs("runs/learning_curves"))
    recorded_curves.save_curves(curves, "curves.jsonl")        # a few kB per run
    curves = recorded_curves.load_curves("curves.jsonl")

The learning rates of all steps follow from the config. A branch counts the steps of its trunk run.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.config import optimizer_config
from lm.config.schedules import batch_size_schedule
from lm.laws import comparability, run_table
from lm.runs import filesystem, json_files

START_FRACTION = 0.1  # of the steps; earlier losses are not fitted
N_BINS = 30  # points of a curve of training losses
SCHEDULE_FIELDS = (
    *("lr", "schedule", "warmup", "warmup_steps", "warmup_tokens", "decay", "decay_steps"),
    *("decay_tokens", "final_lr_fraction"),
)
# Columns that decide whether two runs have the same text and the same batches.
BATCH_COLUMNS = ("seed", "data.batch_size", "data.seq_len", "data.packing", "corpus.hash")
COMPARED = {
    *(column for columns in comparability.PROPERTIES.values() for column in columns),
    *BATCH_COLUMNS,
    *("start.run", "start.restore", "in_sweep"),
}
EVALUATIONS, METRICS = "evals.jsonl", "metrics.jsonl"
FILE_DIGITS = 6  # of the losses in a file


@dataclasses.dataclass(frozen=True)
class LearningCurve:
    """Losses of a run and the learning rates of all its steps, also of future steps."""

    name: str
    n_params: float  # without embeddings
    batch_tokens: int  # tokens per step
    n_steps: int
    schedule: Mapping[str, Any]  # SCHEDULE_FIELDS -> value
    settings: Mapping[str, Any]  # columns of COMPARED -> value
    steps: np.ndarray  # [k] completed steps at the evaluations, ascending
    losses: np.ndarray  # [k] held-out losses
    training_steps: np.ndarray  # [m] last step of each row of metrics
    training_losses: np.ndarray  # [m] mean training loss since the row before
    final_loss: float  # held-out loss of the last step; NaN for an unfinished run

    @functools.cached_property
    def rates(self) -> np.ndarray:
        """Learning rates of all steps [T]."""
        optim = optimizer_config.Optimizer(**self.schedule)
        # Only the product of batch size and row length matters here.
        batches = batch_size_schedule.BatchSizeSchedule(self.batch_tokens, 1, "")
        optim = batch_size_schedule.resolve_tokens(optim, batches, self.n_steps)
        steps = np.arange(self.n_steps)
        rates = optimizer_config.compute_learning_rate(optim, self.n_steps, steps, np)
        return np.asarray(rates, float)

    @property
    def batch_key(self) -> tuple:
        """Values that are equal for runs with equal batches."""
        return tuple(str(self.settings.get(column)) for column in BATCH_COLUMNS)

    @property
    def last_step(self) -> int:
        """Last step with a loss, 0 without losses."""
        return int(max([0, *self.steps[-1:], *self.training_steps[-1:]]))

    def until(self, step: float) -> "LearningCurve":
        """Return the unfinished run with the losses up to a step."""
        return dataclasses.replace(
            self,
            steps=self.steps[self.steps <= step],
            losses=self.losses[self.steps <= step],
            training_steps=self.training_steps[self.training_steps <= step],
            training_losses=self.training_losses[self.training_steps <= step],
            final_loss=self.final_loss if step >= self.n_steps else float("nan"),
        )

    def with_training_losses(self) -> "LearningCurve":
        """Return the curve with means of training losses in place of the evaluations.

        The rows of each of N_BINS parts of the run have one mean. The final loss is unchanged.
        """
        bins = self.training_steps * N_BINS // (self.n_steps + 1)
        parts = [bins == number for number in np.unique(bins)]
        return dataclasses.replace(
            self,
            steps=np.array([round(self.training_steps[part].mean()) for part in parts], int),
            losses=np.array([self.training_losses[part].mean() for part in parts]),
        )

    @property
    def is_finished(self) -> bool:
        """True if the run has a final held-out loss."""
        return bool(np.isfinite(self.final_loss))

    def fitted_points(self, until: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
        """Return steps and logs of the held-out losses after START_FRACTION, up to a step."""
        is_fitted = (self.steps >= START_FRACTION * self.n_steps) & (self.steps <= until)
        return self.steps[is_fitted], np.log(self.losses[is_fitted])


def read_curves(rows: run_table.Rows) -> list[LearningCurve]:
    """Read the curves of runs from their directories.

    rows: see records.load_runs. Raises ValueError that names a missing column.
    """
    return [_read_curve(row, i) for i, row in enumerate(run_table.to_rows(rows))]


def _read_curve(row: Mapping, index: int) -> LearningCurve:
    """Return the curve of a row."""
    name = comparability.run_name(row, index)
    needed = ("dir", "steps", "params.non_embedding", "data.batch_size", "data.seq_len")
    needed += ("optim.schedule", "optim.lr")
    for column in needed:
        if row.get(column) is None:
            raise ValueError(
                f"{name} has no {column}, which its learning-rate schedule or its curve needs."
                " Pass rows of lm.load_runs, or curves of lm.laws.load_curves"
            )
    if warmup := row.get(batch_size_schedule.FIELD):
        raise ValueError(
            f"{name}: data.batch_size_warmup={warmup} changes the tokens per step, and a forecast"
            " needs runs of constant batch size: leave this run out"
        )
    folder = filesystem.open_path(row["dir"])
    evaluations = _finite_rows(json_files.read_latest_rows(folder / EVALUATIONS))
    metrics = _finite_rows(json_files.read_latest_rows(folder / METRICS))
    is_finished = row.get("status", "done") == "done" and row["steps"] in dict(evaluations)
    return LearningCurve(
        name=name,
        n_params=float(row["params.non_embedding"]),
        batch_tokens=int(row["data.batch_size"] * row["data.seq_len"]),
        n_steps=int(row["steps"]),
        schedule={f: row[f"optim.{f}"] for f in SCHEDULE_FIELDS if f"optim.{f}" in row},
        settings={column: row[column] for column in sorted(COMPARED) if column in row},
        steps=np.array([step for step, _ in evaluations], int),
        losses=np.array([loss for _, loss in evaluations]),
        training_steps=np.array([step for step, _ in metrics], int),
        training_losses=np.array([loss for _, loss in metrics]),
        final_loss=dict(evaluations)[row["steps"]] if is_finished else float("nan"),
    )


def _finite_rows(rows: Sequence[Mapping]) -> list[tuple[int, float]]:
    """Return (step, loss) of the rows after step 0 with a positive, finite loss."""
    pairs = [(row["step"], run_table.to_number(row.get("loss"))) for row in rows]
    return [(step, loss) for step, loss in pairs if step > 0 and np.isfinite(loss) and loss > 0]


def save_curves(curves: Sequence[LearningCurve], path: str | Path) -> None:
    """Write curves to a file with one JSON object per line, with rounded losses."""
    lines = []
    for curve in curves:
        entry = {f.name: getattr(curve, f.name) for f in dataclasses.fields(curve)}
        for key in ("steps", "training_steps"):
            entry[key] = entry[key].tolist()
        entry["final_loss"] = curve.final_loss if np.isfinite(curve.final_loss) else None
        for key in ("losses", "training_losses"):
            entry[key] = [float(f"{loss:.{FILE_DIGITS}g}") for loss in entry[key]]
        lines.append(json.dumps(entry, separators=(",", ":")) + "\n")
    Path(path).write_text("".join(lines), encoding="utf-8")


def load_curves(path: str | Path) -> list[LearningCurve]:
    """Load the curves of a file. Raises ValueError that names the file and a damaged line."""
    curves = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            for key in ("steps", "losses", "training_steps", "training_losses"):
                entry[key] = np.array(entry[key], int if key.endswith("steps") else float)
            if entry["final_loss"] is None:
                entry["final_loss"] = float("nan")
            curves.append(LearningCurve(**entry))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path}:{number} is no learning curve ({error}): write the file again with"
                " save_curves"
            ) from error
    return curves
