"""The coordinate check on real steps: what grows with width and depth, and what does not."""

import dataclasses

import conftest
import jax
import numpy as np
import pytest

from lm.config import model_sizes
from lm.model import transformer
from lm.parallel import mesh
from lm.reports import lr_analysis
from lm.sweeps import coordinate_check

STEPS = 2


@pytest.fixture(scope="module")
def exponents(text_file, tmp_path_factory):
    """Of the last step's changes, under a rule, from the base shape to another."""
    tiny = conftest.tiny_run(text_file, tmp_path_factory.mktemp("coordinates"))
    tiny.model, tiny.optim.lr = dataclasses.replace(tiny.model, scan_unroll=1), 0.01
    # Rows that no name of a folder decides: few as they are, others would have other exponents.
    text = np.frombuffer(text_file.joinpath("7.txt").read_bytes(), np.uint8).astype(np.int32)
    starts = np.random.default_rng(0).integers(0, len(text) - 33, (STEPS + 1, 8))
    batches = [{"tokens": text[at[:, None] + np.arange(33)]} for at in starts]
    one_device = mesh.make_mesh(tiny.mesh, jax.devices()[:1])

    def measured(rule, width, depth):
        shape = model_sizes.resize_model(tiny.model, width, depth)
        tiny_run = dataclasses.replace(tiny, model=dataclasses.replace(shape, parametrization=rule))
        return coordinate_check.measure_activations(tiny_run, batches, one_device)

    base = measured("standard", 16, 2)  # at which the rules are one

    def found(rule, width=16, depth=2):
        rows = [row | {"rule": rule} for row in base] + measured(rule, width, depth)
        grown = lr_analysis.activation_exponents(rows, "depth" if width == 16 else "width")
        return {one["part"]: one["change"] for one in grown if one["step"] == STEPS}

    return found


def test_what_steps_change_grows_with_width_under_standard_and_not_under_mup(exponents):
    standard, mup = exponents("standard", width=96), exponents("mup", width=96)
    for part in ("attention", "mlp", "residual", "logits"):
        assert standard[part] > 0.1 and standard[part] > mup[part] + 0.4, (part, standard, mup)
    assert all(-0.6 < slope < 0.1 for slope in mup.values()), mup


def test_what_steps_change_grows_with_depth_under_standard_and_not_under_completep(exponents):
    standard, completep = exponents("standard", depth=12), exponents("completep", depth=12)
    assert standard["residual"] > 0.35 > 0.15 > completep["residual"]
    assert all(-0.6 < slope < 0.3 for slope in completep.values()), completep


def test_the_parts_that_are_looked_at_end_in_the_logits_of_the_model(tiny):
    shape = dataclasses.replace(tiny.model, parametrization="completep", base_depth=1)
    tokens_BT = np.arange(24, dtype=np.int32).reshape(2, 12)
    with jax.set_mesh(mesh.make_mesh(tiny.mesh, jax.devices()[:1])):
        params = transformer.init_params(shape, 0)
        rules = mesh.DEFAULT_RULES
        seen = jax.jit(
            lambda: coordinate_check.collect_activations(shape, params, tokens_BT, rules)
        )()
        logits = jax.jit(lambda: transformer.compute_logits(shape, params, tokens_BT))()
        np.testing.assert_allclose(seen["logits"], logits, atol=1e-5)
