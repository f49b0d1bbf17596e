"""Processes of the attack: commands and functions in a process that can be killed.

    ended = children.run_command(folder, "train", ["--config=run.py"])
    ended = children.call(folder, function)

The processes start from a server that has imported the libraries, so that a command starts in a
fraction of a second. A command in such a process is the module that `python -m` runs, with the
same arguments, signals and exit status.
"""

import json
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import process
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks import fast_compilation

REPOSITORY = Path(__file__).parents[3]
PRELOADED = [
    *("lm.training.loop", "lm.training.loaded_model", "lm.sweeps.launcher", "lm.reports.report"),
    *("lm.evaluation.task_eval", "lm.model.hf.export", "lm.laws.design.experiment_design"),
    *("lm.sweeps.planning.cost", "experiments.common.console", "scipy.optimize", "tensorboardX"),
]
TIMEOUT = 150.0  # seconds of one command
WRITE_EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.truncate", "os.rmdir", "sqlite3.connect")


class Moment(NamedTuple):
    """Moment of a signal: `delay_seconds` after a write of the process, or after its start.

    number: of the write, from 1; 0 is the start.
    """

    signal: int
    number: int
    delay_seconds: float = 0.0


class Options(NamedTuple):
    """Options of a process.

    environment: changes; a value of None removes the variable. limits: {resource.RLIMIT_...:
    value}. with_real_start: start a new interpreter instead of a process of the server.
    """

    moment: Moment | None = None
    environment: Mapping[str, str | None] = {}
    limits: Mapping[int, int] = {}
    devices: int = 1
    with_real_start: bool = False
    timeout: float = TIMEOUT


class Ended(NamedTuple):
    """End of a process. status: None after the time limit, -N after signal N."""

    status: int | None
    output: str
    errors: str
    value: Any  # result of the function, None for a command or without a result
    n_writes: int  # number of writes before the end, for a process of the server
    seconds: float


class Child:
    """A process in its own group. folder: its working directory."""

    def __init__(self, folder: Path, function: Callable, arguments: tuple, options: Options):
        self.options = options
        names = ("stdout", "stderr", "value", "writes")
        stem = f".{time.monotonic_ns()}"
        logs = folder.parent / "logs"
        logs.mkdir(exist_ok=True)
        self.files = {name: logs / f"{folder.name}{stem}.{name}" for name in names}
        self.began = time.monotonic()
        if options.with_real_start:
            self.process = _start_interpreter(folder, arguments, options, self.files)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        paths = {name: str(file) for name, file in self.files.items()}
        self.process = context.Process(
            target=_run, args=(str(folder), function, arguments, options, paths)
        )
        self.process.start()

    def send(self, number: int) -> None:
        """Send a signal to the process."""
        try:
            os.kill(self.process.pid or 0, number)
        except ProcessLookupError:
            pass

    def wait(self) -> Ended:
        """Wait until the process ends or reaches its time limit."""
        seconds = max(0.1, self.options.timeout - (time.monotonic() - self.began))
        status: int | None
        if isinstance(self.process, process.BaseProcess):
            self.process.join(seconds)
            status = self.process.exitcode
        else:
            try:
                status = self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                status = None
        self._end_group()
        texts = {}
        for name, file in self.files.items():
            texts[name] = file.read_text(errors="replace") if file.exists() else ""
            file.unlink(missing_ok=True)
        value = json.loads(texts["value"]) if texts["value"] else None
        n_writes = int(texts["writes"] or 0)
        ended = time.monotonic() - self.began
        return Ended(status, texts["stdout"], texts["stderr"], value, n_writes, ended)

    def _end_group(self) -> None:
        """End the processes that remain in the group of this process."""
        try:
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        if isinstance(self.process, process.BaseProcess):
            self.process.join(10)
        else:
            self.process.wait(10)


def call(folder: Path, function: Callable, *arguments, options: Options | None = None) -> Ended:
    """Call a function of a module in a process and return its result as plain JSON data."""
    return Child(folder, function, arguments, options or Options()).wait()


def run_command(
    folder: Path, command: str, arguments: list[str], options: Options | None = None
) -> Ended:
    """Run `python -m experiments.COMMAND` in a folder."""
    return start_command(folder, command, arguments, options).wait()


def start_command(
    folder: Path, command: str, arguments: list[str], options: Options | None = None
) -> Child:
    """Start `python -m experiments.COMMAND` in a folder."""
    return Child(folder, execute_command, (command, arguments), options or Options())


def compilation_cache(folder: Path) -> Path:
    """Return the compilation cache of a process: the folder's own one, or the shared one."""
    own = folder / "compiled"
    return own if own.exists() else folder.parent / "compiled"


def _environment(folder: Path, options: Options) -> dict[str, str]:
    """Return the environment of a process."""
    values: dict[str, str | None] = {
        "XLA_FLAGS": fast_compilation.FLAGS,
        "JAX_COMPILATION_CACHE_DIR": str(compilation_cache(folder)),
        "JAX_NUM_CPU_DEVICES": str(options.devices),
        "GLIBC_TUNABLES": "glibc.malloc.arena_max=2",
        "MPLBACKEND": "agg",
        "PYTHONPATH": str(REPOSITORY),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    merged = {**os.environ, **values, **options.environment}
    return {key: value for key, value in merged.items() if value is not None}


def _start_interpreter(
    folder: Path, arguments: tuple, options: Options, files: dict[str, Path]
) -> subprocess.Popen:
    command, flags = arguments

    def set_limits() -> None:
        for name, value in options.limits.items():
            resource.setrlimit(name, (value, value))

    with open(files["stdout"], "wb") as output, open(files["stderr"], "wb") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", f"experiments.{command}", *flags],
            cwd=folder,
            env=_environment(folder, options),
            stdout=output,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=set_limits,
        )


def _run(
    folder: str, function: Callable, arguments: tuple, options: Options, files: dict[str, str]
) -> None:
    """Call the function in this process, with its own output, limits and signals."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(files[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    environment = _environment(Path(folder), options)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
    _configure_jax(environment)
    for name, value in options.limits.items():
        resource.setrlimit(name, (value, value))
    count = _count_writes(options.moment, files["writes"])
    try:
        value = function(*arguments)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    else:
        status = 0
        Path(files["value"]).write_text(json.dumps(value))
    Path(files["writes"]).write_text(str(count()))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _configure_jax(environment: dict[str, str]) -> None:
    """Set the options that JAX has read from the environment of the server."""
    import jax

    from lm.parallel import mesh

    jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_num_cpu_devices", int(environment["JAX_NUM_CPU_DEVICES"]))
    # The measurement of the peak takes seconds, and no compared result uses it.
    mesh.peak_flops_per_second = lambda *_: 1e9


def _count_writes(moment: Moment | None, file: str) -> Callable[[], int]:
    """Count the files that Python writes, and send the signal of the moment. Return the counter."""
    count, is_open = 0, True

    def send() -> None:
        if moment:
            time.sleep(moment.delay_seconds)
            os.kill(os.getpid(), moment.signal)

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if not is_open or not _is_write(event, arguments):
            return
        count += 1
        if moment and count == moment.number:
            if moment.delay_seconds:
                threading.Thread(target=send, daemon=True).start()
            else:
                send()

    sys.addaudithook(hook)
    if moment and not moment.number:
        threading.Thread(target=send, daemon=True).start()

    def close() -> int:
        nonlocal is_open
        is_open = False
        return count

    return close


def _is_write(event: str, arguments: tuple) -> bool:
    """Return True if an audit event changes a file of the working directory."""
    if event == "open":
        path, mode, number = arguments
        is_write = number & (os.O_WRONLY | os.O_RDWR) if not mode else set(mode) & set("wax+")
    elif event in WRITE_EVENTS:
        path, is_write = arguments[0], True
    else:
        return False
    is_local = isinstance(path, (str, bytes, os.PathLike)) and "compiled" not in str(path)
    return bool(is_write and is_local and not str(path).startswith(("/dev", "/proc")))


def execute_command(command: str, arguments: list[str]) -> None:
    """Run a command in this process, as `python -m experiments.COMMAND` does."""
    from absl import flags

    for name in list(flags.FLAGS):
        delattr(flags.FLAGS, name)  # the flags of the attack
    module = f"experiments.{command}"
    sys.argv = [module, *arguments]
    sys.orig_argv = [sys.executable, "-m", module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
