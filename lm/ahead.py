"""The program of the next run, compiled by another thread while one trains.

    with ahead.Compiler() as compiler:
        compiler.begin(run)              returns at once
        ...train another...

What is compiled goes into the cache that lm/mesh.py sets, where the run finds it; what fails here
fails again there, where it is said. A process that leaves waits until the last one is compiled.
"""

import concurrent.futures
import contextlib

import jax

from lm import config, layers, mesh, packs


class Compiler:
    """A context manager. Of several processes that train together none compiles ahead."""

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(
            1, "ahead", initializer=layers.use_trees
        )
        self._last: concurrent.futures.Future | None = None

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown(cancel_futures=True)

    def begin(self, run: config.Run) -> None:
        """Compiles the run's program, unless another is being compiled."""
        if jax.process_count() == 1 and (self._last is None or self._last.done()):
            self._last = self._thread.submit(_compile, run)


def _compile(run: config.Run) -> None:
    with contextlib.suppress(Exception):
        device_mesh = mesh.make(run.mesh)
        with jax.set_mesh(device_mesh):
            packs.Pack([run], device_mesh).compile(fresh=not run.start.run)
