import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import model_sizes, schema, validation
from lm.model import layers, parametrization, transformer
from lm.parallel import mesh
from lm.sweeps.planning import cost

SHAPE = schema.Model(
    vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=48
)


def weights(shape: schema.Model) -> dict:
    return jax.jit(lambda: transformer.init_params(shape, 0))()


def logits(shape: schema.Model, params: dict, tokens_BT) -> jax.Array:
    return jax.jit(lambda params: transformer.compute_logits(shape, params, tokens_BT))(params)


@pytest.fixture(scope="module")
def params():
    return weights(SHAPE)


@pytest.fixture(scope="module")
def tokens_BT():
    return jax.random.randint(jax.random.key(1), (2, 16), 0, 64)


def test_no_position_sees_a_later_token(params, tokens_BT):
    embed = params["embed"]

    def logit_at(t, offset_TD):
        """Logits at t when the embeddings of the text are moved by offset."""
        table = jnp.concatenate([embed, offset_TD + embed[tokens_BT[0]]])
        moved = params | {"embed": table}
        wide = dataclasses.replace(SHAPE, vocab_size=64 + 16, tie_embeddings=False)
        moved["head"] = jnp.pad(params["head"], ((0, 0), (0, 16)))
        return transformer.compute_logits(wide, moved, 64 + jnp.arange(16)[None])[0, t].sum()

    slope = jax.jit(jax.grad(logit_at, argnums=1))
    for t in (0, 7, 15):
        seen_T = jnp.abs(slope(t, jnp.zeros((16, 32)))).sum(axis=1)
        assert (seen_T[: t + 1] > 0).all() and (seen_T[t + 1 :] == 0).all()


@pytest.mark.parametrize(
    "knobs",
    [{"scan_unroll": 1}, {"remat": "full"}, {"remat": "dots"}, {"attention_query_blocks": 1}],
)
def test_knobs_of_speed_change_no_gradient(params, tokens_BT, knobs):
    def loss(shape):
        return lambda params: transformer.cross_entropy(
            transformer.compute_logits(shape, params, tokens_BT), tokens_BT
        )[0].mean()

    plain = jax.jit(jax.grad(loss(SHAPE)))(params)
    other = jax.jit(jax.grad(loss(dataclasses.replace(SHAPE, **knobs))))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, other)


def loss_of(shape: schema.Model):
    """A loss of every part that the head gives; its gradient."""

    def loss(params, tokens_BT):
        nats_BT, log_z_BT, best_BT, _ = transformer.token_losses(shape, params, tokens_BT)
        return (nats_BT * jnp.arange(nats_BT.size).reshape(nats_BT.shape)).sum() + (
            0.1 * log_z_BT**2
        ).sum(), best_BT

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("tied", [False, True])
def test_a_loss_in_chunks_is_the_loss(tied):
    shape = dataclasses.replace(SHAPE, logit_softcap=3.0, tie_embeddings=tied)
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 17), 0, 64)
    (whole, best), slope = loss_of(shape)(weights(shape), tokens_BT)
    cut = dataclasses.replace(shape, loss_chunks=4)
    (chunked, best_too), slope_too = loss_of(cut)(weights(shape), tokens_BT)
    np.testing.assert_allclose(chunked, whole, rtol=1e-6)
    np.testing.assert_array_equal(best, best_too)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * scale), slope, slope_too)


def test_a_loss_in_chunks_holds_a_chunk_of_the_logits():
    def temporary(chunks):
        shape = dataclasses.replace(SHAPE, vocab_size=8192, n_layers=1, loss_chunks=chunks)
        tree = jax.eval_shape(lambda: transformer.init_params(shape, 0))
        tokens = jax.ShapeDtypeStruct((4, 65), "int32")
        memory = loss_of(shape).lower(tree, tokens).compile().memory_analysis()
        return memory.temp_size_in_bytes

    logits = 4 * 64 * 8192 * 4  # bytes
    assert temporary(1) > 1.9 * logits and temporary(8) < logits


def test_recomputing_more_holds_less():
    def temporary(remat):
        shape = dataclasses.replace(SHAPE, n_layers=12, scan_unroll=1, remat=remat)
        tree = jax.eval_shape(lambda: transformer.init_params(shape, 0))
        tokens = jax.ShapeDtypeStruct((4, 129), "int32")
        memory = loss_of(shape).lower(tree, tokens).compile().memory_analysis()
        return memory.temp_size_in_bytes

    none, dots, full = (temporary(remat) for remat in ("none", "dots", "full"))
    assert full < dots < none and full < none / 2


@pytest.mark.parametrize("n_blocks", [1, 4])
def test_within_segments_a_document_is_read_as_if_it_were_alone(params, n_blocks):
    shape = dataclasses.replace(SHAPE, attention_query_blocks=n_blocks)
    tokens_BT = jax.random.randint(jax.random.key(2), (2, 16), 0, 64)
    segments_BT = jnp.array([[0] * 4 + [1] * 12, [0] * 16])
    together = jax.jit(lambda p: transformer.compute_logits(shape, p, tokens_BT, segments_BT))(
        params
    )
    alone = logits(dataclasses.replace(shape, attention_query_blocks=1), params, tokens_BT[:1, 4:])
    np.testing.assert_allclose(together[0, 4:], alone[0], atol=2e-5)
    whole = logits(shape, params, tokens_BT)
    np.testing.assert_allclose(together[1], whole[1], atol=1e-5)
    assert float(jnp.abs(together[0, 4:] - whole[0, 4:]).max()) > 1e-3


@pytest.mark.parametrize("wide", [(12,), (3, 4)])
def test_a_projection_has_the_gradients_of_a_product(wide):
    keys = jax.random.split(jax.random.key(0), 3)
    x_BTD, weight, out = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, [(2, 5, 6), (6, *wide), (2, 5, *wide)], strict=True)
    )
    found, wanted = (
        jax.grad(lambda x, w, f=f: (f(x, w) * out).sum(), (0, 1))(x_BTD, weight)
        for f in (layers.project, lambda x, w: jnp.einsum("btd,d...->bt...", x, w))
    )
    jax.tree.map(lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-5, atol=1e-5), found, wanted)


def test_rotary_angles_are_the_same_as_constants_and_computed():
    x_BTNH = jax.random.normal(jax.random.key(0), (2, 300, 3, 32))
    constant, computed = (
        transformer.rotary_embedding(x_BTNH, 1e4, xp.arange(300)) for xp in (np, jnp)
    )
    np.testing.assert_allclose(constant, computed, atol=2e-6)


def test_rotary_scores_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    times_T = jnp.arange(12)
    q_BTNH, k_BTNH = (
        transformer.rotary_embedding(jnp.tile(x, (1, 12, 1, 1)), 1e4, times_T) for x in (q, k)
    )
    score_TS = jnp.einsum("btnh,bsnh->ts", q_BTNH, k_BTNH)
    for distance in (-3, 0, 5):
        np.testing.assert_allclose(np.ptp(jnp.diagonal(score_TS, distance)), 0, atol=1e-5)
    assert np.ptp(score_TS) > 0.1


def test_the_loss_of_fresh_weights_is_that_of_a_guess():
    shape = model_sizes.ladder_model("100K")
    tokens_BT = jax.random.randint(jax.random.key(0), (4, 32), 0, 256)
    nats_BT, _ = transformer.cross_entropy(logits(shape, weights(shape), tokens_BT), tokens_BT)
    assert abs(float(nats_BT.mean()) - np.log(256)) < 0.6 and nats_BT.dtype == jnp.float32


def test_nats_are_minus_the_log_of_the_softmax():
    logits = jax.random.normal(jax.random.key(0), (1, 3, 5)) * 4
    targets = jnp.array([[0, 4, 2]])
    nats, log_z = transformer.cross_entropy(logits, targets)
    np.testing.assert_allclose(
        nats[0], -jax.nn.log_softmax(logits)[0, jnp.arange(3), targets[0]], atol=1e-6
    )
    np.testing.assert_allclose(log_z, jnp.log(jnp.exp(logits).sum(-1)), atol=1e-5)


def test_a_soft_cap_bounds_the_logits(params, tokens_BT):
    capped = dataclasses.replace(SHAPE, logit_softcap=0.25)
    assert float(jnp.abs(logits(capped, params, tokens_BT)).max()) <= 0.25
    assert float(jnp.abs(logits(SHAPE, params, tokens_BT)).max()) > 0.5


def test_a_tied_head_is_the_embedding(params, tokens_BT):
    tied = dataclasses.replace(SHAPE, tie_embeddings=True)
    own = weights(tied)
    assert "head" not in own
    same = logits(SHAPE, own | {"head": own["embed"].T}, tokens_BT)
    np.testing.assert_allclose(logits(tied, own, tokens_BT), same, atol=1e-6)


def test_bfloat16_computes_near_float32_with_float32_weights_and_logits(params, tokens_BT):
    half = dataclasses.replace(SHAPE, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(weights(half))} == {jnp.dtype("float32")}
    low, full = logits(half, params, tokens_BT), logits(SHAPE, params, tokens_BT)
    assert low.dtype == jnp.float32 and 1e-6 < float(jnp.abs(low - full).max()) < 0.1


def test_weights_are_named_axis_by_axis():
    tree, names = (
        jax.eval_shape(lambda: transformer.init_params(SHAPE, 0)),
        transformer.param_axes(SHAPE),
    )
    jax.tree.map(
        lambda leaf, names: len(leaf.shape) == len(names) or pytest.fail(str(names)), tree, names
    )
    assert names["blocks"]["mlp"]["gate"] == ("layers", "embed", "mlp")


def test_a_deep_stack_is_no_longer_program():
    def lines(n_layers):
        shape = dataclasses.replace(SHAPE, n_layers=n_layers, scan_unroll=1)
        tree = jax.eval_shape(lambda: transformer.init_params(shape, 0))
        tokens = jax.ShapeDtypeStruct((2, 16), "int32")
        lowered = jax.jit(lambda p, t: transformer.compute_logits(shape, p, t)).lower(tree, tokens)
        return lowered.as_text().count("\n")

    assert lines(64) == lines(4)


@pytest.mark.slow
def test_a_deep_stack_compiles_about_as_fast():
    def seconds(n_layers):
        shape = dataclasses.replace(SHAPE, n_layers=n_layers, scan_unroll=1)
        tree = jax.eval_shape(lambda: transformer.init_params(shape, 0))
        tokens = jax.ShapeDtypeStruct((2, 17), "int32")
        start = time.process_time()
        loss_of(shape).lower(tree, tokens).compile()
        return time.process_time() - start

    kept = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        pairs = [(seconds(4), seconds(64)) for _ in range(3)]
    finally:
        jax.config.update("jax_enable_compilation_cache", kept)
    ratio = min(deep for _, deep in pairs) / min(flat for flat, _ in pairs)
    print(f"64 layers against 4: {ratio:.2f} times the seconds to compile")
    assert ratio < 1.5


def test_the_count_of_a_program_sees_loops_and_recomputation():
    run = schema.Run(model=dataclasses.replace(SHAPE, scan_unroll=1, attention_query_blocks=1))
    run.data.seq_len, run.data.batch_size = 16, 2
    once = cost.count_step_flops(run)
    run.model.n_layers = 4
    head = 6 * 2 * 16 * 32 * 64
    assert cost.count_step_flops(run) - head == 2 * (once - head)
    run.model.remat = "full"
    assert 1.2 < (cost.count_step_flops(run) - head) / (2 * (once - head)) < 1.4


GPT2 = dataclasses.replace(
    SHAPE,
    norm="layer",
    mlp="gelu",
    bias=True,
    qk_norm=False,
    learned_positions=24,
    tie_embeddings=True,
)


def test_learned_positions_count_from_the_beginning_of_a_document(tokens_BT):
    params = weights(GPT2)
    segments_BT = jnp.repeat(jnp.array([[3, 1], [0, 5]]), 8, axis=1)
    packed = jax.jit(
        lambda params: transformer.compute_logits(GPT2, params, tokens_BT, segments_BT)
    )(params)
    alone = [logits(GPT2, params, tokens_BT[:, part]) for part in (slice(8), slice(8, 16))]
    np.testing.assert_allclose(packed, jnp.concatenate(alone, axis=1), atol=1e-5)
    assert np.abs(logits(GPT2, params, tokens_BT)[:, 8:] - alone[1]).max() > 1e-2


@pytest.mark.parametrize("shape", [GPT2, dataclasses.replace(SHAPE, bias=True, qk_norm=False)])
def test_every_variant_is_the_same_on_a_split_mesh(shape, tokens_BT):
    shape = dataclasses.replace(shape, attention_query_blocks=2)
    params = jax.tree.map(lambda w: w + 0.01, weights(shape))  # biases that do something
    device_mesh = mesh.make_mesh(schema.Mesh(sequence=2, tensor=2))
    placed = jax.tree.map(
        lambda w, names: jax.device_put(w, mesh.named_sharding(device_mesh, *names)),
        params,
        transformer.param_axes(shape),
    )
    with jax.set_mesh(device_mesh):
        split = logits(shape, placed, tokens_BT)
    np.testing.assert_allclose(split, logits(shape, params, tokens_BT), atol=1e-5)


def test_norms_biases_and_scales_never_decay_and_tables_of_positions_do():
    leaves = jax.tree_util.tree_leaves_with_path(
        transformer.param_axes(GPT2), is_leaf=mesh.is_axis_names
    )
    assert len(leaves) == 20
    for path, names in leaves:
        decays = parametrization.role_factors(GPT2, names).decay > 0
        assert decays == (not any(word in str(path) for word in ("bias", "norm"))), path
    assert parametrization.weight_role(("positions", "embed")) == "input"


def test_more_context_than_learned_positions_is_refused():
    with pytest.raises(ValueError, match="learned_positions=24 must be at least data.seq_len=128"):
        validation.validate_run(schema.Run(model=GPT2))


@pytest.mark.parametrize("knobs", [{"mlp": "gelu"}, {"bias": True}])
def test_experts_have_one_kind_of_mlp(knobs):
    with pytest.raises(ValueError, match="is not implemented for experts: set"):
        validation.validate_run(schema.Run(model=model_sizes.ladder_model("300K-A100K", **knobs)))
