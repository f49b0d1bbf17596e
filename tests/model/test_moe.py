"""Tests of routing, dispatch, load balancing and training of a mixture of experts."""

import collections
import contextlib
import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from lm.config import schema
from lm.model import kv_cache, layers, moe, transformer
from lm.parallel import mesh
from lm.runs import records
from lm.training import loaded_model, loop, preemption, step

SHAPE = schema.Model(
    vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=2, d_head=4, n_experts=4, d_expert=6
)
DROPLESS = dataclasses.replace(SHAPE, n_shared_experts=1, load_balancing="bias")
AMPLE_CAPACITY = dataclasses.replace(  # a slot for every token in every expert
    SHAPE,
    dispatch="capacity",
    capacity_factor=2.0,
    router="sigmoid",
    normalize_expert_weights=False,
)
SMALL_CAPACITY = dataclasses.replace(SHAPE, dispatch="capacity", capacity_factor=0.5)


def init_experts(shape: schema.Model) -> tuple[nnx.GraphDef, dict]:
    """Return (graph definition, weights) of an Experts module."""

    def split():
        rngs = nnx.Rngs(params=jax.random.key(0))
        with layers.tree_mode():
            return nnx.split(moe.Experts(shape, rngs, mesh.DEFAULT_RULES))

    graph, weights = jax.jit(split)()
    weights = jax.device_get(nnx.to_pure_dict(weights))
    if "bias" in weights:
        weights["bias"] = np.array([0.1, -0.1, 0.05, 0.0], np.float32)
    return graph, weights


def init_params(shape: schema.Model) -> dict:
    return jax.device_get(jax.jit(lambda: transformer.init_params(shape, 0))())


def route_tokens(shape: schema.Model, *arrays) -> tuple:
    """Return weights, experts and metrics of the compiled router."""
    return jax.device_get(jax.jit(lambda *arrays: moe.route_tokens(shape, *arrays))(*arrays))


def dense_experts(shape: schema.Model, weights: dict, x_BTD: jax.Array) -> jax.Array:
    """Return the output of Experts, computed by all experts on all tokens."""
    score_BTE = x_BTD @ weights["router"]
    is_softmax = shape.router == "softmax"
    score_BTE = jax.nn.softmax(score_BTE) if is_softmax else jax.nn.sigmoid(score_BTE)
    _, expert_BTK = jax.lax.top_k(score_BTE + weights.get("bias", 0.0), shape.experts_per_token)
    weight_BTE = jax.nn.one_hot(expert_BTK, shape.n_experts).sum(axis=-2) * score_BTE
    if shape.normalize_expert_weights:
        weight_BTE = weight_BTE / weight_BTE.sum(axis=-1, keepdims=True)

    def mlp(gate, up, down):
        return (jax.nn.silu(x_BTD @ gate) * (x_BTD @ up)) @ down

    y_BTD = mlp(**weights["shared"]) if "shared" in weights else 0.0
    for e in range(shape.n_experts):
        expert = (weights[name][e] for name in ("gate", "up", "down"))
        y_BTD += weight_BTE[..., e, None] * mlp(*expert)
    return y_BTD


def with_gradients(function):
    """Return a compiled function of the loss, the output, and both gradients."""

    def loss(weights, x_BTD):
        y_BTD = function(weights, x_BTD)
        return jnp.sin(y_BTD).sum(), y_BTD

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def assert_close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.fixture(scope="module")
def x_BTD():
    return np.random.default_rng(1).normal(size=(4, 8, SHAPE.d_model)).astype(np.float32)


@pytest.fixture(scope="module")
def tokens_BT():
    return np.random.default_rng(2).integers(32, size=(2, 16)).astype(np.int32)


@pytest.mark.parametrize(
    "shape, axes",
    [
        (DROPLESS, {}),
        (DROPLESS, {"expert": 2, "sequence": 2}),
        (AMPLE_CAPACITY, {}),
        (AMPLE_CAPACITY, {"expert": 2, "sequence": 2}),
        *(
            pytest.param(shape, axes, marks=pytest.mark.slow)
            for shape in (DROPLESS, AMPLE_CAPACITY)
            for axes in (
                {"data": 2, "expert": 2},
                {"expert": 4},
                {"expert": 2, "tensor": 2},
                {"fsdp": 2, "expert": 2},
                {"sequence": 2, "tensor": 2},
                {"sequence": 4},
            )
        ),
    ],
)
def test_experts_equal_a_dense_computation(shape, axes, x_BTD):
    """The gradients are equal too, on one device and on each kind of mesh."""
    graph, weights = init_experts(shape)
    expected = with_gradients(lambda w, x: dense_experts(shape, w, x))(weights, x_BTD)
    layer = with_gradients(lambda w, x: nnx.merge(graph, w)(x)[0])
    with contextlib.ExitStack() as stack:
        if axes:
            device_mesh = mesh.make_mesh(schema.Mesh(**{"data": 1} | axes))
            stack.enter_context(jax.set_mesh(device_mesh))
            x_BTD = jax.device_put(x_BTD, mesh.named_sharding(device_mesh, "batch", "length", None))
        jax.tree.map(assert_close, *jax.device_get((layer(weights, x_BTD), expected)))


def test_dropped_tokens_are_the_latest_of_their_row(x_BTD):
    """Neither later tokens nor other rows change the output of a token."""
    graph, weights = init_experts(SMALL_CAPACITY)
    compiled = jax.jit(lambda x: nnx.merge(graph, weights)(x))

    def layer(x_BTD):
        return jax.device_get(compiled(x_BTD))

    y_BTD, routing = layer(x_BTD)
    assert 0.2 < routing["dropped"] < 0.9
    for t in (3, 6):
        later_BTD = np.concatenate([x_BTD[:, :t], 1.0 - x_BTD[:, t:]], axis=1)
        np.testing.assert_array_equal(layer(later_BTD)[0][:, :t], y_BTD[:, :t])
    other_rows_BTD = np.concatenate([x_BTD[:1], np.full_like(x_BTD[1:], 0.5)])
    np.testing.assert_array_equal(layer(other_rows_BTD)[0][0], y_BTD[0])


@pytest.mark.parametrize("shape", [SHAPE, SMALL_CAPACITY], ids=["dropless", "capacity"])
def test_decoder_with_experts_is_causal(shape, tokens_BT):
    params = init_params(shape)
    logits = jax.jit(lambda tokens_BT: transformer.compute_logits(shape, params, tokens_BT))
    later_BT = np.concatenate([tokens_BT[:, :9], (tokens_BT[:, 9:] + 7) % 32], axis=1)
    before, after = jax.device_get([logits(tokens_BT), logits(later_BT)])
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert np.abs(before[:, 9:] - after[:, 9:]).max() > 1e-3


def test_split_rows_drop_the_same_tokens(tokens_BT):
    params = init_params(SMALL_CAPACITY)

    def compute_logits():
        return jax.jit(lambda x: transformer.compute_logits(SMALL_CAPACITY, params, x))(tokens_BT)

    expected = compute_logits()
    with jax.set_mesh(mesh.make_mesh(schema.Mesh(data=1, expert=2, sequence=2))):
        np.testing.assert_allclose(compute_logits(), expected, atol=2e-5)


def test_cached_decoder_drops_no_token(tokens_BT):
    params, tokens_BT = init_params(SMALL_CAPACITY), tokens_BT[:, :8]
    expected = jax.jit(lambda params: transformer.compute_logits(SHAPE, params, tokens_BT))(params)

    @jax.jit
    def decode_in_two_calls(params):
        decode = kv_cache.cached_decoder(SMALL_CAPACITY, params)
        mask_BTS = jnp.broadcast_to(jnp.arange(8)[:, None] >= jnp.arange(8), (2, 8, 8))
        positions_BT = jnp.broadcast_to(jnp.arange(8), (2, 8))
        first, cache = decode(tokens_BT[:, :5], positions_BT[:, :5], mask_BTS[:, :5, :5])
        second = (tokens_BT[:, 5:], positions_BT[:, 5:], mask_BTS[:, 5:])
        return first, decode(*second, kv_cache.extend(cache, 8), 5)[0]

    actual = np.concatenate(decode_in_two_calls(params), axis=1)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("n_parts", [1, 3])
def test_capacity_slots_contain_the_earliest_assignments(n_parts):
    """Each of them is in one slot of one part."""
    rng, capacity, n_rows, t = np.random.default_rng(0), 4, 3, 20
    expert_M = rng.integers(0, 3, n_rows * t)  # expert 2 belongs to another device
    row_M = np.arange(n_rows).repeat(t)
    time_M = np.tile(np.arange(t).reshape(2, -1).T.ravel(), n_rows)  # not in order
    counts, expected = collections.Counter(), []
    for i in np.lexsort((time_M, row_M)):
        pair = (expert_M[i], row_M[i])
        counts[pair] += 1
        if pair[0] < 2 and counts[pair] <= capacity:
            expected.append(i)
    actual = []
    for part in range(n_parts):
        sizes = (2, n_rows, capacity, (part, n_parts))
        slots = jax.jit(lambda *x, sizes=sizes: moe.capacity_slots(*x, *sizes))
        assignment_P, slot_M = jax.device_get(slots(expert_M, row_M, time_M))
        assignments = assignment_P[assignment_P < len(expert_M)]
        np.testing.assert_array_equal(assignment_P[slot_M[assignments]], assignments)
        assert (slot_M < len(assignment_P)).sum() == len(assignments)
        actual += assignments.tolist()
    assert sorted(actual) == sorted(expected) and len(expected) < (expert_M < 2).sum()


def test_dropped_is_the_fraction_of_assignments_without_slot(x_BTD):
    _, weights = init_experts(SMALL_CAPACITY)
    _, expert_BTK, routing = route_tokens(SMALL_CAPACITY, x_BTD, weights["router"])
    capacity = moe.expert_capacity(SMALL_CAPACITY, x_BTD.shape[1])
    n_dropped = sum(max(n - capacity, 0) for row in expert_BTK for n in np.bincount(np.ravel(row)))
    assert float(routing["dropped"]) == pytest.approx(n_dropped / expert_BTK.size)
    assert route_tokens(SHAPE, x_BTD, weights["router"])[2]["dropped"] == 0


def test_balance_is_one_for_even_and_four_for_one_expert():
    """Its gradient lowers the scores of the overloaded expert."""
    x_BTD = np.eye(4, dtype=np.float32)[None]
    shape = dataclasses.replace(SHAPE, experts_per_token=1)

    @jax.jit
    def balance(x_BTD, router_DE):
        return moe.route_tokens(shape, x_BTD, router_DE)[2]["balance"]

    even_router_DE = 9 * x_BTD[0]  # each of the 4 tokens selects another expert
    assert float(balance(x_BTD, even_router_DE)) == pytest.approx(1.0)
    skewed_router_DE = np.tile(even_router_DE[2], (4, 1))  # all tokens select expert 2
    assert float(balance(x_BTD, skewed_router_DE)) == pytest.approx(4.0, rel=1e-2)
    gradient = jax.jit(jax.grad(balance, argnums=1))
    gradient_E = np.sum(gradient(x_BTD, skewed_router_DE / 9), axis=0)
    assert gradient_E[2] > 0 > gradient_E[0]


def test_router_biases_even_out_the_load():
    """The biases do not change the weights of the expert outputs."""
    shape = dataclasses.replace(SHAPE, load_balancing="bias", router_bias_rate=0.01)

    @jax.jit
    def draw():
        """Return tokens and a router. Most tokens prefer expert 0."""
        router_DE = jax.random.normal(jax.random.key(3), (8, 4)).at[:, 0].add(1.0)
        return jax.random.normal(jax.random.key(1), (4, 8, 8)) + 0.5, router_DE

    @jax.jit
    def update(bias_E):
        routed = moe.route_tokens(shape, x_BTD, router_DE, bias_E)
        params = {"blocks": {"mlp": {"bias": bias_E[None], "gate": 3.0}}}
        layered = {"load_E": routed[2]["load_E"][None]}
        return *routed, moe.update_router_biases(shape, params, layered)["blocks"]["mlp"]

    x_BTD, router_DE = jax.device_get(draw())
    bias_E, imbalance = np.zeros(4, np.float32), []
    for _ in range(80):
        weight_BTK, expert_BTK, routing, updated = jax.device_get(update(bias_E))
        imbalance.append(routing["load_E"].max() * 4)
        assert updated["gate"] == 3.0
        bias_E = updated["bias"][0]
    assert imbalance[0] > 1.5 and max(imbalance[-10:]) < 1.3
    scores_BTE = special.softmax(x_BTD @ router_DE, axis=-1)
    score_BTK = np.take_along_axis(scores_BTE, expert_BTK, axis=-1)
    np.testing.assert_allclose(weight_BTK, score_BTK / score_BTK.sum(-1, keepdims=True), atol=1e-5)


def test_router_computes_in_float32(x_BTD):
    half_BTD = x_BTD.astype(jnp.bfloat16)
    graph, weights = init_experts(SHAPE)
    half_weights, weights_BTK = (
        route_tokens(SHAPE, x, weights["router"])[0]
        for x in (half_BTD, half_BTD.astype(jnp.float32))
    )
    assert half_weights.dtype == jnp.float32
    np.testing.assert_array_equal(half_weights, weights_BTK)
    output = jax.eval_shape(lambda x_BTD: nnx.merge(graph, weights)(x_BTD)[0], half_BTD)
    assert output.dtype == jnp.bfloat16


@pytest.mark.slow
def test_execution_fields_do_not_change_gradients_or_routing(tokens_BT):
    tokens_BT, params = tokens_BT[:, :9], init_params(SHAPE)

    def gradient_and_routing(**fields):
        shape = dataclasses.replace(SHAPE, **fields)

        def loss(params):
            nats_BT, _, _, routing = transformer.token_losses(shape, params, tokens_BT)
            return nats_BT.mean() + moe.auxiliary_loss(shape, routing), routing

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    expected, actual = gradient_and_routing(), gradient_and_routing(scan_unroll=1, remat="full")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected)
    assert expected[1]["load_E"].shape == (2, 4)


@pytest.fixture
def run(tiny) -> schema.Run:
    fields = {"n_experts": 4, "d_expert": 8, "load_balancing": "bias", "router_z_loss": 1e-3}
    tiny.model = dataclasses.replace(tiny.model, **fields)
    return tiny


@pytest.mark.slow
def test_step_changes_each_router_bias_by_its_rate(run):
    """Weight decay does not change the biases, and a mesh of experts gives the same update."""
    tokens = np.random.default_rng(0).integers(1, 256, (8, 33)).astype(np.int32)
    run.optim.weight_decay, results = 0.9, []
    for device_mesh in (
        mesh.make_mesh(schema.Mesh(), jax.devices()[:1]),
        mesh.make_mesh(schema.Mesh(data=1, expert=2, tensor=2)),
    ):
        program = step.build_train_functions(run, device_mesh)
        with jax.set_mesh(device_mesh):
            state, metrics_of_steps = program.init(0), []
            for _ in range(2):
                batch = mesh.put_batch(device_mesh, {"tokens": tokens})
                state, metrics = program.step(state, batch, program.inputs)
                metrics_of_steps.append([float(metrics[name]) for name in sorted(metrics)])
        bias_LE = np.asarray(state["params"]["blocks"]["mlp"]["bias"])
        results.append((metrics_of_steps, bias_LE))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=2e-5)
    np.testing.assert_array_equal(results[0][1], results[1][1])
    steps_LE = bias_LE / run.model.router_bias_rate
    np.testing.assert_allclose(steps_LE, np.round(steps_LE), atol=1e-4)
    assert steps_LE.any() and np.abs(steps_LE).max() <= 2.001
    assert metrics["experts.imbalance"] >= 1 and metrics["experts.z"] > 0
    gate = state["params"]["blocks"]["mlp"]["gate"]
    assert gate.addressable_shards[0].data.shape == (2, 2, 16, 4) and gate.shape == (2, 4, 16, 8)


@pytest.mark.slow
def test_interrupted_run_of_experts_ends_with_the_same_bits(run):
    uninterrupted = dataclasses.replace(run, name="uninterrupted")
    loop.train(uninterrupted)

    def stop_at_step_6(row):
        if row["step"] == 6 and row["attempt"] == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(preemption.Interrupted):
        loop.train(run, stop_at_step_6)
    loop.train(run, stop_at_step_6)
    params = [loaded_model.restore_model(r)[1]["params"] for r in (uninterrupted, run)]
    jax.tree.map(np.testing.assert_array_equal, *params)
    assert jnp.abs(params[0]["blocks"]["mlp"]["bias"]).max() > 0
    imbalances = [
        {row["step"]: row["experts.imbalance"] for row in records.load_metrics(records.run_dir(r))}
        for r in (uninterrupted, run)
    ]
    assert imbalances[0] == imbalances[1] and len(imbalances[0]) == 6
    (row,) = records.load_runs(records.run_dir(run))
    assert row["params.active"] < row["params.total"] and row["status"] == "done"


def test_initial_experts_have_the_scale_of_an_mlp():
    model = dataclasses.replace(SHAPE, d_model=32, d_expert=24, n_layers=3)
    params = init_params(model)["blocks"]["mlp"]
    for name, std in (
        ("router", 32**-0.5),
        ("gate", 32**-0.5),
        ("up", 32**-0.5),
        ("down", (2 * 3 * 24) ** -0.5),
    ):
        assert float(params[name].std()) == pytest.approx(std, rel=0.1), name
