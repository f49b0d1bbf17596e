"""How a command begins and ends: flags, files of configs, memory settings, errors, exit status.

0 done, 1 a run failed or diverged, 2 the input cannot work, 128 + N stopped by signal N.
"""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import config_flags

from lm import checks, config

# malloc keeps the large buffers of a train step, in huge pages where the kernel allows, and what is
# free in an arena a core: in eight, as glibc has them, a process holds a tenth more.
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    f":glibc.malloc.trim_threshold=8589934592:glibc.malloc.arena_max={os.cpu_count()}"
)


def start(main: Callable[[], int | None]) -> None:
    """Parses the flags, calls main() and ends the process."""
    number = status(main, sys.argv)
    if number and "lm.hosts" in sys.modules:
        sys.modules["lm.hosts"].leave(number)
    if number:  # at once: threads of a save that failed wait ten minutes for each other
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(number)


def status(main: Callable[[], int | None], argv: list[str]) -> int:
    """The exit status of main() under these arguments; what went wrong is printed as one line."""
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
        return _end(2, f"{what}. What was saved stays: mend it, and the same command goes on")
    except (flags.Error, ValueError) as error:
        return _end(2, str(error).strip().rpartition("\nValueError: ")[2])
    except KeyboardInterrupt as error:
        named = [one for one in signal.Signals if f"stopped by {one.name} " in str(error)]
        number = named[0] if named else signal.SIGINT
        return _end(128 + number, f"{error or 'stopped'}: the same command goes on")


def tune_memory() -> None:
    """Starts this process anew with MALLOC in its environment, unless glibc was tuned already.

    glibc reads it only when a process starts; a train step is 1.2 to 1.4 times as fast with it.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def host_flags() -> None:
    """Defines the flags by which several processes find each other: see `join`."""
    flags.DEFINE_string("coordinator", "", "host:port of process 0; auto: as the cluster says")
    flags.DEFINE_integer("processes", 0, "how many processes train together")
    flags.DEFINE_integer("process", -1, "which of them this one is, from 0")


def join() -> None:
    """Joins the other processes, by flags or SLURM's or the TPU's word; only the first prints."""
    from experiments import show
    from lm import hosts

    given = flags.FLAGS
    hosts.start(given.coordinator, given.processes, given.process)
    show.console.quiet = not hosts.is_first()


def config_flag():
    """Defines --config=FILE[:ARG] and --config.KNOB=VALUE, and --sources for their one dict."""
    flags.DEFINE_string("sources", None, 'JSON of sources and weights, {"text:my/folder": 1}')
    return config_flags.DEFINE_config_file(
        "config", None, "FILE[:ARG] with get_config([ARG]) that returns a run"
    )


def load_config(flag) -> config.Run:
    """The run of --config with its overrides; ValueError for an unknown knob or a wrong type."""
    if flag.value is None:
        raise ValueError("--config=FILE is missing, such as --config=configs/base.py:100K")
    run = flag.value
    if not isinstance(run, config.Run):
        raise ValueError(f"--config: get_config() must return lm.config.Run, not {run!r:.60}")
    if flags.FLAGS.sources:
        run.data.sources = parse_sources(flags.FLAGS.sources)
    return checks.check(run)


def parse_sources(text: str) -> dict[str, float]:
    """JSON of sources and weights; ValueError saying what it should look like."""
    try:
        sources = json.loads(text)
        return {str(source): float(weight) for source, weight in sources.items()}
    except (ValueError, TypeError, AttributeError):
        example = '{"code": 0.5, "text:my/folder": 0.5}'
        raise ValueError(f"--sources={text} must be JSON such as {example}") from None


def load_sweep(where: str) -> list[config.Run]:
    """The runs of FILE[:ARG]; ValueError if there is no such file or it has no get_sweep."""
    if not where:
        raise ValueError("--sweep=FILE is missing, such as --sweep=configs/sweeps/quickstart.py")
    path, _, arg = where.partition(":")
    if not os.path.isfile(path):
        raise ValueError(f"--sweep={path} is no file: the sweeps here are in configs/sweeps/")
    spec = importlib.util.spec_from_file_location("sweep", path)
    assert spec and spec.loader, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    get_sweep = getattr(module, "get_sweep", None)
    if get_sweep is None:
        raise ValueError(f"--sweep={path} has no get_sweep(): it must yield the runs")
    runs = list(get_sweep(*[arg] if arg else []))
    for run in runs:
        if not isinstance(run, config.Run):
            raise ValueError(
                f"--sweep={path}: get_sweep() must yield lm.config.Run, not {run!r:.60}"
            )
    return runs


def _help() -> str:
    """What the command is for, as its file says, and its flags."""
    ours = flags.FLAGS.flags_by_module_dict()
    named = {flag.name: flag for name in (sys.argv[0], __name__) for flag in ours.get(name, [])}
    width = max(map(len, named))
    lines = [
        f"  --{name:{width}}  {flag.help}"
        + (f" (default: {flag.default})" if flag.default not in (None, "", False) else "")
        for name, flag in sorted(named.items())
    ]
    if "config" in named:
        lines += [
            f"  --{'config.KNOB':{width}}  any knob of lm/config.py, such as --config.steps=9"
        ]
    return "\n".join([(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:", *lines])


def _check_knobs(arguments: list[str]) -> None:
    """ValueError for --config.KNOB=VALUE where there is no such knob, or --config names no file."""
    knobs = list(config.field_types(config.Run))
    for argument in arguments:
        name, given, value = argument.lstrip("-").partition("=")
        if name == "config" and given and not os.path.isfile(value.partition(":")[0]):
            raise ValueError(f"{argument} names no file: the configs here are in configs/")
        knob = name.removeprefix("config.").partition("[")[0]
        if name.startswith("config.") and knob not in knobs:
            raise ValueError("--config." + config.unknown(knob, knobs))


def _end(status: int, line: str) -> int:
    print(line if status > 2 else f"error: {line}", file=sys.stderr)
    return status
