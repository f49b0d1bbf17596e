"""Tests of the train step: types of gradients, padding, router biases, and precision."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.extend import core

from experiments.benchmarks import fast_compilation
from lm.config import schema, validation
from lm.model import params, transformer
from lm.parallel import mesh
from lm.training import optimizer, step

ROOT = pathlib.Path(__file__).parents[2]
DENSE = schema.Model(64, 16, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=32, scan_unroll=1)
HALF = dataclasses.replace(DENSE, n_layers=1, dtype="bfloat16")
EXPERTS = dataclasses.replace(DENSE, n_layers=1, n_experts=4, d_expert=8)


def split_mesh(**sizes: int) -> jax.sharding.Mesh:
    """Return a mesh of four devices; two of them split the batch and the weights."""
    return mesh.make_mesh(schema.Mesh(data=1, fsdp=2, **sizes))


def one_device() -> jax.sharding.Mesh:
    return mesh.make_mesh(schema.Mesh(), jax.devices()[:1])


def make_run(model: schema.Model, **fields) -> schema.Run:
    """Return a run of 8 rows of 24 tokens. fields: group__name=value."""
    run = schema.Run(model=model, steps=10)
    run.data.seq_len, run.data.batch_size = 24, 8
    for name, value in fields.items():
        group, field = name.split("__")
        setattr(getattr(run, group), field, value)
    return validation.validate_run(run)


def hlo_after_partitioning(lowered: jax.stages.Lowered, folder: pathlib.Path) -> str:
    """Return a program with its collectives.

    Later passes of the CPU compiler replace the bfloat16 collectives, which CPUs do not support.
    """
    is_cache_enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX reads the setting once, unless the cache is reset
    options = {"xla_dump_to": str(folder), "xla_dump_hlo_pass_re": "spmd-partitioning"}
    options |= fast_compilation.OPTIONS
    try:
        lowered.compile(compiler_options=options)
    finally:
        jax.config.update("jax_enable_compilation_cache", is_cache_enabled)
        compilation_cache.reset_cache()
    (file,) = folder.glob("*after_spmd-partitioning*.txt")
    return file.read_text()


def lower_step(run: schema.Run, device_mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    functions = step.build_train_functions(run, device_mesh)
    with jax.set_mesh(device_mesh):
        return functions.step.lower(functions.abstract, functions.batch, functions.inputs)


def lower_gradient(model: schema.Model, device_mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """Lower the gradient of the summed loss of 8 rows of 24 tokens."""

    def loss(weights, tokens_BT):
        return transformer.token_losses(model, weights, tokens_BT)[0].sum()

    shardings = jax.tree.map(
        lambda axes: mesh.named_sharding(device_mesh, *axes),
        transformer.param_axes(model),
        is_leaf=mesh.is_axis_names,
    )
    rows = mesh.named_sharding(device_mesh, "batch", None)
    gradient = jax.jit(jax.grad(loss), in_shardings=(shardings, rows), out_shardings=shardings)
    weights = jax.eval_shape(lambda: transformer.init_params(model, 0))
    with jax.set_mesh(device_mesh):
        return gradient.lower(weights, jax.ShapeDtypeStruct((8, 25), "int32"))


def reduced_types(hlo: str, functions_of: str) -> dict[str, set[str]]:
    """Return {shape: types} of the sums over devices whose names contain `functions_of`."""
    types: dict[str, set[str]] = {}
    for line in hlo.splitlines():
        match = re.search(r"= (\w+)\[([\d,]+)\]\S* (all-reduce|reduce-scatter)\(", line)
        if match and re.search(functions_of, line):
            types.setdefault(match[2], set()).add(match[1])
    return types


def assert_weight_gradients(hlo: str, expected: str) -> None:
    """Check the type in which the gradients of one layer and of the head are reduced.

    The gradient of the embedding is always float32. Weights are gathered in bfloat16.
    """
    sums = reduced_types(hlo, r"transpose\(.*dot_general")
    # Shapes of query and key, of the output, of gate and up, of down, and of the head.
    for shape in ("16,2,8", "16,1,8", "2,8,16", "16,16", "16,32"):
        assert sums[shape] == {expected}, shape
    # A reduce-scatter sums the gradient of the table, and gives each device its part.
    assert reduced_types(hlo, "scatter-add") == {"32,8": {"f32"}}
    assert set(re.findall(r"= (\w+)\[[\d,]+\]\S* all-gather\(", hlo)) == {"bf16"}


@pytest.mark.slow
def test_accumulated_gradients_are_reduced_in_float32(tmp_path):
    run = make_run(HALF, optim__grad_accumulation_steps=2, model__loss_chunks=2)
    hlo = hlo_after_partitioning(lower_step(run, split_mesh(tensor=2)), tmp_path)
    assert_weight_gradients(hlo, "f32")


def test_gradient_dtype_selects_the_type_of_the_reduction(tmp_path):
    model = dataclasses.replace(HALF, gradient_dtype="bfloat16")
    hlo = hlo_after_partitioning(lower_gradient(model, split_mesh(tensor=2)), tmp_path)
    assert_weight_gradients(hlo, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", ["dropless", "capacity"])
def test_expert_gradients_are_reduced_in_float32(tmp_path, dispatch):
    fields = {"n_experts": 4, "d_expert": 6, "dispatch": dispatch}
    lowered = lower_gradient(dataclasses.replace(HALF, **fields), split_mesh(expert=2))
    hlo = hlo_after_partitioning(lowered, tmp_path)
    sums = reduced_types(hlo, "")
    assert sums["2,16,6"] == sums["2,6,16"] == {"f32"}
    gathers = re.findall(r"= (\w+)\[2,(?:16,6|6,16)\]\S* all-gather\(", hlo)
    assert set(gathers) == {"bf16"}


def test_gradient_dtype_of_a_float32_model_is_refused():
    with pytest.raises(ValueError, match="model.gradient_dtype='bfloat16' must be float32 with"):
        make_run(dataclasses.replace(DENSE, gradient_dtype="bfloat16"))


def dot_types(jaxpr) -> set[tuple[str, str, str]]:
    """Return the types of both operands and of the result of all products of a jaxpr."""
    types = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            variables = (*equation.invars, *equation.outvars)
            types.add(tuple(str(variable.aval.dtype) for variable in variables))
        for inner in core.jaxprs_in_params(equation.params):
            types |= dot_types(inner)
    return types


@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": True, "loss_chunks": 2}])
def test_all_products_of_a_bfloat16_step_have_bfloat16_operands(fields):
    """This includes both products of the backward pass of the head."""
    model = dataclasses.replace(DENSE, dtype="bfloat16", **fields)
    weights = jax.eval_shape(lambda: transformer.init_params(model, 0))
    tokens = jax.ShapeDtypeStruct((2, 17), "int32")

    def loss(weights, tokens_BT):
        return transformer.token_losses(model, weights, tokens_BT)[0].sum()

    types = dot_types(jax.make_jaxpr(jax.grad(loss))(weights, tokens).jaxpr)
    assert {pair[:2] for pair in types} == {("bfloat16", "bfloat16")}
    assert ("bfloat16", "bfloat16", "float32") in types


def frequent_tokens(n_rows: int, n_tokens: int, vocab_size: int = 16) -> np.ndarray:
    """Return tokens of which half are 3."""
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(0, vocab_size, (n_rows, n_tokens), np.int32)
    return np.where(rng.random(tokens_BT.shape) < 0.5, np.int32(3), tokens_BT)


# The table alone has a test in test_layers.py.
@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.slow), True])
def test_bfloat16_embedding_gradient_is_that_of_float32(tied):
    """The row of a token that occurs 8,192 times is exact to the rounding of its summands."""
    model = schema.Model(
        16, 8, n_layers=1, n_heads=2, n_kv_heads=2, d_head=4, d_ff=8, tie_embeddings=tied
    )
    tokens_BT = frequent_tokens(512, 33)
    weights = jax.device_get(jax.jit(lambda: transformer.init_params(model, 0))())

    def gradient(dtype: str, device_mesh: jax.sharding.Mesh) -> np.ndarray:
        shape = dataclasses.replace(model, dtype=dtype)

        def loss(weights, tokens_BT):
            return transformer.token_losses(shape, weights, tokens_BT)[0].mean()

        rows = mesh.named_sharding(device_mesh, "batch", None)
        shardings = jax.tree.map(
            lambda axes: mesh.named_sharding(device_mesh, *axes),
            transformer.param_axes(shape),
            is_leaf=mesh.is_axis_names,
        )
        with jax.set_mesh(device_mesh):
            gradients = jax.jit(jax.grad(loss), in_shardings=(shardings, rows))
            return np.asarray(gradients(weights, tokens_BT)["embed"])

    exact = gradient("float32", one_device())
    for device_mesh in (one_device(), split_mesh(tensor=2)):
        actual = gradient("bfloat16", device_mesh)
        error_V = np.linalg.norm(actual - exact, axis=1) / np.linalg.norm(exact, axis=1)
        assert actual.dtype == np.float32 and error_V[3] < 0.02 and error_V.max() < 0.05


def train_once(run: schema.Run, batch: dict) -> tuple[dict, dict]:
    """Return the weights after a step and its metrics, as NumPy arrays."""
    functions = step.build_train_functions(run, one_device())
    with jax.set_mesh(functions.mesh):
        batch = mesh.put_batch(functions.mesh, batch)
        state, metrics = functions.step(functions.init(0), batch, functions.inputs)
    return jax.device_get((state["params"], metrics))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"load_balancing": "bias", "router_bias_rate": 0.1},
        {"load_balancing": "loss", "load_balancing_weight": 1.0, "dispatch": "capacity"},
    ],
)
@pytest.mark.parametrize("n_chunks", [1, 4])
def test_padding_does_not_change_a_step(fields, n_chunks):
    """Padding has another token in the second batch: losses, metrics and weights are the same."""
    model = dataclasses.replace(EXPERTS, z_loss=0.1, router_z_loss=0.1, **fields)
    run = make_run(model, optim__grad_accumulation_steps=n_chunks, data__packing="documents")
    rng = np.random.default_rng(0)
    lengths_B = np.array([24, 3, 9, 1, 12, 24, 5, 8])
    weights_BT = (np.arange(24) < lengths_B[:, None]).astype(np.float32)
    tokens_BS = rng.integers(1, 64, (8, 25)).astype(np.int32)
    results = []
    for token in (0, 7):
        filled_BS = tokens_BS.copy()
        filled_BS[:, 1:][weights_BT == 0] = token
        segments_BT = np.where(weights_BT > 0, 0, np.arange(24)).astype(np.int32)
        batch = {"tokens": filled_BS, "segments": segments_BT, "weights": weights_BT}
        results.append(train_once(run, batch))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7), *results)
    assert results[0][1]["experts.imbalance"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["", "embed,attention,norm,gate"])
def test_frozen_weights_do_not_stop_the_router_biases(frozen):
    model = dataclasses.replace(EXPERTS, load_balancing="bias")
    tokens = np.random.default_rng(0).integers(1, 64, (8, 25)).astype(np.int32)
    weights, _ = train_once(make_run(model, optim__frozen=frozen), {"tokens": tokens})
    np.testing.assert_allclose(
        np.abs(weights["blocks"]["mlp"]["bias"]).max(), model.router_bias_rate, rtol=1e-6
    )


def test_router_biases_that_are_frozen_by_name_do_not_move():
    model = dataclasses.replace(EXPERTS, load_balancing="bias")
    axes = transformer.param_axes(model)
    for frozen, moves in {"bias": False, "mlp": False, "balance": False, "gate": True}.items():
        run = make_run(model, optim__frozen=frozen)
        assert optimizer.updates_router_biases(run.optim, model, axes) is moves, frozen
    tokens = np.random.default_rng(0).integers(1, 64, (8, 25)).astype(np.int32)
    weights, _ = train_once(make_run(model, optim__frozen="mlp"), {"tokens": tokens})
    assert not weights["blocks"]["mlp"]["bias"].any()


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_router_biases_have_no_optimizer_state(name):
    model = dataclasses.replace(EXPERTS, load_balancing="bias", dtype="bfloat16")
    functions = step.build_train_functions(make_run(model, optim__name=name), one_device())
    leaves = params.flatten_by_path(functions.abstract)
    assert leaves["params/blocks/mlp/bias"].dtype == jnp.float32
    assert not [path for path in leaves if path.startswith("opt/") and path.endswith("mlp/bias")]
    assert [path for path in leaves if path.startswith("opt/") and path.endswith("mlp/router")]


@pytest.fixture(scope="module", params=[4, pytest.param(5, marks=pytest.mark.slow)])
def losses_by_case(request) -> dict[tuple, np.ndarray]:
    """Return {(dtype, mesh sizes): losses} of the cases of precision_losses.py."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
    }
    script = ROOT / "tests" / "fixtures" / "precision_losses.py"
    completed = subprocess.run(
        [sys.executable, script, str(request.param)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert completed.returncode == 0, completed.stderr[-2000:]
    rows = [json.loads(line) for line in completed.stdout.splitlines()]
    return {(row["case"][0], *row["case"][1]): np.array(row["losses"]) for row in rows}


@pytest.mark.slow
def test_bfloat16_losses_are_near_float32_losses_on_any_mesh(losses_by_case):
    """The median relative difference over 50 steps is below 2e-3."""
    (single, *others), cases = list(losses_by_case), losses_by_case
    assert {int(np.prod(case[1:])) for case in others} >= {1, 4, 8}
    assert cases[single][-5:].mean() < 0.75 * cases[single][0]
    for first in others:
        for second in (single, others[0]):
            difference = np.abs(cases[first] / cases[second] - 1)
            assert np.median(difference) < 2e-3, (first, second)
