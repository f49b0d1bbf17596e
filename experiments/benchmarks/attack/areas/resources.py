"""Resources: quotas, file handles, full disks, moved folders, strange environments and buckets.

A command under a fault ends with one line, or it succeeds. Without the fault, the same command ends
with the bits of an undisturbed one.
"""

import contextlib
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.benchmarks.attack import children, outcomes, readers, simulated_bucket, subjects
from experiments.benchmarks.attack.areas import kills

# A message about a disk names a path, or the disk.
NAMES = ("runs/", "data/", "disk", "bucket", "checkpoint", "exported", "standard output")
NAMES += ("Too many open files",)
WORK: tuple[kills.Target, ...] = (
    kills.TRAIN,
    kills.Target("inputs", "prepare", [subjects.CONFIG]),
    kills.Target("stopped", "train", [subjects.CONFIG], subjects.SIZES[:1]),
    kills.Target("finished", "export", readers.COMMANDS["export"], subjects.SIZES[:1]),
    kills.Target("finished", "report", [f"--dir={readers.SWEEP}"], subjects.SIZES[:1]),
)


# Folders that a command writes.
WRITTEN_FOLDERS = {
    "train": ("runs", subjects.RUN, f"{subjects.RUN}/checkpoints"),
    "prepare": ("data",),
    "export": ("exported",),
    "report": (readers.SWEEP,),
}


def run_case(seed: int, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Run a command under one fault, and then without it."""
    rng = random.Random(f"resources {seed}")
    fault = FAULTS[seed % len(FAULTS)]
    outcome = fault(rng, attacked)
    return outcome._replace(detail=f"{fault.__name__}: {outcome.detail}")


def _run_and_repeat(
    folder: Path, target: kills.Target, attacked: subjects.Subjects, options: children.Options
) -> outcomes.Outcome:
    """Run a command under a fault of its process, and then without the fault."""
    outcome = _run(folder, target, options)
    return outcome if outcome.kind == "failed" else _finish(folder, target, attacked, outcome)


def _run(folder: Path, target: kills.Target, options: children.Options) -> outcomes.Outcome:
    ended = children.run_command(folder, target.command, target.arguments, options)
    outcome = outcomes.judge_command(ended.status, ended.output, ended.errors, NAMES)
    return outcome._replace(detail=f"{target.command}, {options.limits}: {outcome.detail}")


def _finish(
    folder: Path, target: kills.Target, attacked: subjects.Subjects, outcome: outcomes.Outcome
) -> outcomes.Outcome:
    """Repeat the command without the fault and compare the results."""
    repeated = kills.repeat(folder, target, attacked)
    if repeated.kind != "failed":
        shutil.rmtree(folder, ignore_errors=True)
    detail = f"{target.command} afterwards: {repeated.detail}"
    return outcomes.worst([outcome, repeated._replace(detail=detail)])


def file_size_quota(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Limit the size of a file."""
    target = rng.choice(WORK)
    limits = {resource.RLIMIT_FSIZE: rng.choice((0, 500, 4096, 15_000, 20_000))}
    folder = attacked.copy(target.state)
    return _run_and_repeat(folder, target, attacked, children.Options(limits=limits))


def file_handles(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Limit the number of open files."""
    target = rng.choice(WORK)
    limits = {resource.RLIMIT_NOFILE: rng.choice((12, 16, 20, 24, 28, 32, 40))}
    folder = attacked.copy(target.state)
    return _run_and_repeat(folder, target, attacked, children.Options(limits=limits))


def read_only_folder(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Make a folder immutable, which also holds for root."""
    target = rng.choice(WORK)
    folder = attacked.copy(target.state)
    frozen = folder / rng.choice(WRITTEN_FOLDERS[target.command])
    frozen.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["chattr", "-R", "+i", frozen], capture_output=True).returncode:
        shutil.rmtree(folder)
        return outcomes.Outcome("skipped", "an immutable folder needs root and chattr")
    try:
        outcome = _run(folder, target, children.Options())
    finally:
        subprocess.run(["chattr", "-R", "-i", frozen], check=True)
    detail = f"{frozen.relative_to(folder)}: {outcome.detail}"
    outcome = outcome._replace(detail=detail)
    return outcome if outcome.kind == "failed" else _finish(folder, target, attacked, outcome)


def full_disk(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Train on a disk with little space, and repeat the command with more space."""
    target = rng.choice(WORK[:3])
    folder = attacked.copy(target.state)
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        shutil.rmtree(folder)
        return outcomes.Outcome("skipped", "mounting a disk needs root")
    try:
        for name in ("runs", "data"):
            if (folder / name).exists():
                shutil.move(folder / name, disk / name)
            (disk / name).mkdir(exist_ok=True)
            (folder / name).symlink_to(disk / name)
        ballast = disk / "ballast"
        free = shutil.disk_usage(disk).free - rng.choice((0, 4, 16, 40, 80)) * 1024
        ballast.write_bytes(bytes(max(0, free)))
        outcome = _run(folder, target, children.Options())
        ballast.unlink()
        if outcome.kind != "failed":
            repeated = kills.repeat(folder, target, attacked)
            outcome = outcomes.worst([outcome, repeated])
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    if outcome.kind != "failed":
        shutil.rmtree(folder)
    return outcome


def moved_folder(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Move or rename the sweep, or reach it by a link, and evaluate a run of it."""
    folder = attacked.copy("finished")
    new = rng.choice(("elsewhere/attack", "runs/my-attack", "runs/attack2", "attack", "runs/10K"))
    (folder / new).parent.mkdir(exist_ok=True)
    is_linked = rng.random() < 0.4
    if is_linked:
        (folder / new).symlink_to(folder / readers.SWEEP)
    else:
        (folder / readers.SWEEP).rename(folder / new)
    command = rng.choice(("evaluate", "sample"))
    flags = [f"--run={new}/10K", *readers.COMMANDS[command][1:]]
    ended = children.call(folder, run_moved, command, flags)
    outcome = outcomes.judge_command(ended.status, ended.output, ended.errors, NAMES)
    if outcome.kind in ("same", "repaired"):
        expected = attacked.command_result(command)
        outcome = outcomes.judge_results(expected, ended.value, ended.errors.strip())
    is_same_name = new.endswith("/attack") or new == "attack"
    if outcome.kind == "refused" and is_same_name:
        outcome = outcome._replace(kind="failed")
    shutil.rmtree(folder)
    return outcome._replace(detail=f"{command} {new}, link={is_linked}: {outcome.detail}")


def run_moved(command: str, flags: list[str]) -> Any:
    """Run evaluate or sample with other flags and return its results."""
    readers.COMMANDS[command] = flags
    return readers.run_reader(command)


def linked_folders(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Replace the folders of runs, text and prepared text by links."""
    target = rng.choice((WORK[0], WORK[2]))
    folder = attacked.copy(target.state)
    store = folder / "store"
    store.mkdir()
    for name in ("runs", "data", "text"):
        if (folder / name).exists():
            (folder / name).rename(store / name)
        (store / name).mkdir(exist_ok=True)
        (folder / name).symlink_to(store / name)
    return _finish(folder, target, attacked, outcomes.Outcome("same"))


def strange_environment(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Start a command without HOME, with LC_ALL=C, without a temporary folder or with a bad TZ."""
    target = rng.choice((WORK[0], WORK[4]))
    folder = attacked.copy(target.state)
    environment = rng.choice(
        (
            {"HOME": None, "XDG_CACHE_HOME": None, "LC_ALL": "C"},
            {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
            {"TMPDIR": "/nonexistent", "TZ": "Nowhere/None"},
            {"HOME": "/nonexistent", "COLUMNS": "1", "TERM": "dumb"},
        )
    )
    options = children.Options(environment=environment, with_real_start=True)
    outcome = _run_and_repeat(folder, target, attacked, options)
    return outcome._replace(detail=f"{environment}: {outcome.detail}")


def strange_path(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Work in a folder whose name has spaces, umlauts, quotes or braces."""
    target = rng.choice((WORK[0], WORK[1], WORK[2]))
    copy = attacked.copy(target.state)
    parent = copy.with_name(f"{copy.name}-parent")
    parent.mkdir()
    (parent / "compiled").symlink_to(attacked.root / "compiled")
    name = rng.choice(("a b", "größe läufe", "x'y\"z", "{a}[0]*", "实验", "-n", "a=b,c?d#e%41"))
    folder = copy.rename(parent / name)
    environment: dict[str, str | None] = {}
    if rng.random() < 0.3:
        environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    options = children.Options(environment=environment, with_real_start=bool(environment))
    outcome = _run_and_repeat(folder, target, attacked, options)
    return outcome._replace(detail=f"{name!r}, {environment}: {outcome.detail}")


def read_only_cache(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Replace the compilation cache by a file, so that nothing can be stored in it."""
    folder = attacked.copy(kills.TRAIN.state)
    (folder / "compiled").write_text("not a folder")
    return _run_and_repeat(folder, kills.TRAIN, attacked, children.Options())


def faulty_bucket(rng: random.Random, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Train in a bucket that fails, delays or truncates, and repeat without the faults."""
    folder = attacked.copy("prepared")
    kind = rng.choice(("put fails", "get fails", "delayed", "truncated", "put fails later"))
    ended = children.call(
        folder, train_in_bucket, kind, rng.random(), options=children.Options(timeout=240.0)
    )
    if ended.status != 0:
        line = (ended.errors or ended.output)[-500:]
        return outcomes.Outcome("failed", f"{kind}, exit status {ended.status}: {line}")
    first = ended.value["first"]
    outcome = outcomes.Outcome("same")
    if first:
        outcome = outcomes.judge_message(first["message"], NAMES)
        if not first["is_message"]:
            outcome = outcomes.Outcome("failed", f"traceback {first['message'][:300]}")
    compared = outcomes.judge_results({"10K": attacked.runs["10K"]}, ended.value["results"], "")
    if compared.kind != "failed":
        shutil.rmtree(folder)
    outcome = outcomes.worst([outcome, compared])
    return outcome._replace(detail=f"{kind}: {outcome.detail}")


def train_in_bucket(kind: str, number: float) -> dict[str, Any]:
    """Train in a simulated bucket with faults until an error, and then without faults."""
    from experiments.common import config_files
    from lm.training import loop

    changes = ["dir=gs://bucket/runs", "data.cache_dir=gs://bucket/data"]
    first: dict[str, Any] = {}
    with simulated_bucket.open_bucket() as store:
        with _faults(store, kind, number):
            try:
                loop.train(config_files.load_run_file("attack.py", changes))
            except Exception as error:
                is_message = isinstance(error, (ValueError, OSError))
                first = {"message": f"{error}", "is_message": is_message}
        loop.train(config_files.load_run_file("attack.py", changes))
        results = readers.read_results([f"gs://bucket/{subjects.RUN}"])
    return {"first": first, "results": results}


@contextlib.contextmanager
def _faults(store: simulated_bucket.Objects, kind: str, number: float) -> Iterator[None]:
    """Let requests of a bucket fail, wait or truncate their data while the context is open."""
    rng = random.Random(number)
    first_fault = rng.randrange(200) if kind == "put fails later" else 0

    def fault(data: bytes, is_put: bool) -> bytes:
        if kind == "delayed":
            time.sleep(rng.choice((0, 0, 0, 0.3)))
        elif kind == "truncated" and is_put and rng.random() < 0.05:
            return data[: len(data) // 2]
        elif is_put == kind.startswith("put") and kind != "truncated":
            if store.puts >= first_fault and rng.random() < 0.3:
                raise OSError("the bucket does not answer")
        return data

    store.fault = fault
    try:
        yield
    finally:
        store.fault = None


FAULTS: tuple[Callable[[random.Random, subjects.Subjects], outcomes.Outcome], ...] = (
    *(file_size_quota, file_handles, read_only_folder, full_disk, moved_folder),
    *(linked_folders, strange_environment, strange_path, read_only_cache, faulty_bucket),
)
