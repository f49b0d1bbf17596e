"""Runs of one shape in one program: a step of a pack is one `vmap` of a step of each.

    runs = packs.choose(iter(ready), 4)             the first, and those that may go with it
    pack = packs.Pack(runs, device_mesh)
    state = pack.joined([state, ...])               every array with an axis in front, [K, ...]
    state, metrics = step(state, batches)           batches and metrics are one dict a run
    pack.member(state, 2)                           the third run's state, as if it were alone

What may differ between them is an input of the program: weights and batches, which a seed makes,
and RATES. Many small runs fill an accelerator that one alone does not; see experiments/LOG.md.
A pack of one is the run's own program: nothing is stacked.
"""

import functools
from collections.abc import Callable, Iterator, Set

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from lm import checkpoint, config, kernels, programs

RATES = ("lr", "weight_decay")  # of Optim
NEEDED = {
    "mesh.exact": (0, "a pack cannot hold the bits of other devices"),
    "wandb": (False, "W&B follows one run a process"),
}
FREE = ("name", "seed", *(f"optim.{name}" for name in RATES))


def check(runs: list[config.Run]) -> None:
    """ValueError naming the first knob that keeps runs from being trained in one program."""
    first = config.flatten(runs[0])
    for run in runs[1:]:
        flat = config.flatten(run)
        for knob, value in flat.items():
            if knob not in FREE and value != first[knob]:
                raise ValueError(
                    f"{run.name} has {knob}={value!r} and {runs[0].name} {first[knob]!r}: runs of a"
                    f" pack may differ in {', '.join(FREE)} alone"
                )
        for knob, (value, why) in NEEDED.items():
            if flat[knob] != value:
                raise ValueError(
                    f"{run.name} has {knob}={flat[knob]!r}, and {why}: train it alone, or set"
                    f" {knob}={value!r}"
                )


def choose(
    runs: Iterator[config.Run], n: int, alone: Set[str], until: dict[str, int]
) -> list[config.Run]:
    """The first of these runs, and up to n - 1 more that can go on with it from the same step.

    alone: names of runs that take no other with them. until: step to which each is to go.
    """
    found: list[config.Run] = []
    while len(found) < n and (run := next(runs, None)):
        if not found:
            found.append(run)
            n = 1 if run.name in alone else n
        elif run.name not in alone and until[run.name] == until[found[0].name]:
            found += [run] if _fits(run, found[0]) else []
    return found


def level(runs: list[config.Run]) -> tuple[list[config.Run], list[config.Run]]:
    """Those that stand at the step of the first, and the others."""
    steps = [checkpoint.newest(run) for run in runs]
    at = [run for run, step in zip(runs, steps, strict=True) if step == steps[0]]
    return at, [run for run, step in zip(runs, steps, strict=True) if step != steps[0]]


class Pack:
    """The programs of runs that are trained together."""

    def __init__(self, runs: list[config.Run], device_mesh: jax.sharding.Mesh):
        self.runs = runs
        self.program = programs.build(runs[0], device_mesh)
        self._split = jax.tree.map(lambda leaf: leaf.sharding, self.program.abstract)
        # Every array of the state with an axis in front that no device shares out.
        self._abstract = jax.tree.map(self._in_front, self.program.abstract)
        self._joined = jax.tree.map(lambda leaf: leaf.sharding, self._abstract)
        self._take = jax.jit(
            lambda state, place: jax.tree.map(lambda leaf: leaf[place], state),
            out_shardings=self._split,
        )

    def compile(self, fresh: bool) -> tuple[Callable, ...]:
        """step, score and init: see programs.compile_all."""
        program, n = self.program, len(self.runs)
        if n == 1:
            alone = program.step.lower(program.abstract, program.batch)
            step, score, init = programs.compile_all(program, alone, fresh)
            return lambda state, batches: _in_list(step(state, batches[0])), score, init
        rates = {
            name: jnp.array([getattr(run.optim, name) for run in self.runs], jnp.float32)
            for name in RATES
        }
        everywhere = NamedSharding(program.mesh, PartitionSpec())
        rates = jax.device_put(rates, everywhere)
        lowered = jax.jit(
            self._step,
            in_shardings=(self._joined, None, everywhere),
            out_shardings=(self._joined, everywhere),
            donate_argnums=0,
            compiler_options=kernels.options(program.mesh),
        ).lower(self._abstract, [program.batch] * n, rates)
        step, score, init = programs.compile_all(program, lowered, fresh)
        return functools.partial(_with, step, rates), score, init

    def joined(self, states: list[dict]) -> dict:
        """The states of all runs as one."""
        if len(states) == 1:
            return states[0]
        stack = jax.jit(
            lambda *states: jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
            out_shardings=self._joined,
        )
        return stack(*states)

    def member(self, state: dict, place: int) -> dict:
        """The state of one run, for its checkpoint and its evaluation."""
        return state if len(self.runs) == 1 else self._take(state, place)

    def _step(self, state: dict, batches: list[dict], rates: dict) -> tuple[dict, list[dict]]:
        batch = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
        state, metrics = jax.vmap(self.program.plain_step)(state, batch, rates)
        places = range(len(self.runs))
        return state, [jax.tree.map(lambda x, i=i: x[i], metrics) for i in places]

    def _in_front(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        split = NamedSharding(self.program.mesh, PartitionSpec(None, *leaf.sharding.spec))
        return jax.ShapeDtypeStruct((len(self.runs), *leaf.shape), leaf.dtype, sharding=split)


def _fits(run: config.Run, first: config.Run) -> bool:
    try:
        check([first, run])
    except ValueError:
        return False
    return checkpoint.newest(run) == checkpoint.newest(first)


def _in_list(found: tuple[dict, dict]) -> tuple[dict, list[dict]]:
    return found[0], [found[1]]


def _with(step: Callable, rates: dict, state: dict, batches: list[dict]):
    return step(state, batches, rates)
