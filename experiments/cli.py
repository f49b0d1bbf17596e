"""How a command begins and ends: flags, files of configs, memory settings, errors, exit status.

0 done, 1 a run failed or diverged, 2 the input cannot work, 128 + N stopped by signal N.
"""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable

from absl import flags

from lm import config

# malloc keeps the large buffers of a train step, in huge pages where the kernel allows.
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    ":glibc.malloc.trim_threshold=8589934592"
)


def start(main: Callable[[], int | None]) -> None:
    """Parses the flags, calls main() and ends the process."""
    sys.exit(status(main, sys.argv))


def status(main: Callable[[], int | None], argv: list[str]) -> int:
    """The exit status of main() under these arguments; what went wrong is printed as one line."""
    try:
        rest = flags.FLAGS(argv)[1:]
        if rest:
            raise ValueError(f"{rest[0]} is not a flag: write --name=value")
        return main() or 0
    except OSError as error:  # a disk that is full or read-only
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _end(2, f"{what}. What was saved stays: mend it, and the same command goes on")
    except (flags.Error, ValueError) as error:
        return _end(2, str(error))
    except KeyboardInterrupt as error:
        number = signal.SIGTERM if "SIGTERM" in str(error) else signal.SIGINT
        return _end(128 + number, f"{error or 'stopped'}: the same command goes on")


def tune_memory() -> None:
    """Starts this process anew with MALLOC in its environment, unless glibc was tuned already.

    glibc reads it only when a process starts; a train step is 1.2 to 1.4 times as fast with it.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def load_sweep(where: str | None) -> list[config.Run]:
    """The runs of FILE[:ARG]; ValueError if there is no such file or it has no get_sweep."""
    if not where:
        raise ValueError("--sweep=FILE is missing, such as --sweep=configs/sweeps/quickstart.py")
    path, _, arg = where.partition(":")
    if not os.path.isfile(path):
        raise ValueError(f"--sweep={path} is no file: the sweeps here are in configs/sweeps/")
    spec = importlib.util.spec_from_file_location("sweep", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_sweep"):
        raise ValueError(f"--sweep={path} has no get_sweep(): it must yield the runs")
    runs = list(module.get_sweep(*[arg] if arg else []))
    for run in runs:
        if not isinstance(run, config.Run):
            raise ValueError(f"--sweep={path}: get_sweep() must yield lm.config.Run, not {run!r:.60}")
    return runs


def _end(status: int, line: str) -> int:
    print(line if status > 2 else f"error: {line}", file=sys.stderr)
    return status
