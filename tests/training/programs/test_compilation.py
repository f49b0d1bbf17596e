"""Compilation of the functions of a run."""

import dataclasses
import os
import sys
import threading

import jax
import numpy as np
import pytest

from lm.config import schema
from lm.parallel import mesh
from lm.training import step
from lm.training.programs import compilation


class CountingScore:
    """Function `score` that counts how often it is lowered and compiled."""

    def __init__(self, score):
        self.score, self.n_lowered, self.n_compiled = score, 0, 0

    def lower(self, *arguments):
        self.n_lowered += 1
        self.lowered = self.score.lower(*arguments)
        return self

    def compile(self):
        self.n_compiled += 1
        return self.lowered.compile()


def test_cpu_lowers_score_early_and_compiles_it_once_late(tiny):
    functions = step.build_train_functions(tiny, mesh.make_mesh(schema.Mesh()))
    counting = CountingScore(functions.score)
    functions = dataclasses.replace(functions, score=counting)
    with jax.set_mesh(functions.mesh):
        programs, compile_score, init = compilation.compile_all(functions, {}, is_fresh=False)
        assert programs == {} and init is functions.init
        assert (counting.n_lowered, counting.n_compiled) == (1, 0)
        params = init(0)["params"]
        shapes = functions.evaluation_batch
        batch = {name: np.ones(x.shape, x.dtype) for name, x in shapes.items()}
        batch = mesh.put_batch(functions.mesh, batch)
        (nats, _), (same_nats, _) = (compile_score()(params, batch) for _ in range(2))
    assert (counting.n_lowered, counting.n_compiled) == (1, 1)
    assert nats.shape == shapes["segments"].shape and np.array_equal(nats, same_nats)


class Lowered:
    """A lowered program in place of that of the steps or of init, whose compile is a function."""

    def __init__(self, compile):
        self.compile = compile

    def lower(self, seed):
        return self


def test_init_is_compiled_during_the_step(tiny):
    init_started = threading.Event()
    functions = step.build_train_functions(tiny, mesh.make_mesh(schema.Mesh()))
    functions = dataclasses.replace(functions, init=Lowered(init_started.set))
    steps = {8: Lowered(lambda: init_started.wait(60))}
    programs, _, _ = compilation.compile_all(functions, steps, is_fresh=True)
    assert programs[8] is True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs priorities of threads")
def test_thread_that_compiles_has_a_lower_priority(tiny):
    functions = step.build_train_functions(tiny, mesh.make_mesh(schema.Mesh()))
    priority = Lowered(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    programs, _, _ = compilation.compile_all(functions, {8: priority}, is_fresh=False)
    assert programs[8] == min(os.nice(0) + 10, 19)
