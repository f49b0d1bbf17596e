"""The program of the next run, compiled by another thread while one trains.

    with ahead.Compiler() as compiler:
        compiler.begin(run)              returns at once
        ...train another...

What is compiled goes into the cache that lm/mesh.py sets, where the run finds it; what fails here
fails again there, where it is said. A process that leaves waits until the last one is compiled.

Only where a core is idle: with a device on each, steps lose more than the next run gains
(experiments/LOG.md).
"""

import concurrent.futures

import jax

from lm import config, layers, mesh, packs


class Compiler:
    """A context manager."""

    def __init__(self) -> None:
        self._thread = concurrent.futures.ThreadPoolExecutor(
            1, "ahead", initializer=layers.use_trees
        )
        self._begun: set[str] = set()

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown(cancel_futures=True)

    def begin(self, run: config.Run) -> None:
        """Compiles the run's program, once, where there is a core for it.

        Not where several processes train together: each would have to compile the same.
        """
        if run.name not in self._begun and jax.process_count() == 1 and idle_cores() > 0:
            self._begun.add(run.name)
            self._thread.submit(_compile, run)


def idle_cores() -> int:
    """Cores that are not devices."""
    on_cpu = jax.default_backend() == "cpu"
    return mesh.cores() - (jax.local_device_count() if on_cpu else 0)


def _compile(run: config.Run) -> None:
    device_mesh = mesh.make(run.mesh)
    with jax.set_mesh(device_mesh):
        packs.Pack([run], device_mesh).compile(fresh=not run.start.run)
