"""Start and end of a command: flags, config files, memory settings, errors and exit status.

Exit status: 0 after success, 1 if a run failed or diverged, 2 for invalid input, 128 + N if signal
N stopped the command (141 if the reader of its output ended).
"""

import errno
import inspect
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence

from absl import flags

from experiments.common import config_files, printed_warnings
from lm.config import fields, schema
from lm.runs import filesystem, provenance

# malloc reuses the large buffers of a train step, in huge pages if the kernel allows them. Free
# memory is in one arena per core: with glibc's eight arenas per core a process uses 10% more.
MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432"
    f":glibc.malloc.trim_threshold=8589934592:glibc.malloc.arena_max={os.cpu_count()}"
)
MAX_FLOAT = 1e40  # of a flag, such as a budget in FLOPs
MAX_MESSAGE = 4000  # characters of an error message
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE: the reader of the output has ended
CHANGES_FLAG = "config_changes"  # internal flag with the values of --config.FIELD
USAGE_RUN = "config.json is missing. Pass a directory below runs/."
# Field of a folder -> where a sweep sets it.
SWEEP_FOLDERS = {"dir": "--dir", "data.cache_dir": "data.cache_dir in the sweep file"}
# Packages of buckets, whose errors are no OSError. They repeat a failed request before.
BUCKET_MODULES = ("gcsfs", "aiohttp", "google", "requests", "urllib3")
# Functions that `run_main` calls with the exit status before it ends a failed command.
EXIT_FUNCTIONS: list[Callable[[int], None]] = []


def run_main(main: Callable[[], int | None], positional: Sequence[str] = ()) -> None:
    """Parse the flags, call main() and end the process if its exit status is not 0.

    positional: flags that receive, in this order, the arguments that are no flags.
    """
    sys.excepthook = _ignore_exception
    sys.unraisablehook = _print_named_exception
    warnings.formatwarning = printed_warnings.format_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # not all encodings have the plus-minus sign
    try:
        status = exit_status(main, sys.argv, positional)
    except BaseException:
        if sys.excepthook is _ignore_exception:
            sys.excepthook = _print_main_exception
        raise
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = EXIT_BROKEN_PIPE
    except OSError as error:  # the disk of the output is full; main may have reported it
        status = status or _report_error(2, _describe_os_error(error))
    if status:
        for function in EXIT_FUNCTIONS:
            function(status)
        # os._exit does not wait for threads: those of a failed save would wait for ten minutes.
        sys.stderr.flush()
        os._exit(status)


def _ignore_exception(kind, error, traceback) -> None:
    """Print nothing for an exception that a library reports while the command runs.

    After a failed save, tensorstore reports exceptions in its threads and in the main thread. The
    command itself reports the failed save. Exceptions of Python threads have their own hook and are
    printed.
    """


def _print_named_exception(unraisable) -> None:
    """Print an exception that Python ignored in an object, such as in its __del__.

    After a failed save, tensorstore ignores an exception per array, without an object.
    """
    if unraisable.object is not None or unraisable.err_msg:
        sys.__unraisablehook__(unraisable)


def _print_main_exception(kind, error, traceback) -> None:
    """Print the exception that ends the command, and none of other threads."""
    if threading.current_thread() is threading.main_thread():
        sys.__excepthook__(kind, error, traceback)


def exit_status(
    main: Callable[[], int | None], argv: list[str], positional: Sequence[str] = ()
) -> int:
    """Call main() with these arguments and return its exit status. Print an error as one line."""
    try:
        return _call_main(main, argv, positional)
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        return EXIT_BROKEN_PIPE
    except OSError as error:
        return _report_error(2, _describe_os_error(error))
    except (flags.Error, ValueError) as error:
        return _report_error(2, " ".join(str(error).split("\n")).strip())
    except KeyboardInterrupt as error:
        signal_name = getattr(error, "signal_name", "SIGINT")  # see preemption.Interrupted
        number = signal.Signals[signal_name]
        return _report_error(128 + number, f"{error or 'stopped'}: repeat the command to continue")
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in BUCKET_MODULES:
            raise
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return _report_error(
            2,
            f"a request to the bucket failed ({message}). Saved files are intact. Repeat the"
            " command to continue.",
        )
    except SystemExit as error:
        if error.code == EXIT_BROKEN_PIPE:
            return EXIT_BROKEN_PIPE
        raise


def _call_main(main: Callable[[], int | None], argv: list[str], positional: Sequence[str]) -> int:
    """Parse the arguments, call main() and return its exit status."""
    if sys.platform == "win32":
        raise ValueError(
            "Windows is not supported: use Linux, macOS, or WSL (Windows Subsystem for Linux)"
        )
    if {"--help", "-h", "-help", "--helpfull"} & {*argv[1:]}:
        print(_help_text(main))
        return 0
    argv = [argv[0], *map(_underscore_name, argv[1:])]
    if "--version" in argv[1:]:
        print(f"lm-scaling {provenance.package_version()}")
        return 0
    arguments = argv
    if "config" in flags.FLAGS:
        others, changes = config_files.field_changes(argv[1:])
        arguments = [argv[0], *(f"--{CHANGES_FLAG}={change}" for change in changes), *others]
    flags.FLAGS.set_gnu_getopt(bool(positional))  # flags may follow positional arguments
    unparsed = flags.FLAGS(arguments)[1:]
    for name in [name for name in positional if not flags.FLAGS[name].present][: len(unparsed)]:
        flags.FLAGS[name].value = unparsed.pop(0)
    if unparsed:
        raise ValueError(f"{unparsed[0]} is not a flag. Write --name=value.")
    check_numbers(flags.FLAGS)
    provenance.check_versions()
    return main() or 0


def _underscore_name(argument: str) -> str:
    """Return an argument whose flag is spelled with underscores: --dry-run=X is --dry_run=X.

    Other arguments do not change, such as the options of sbatch in a value.
    """
    name, equals, value = argument.partition("=")
    flag = name.removeprefix("--").replace("-", "_")
    return f"--{flag}{equals}{value}" if name[:2] == "--" and flag in flags.FLAGS else argument


def check_numbers(values: flags.FlagValues) -> None:
    """Check that each number of the flags is finite and fits into 32 bits.

    Bounds of one flag are in its definition. Raises ValueError.
    """
    for name in values:
        value = values[name].value
        if isinstance(value, float) and not abs(value) < MAX_FLOAT:
            raise ValueError(f"--{name}={value:g} must be a finite number below {MAX_FLOAT:g}")
        if type(value) is int and not -fields.MAX_INT <= value <= fields.MAX_INT:
            raise ValueError(f"--{name} is an integer outside of 32 bits: use a smaller number")


def _describe_os_error(error: OSError) -> str:
    """Return the message of a failed access to a file. A failed disk does not damage a run."""
    is_nameless = error.errno in filesystem.DISK_ERRORS and not error.filename
    name = "a file or the standard output" if is_nameless else error.filename
    problem = f"{name}: {error.strerror}" if name else str(error)
    if error.errno is not None and error.errno not in filesystem.DISK_ERRORS:
        return problem
    remedy = filesystem.DISK_ERRORS.get(error.errno or errno.EIO, "")
    return f"{problem}. Saved files are intact. {remedy} and repeat the command to continue."


def tune_memory() -> None:
    """Restart this process with MALLOC in its environment, unless GLIBC_TUNABLES is set.

    glibc reads the variable only at the start of a process. With it, a train step is 1.2 to 1.4
    times as fast.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ.update(printed_warnings.environment(), GLIBC_TUNABLES=MALLOC)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def host_flags() -> None:
    """Define the flags by which several processes connect to each other: see `join`."""
    flags.DEFINE_string(
        "coordinator", "", "host:port of process 0, or auto to use the metadata of the cluster"
    )
    flags.DEFINE_integer("processes", 0, "number of processes that train together", 0, 10**6)
    flags.DEFINE_integer("process", -1, "index of this process, from 0", -1, 10**6)


def join() -> None:
    """Connect to the other processes, by flags, SLURM or TPU metadata. Only the primary prints."""
    from experiments.common import console
    from lm.parallel import distributed

    values = flags.FLAGS
    distributed.initialize_processes(values.coordinator, values.processes, values.process)
    distributed.list_devices()  # reports a missing platform in one line
    EXIT_FUNCTIONS.append(distributed.exit_process)
    console.console.quiet = not distributed.is_primary()


def config_flag():
    """Define --config=FILE[:ARG], --config.FIELD=VALUE and --sources. Return the flag --config."""
    flags.DEFINE_string(
        "sources", None, 'JSON of sources and weights, such as {"text:my/folder": 1}'
    )
    flags.DEFINE_multi_string(CHANGES_FLAG, [], "internal: FIELD=VALUE of each --config.FIELD")
    return flags.DEFINE_string(
        "config", None, "FILE[:ARG] with get_config([ARG]) that returns a run"
    )


def load_config(flag) -> schema.Run:
    """Return the run of the flag --config, with the changes of --config.FIELD and --sources.

    Raises ValueError for a missing file, an error in it, an unknown field or an invalid value.
    """
    values = flags.FLAGS
    changes, sources = values[CHANGES_FLAG].value or [], values.sources or ""
    return config_files.load_run_file(flag.value or "", changes, sources)


def parse_sources(text: str) -> dict[str, float]:
    """Parse the JSON of sources and weights. Raises ValueError that shows an example."""
    return config_files.parse_sources(text)


def load_sweep(location: str) -> list[schema.Run]:
    """Return the valid runs that get_sweep(ARG) of FILE[:ARG] yields. Raises ValueError."""
    return config_files.load_sweep_file(location)


def load_runs(sweep: str, config_flag) -> list[schema.Run]:
    """Return the runs of the flag --sweep, or the single run of --config.

    Raises ValueError if both are set, and if flags that change a config are used with a sweep.
    """
    if not sweep and not config_flag.value:
        raise ValueError(
            "--config=FILE or --sweep=FILE is missing, such as --config=configs/base.py:100K"
        )
    if not sweep:
        return [load_config(config_flag)]
    values = flags.FLAGS
    changes = {"--config": config_flag.value, "--config.FIELD": values[CHANGES_FLAG].value}
    for name, value in (changes | {"--sources": values.sources}).items():
        if value:
            raise ValueError(f"{name} and --sweep={sweep} exclude each other: remove {name}")
    return load_sweep(sweep)


def allow_path_flag():
    """Define --allow_path=FOLDER, which may be repeated. Return the flag."""
    return flags.DEFINE_multi_string(
        "allow_path",
        [],
        "folder, gs://BUCKET/FOLDER or hf:NAME outside the run that the run may use;"
        " may be repeated",
    )


def rate_flags() -> None:
    """Define the flags of the price and the power of a device, see `device_rates`."""
    flags.DEFINE_float(
        "price_per_device_hour", 0.0, "price of a device for an hour, in any currency", 0
    )
    flags.DEFINE_float("watts_per_device", 0.0, "power of a device with its share of the host", 0)


def device_rates():
    """Return the device_cost.DeviceRates of the flags of `rate_flags`."""
    from lm.reports import device_cost

    values = flags.FLAGS
    return device_cost.DeviceRates(values.price_per_device_hour, values.watts_per_device)


def cache_dir_flag():
    """Define --cache_dir=FOLDER, instead of data.cache_dir of a run. Return the flag."""
    return flags.DEFINE_string(
        "cache_dir", "", "folder of prepared text; default: data.cache_dir of the run"
    )


def load_run(folder: str | None, allow_paths: Sequence[str] = ()) -> schema.Run:
    """Return the config of a run directory, the value of the flag --run.

    allow_paths: values of --allow_path. Raises ValueError that names the folder if it is missing or
    is not a run directory, and for a link to a file that may not be read. This check does not
    import JAX, so a wrong folder is rejected at once.
    """
    from lm.data.sources import path_permissions
    from lm.runs import records

    if not folder:
        raise ValueError("--run=FOLDER is missing, such as --run=runs/quickstart/600K")
    path = filesystem.open_path(folder)
    if not (path / "config.json").exists():
        names = sorted(file.parent.name for file in path.glob("*/config.json"))
        hint = f"name one of its runs, such as {path / names[0]}" if names else USAGE_RUN
        raise ValueError(f"--run={folder} is not a run directory: {hint}")
    path_permissions.check_links(path, allow_paths)
    return records.read_config(folder)


def check_has_runs(folder: str) -> None:
    """Raise ValueError unless a folder, the value of the flag --dir, contains a run."""
    if not filesystem.find_files(filesystem.open_path(folder), "config.json"):
        raise ValueError(
            f"--dir={folder} contains no runs. Name the folder of a sweep, such as"
            " --dir=runs/quickstart"
        )


def make_run_folders(runs: list[schema.Run]) -> None:
    """Create the local folders `dir` and `data.cache_dir` of runs, and check that runs can start.

    Raises ValueError that names the field, or the run directory that contains another one. The
    function does not import JAX.
    """
    from lm.runs import records

    for run in runs:
        filesystem.check_not_nested(records.run_dir(run))
    folders = {("dir", run.dir) for run in runs} | {
        ("data.cache_dir", r.data.cache_dir) for r in runs
    }
    for field, folder in sorted(folders, reverse=True):
        if "://" in folder:
            continue
        flag = f"--config.{field}" if "config" in flags.FLAGS else SWEEP_FOLDERS[field]
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            problem = f"cannot be created ({error.strerror}): choose another {flag}"
            raise ValueError(f"{field}={folder} {problem}") from None
        if field == "dir" and not os.access(folder, os.W_OK):
            raise ValueError(f"{field}={folder} is not writable: choose another {flag}")


def _help_text(main: Callable) -> str:
    """Return the docstring of the command's module and the list of its flags."""
    flags_by_module = flags.FLAGS.flags_by_module_dict()
    modules = (sys.argv[0], __name__)  # absl uses the path of the command as its module name
    named = {flag.name: flag for name in modules for flag in flags_by_module.get(name, [])}
    named.pop(CHANGES_FLAG, None)
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


def _report_error(status: int, message: str) -> int:
    """Print an error or a signal to stderr. Return the exit status."""
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]}..."
    print(message if status > 2 else f"error: {message}", file=sys.stderr)
    return status
