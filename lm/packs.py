"""Runs of one shape in one program: a step of a pack is one `vmap` of a step of each.

    runs = packs.choose(iter(ready), 4)             the first, and those that may go with it
    pack = packs.Pack(runs, device_mesh)
    state = pack.joined([state, ...])               every array with an axis in front, [K, ...]
    state, metrics = step(state, batches)           a list of steps, each of a dict a run
    pack.member(state, 2)                           the third run's state, as if it were alone

What may differ between them is an input of the program: weights and batches, which a seed makes,
and RATES. Many small runs fill an accelerator that one alone does not; see experiments/LOG.md.
A pack of one is the run's own program: nothing is stacked.

A call does up to `size` steps in a loop whose length is an input, so the bits are the same however
many it does. On CPU each call asks the system for the memory of all intermediate arrays anew, page
by page; the steps of a call share it.
"""

from collections.abc import Callable, Iterator, Set

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm import checkpoint, config, fields, mesh, programs, sizes

RATES = fields.fields_with("traced", config.Optim)
CALL = (8, 1.5e12)  # steps and FLOPs of a call at most: a signal waits for its end
FREE = fields.fields_with("vmapped", config.Run)


def check(runs: list[config.Run]) -> None:
    """ValueError naming the first knob that keeps runs from being trained in one program."""
    first, defaults = config.flatten(runs[0]), config.flatten(config.Run())
    for run in runs[1:]:
        flat = config.flatten(run)
        for knob, value in flat.items():
            if knob not in FREE and value != first[knob]:
                raise ValueError(
                    f"{run.name} has {knob}={value!r} and {runs[0].name} {first[knob]!r}: runs of a"
                    f" pack may differ in {', '.join(FREE)} alone"
                )
        for knob, info in fields.field_info(config.Run).items():
            if info.alone and flat[knob] != defaults[knob]:
                raise ValueError(
                    f"{run.name} has {knob}={flat[knob]!r}, and {info.alone}: train it alone, or"
                    f" set {knob}={defaults[knob]!r}"
                )


def choose(runs: Iterator[config.Run], n: int, alone: Set[str]) -> list[config.Run]:
    """The first of these runs, and up to n - 1 more that can go on with it from the same step.

    alone: names of runs that take no other with them.
    """
    found: list[config.Run] = []
    while len(found) < n and (run := next(runs, None)):
        if not found:
            found.append(run)
            n = 1 if run.name in alone else n
        elif run.name not in alone:
            found += [run] if _fits(run, found[0]) else []
    return found


def level(runs: list[config.Run]) -> tuple[list[config.Run], list[config.Run]]:
    """Those that stand at the step of the first, and the others."""
    steps = [checkpoint.newest(run) for run in runs]
    at = [run for run, step in zip(runs, steps, strict=True) if step == steps[0]]
    return at, [run for run, step in zip(runs, steps, strict=True) if step != steps[0]]


class Pack:
    """The programs of runs that are trained together. size: steps of a call at most."""

    def __init__(self, runs: list[config.Run], device_mesh: jax.sharding.Mesh):
        self.runs = runs
        self.size = runs[0].steps_per_call or _size(runs, device_mesh)
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
        step, score, init = programs.compile_all(self.program, self.lowered(), fresh)
        return self.called(step), score, init

    def lowered(self) -> jax.stages.Lowered:
        """The program of a call."""
        program, everywhere = self.program, mesh.sharding(self.program.mesh)
        steps = jax.jit(
            self._steps,
            in_shardings=(self._joined, None, everywhere, everywhere),
            out_shardings=(self._joined, everywhere),
            donate_argnums=0,
            compiler_options=program.options,
        )
        batches = [[program.batch] * len(self.runs)] * self.size
        n = jax.ShapeDtypeStruct((), jnp.int32)
        return steps.lower(self._abstract, batches, n, self._rates())

    def called(self, steps: Callable) -> Callable:
        """(state, 1 to `size` batches) -> the next state, metrics: lists of steps, of runs."""
        rates = jax.device_put(self._rates(), mesh.sharding(self.program.mesh))

        def call(state: dict, batches: list[list[dict]]) -> tuple[dict, list[list[dict]]]:
            n = len(batches)
            filled = batches + batches[-1:] * (self.size - n)
            state, metrics = steps(state, filled, np.int32(n), rates)
            return state, metrics[:n]

        return call

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

    def _rates(self) -> dict[str, np.ndarray]:
        if len(self.runs) == 1:
            return {}
        of_all = {name: [getattr(run.optim, name) for run in self.runs] for name in RATES}
        return {name: np.array(values, np.float32) for name, values in of_all.items()}

    def _steps(self, state: dict, batches: list[list[dict]], n: jax.Array, rates: dict):
        """The first n of these steps; metrics of the others are 0."""
        if len(batches) == 1:
            state, metrics = self._step(state, batches[0], rates)
            return state, [metrics]

        step = jax.jit(self._step, inline=True)  # traced once for both uses

        def one(place, carry):
            state, found = carry
            batch = jax.tree.map(lambda rows: rows[place], stacked)
            state, metrics = step(state, batch, rates)
            state = jax.lax.with_sharding_constraint(state, self._joined)
            return state, jax.tree.map(lambda all_, x: all_.at[place].set(x), found, metrics)

        stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
        like = jax.eval_shape(step, state, batches[0], rates)[1]
        nothing = jax.tree.map(lambda x: jnp.zeros(len(batches), x.dtype), like)
        state, found = jax.lax.fori_loop(0, n, one, (state, nothing))
        return state, [jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(batches))]

    def _step(self, state: dict, batches: list[dict], rates: dict) -> tuple[dict, list[dict]]:
        if len(self.runs) == 1:
            state, metrics = self.program.plain_step(state, batches[0])
            return state, [metrics]
        batch = jax.tree.map(lambda *rows: jnp.stack(rows), *batches)
        state, metrics = jax.vmap(self.program.plain_step)(state, batch, rates)
        places = range(len(self.runs))
        return state, [jax.tree.map(lambda x, i=i: x[i], metrics) for i in places]

    def _in_front(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if len(self.runs) == 1:
            return leaf
        split = NamedSharding(self.program.mesh, PartitionSpec(None, *leaf.sharding.spec))
        return jax.ShapeDtypeStruct((len(self.runs), *leaf.shape), leaf.dtype, sharding=split)


def _fits(run: config.Run, first: config.Run) -> bool:
    try:
        check([first, run])
    except ValueError:
        return False
    return checkpoint.newest(run) == checkpoint.newest(first)


def _size(runs: list[config.Run], device_mesh: jax.sharding.Mesh) -> int:
    """Accelerators keep the memory, and are given the next step while one is done: 1."""
    if mesh.platform(device_mesh) != "cpu":
        return 1
    run, (steps, flops) = runs[0], CALL
    tokens = len(runs) * run.data.batch_size * run.data.seq_len
    per_step = tokens * sizes.flops_per_token(run.model, run.data.seq_len)["full"]
    return int(min(steps, max(1, flops // per_step)))
