"""Coordinate check on real training steps: growth of activations with width and depth."""

import dataclasses
import functools

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
    """Return a function of a parametrization and a shape that trains at this and the base shape.

    Its result is the exponent of the change of each part after the last step. The rows of text are
    drawn with a fixed seed: the dataset depends on the name of a temporary folder, and other rows
    would give other exponents.
    """
    tiny = conftest.tiny_run(text_file, tmp_path_factory.mktemp("coordinates"))
    tiny.model, tiny.optim.lr = dataclasses.replace(tiny.model, scan_unroll=1), 0.01
    text = np.frombuffer(text_file.joinpath("7.txt").read_bytes(), np.uint8).astype(np.int32)
    row_starts = np.random.default_rng(0).integers(0, len(text) - 33, (STEPS + 1, 8))
    batches = [{"tokens": text[starts[:, None] + np.arange(33)]} for starts in row_starts]
    one_device = mesh.make_mesh(tiny.mesh, jax.devices()[:1])

    def measure(rule, width, depth, name="adamw"):
        model = model_sizes.resize_model(tiny.model, width, depth)
        run = dataclasses.replace(tiny, model=dataclasses.replace(model, parametrization=rule))
        run.optim = dataclasses.replace(tiny.optim, name=name)
        return coordinate_check.measure_activations(run, batches, one_device)

    @functools.cache
    def base_rows(name):  # all parametrizations agree at the base shape
        return measure("standard", 16, 2, name)

    def change_exponents(rule, width=16, depth=2, name="adamw"):
        rows = [row | {"rule": rule} for row in base_rows(name)]
        rows += measure(rule, width, depth, name)
        along = "depth" if width == 16 else "width"
        return {
            exponent["part"]: exponent["change"]
            for exponent in lr_analysis.activation_exponents(rows, along)
            if exponent["step"] == STEPS
        }

    return change_exponents


@pytest.mark.slow
def test_changes_grow_with_width_except_under_mup(exponents):
    standard, mup = exponents("standard", width=96), exponents("mup", width=96)
    for part in ("attention", "mlp", "residual", "logits"):
        assert standard[part] > 0.1 and standard[part] > mup[part] + 0.4, (part, standard, mup)
    assert all(-0.6 < slope < 0.1 for slope in mup.values()), mup


@pytest.mark.slow
def test_changes_grow_with_depth_except_under_completep(exponents):
    standard, completep = exponents("standard", depth=12), exponents("completep", depth=12)
    assert standard["residual"] > 0.35 > 0.15 > completep["residual"]
    assert all(-0.6 < slope < 0.3 for slope in completep.values()), completep


@pytest.mark.slow
def test_changes_of_muon_are_constant_under_mup(exponents):
    """The factor of AdamW, 1 / width, would give exponents of -0.4 in the layers."""
    mup = exponents("mup", width=96, name="muon")
    for part in ("attention", "mlp", "residual"):
        assert -0.2 < mup[part] < 0.2, (part, mup)


@pytest.mark.slow
def test_changes_of_muon_do_not_grow_with_depth(exponents):
    completep = exponents("completep", depth=12, name="muon")
    assert all(-0.6 < slope < 0.4 for slope in completep.values()), completep


def test_collected_logits_are_those_of_the_model(tiny):
    model = dataclasses.replace(tiny.model, parametrization="completep", base_depth=1)
    tokens_BT = np.arange(24, dtype=np.int32).reshape(2, 12)
    with jax.set_mesh(mesh.make_mesh(tiny.mesh, jax.devices()[:1])):
        params = jax.jit(lambda: transformer.init_params(model, 0))()
        rules = mesh.DEFAULT_RULES
        activations = jax.jit(
            lambda params: coordinate_check.collect_activations(model, params, tokens_BT, rules)
        )(params)
        compute_logits = jax.jit(lambda w: transformer.compute_logits(model, w, tokens_BT))
        logits = compute_logits(params)
        np.testing.assert_allclose(activations["logits"], logits, atol=1e-5)
