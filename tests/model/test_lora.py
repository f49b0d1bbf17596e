"""Tests of LoRA adapters, frozen weights and learning rates per layer."""

import copy

import conftest
import jax
import numpy as np
import pytest

from lm.config import schema, validation
from lm.model import lora, params, transformer
from lm.parallel import mesh
from lm.runs import records
from lm.training import loaded_model, loop, optimizer, step, warm_start

SMALL = schema.Model(256, d_model=16, n_layers=3, n_heads=2, n_kv_heads=1, d_head=8, d_ff=32)


def trainable_by_path(frozen="", **fields) -> dict[str, bool]:
    shape = schema.Model(**vars(SMALL) | fields)
    return params.flatten_by_path(
        optimizer.trainable_mask(
            schema.Optimizer(frozen=frozen), shape, transformer.param_axes(shape)
        )
    )


def random_weights(shape: schema.Model) -> dict:
    """Return weights without compiling a program."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: transformer.init_params(shape, 0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    "frozen, expected",
    [
        ("embed", {"embed"}),
        ("mlp", {"blocks/mlp/gate", "blocks/mlp/up", "blocks/mlp/down"}),
        ("vocab", {"embed", "head"}),  # an axis
        ("kv_heads,head", {"blocks/attention/key", "blocks/attention/value", "head"}),
    ],
)
def test_weights_are_frozen_by_path_or_axis(frozen, expected):
    flags = trainable_by_path(frozen)
    assert {path for path, is_trainable in flags.items() if not is_trainable} == expected


def test_unknown_names_and_no_trainable_weight_are_refused():
    with pytest.raises(ValueError, match="optim.frozen: heds does not exist: did you mean head"):
        trainable_by_path("heds")
    with pytest.raises(ValueError, match="freezes all weights"):
        trainable_by_path("embed,blocks,norm,head")
    with pytest.raises(ValueError, match="model.lora_on='vocabulary' must name one of .*heads"):
        trainable_by_path(lora_rank=2, lora_on="vocabulary")
    with pytest.raises(
        ValueError, match="model.lora_rank=4 needs the trained weights .*: set start"
    ):
        validation.validate_run(schema.Run(model=schema.Model(lora_rank=4)))


def test_only_adapters_on_the_named_axes_are_trainable():
    flags = trainable_by_path(lora_rank=2, lora_on="mlp")
    assert {path for path, is_trainable in flags.items() if is_trainable} == {
        f"lora/blocks/mlp/{name}/{side}" for name in ("gate", "up", "down") for side in "ab"
    }


def test_combine_is_the_inverse_of_partition():
    params = random_weights(SMALL)
    flags = optimizer.trainable_mask(
        schema.Optimizer(frozen="mlp,norm"), SMALL, transformer.param_axes(SMALL)
    )
    trainable = optimizer.partition(params, flags)
    frozen = optimizer.partition(params, flags, False)
    assert jax.tree.structure(optimizer.combine(trainable, frozen)) == jax.tree.structure(params)
    assert "mlp" not in trainable["blocks"] and "mlp" in frozen["blocks"]


def test_adapter_is_a_low_rank_product_per_layer():
    shape = schema.Model(**vars(SMALL) | {"lora_rank": 2, "lora_alpha": 6.0})
    params = random_weights(shape)
    merged, adapters = lora.merge_lora(shape, params), params["lora"]["blocks"]
    assert "lora" not in merged
    for name, equation in (("query", "dr,rnh->dnh"), ("out", "nhr,rd->nhd")):
        weight, adapter = params["blocks"]["attention"][name], adapters["attention"][name]
        for layer in range(3):
            product = np.einsum(equation, adapter["a"][layer], adapter["b"][layer])
            np.testing.assert_allclose(
                merged["blocks"]["attention"][name][layer],
                weight[layer] + 3.0 * product,
                rtol=2e-4,
                atol=2e-4,
            )


@pytest.fixture(scope="module")
def parent(text_file, tmp_path_factory) -> schema.Run:
    run = conftest.tiny_run(text_file, tmp_path_factory.mktemp("lora"))
    run.name = "s/parent"
    loop.train(run)
    return run


def child_run(parent: schema.Run, name: str) -> schema.Run:
    run = copy.deepcopy(parent)
    run.name, run.start.run, run.optim.lr = f"s/{name}", parent.name, 1e-2
    return run


def test_lora_run_starts_at_its_parent_and_trains_adapters(parent):
    """Only the adapters have moments of Adam, and a full run cannot start from a LoRA run."""
    run = child_run(parent, "lora")
    run.model.lora_rank = 2
    loop.train(run)
    rows = records.load_evals(records.run_dir(run))
    parent_loss = records.load_evals(records.run_dir(parent))[-1]["loss"]
    assert (
        rows[0]["loss"] == pytest.approx(parent_loss, rel=1e-6) and rows[-1]["loss"] < parent_loss
    )
    _, before = loaded_model.restore_model(parent)
    _, after = loaded_model.restore_model(run, parts=("step", "params", "opt"))
    for path, weight in params.flatten_by_path(before["params"]).items():
        np.testing.assert_array_equal(params.flatten_by_path(after["params"])[path], weight)
    n_lora = sum(leaf.size for leaf in jax.tree.leaves(after["params"]["lora"]))
    assert records.read_facts(records.run_dir(run))["params.learned"] == n_lora
    moment_sizes = [leaf.size for leaf in jax.tree.leaves(after["opt"]) if leaf.ndim]
    assert sum(moment_sizes) == 2 * n_lora  # Adam has two moments per weight.
    grandchild = child_run(run, "grandchild")
    grandchild.model.lora_rank = 0
    with pytest.raises(ValueError, match="model.lora_rank=2 in the parent, 0 in this run"):
        warm_start.validate_start(grandchild, run)


def test_frozen_weights_do_not_change(parent):
    run = child_run(parent, "frozen")
    run.optim.frozen, run.steps = "embed,mlp", 2
    program = step.build_train_functions(run, mesh.make_mesh(run.mesh))
    with jax.set_mesh(program.mesh):
        state = program.init(0)
        before = jax.device_get(params.flatten_by_path(state["params"]))
        rng = np.random.default_rng(0)
        batch = {"tokens": rng.integers(1, 255, (8, 33)).astype(np.int32)}
        state, _ = program.step(state, mesh.put_batch(program.mesh, batch), program.inputs)
    after = jax.device_get(params.flatten_by_path(state["params"]))
    unchanged = {path for path in before if (before[path] == after[path]).all()}
    assert unchanged == {"embed", "blocks/mlp/gate", "blocks/mlp/up", "blocks/mlp/down"}


def test_layer_decay_reduces_updates_of_lower_layers():
    optim = schema.Optimizer(layer_decay=0.5, clip_norm=0.0, weight_decay=0.0, warmup=0.0)
    names = transformer.param_axes(SMALL)
    params = random_weights(SMALL)
    transformation = optimizer.make_optimizer(optim, SMALL, 10, names)
    gradient = jax.tree.map(np.ones_like, params)
    inputs = optimizer.inputs(optim, SMALL, names)

    @jax.jit
    def first_update():
        state = transformation.init(params)
        return transformation.update(gradient, state, params, inputs=inputs)[0]

    update = jax.device_get(first_update())
    query = np.abs(update["blocks"]["attention"]["query"]).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(query / query[-1], [0.25, 0.5, 1.0], rtol=1e-5)
    np.testing.assert_allclose(
        np.abs(update["embed"]).mean() / np.abs(update["head"]).mean(), 0.125, rtol=1e-5
    )
