import collections
import contextlib
import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lm.config import schema
from lm.model import kv_cache, layers, moe, transformer
from lm.parallel import mesh
from lm.runs import records
from lm.training import loaded_model, loop, preemption, step

SHAPE = schema.Model(
    vocab_size=32, d_model=8, n_layers=2, n_heads=2, n_kv_heads=2, d_head=4, n_experts=4, d_expert=6
)
DROPLESS = dataclasses.replace(SHAPE, n_shared_experts=1, load_balancing="bias")
ROOMY = dataclasses.replace(  # a place for every token, whichever expert it goes to
    SHAPE,
    dispatch="capacity",
    capacity_factor=2.0,
    router="sigmoid",
    normalize_expert_weights=False,
)
CROWDED = dataclasses.replace(SHAPE, dispatch="capacity", capacity_factor=0.5)


def experts(shape: schema.Model) -> tuple[nnx.GraphDef, dict]:
    def split():
        rngs = nnx.Rngs(params=jax.random.key(0))
        with layers.tree_mode():
            return nnx.split(moe.Experts(shape, rngs, mesh.DEFAULT_RULES))

    graph, weights = jax.jit(split)()
    weights = nnx.to_pure_dict(weights)
    if "bias" in weights:
        weights["bias"] = jnp.array([0.1, -0.1, 0.05, 0.0])
    return graph, weights


def dense_loop(shape: schema.Model, weights: dict, x_BTD: jax.Array) -> jax.Array:
    """Every expert on every token, weighted by what the router gives it."""
    scores = x_BTD @ weights["router"]
    scores = jax.nn.softmax(scores) if shape.router == "softmax" else jax.nn.sigmoid(scores)
    _, best = jax.lax.top_k(scores + weights.get("bias", 0.0), shape.experts_per_token)
    chosen = jax.nn.one_hot(best, shape.n_experts).sum(axis=-2) * scores
    if shape.normalize_expert_weights:
        chosen = chosen / chosen.sum(axis=-1, keepdims=True)

    def mlp(gate, up, down):
        return (jax.nn.silu(x_BTD @ gate) * (x_BTD @ up)) @ down

    y_BTD = mlp(**weights["shared"]) if "shared" in weights else 0.0
    for e in range(shape.n_experts):
        mine = (weights[name][e] for name in ("gate", "up", "down"))
        y_BTD += chosen[..., e, None] * mlp(*mine)
    return y_BTD


def with_gradients(function):
    def value(weights, x_BTD):
        y_BTD = function(weights, x_BTD)
        return jnp.sin(y_BTD).sum(), y_BTD

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))


def assert_close(a, b):
    np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.fixture(scope="module")
def x_BTD():
    return jax.random.normal(jax.random.key(1), (4, 8, SHAPE.d_model))


@pytest.mark.parametrize(
    "shape, axes",
    [
        (DROPLESS, {}),
        (DROPLESS, {"expert": 2, "sequence": 2}),
        (ROOMY, {}),
        (ROOMY, {"expert": 2, "sequence": 2}),
        *(
            pytest.param(shape, axes, marks=pytest.mark.slow)
            for shape in (DROPLESS, ROOMY)
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
def test_experts_and_their_gradients_are_those_of_a_dense_loop(shape, axes, x_BTD):
    graph, weights = experts(shape)
    expected = with_gradients(lambda w, x: dense_loop(shape, w, x))(weights, x_BTD)
    layer = with_gradients(lambda w, x: nnx.merge(graph, w)(x)[0])
    with contextlib.ExitStack() as stack:
        if axes:
            device_mesh = mesh.make_mesh(schema.Mesh(**{"data": 1} | axes))
            stack.enter_context(jax.set_mesh(device_mesh))
            x_BTD = jax.device_put(x_BTD, mesh.named_sharding(device_mesh, "batch", "length", None))
        jax.tree.map(assert_close, layer(weights, x_BTD), expected)


def test_what_is_dropped_comes_last_in_its_row_and_changes_nothing_before(x_BTD):
    graph, weights = experts(CROWDED)
    layer = jax.jit(lambda x: nnx.merge(graph, weights)(x))
    y_BTD, routing = layer(x_BTD)
    assert 0.2 < routing["dropped"] < 0.9
    for t in (3, 6):
        later_BTD = x_BTD.at[:, t:].set(-x_BTD[:, t:] + 1.0)
        np.testing.assert_array_equal(layer(later_BTD)[0][:, :t], y_BTD[:, :t])
    others_BTD = x_BTD.at[1:].set(0.5)
    np.testing.assert_array_equal(layer(others_BTD)[0][0], y_BTD[0])


@pytest.mark.parametrize("shape", [SHAPE, CROWDED], ids=["dropless", "capacity"])
def test_a_decoder_of_experts_sees_no_later_token(shape):
    params = jax.jit(lambda: transformer.init_params(shape, 0))()
    tokens_BT = jax.random.randint(jax.random.key(2), (2, 16), 0, 32)
    logits = jax.jit(lambda tokens_BT: transformer.compute_logits(shape, params, tokens_BT))
    before = logits(tokens_BT)
    after = logits(tokens_BT.at[:, 9:].set((tokens_BT[:, 9:] + 7) % 32))
    np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert float(jnp.abs(before[:, 9:] - after[:, 9:]).max()) > 1e-3


def test_devices_that_share_a_row_drop_what_one_device_drops():
    params = jax.jit(lambda: transformer.init_params(CROWDED, 0))()
    tokens_BT = jax.random.randint(jax.random.key(2), (2, 16), 0, 32)

    def logits():
        return jax.jit(lambda tokens_BT: transformer.compute_logits(CROWDED, params, tokens_BT))(
            tokens_BT
        )

    whole = logits()
    with jax.set_mesh(mesh.make_mesh(schema.Mesh(data=1, expert=2, sequence=2))):
        np.testing.assert_allclose(logits(), whole, atol=2e-5)


def test_a_text_read_in_pieces_is_read_without_drops():
    params = jax.jit(lambda: transformer.init_params(CROWDED, 0))()
    tokens_BT = jax.random.randint(jax.random.key(2), (2, 8), 0, 32)
    whole_BTV = jax.jit(lambda params: transformer.compute_logits(SHAPE, params, tokens_BT))(params)

    @jax.jit
    def in_pieces(params):
        read, (times_T, slots_S) = (
            kv_cache.cached_decoder(CROWDED, params),
            (jnp.arange(8), jnp.arange(8)),
        )
        seen_BTS = jnp.broadcast_to(times_T[:, None] >= slots_S, (2, 8, 8))
        times_BT = jnp.broadcast_to(times_T, (2, 8))
        first, kept = read(tokens_BT[:, :5], times_BT[:, :5], seen_BTS[:, :5, :5])
        rest = (tokens_BT[:, 5:], times_BT[:, 5:], seen_BTS[:, 5:])
        return first, read(*rest, kv_cache.extend(kept, 8), 5)[0]

    np.testing.assert_allclose(jnp.concatenate(in_pieces(params), 1), whole_BTV, atol=2e-5)


@pytest.mark.parametrize("n_parts", [1, 3])
def test_a_box_holds_the_first_of_a_row_and_no_choice_twice(n_parts):
    rng, size, n_rows, t = np.random.default_rng(0), 4, 3, 20
    expert_M = rng.integers(0, 3, n_rows * t)  # the third belongs to another device
    row_M = np.arange(n_rows).repeat(t)
    time_M = np.tile(np.arange(t).reshape(2, -1).T.ravel(), n_rows)  # not in order
    seen, kept = collections.Counter(), []
    for i in np.lexsort((time_M, row_M)):
        box = (expert_M[i], row_M[i])
        seen[box] += 1
        if box[0] < 2 and seen[box] <= size:
            kept.append(i)
    found = []
    for part in range(n_parts):
        ids = (jnp.array(expert_M), jnp.array(row_M), jnp.array(time_M), 2, n_rows, size)
        choice_P, place_M = (np.asarray(a) for a in moe.capacity_slots(*ids, (part, n_parts)))
        here = choice_P[choice_P < len(expert_M)]
        np.testing.assert_array_equal(choice_P[place_M[here]], here)
        assert (place_M < len(choice_P)).sum() == len(here)
        found += here.tolist()
    assert sorted(found) == sorted(kept) and len(kept) < (expert_M < 2).sum()


def test_dropped_counts_the_choices_without_a_place(x_BTD):
    _, weights = experts(CROWDED)
    _, chosen_BTK, routing = moe.route_tokens(CROWDED, x_BTD, weights["router"])
    size = moe.expert_capacity(CROWDED, x_BTD.shape[1])
    lost = sum(max(n - size, 0) for row in chosen_BTK for n in np.bincount(np.ravel(row)))
    assert float(routing["dropped"]) == pytest.approx(lost / chosen_BTK.size)
    assert moe.route_tokens(SHAPE, x_BTD, weights["router"])[2]["dropped"] == 0


def test_the_balance_loss_is_one_where_even_and_pushes_down_what_is_full():
    even = jnp.eye(4)[None]  # every token has an expert of its own
    one = dataclasses.replace(SHAPE, experts_per_token=1)

    @jax.jit
    def balance(x, router):
        return moe.route_tokens(one, x, router)[2]["balance"]

    assert float(balance(even, 9 * jnp.eye(4))) == pytest.approx(1.0)
    full = jnp.zeros((4, 4)).at[:, 2].set(9.0)
    assert float(balance(even, full)) == pytest.approx(4.0, rel=1e-2)
    slope_E = jax.grad(balance, argnums=1)(even, full / 9).sum(axis=0)
    assert slope_E[2] > 0 > slope_E[0]


def test_biases_even_out_the_load_and_never_count_in_the_sum(x_BTD):
    shape = dataclasses.replace(SHAPE, load_balancing="bias", router_bias_rate=0.01)
    x_BTD = x_BTD + 0.5
    router = jax.random.normal(jax.random.key(3), (8, 4)).at[:, 0].add(1.0)  # many like the first
    bias_E, imbalance = jnp.zeros(4), []
    for _ in range(80):
        weight_BTK, chosen_BTK, routing = moe.route_tokens(shape, x_BTD, router, bias_E)
        imbalance.append(float(routing["load_E"].max() * 4))
        update = {"blocks": {"mlp": {"bias": jnp.full((1, 4), 9.0), "gate": 3.0}}}
        after = moe.apply_router_bias_update(shape, update, {"load_E": routing["load_E"][None]})[
            "blocks"
        ]["mlp"]
        assert after["gate"] == 3.0
        bias_E += after["bias"][0]
    assert imbalance[0] > 1.5 and max(imbalance[-10:]) < 1.3
    scores = jnp.take_along_axis(jax.nn.softmax(x_BTD @ router), chosen_BTK, axis=-1)
    np.testing.assert_allclose(weight_BTK, scores / scores.sum(-1, keepdims=True), atol=1e-5)


def test_the_router_computes_in_float32(x_BTD):
    half_BTD = x_BTD.astype(jnp.bfloat16)
    _, weights = experts(SHAPE)
    low, full = (
        moe.route_tokens(SHAPE, x, weights["router"])[0]
        for x in (half_BTD, half_BTD.astype(jnp.float32))
    )
    assert low.dtype == jnp.float32
    np.testing.assert_array_equal(low, full)
    graph, _ = experts(SHAPE)
    assert nnx.merge(graph, weights)(half_BTD)[0].dtype == jnp.bfloat16


@pytest.mark.slow
def test_scan_and_recomputation_change_neither_gradients_nor_routing():
    tokens_BT = jax.random.randint(jax.random.key(2), (2, 9), 0, 32)
    params = jax.jit(lambda: transformer.init_params(SHAPE, 0))()

    def gradient(**knobs):
        shape = dataclasses.replace(SHAPE, **knobs)

        def loss(params):
            nats_BT, _, _, routing = transformer.token_losses(shape, params, tokens_BT)
            return nats_BT.mean() + moe.auxiliary_loss(shape, routing), routing

        return jax.jit(jax.grad(loss, has_aux=True))(params)

    plain, other = gradient(), gradient(unroll=1, remat="full")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, other)
    assert plain[1]["load_E"].shape == (2, 4)


@pytest.fixture
def run(tiny) -> schema.Run:
    knobs = {"n_experts": 4, "d_expert": 8, "load_balancing": "bias", "router_z_loss": 1e-3}
    tiny.model = dataclasses.replace(tiny.model, **knobs)
    return tiny


def test_a_step_moves_each_bias_by_the_rate_alone_and_the_same_on_a_mesh_of_experts(run):
    tokens = np.random.default_rng(0).integers(1, 256, (8, 33)).astype(np.int32)
    run.optim.weight_decay, seen = 0.9, []
    for device_mesh in (
        mesh.make_mesh(schema.Mesh(), jax.devices()[:1]),
        mesh.make_mesh(schema.Mesh(data=1, expert=2, tensor=2)),
    ):
        program = step.build_train_functions(run, device_mesh)
        with jax.set_mesh(device_mesh):
            state, found = program.init(0), []
            for _ in range(2):
                batch = mesh.put_batch(device_mesh, {"tokens": tokens})
                state, metrics = program.step(state, batch, program.inputs)
                found.append([float(metrics[k]) for k in sorted(metrics)])
        bias_LE = np.asarray(state["params"]["blocks"]["mlp"]["bias"])
        seen.append((found, bias_LE))
    np.testing.assert_allclose(seen[0][0], seen[1][0], rtol=2e-5)
    np.testing.assert_array_equal(seen[0][1], seen[1][1])
    steps_LE = bias_LE / run.model.router_bias_rate
    np.testing.assert_allclose(steps_LE, np.round(steps_LE), atol=1e-4)
    assert steps_LE.any() and np.abs(steps_LE).max() <= 2.001
    assert metrics["experts.imbalance"] >= 1 and metrics["experts.z"] > 0
    gate = state["params"]["blocks"]["mlp"]["gate"]
    assert gate.addressable_shards[0].data.shape == (2, 2, 16, 4) and gate.shape == (2, 4, 16, 8)


@pytest.mark.slow
def test_a_run_of_experts_stopped_by_a_signal_goes_on_to_the_same_bits(run):
    whole = dataclasses.replace(run, name="whole")
    loop.train(whole)

    def stop_at_six(row):
        if row["step"] == 6 and row["attempt"] == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(preemption.Interrupted):
        loop.train(run, stop_at_six)
    loop.train(run, stop_at_six)
    ends = [loaded_model.restore_model(r)[1]["params"] for r in (whole, run)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert jnp.abs(ends[0]["blocks"]["mlp"]["bias"]).max() > 0
    rows = [
        {
            step["step"]: step["experts.imbalance"]
            for step in records.load_metrics(records.run_dir(r))
        }
        for r in (whole, run)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 6
    (row,) = records.load_runs(records.run_dir(run))
    assert row["params.active"] < row["params.total"] and row["status"] == "done"
