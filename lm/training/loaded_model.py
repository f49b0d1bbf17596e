import contextlib
from collections.abc import Callable, Iterator

import jax

from lm.config import schema
from lm.parallel import mesh
from lm.runs import records
from lm.training import checkpoints, step


def restore_model(
    run: schema.Run, step_index: int | None = None, parts: tuple[str, ...] = ("step", "params")
) -> tuple[step.TrainFunctions, dict]:
    """Return the functions of a run and parts of its state at a checkpoint.

    step: None is the step that a finished run ended with, or else the newest.
    """
    program = step.build_train_functions(run, mesh.make_mesh(run.mesh))
    wanted = {part: program.abstract[part] for part in parts}
    return program, checkpoints.read_checkpoint(run, _final_step(run, step_index), wanted).state


@contextlib.contextmanager
def open_weights(
    run: schema.Run, step_index: int | None = None
) -> Iterator[tuple[Callable[[str], jax.Array], int]]:
    """Yield read(path) -> weight, which reads one weight of a checkpoint, and the step.

    step: see `restore`.
    """
    wanted = {
        "params": step.build_train_functions(run, mesh.make_mesh(run.mesh)).abstract["params"]
    }
    with checkpoints.open_readonly(run, _final_step(run, step_index)) as (store, step_index):
        read = store.reader(step_index, wanted)
        yield lambda path: read(f"params/{path}"), step_index


def _final_step(run: schema.Run, step_index: int | None) -> int | None:
    return (
        records.read_facts(records.run_dir(run)).get("ends_at")
        if step_index is None
        else step_index
    )
