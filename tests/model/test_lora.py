"""Which weights learn: the rest does not move, has no gradient and no moments."""

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

SMALL = schema.Model(d_model=16, n_layers=3, n_heads=2, n_kv_heads=1, d_head=8, d_ff=32)


def keep(freeze="", **knobs):
    shape = schema.Model(**vars(SMALL) | knobs)
    return params.flatten_by_path(
        optimizer.trainable_mask(
            schema.Optimizer(frozen=freeze), shape, transformer.param_axes(shape)
        )
    )


def some_weights(shape: schema.Model) -> dict:
    """Made without compiling anything."""
    rng = np.random.default_rng(0)
    made = jax.eval_shape(lambda: transformer.init_params(shape, 0))
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), made)


@pytest.mark.parametrize(
    "freeze, frozen",
    [
        ("embed", {"embed"}),
        ("mlp", {"blocks/mlp/gate", "blocks/mlp/up", "blocks/mlp/down"}),
        ("vocab", {"embed", "head"}),  # an axis
        ("kv_heads,head", {"blocks/attention/key", "blocks/attention/value", "head"}),
    ],
)
def test_weights_are_frozen_by_path_or_axis(freeze, frozen):
    assert {path for path, flag in keep(freeze).items() if not flag} == frozen


def test_a_name_of_nothing_and_a_freeze_of_everything_are_refused():
    with pytest.raises(ValueError, match="optim.frozen: heds does not exist: did you mean head"):
        keep("heds")
    with pytest.raises(ValueError, match="freezes all weights"):
        keep("embed,blocks,norm,head")
    with pytest.raises(ValueError, match="model.lora_on='vocabulary' must name one of .*heads"):
        keep(lora_rank=2, lora_on="vocabulary")
    with pytest.raises(ValueError, match="model.lora_rank=4 needs .*: set start.run"):
        validation.validate_run(schema.Run(model=schema.Model(lora_rank=4)))


def test_with_additions_they_alone_learn_and_only_where_asked():
    flags = keep(lora_rank=2, lora_on="mlp")
    assert {path for path, flag in flags.items() if flag} == {
        f"lora/blocks/mlp/{name}/{side}" for name in ("gate", "up", "down") for side in "ab"
    }


def test_parts_join_to_the_whole():
    params = some_weights(SMALL)
    flags = optimizer.trainable_mask(
        schema.Optimizer(frozen="mlp,norm"), SMALL, transformer.param_axes(SMALL)
    )
    both = optimizer.partition(params, flags), optimizer.partition(params, flags, False)
    assert jax.tree.structure(optimizer.combine(*both)) == jax.tree.structure(params)
    assert "mlp" not in both[0]["blocks"] and "mlp" in both[1]["blocks"]


def test_an_addition_is_a_product_of_low_rank_for_each_layer():
    shape = schema.Model(**vars(SMALL) | {"lora_rank": 2, "lora_alpha": 6.0})
    params = some_weights(shape)
    whole, adapters = lora.merge_lora(shape, params), params["lora"]["blocks"]
    assert "lora" not in whole
    for name, equation in (("query", "dr,rnh->dnh"), ("out", "nhr,rd->nhd")):
        w, it = params["blocks"]["attention"][name], adapters["attention"][name]
        for layer in range(3):
            wanted = w[layer] + 3.0 * np.einsum(equation, it["a"][layer], it["b"][layer])
            np.testing.assert_allclose(
                whole["blocks"]["attention"][name][layer], wanted, rtol=2e-4, atol=2e-4
            )


@pytest.fixture(scope="module")
def parent(text_file, tmp_path_factory) -> schema.Run:
    run = conftest.tiny_run(text_file, tmp_path_factory.mktemp("learned"))
    run.name = "s/parent"
    loop.train(run)
    return run


def child(parent, name) -> schema.Run:
    run = copy.deepcopy(parent)
    run.name, run.start.run, run.optim.lr = f"s/{name}", parent.name, 1e-2
    return run


def test_a_low_rank_child_starts_as_its_parent_and_moves_additions_alone(parent):
    run = child(parent, "lora")
    run.model.lora_rank = 2
    loop.train(run)
    rows = records.load_evals(records.run_dir(run))
    before = records.load_evals(records.run_dir(parent))[-1]["loss"]
    assert rows[0]["loss"] == pytest.approx(before, rel=1e-6) and rows[-1]["loss"] < before
    _, old = loaded_model.restore_model(parent)
    _, new = loaded_model.restore_model(run, parts=("step", "params", "opt"))
    for path, weight in params.flatten_by_path(old["params"]).items():
        np.testing.assert_array_equal(params.flatten_by_path(new["params"])[path], weight)
    n_lora = sum(leaf.size for leaf in jax.tree.leaves(new["params"]["lora"]))
    assert records.read_facts(records.run_dir(run))["params.learned"] == n_lora
    moments = [leaf.size for leaf in jax.tree.leaves(new["opt"]) if leaf.ndim]
    assert sum(moments) == 2 * n_lora  # Adam's two
    grand = child(run, "grand")
    grand.model.lora_rank = 0
    with pytest.raises(ValueError, match="model.lora_rank=2 there, 0 here"):
        warm_start.validate_start(grand, run)


def test_what_is_frozen_does_not_move(parent):
    run = child(parent, "frozen")
    run.optim.frozen, run.steps = "embed,mlp", 2
    program = step.build_train_functions(run, mesh.make_mesh(run.mesh))
    with jax.set_mesh(program.mesh):
        state = program.init(0)
        before = jax.device_get(params.flatten_by_path(state["params"]))
        rng = np.random.default_rng(0)
        batch = {"tokens": rng.integers(1, 255, (8, 33)).astype(np.int32)}
        state, _ = program.step(state, mesh.put_batch(program.mesh, batch), program.inputs)
    after = jax.device_get(params.flatten_by_path(state["params"]))
    same = {path for path in before if (before[path] == after[path]).all()}
    assert same == {"embed", "blocks/mlp/gate", "blocks/mlp/up", "blocks/mlp/down"}


def test_lower_layers_learn_slower():
    knobs = schema.Optimizer(layer_decay=0.5, clip_norm=0.0, weight_decay=0.0, warmup=0.0)
    names = transformer.param_axes(SMALL)
    params = some_weights(SMALL)
    made = optimizer.make_optimizer(knobs, SMALL, 10, names)
    ones = jax.tree.map(np.ones_like, params)
    inputs = optimizer.inputs(knobs, SMALL, names)
    update, _ = made.update(ones, made.init(params), params, inputs=inputs)
    query = np.abs(update["blocks"]["attention"]["query"]).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(query / query[-1], [0.25, 0.5, 1.0], rtol=1e-5)
    np.testing.assert_allclose(
        np.abs(update["embed"]).mean() / np.abs(update["head"]).mean(), 0.125, rtol=1e-5
    )
