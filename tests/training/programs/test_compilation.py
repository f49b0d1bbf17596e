"""Compilation of the functions of a run."""

import dataclasses

import jax
import numpy as np

from lm.config import schema
from lm.parallel import mesh
from lm.training import step
from lm.training.programs import compilation


class CountingScore:
    """Function `score` that counts how often it is lowered."""

    def __init__(self, score):
        self.score, self.n_lowered = score, 0

    def lower(self, *arguments):
        self.n_lowered += 1
        return self.score.lower(*arguments)


def test_cpu_compiles_score_once_at_its_first_call(tiny):
    functions = step.build_train_functions(tiny, mesh.make_mesh(schema.Mesh()))
    counting = CountingScore(functions.score)
    functions = dataclasses.replace(functions, score=counting)
    with jax.set_mesh(functions.mesh):
        programs, score, init = compilation.compile_all(functions, {}, is_fresh=False)
        assert programs == {} and init is functions.init and counting.n_lowered == 0
        params = init(0)["params"]
        shapes = functions.evaluation_batch
        batch = {name: np.ones(x.shape, x.dtype) for name, x in shapes.items()}
        batch = mesh.put_batch(functions.mesh, batch)
        (nats, _), (same_nats, _) = score(params, batch), score(params, batch)
    assert counting.n_lowered == 1
    assert nats.shape == shapes["segments"].shape and np.array_equal(nats, same_nats)
