"""Start and end a command: flags, config files, memory settings, errors, exit status.

Exit status: 0 done, 1 a run failed or diverged, 2 the input cannot work, 128 + N stopped by
signal N.
"""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import config_flags

from lm.config import schema, validation
from lm.training import preemption

# malloc keeps the large buffers of a train step, in huge pages if the kernel allows them, and free
# memory in one arena per core: with the eight arenas per core of glibc a process has 10% more.
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    f":glibc.malloc.trim_threshold=8589934592:glibc.malloc.arena_max={os.cpu_count()}"
)
# Functions of an exit status that a failed command calls before it ends: see `join`.
EXIT_HOOKS: list[Callable[[int], None]] = []


def run_main(main: Callable[[], int | None]) -> None:
    """Parse the flags, call main() and end the process."""
    number = status(main, sys.argv)
    if number:
        for hook in EXIT_HOOKS:
            hook(number)
        # End at once: the threads of a failed save wait ten minutes for each other.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(number)


def status(main: Callable[[], int | None], argv: list[str]) -> int:
    """Return the exit status of main() with these arguments, and print an error as one line."""
    if {"--help", "-h", "-help", "--helpfull"} & {*argv[1:]}:
        print(_help())
        return 0
    try:
        _check_knobs(argv[1:])
        rest = flags.FLAGS(argv)[1:]
        if rest:
            raise ValueError(f"{rest[0]} is not a flag: write --name=value")
        return main() or 0
    except OSError as error:  # a disk that is full or read-only
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _end(
            2, f"{what}. Saved files are intact: repair the disk and repeat the command to continue"
        )
    except (flags.Error, ValueError) as error:
        return _end(2, str(error).strip().rpartition("\nValueError: ")[2])
    except KeyboardInterrupt as error:
        is_named = isinstance(error, preemption.Interrupted)
        number = signal.Signals[error.signal_name] if is_named else signal.SIGINT
        return _end(128 + number, f"{error or 'stopped'}: repeat the command to continue")


def tune_memory() -> None:
    """Restart this process with MALLOC in its environment, unless glibc is tuned already.

    glibc reads it only when a process starts. It makes a train step 1.2 to 1.4 times as fast.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def host_flags() -> None:
    """Define the flags by which several processes find each other: see `join`."""
    flags.DEFINE_string("coordinator", "", "host:port of process 0; auto: ask the cluster")
    flags.DEFINE_integer("processes", 0, "number of processes that train together")
    flags.DEFINE_integer("process", -1, "index of this process, from 0")


def join() -> None:
    """Join the other processes, by flags, SLURM or TPU metadata. Only the primary prints."""
    from experiments.common import console
    from lm.parallel import distributed

    given = flags.FLAGS
    distributed.initialize_processes(given.coordinator, given.processes, given.process)
    distributed.register_exit_hook(EXIT_HOOKS)
    console.console.quiet = not distributed.is_primary()


def config_flag():
    """Define --config=FILE[:ARG], --config.FIELD=VALUE, and --sources for the dict of sources."""
    flags.DEFINE_string("sources", None, 'JSON of sources and weights, {"text:my/folder": 1}')
    return config_flags.DEFINE_config_file(
        "config", None, "FILE[:ARG] with get_config([ARG]) that returns a run"
    )


def load_config(flag) -> schema.Run:
    """Return the run of --config. Raises ValueError for an unknown field or a wrong type."""
    if flag.value is None:
        raise ValueError("--config=FILE is missing, such as --config=configs/base.py:100K")
    run = flag.value
    if not isinstance(run, schema.Run):
        raise ValueError(f"--config: get_config() must return lm.config.Run, not {run!r:.60}")
    if flags.FLAGS.sources:
        run.data.sources = parse_sources(flags.FLAGS.sources)
    return validation.validate_run(run)


def parse_sources(text: str) -> dict[str, float]:
    """Parse the JSON of sources and weights. Raises ValueError that shows an example."""
    try:
        sources = json.loads(text)
        return {str(source): float(weight) for source, weight in sources.items()}
    except (ValueError, TypeError, AttributeError):
        example = '{"code": 0.5, "text:my/folder": 0.5}'
        raise ValueError(f"--sources={text} must be JSON such as {example}") from None


def load_sweep(location: str) -> list[schema.Run]:
    """Return the runs of FILE[:ARG]. Raises ValueError without the file or its get_sweep."""
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
        raise ValueError(f"--sweep={path} has no get_sweep(): it must yield the runs")
    runs = list(get_sweep(*[arg] if arg else []))
    for run in runs:
        if not isinstance(run, schema.Run):
            raise ValueError(
                f"--sweep={path}: get_sweep() must yield lm.config.Run, not {run!r:.60}"
            )
    return runs


def _help() -> str:
    """Return the docstring of the command and its flags."""
    by_module = flags.FLAGS.flags_by_module_dict()
    modules = (sys.argv[0], __name__)
    named = {flag.name: flag for name in modules for flag in by_module.get(name, [])}
    width = max(map(len, named))
    lines = [
        f"  --{name:{width}}  {flag.help}"
        + (f" (default: {flag.default})" if flag.default not in (None, "", False) else "")
        for name, flag in sorted(named.items())
    ]
    if "config" in named:
        lines += [
            f"  --{'config.KNOB':{width}}  any knob of lm/config/schema.py, such as"
            f" --config.steps=9"
        ]
    return "\n".join([(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:", *lines])


def _check_knobs(arguments: list[str]) -> None:
    """Raise ValueError for an unknown field in --config.FIELD=VALUE, or a missing config file."""
    knobs = list(schema.field_types(schema.Run))
    for argument in arguments:
        name, given, value = argument.lstrip("-").partition("=")
        if name == "config" and given and not os.path.isfile(value.partition(":")[0]):
            raise ValueError(f"{argument}: the file does not exist. Configs are in configs/")
        knob = name.removeprefix("config.").partition("[")[0]
        if name.startswith("config.") and knob not in knobs:
            raise ValueError("--config." + schema.suggest_names(knob, knobs))


def _end(status: int, line: str) -> int:
    print(line if status > 2 else f"error: {line}", file=sys.stderr)
    return status
