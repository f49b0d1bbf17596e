"""Start and end of a command: flags, config files, memory settings, errors and exit status.

Exit status: 0 after success, 1 if a run failed or diverged, 2 for invalid input, 128 + N if signal
N stopped the command.
"""

import importlib.util
import inspect
import json
import os
import signal
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import config_flags

from lm.config import schema, validation
from lm.data import run_tokenizer
from lm.training import preemption

# malloc reuses the large buffers of a train step, in huge pages if the kernel allows them. Free
# memory is in one arena per core: with glibc's eight arenas per core a process uses 10% more.
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    f":glibc.malloc.trim_threshold=8589934592:glibc.malloc.arena_max={os.cpu_count()}"
)
# Functions that `run_main` calls with the exit status before it ends a failed command.
EXIT_FUNCTIONS: list[Callable[[int], None]] = []


def run_main(main: Callable[[], int | None]) -> None:
    """Parse the flags, call main() and end the process if its exit status is not 0."""
    status = exit_status(main, sys.argv)
    if status:
        for function in EXIT_FUNCTIONS:
            function(status)
        # os._exit does not wait for threads: those of a failed save would wait for ten minutes.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def exit_status(main: Callable[[], int | None], argv: list[str]) -> int:
    """Call main() with these arguments and return its exit status. Print an error as one line."""
    if {"--help", "-h", "-help", "--helpfull"} & {*argv[1:]}:
        print(_help_text(main))
        return 0
    try:
        _check_config_flags(argv[1:])
        unparsed = flags.FLAGS(argv)[1:]
        if unparsed:
            raise ValueError(f"{unparsed[0]} is not a flag. Write --name=value.")
        return main() or 0
    except OSError as error:  # a disk that is full or read-only
        problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _report_error(
            2,
            f"{problem}. Saved files are intact. Repair the disk and repeat the command to"
            " continue.",
        )
    except (flags.Error, ValueError) as error:
        return _report_error(2, str(error).strip().rpartition("\nValueError: ")[2])
    except KeyboardInterrupt as error:
        is_named = isinstance(error, preemption.Interrupted)
        number = signal.Signals[error.signal_name] if is_named else signal.SIGINT
        return _report_error(128 + number, f"{error or 'stopped'}: repeat the command to continue")


def tune_memory() -> None:
    """Restart this process with MALLOC in its environment, unless GLIBC_TUNABLES is set.

    glibc reads the variable only at the start of a process. With it, a train step is 1.2 to 1.4
    times as fast.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def host_flags() -> None:
    """Define the flags by which several processes connect to each other: see `join`."""
    flags.DEFINE_string(
        "coordinator", "", "host:port of process 0, or auto to use the metadata of the cluster"
    )
    flags.DEFINE_integer("processes", 0, "number of processes that train together")
    flags.DEFINE_integer("process", -1, "index of this process, from 0")


def join() -> None:
    """Connect to the other processes, by flags, SLURM or TPU metadata. Only the primary prints."""
    from experiments.common import console
    from lm.parallel import distributed

    values = flags.FLAGS
    distributed.initialize_processes(values.coordinator, values.processes, values.process)
    EXIT_FUNCTIONS.append(distributed.exit_process)
    console.console.quiet = not distributed.is_primary()


def config_flag():
    """Define --config=FILE[:ARG], --config.FIELD=VALUE and --sources. Return the flag --config."""
    flags.DEFINE_string(
        "sources", None, 'JSON of sources and weights, such as {"text:my/folder": 1}'
    )
    return config_flags.DEFINE_config_file(
        "config", None, "FILE[:ARG] with get_config([ARG]) that returns a run"
    )


def load_config(flag) -> schema.Run:
    """Return the run of the flag --config.

    Raises ValueError for a missing file, an unknown field or a wrong type.
    """
    if flag.value is None:
        raise ValueError("--config=FILE is missing, such as --config=configs/base.py:100K")
    run = flag.value
    if not isinstance(run, schema.Run):
        raise ValueError(f"--config: get_config() must return lm.Run, not {run!r:.60}")
    if flags.FLAGS.sources:
        run.data.sources = parse_sources(flags.FLAGS.sources)
    return validation.validate_run(run_tokenizer.resolve_tokenizer(run))


def parse_sources(text: str) -> dict[str, float]:
    """Parse the JSON of sources and weights. Raises ValueError that shows an example."""
    try:
        sources = json.loads(text)
        return {str(source): float(weight) for source, weight in sources.items()}
    except (ValueError, TypeError, AttributeError):
        example = '{"code": 0.5, "text:my/folder": 0.5}'
        raise ValueError(f"--sources={text} must be JSON such as {example}") from None


def load_sweep(location: str) -> list[schema.Run]:
    """Return the runs that get_sweep(ARG) of FILE[:ARG] yields.

    Raises ValueError without the file or its get_sweep, and for other values than runs.
    """
    if not location:
        raise ValueError("--sweep=FILE is missing, such as --sweep=configs/sweeps/quickstart.py")
    path, _, arg = location.partition(":")
    if not os.path.isfile(path):
        raise ValueError(f"--sweep={path}: the file does not exist. Sweeps are in configs/sweeps/")
    spec = importlib.util.spec_from_file_location("sweep", path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    get_sweep = getattr(module, "get_sweep", None)
    if get_sweep is None:
        raise ValueError(f"--sweep={path} has no get_sweep(). It must yield the runs.")
    runs = list(get_sweep(*[arg] if arg else []))
    for run in runs:
        if not isinstance(run, schema.Run):
            raise ValueError(f"--sweep={path}: get_sweep() must yield lm.Run, not {run!r:.60}")
        run_tokenizer.resolve_tokenizer(run)
    return runs


def _help_text(main: Callable) -> str:
    """Return the docstring of the command's module and the list of its flags."""
    flags_by_module = flags.FLAGS.flags_by_module_dict()
    modules = (sys.argv[0], __name__)  # absl uses the path of the command as its module name
    named = {flag.name: flag for name in modules for flag in flags_by_module.get(name, [])}
    descriptions = {name: _describe_flag(flag) for name, flag in sorted(named.items())}
    if "config" in named:
        example = "such as --config.steps=9"
        descriptions["config.FIELD"] = f"any field of lm/config/schema.py, {example}"
    width = max(map(len, descriptions))
    lines = [f"  --{name:{width}}  {text}" for name, text in descriptions.items()]
    module = inspect.getmodule(main)
    docstring = (module.__doc__ if module else None) or ""
    return "\n".join([docstring.strip(), "", "Flags:", *lines])


def _describe_flag(flag: flags.Flag) -> str:
    """Return the help text of a flag, with its default unless that is empty or False."""
    default = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
    return f"{flag.help} (default: {default})" if default not in (None, "", False) else flag.help


def _check_config_flags(arguments: list[str]) -> None:
    """Check that the config file and the fields of --config.FIELD=VALUE exist.

    Raises ValueError with the most similar fields, or with the name of the missing file.
    """
    known_fields = list(schema.field_types(schema.Run))
    for argument in arguments:
        name, has_value, value = argument.lstrip("-").partition("=")
        if name == "config" and has_value and not os.path.isfile(value.partition(":")[0]):
            raise ValueError(f"{argument}: the file does not exist. Configs are in configs/")
        field = name.removeprefix("config.").partition("[")[0]
        if name.startswith("config.") and field not in known_fields:
            raise ValueError("--config." + schema.suggest_names(field, known_fields))


def _report_error(status: int, message: str) -> int:
    """Print an error or a signal to stderr. Return the exit status."""
    print(message if status > 2 else f"error: {message}", file=sys.stderr)
    return status
