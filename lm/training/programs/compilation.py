"""Compilation of the functions of a run in parallel.

    lowered = {run.data.batch_size: loop.lower_steps(functions, n_steps)}
    compiled, compile_score, init = compilation.compile_all(functions, lowered, is_fresh=True)

On CPU the second half of a compilation uses all cores. In its first half, which uses one core, the
program of the initial state is compiled.
"""

import concurrent.futures
import functools
from collections.abc import Callable

import jax

from lm.parallel import device_memory, mesh
from lm.training import step


def compile_all(
    functions: step.TrainFunctions, steps: dict[int, jax.stages.Lowered], is_fresh: bool
) -> tuple[dict[int, Callable], Callable, Callable]:
    """Return the compiled functions (steps, compile_score, init).

    steps: results of loop.lower_steps, by batch size. is_fresh: True if the run starts at step 0;
    otherwise init is not compiled. compile_score() returns the compiled score. On CPU it compiles
    at its first call, so that the first step comes sooner. An error of shapes is raised before,
    because score is lowered.
    """
    is_cpu = mesh.device_platform(functions.mesh) == "cpu"
    initializer = device_memory.lower_priority if is_cpu else None
    with concurrent.futures.ThreadPoolExecutor(initializer=initializer) as pool:
        compiled_steps = {size: pool.submit(low.compile) for size, low in steps.items()}
        lowered_init = functions.init.lower(0) if is_fresh else None
        compiled_init = pool.submit(lowered_init.compile) if lowered_init else None
        lowered_score = _lower_score(functions)
        score = pool.submit(lowered_score.compile).result if not is_cpu else None
        init = compiled_init.result() if compiled_init else functions.init
        results = {size: compiled.result() for size, compiled in compiled_steps.items()}
    device_memory.release_free_memory()
    return results, score or _compile_late(lowered_score), init


def _lower_score(functions: step.TrainFunctions) -> jax.stages.Lowered:
    with jax.set_mesh(functions.mesh):
        return functions.score.lower(functions.abstract_saved["params"], functions.evaluation_batch)


def _compile_late(lowered: jax.stages.Lowered) -> Callable[[], Callable]:
    """Return a function that compiles a lowered function at its first call, and returns it."""

    @functools.cache
    def compile_once() -> Callable:
        compiled = lowered.compile()
        device_memory.release_free_memory()
        return compiled

    return compile_once
