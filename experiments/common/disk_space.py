"""Print the disk space of the checkpoints of runs next to the free disk space."""

from pathlib import Path

from experiments.common import console
from lm.config import schema
from lm.runs import filesystem
from lm.sweeps.planning import checkpoint_space

UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def print_disk_space(
    runs: list[schema.Run], finished: set[str], is_here: bool = True, has_table: bool = True
) -> None:
    """Print the bytes of a checkpoint, the number per run, the total, and the free disk space.

    finished: names of runs that write no more checkpoints. is_here: False if the runs are trained
    on another machine, whose free space is unknown. has_table: False prints the total only.
    """
    space = checkpoint_space.estimate_space(runs)
    pending = [run for run in runs if run.name not in finished]
    if not pending:
        return
    lines = [
        {
            "run": run.name,
            "checkpoint": format_bytes(space[run.name].checkpoint_bytes),
            "retained, at most": str(space[run.name].n_retained),
            "disk space, at most": format_bytes(space[run.name].largest_bytes),
        }
        for run in pending
    ]
    if has_table:
        console.table(lines, "Checkpoints")
    n_bytes = sum(space[run.name].largest_bytes for run in pending)
    console.print_line(f"disk space of checkpoints: at most {format_bytes(n_bytes)}")
    folder = existing_folder(filesystem.open_path(pending[0].dir))
    if not is_here or filesystem.is_remote(folder):
        return
    free = filesystem.free_bytes(folder)
    console.print_line(f"free disk space: {format_bytes(free)} in {pending[0].dir}")
    if n_bytes > free:
        console.print_line(
            "warning: the checkpoints may exceed the free disk space: raise"
            " permanent_checkpoint_interval, or choose another dir"
        )


def existing_folder(path: Path) -> Path:
    """Return the nearest folder above a path that exists. A path in a bucket is unchanged."""
    while not filesystem.is_remote(path) and not path.exists() and path != path.parent:
        path = path.parent
    return path


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes with a unit, such as 1.52 MB."""
    size, unit = float(n_bytes), UNITS[0]
    for unit in UNITS:
        if size < 1000 or unit == UNITS[-1]:
            break
        size /= 1000
    return f"{size:.3g} {unit}"
