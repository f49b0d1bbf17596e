"""Subjects of the attack: text, a sweep, its prepared text, and the results without any fault.

    subjects = build(Path("attack"))
    folder = subjects.copy("finished")      # a working directory that a case may damage

All paths in the configs are relative, so that a copy of a working directory is complete.
"""

import itertools
import random
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.attack import children, readers

SIZES = ("10K", "12K", "15K", "20K", "25K")
SWEEP = """
from lm.config import model_sizes, schema


def make_run(size):
    run = schema.Run(name=f"attack/{size}")
    run.model = model_sizes.ladder_model("10K", d_model=8 * (2 + SIZES.index(size)), n_layers=1)
    run.steps, run.log_interval, run.checkpoint_interval = 20, 1, 5
    run.data.sources = {"text:text": 1.0}
    run.data.tokenizer = "bpe:300"
    run.data.seq_len, run.data.batch_size, run.data.heldout_fraction = 32, 4, 0.2
    run.eval.n_sequences, run.eval.n_completions, run.eval.interval = 16, 16, 5
    run.optim.lr = 0.01
    return run


SIZES = ("10K", "12K", "15K", "20K", "25K")


def get_config():
    return make_run("10K")


def get_sweep(n="5"):
    for size in SIZES[: int(n)]:
        run = make_run(size)
        run.is_prediction_target = size == SIZES[-1]
        yield run
"""
WORDS = (
    "scale loss model token layer width depth batch step rate data text head norm weight sum"
    " gradient noise curve law fit train held out small large first last few many red blue"
).split()
RUN = "runs/attack/10K"
CONFIG, PAIR = "--config=attack.py", "--sweep=attack.py:2"


class Effort(NamedTuple):
    """Number of writes and time of a command."""

    n_writes: int
    seconds: float


@dataclass
class Subjects:
    """Working directories below `root`, and the results of undisturbed commands.

    finished: a finished sweep. stopped: its first run, stopped after half of its steps. prepared:
    prepared text and no run. inputs: only text and configs. other: a finished run of other text.
    """

    root: Path
    records: dict[str, Any]  # records of the finished sweep, by reader
    runs: dict[str, Any]  # results of the finished runs, by size
    corpus: dict[str, str]  # SHA-256 of the prepared files
    commands: dict[str, Any] = field(default_factory=dict)  # results of evaluate, sample, export
    efforts: dict[str, Effort] = field(default_factory=dict)  # of undisturbed commands
    records_without: dict[str, Any] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)

    def state(self, name: str) -> Path:
        """Return the working directory of a state, which is created on its first use."""
        folder = self.root / name
        if not folder.exists() and name == "stopped":
            _build_stopped(folder, self.root / "prepared")
        elif not folder.exists() and name == "other":
            _build_other(folder)
        return folder

    def copy(self, state: str) -> Path:
        """Return a new working directory with the files of a state."""
        folder = self.root / f"case{next(self._numbers)}"
        shutil.copytree(self.state(state), folder, symlinks=True)
        return folder

    def without(self, run: str) -> dict[str, Any]:
        """Return the records of the finished sweep without one run."""
        if run not in self.records_without:
            folder = self.copy("finished")
            shutil.rmtree(folder / "runs" / run)
            self.records_without[run] = children.call(folder, readers.read_records).value
            shutil.rmtree(folder)
        return self.records_without[run]

    def command_result(self, command: str) -> Any:
        """Return the result of a command on the undisturbed finished run."""
        if command not in self.commands:
            folder = self.copy("finished")
            ended = children.call(folder, readers.run_reader, command)
            if ended.status != 0 or ended.errors.strip():
                raise RuntimeError(f"undisturbed {command}: {ended.output}{ended.errors}")
            self.commands[command] = ended.value
            shutil.rmtree(folder)
        return self.commands[command]

    def measure(self, state: str, command: str, arguments: list[str]) -> Effort:
        """Return the number of writes and the seconds of an undisturbed command."""
        key = " ".join([state, command, *arguments])
        if key not in self.efforts:
            folder = self.copy(state)
            ended = children.run_command(folder, command, arguments)
            if ended.status != 0:
                raise RuntimeError(f"undisturbed {key}: {ended.output}{ended.errors}")
            self.efforts[key] = Effort(ended.n_writes, ended.seconds)
            shutil.rmtree(folder)
        return self.efforts[key]


def build(root: Path, n_runs: int = len(SIZES)) -> Subjects:
    """Train the undisturbed runs below a folder and return the subjects.

    n_runs: number of runs. The last of all sizes is predicted from the others. A single run is not
    part of a sweep.
    """
    (root / "compiled").mkdir(parents=True, exist_ok=True)
    write_inputs(root / "inputs")
    shutil.copytree(root / "inputs", root / "prepared")
    run_undisturbed(root / "prepared", "prepare", [CONFIG])
    shutil.copytree(root / "prepared", root / "finished")
    if n_runs == 1:
        run_undisturbed(root / "finished", "train", [CONFIG])
    else:
        run_undisturbed(root / "finished", "sweep", [f"--sweep=attack.py:{n_runs}"])
    shutil.copytree(root / "finished", root / "read")  # The archive is written into the folder.
    records = children.call(root / "read", readers.read_records).value
    runs = children.call(root / "read", readers.read_results).value
    return Subjects(root, records, runs, readers.file_hashes(root / "finished" / "data"))


def _build_stopped(folder: Path, prepared: Path) -> None:
    """Train the first run to its half: SIGTERM comes between two writes."""
    for number in range(72, 400, 12):
        shutil.copytree(prepared, folder)
        options = children.Options(children.Moment(signal.SIGTERM, number))
        ended = children.run_command(folder, "train", [CONFIG], options)
        steps = [int(path.name) for path in (folder / RUN / "checkpoints").glob("[0-9]*")]
        if ended.status == 128 + signal.SIGTERM and 10 <= max(steps, default=0) < 20:
            return
        shutil.rmtree(folder)
    raise RuntimeError(f"no stopped run: {ended.status}, steps {steps}, {ended.errors}")


def _build_other(folder: Path) -> None:
    """Train a run on other text."""
    write_inputs(folder, seed=1)
    run_undisturbed(folder, "train", [CONFIG])


def run_undisturbed(folder: Path, command: str, arguments: list[str]) -> None:
    """Run a command without any fault. Raises RuntimeError if it fails."""
    ended = children.run_command(folder, command, arguments)
    if ended.status != 0:
        raise RuntimeError(f"{command} {arguments}: {ended.status} {ended.output}{ended.errors}")


def write_inputs(folder: Path, seed: int = 0) -> None:
    """Write 60 documents of random words, and the config file attack.py."""
    rng = random.Random(seed)
    (folder / "text").mkdir(parents=True)
    for number in range(60):
        words = rng.choices(WORDS, weights=range(1, len(WORDS) + 1), k=110 + number % 7)
        lines = [" ".join(words[i : i + 9]) for i in range(0, len(words), 9)]
        (folder / "text" / f"{number}.txt").write_text("\n".join(lines) + "\n")
    (folder / "attack.py").write_text(SWEEP)


def path_names(path: str) -> list[str]:
    """Return the parts of a path that a message may name: the file, its folder, a checkpoint."""
    parts = Path(path).parts
    names = [name for name in parts[1:] if name not in ("attack", "runs", "state", "d")]
    if "checkpoints" in parts:
        names += [f"checkpoint {name}" for name in parts if name.isdigit()]
    return names


def selected(values: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Return the values of some names."""
    return {name: values[name] for name in names}
