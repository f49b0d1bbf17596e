"""Tests of the decoder: mask, positions, losses, gradients, memory and size of the program."""

import dataclasses
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixtures import small_model

from lm.config import model_sizes, schema, validation
from lm.model import layers, parametrization, transformer
from lm.parallel import mesh
from lm.sweeps.planning import cost

SHAPE = schema.Model(
    vocab_size=64, d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, d_head=8, d_ff=48
)


GPT2 = dataclasses.replace(
    SHAPE,
    norm="layer",
    mlp="gelu",
    bias=True,
    qk_norm=False,
    learned_positions=24,
    tie_embeddings=True,
)


# Compiled functions by the text of the model. NumPy computes all else: an operation of JAX outside
# of a compiled function is a program of its own, which takes over 10 ms.
PROGRAMS: dict[str, Callable] = {}


def init_params(shape: schema.Model) -> dict:
    return jax.device_get(jax.jit(lambda: transformer.init_params(shape, 0))())


def compute_logits(shape: schema.Model, params: dict, tokens_BT, segments_BT=None) -> np.ndarray:
    def logits(*arrays):
        return transformer.compute_logits(shape, *arrays)

    program = PROGRAMS.setdefault(repr(shape), jax.jit(logits))
    return jax.device_get(program(params, tokens_BT, segments_BT))


def random_tokens(seed: int, *sizes: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(64, size=sizes).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return init_params(SHAPE)


@pytest.fixture(scope="module")
def tokens_BT():
    return random_tokens(1, 2, 16)


def test_initial_weights_keep_the_variance_of_activations():
    """Each weight has variance 1 / fan-in. The outputs of all branches sum to variance 1."""
    fields = {"d_model": 64, "n_heads": 4, "d_head": 8, "d_ff": 96, "vocab_size": 512}
    shape = dataclasses.replace(SHAPE, **fields, tie_embeddings=False, learned_positions=128)
    params, n_branches = init_params(shape), 2 * shape.n_layers
    attention, mlp = params["blocks"]["attention"], params["blocks"]["mlp"]
    for weights, variance in (
        ([params["embed"], params["head"], params["positions"], mlp["up"]], 1 / 64),
        ([attention["query"], attention["key"], attention["value"]], 1 / 64),
        ([attention["out"]], 1 / (n_branches * 4 * 8)),
        ([mlp["down"]], 1 / (n_branches * 96)),
    ):
        for weight in weights:
            assert float(weight.std()) == pytest.approx(variance**0.5, rel=0.07)
            assert abs(float(weight.mean())) < 0.1 * variance**0.5


def test_attention_is_causal(params, tokens_BT):
    """The gradient of a logit by the embedding of a later token is 0."""
    embed_VD = params["embed"]

    def logit_at(t, offset_TD):
        """Return the sum of logits at t with an offset on the embedding of each position."""
        table_VD = jnp.concatenate([embed_VD, offset_TD + embed_VD[tokens_BT[0]]])
        shape = dataclasses.replace(SHAPE, vocab_size=64 + 16, tie_embeddings=False)
        head_DV = jnp.pad(params["head"], ((0, 0), (0, 16)))
        offset_params = params | {"embed": table_VD, "head": head_DV}
        logits_BTV = transformer.compute_logits(shape, offset_params, 64 + jnp.arange(16)[None])
        return logits_BTV[0, t].sum()

    gradient = jax.jit(jax.grad(logit_at, argnums=1))
    for t in (0, 7, 15):
        influence_T = np.abs(gradient(t, np.zeros((16, 32), np.float32))).sum(axis=1)
        assert (influence_T[: t + 1] > 0).all() and (influence_T[t + 1 :] == 0).all()


def compute_gradient(shape: schema.Model, params: dict, tokens_BT) -> dict:
    """Return the gradient of the loss of each token by the next one."""

    def loss(params):
        logits_BTV = transformer.compute_logits(shape, params, tokens_BT)
        return transformer.cross_entropy(logits_BTV, tokens_BT)[0].mean()

    return jax.jit(jax.grad(loss))(params)


@pytest.fixture(scope="module")
def gradient(params, tokens_BT) -> dict:
    return compute_gradient(SHAPE, params, tokens_BT)


@pytest.mark.parametrize(
    "fields",
    [
        *({"scan_unroll": 1}, {"attention_query_blocks": 1}),
        *({"remat": "full"}, {"remat": "dots"}, {"remat": "elementwise"}),
        {"remat": "elementwise", "scan_unroll": 1},
    ],
)
def test_execution_fields_do_not_change_gradients(params, tokens_BT, gradient, fields):
    actual = compute_gradient(dataclasses.replace(SHAPE, **fields), params, tokens_BT)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, gradient)


def loss_and_gradient(shape: schema.Model):
    """Return a compiled function of a loss that uses all outputs of token_losses."""

    def loss(params, tokens_BT):
        nats_BT, log_z_BT, best_BT, _ = transformer.token_losses(shape, params, tokens_BT)
        return (nats_BT * jnp.arange(nats_BT.size).reshape(nats_BT.shape)).sum() + (
            0.1 * log_z_BT**2
        ).sum(), best_BT

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("tied", [False, True])
def test_chunked_loss_equals_the_loss(tied):
    """The gradients and the predicted tokens are equal too."""
    shape = dataclasses.replace(SHAPE, logit_softcap=3.0, tie_embeddings=tied)
    tokens_BT, params = random_tokens(1, 2, 17), init_params(shape)
    (loss, best_BT), gradient = loss_and_gradient(shape)(params, tokens_BT)
    chunked_shape = dataclasses.replace(shape, loss_chunks=4)
    (chunked_loss, chunked_best_BT), chunked_gradient = loss_and_gradient(chunked_shape)(
        params, tokens_BT
    )
    np.testing.assert_allclose(chunked_loss, loss, rtol=1e-6)
    np.testing.assert_array_equal(chunked_best_BT, best_BT)
    atol = 1e-6 * max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=atol), chunked_gradient, gradient
    )


def temporary_bytes(n_tokens: int, **fields) -> int:
    """Return the temporary memory of the gradient for 4 rows of n_tokens tokens."""
    shape = dataclasses.replace(SHAPE, **fields)
    tree = jax.eval_shape(lambda: transformer.init_params(shape, 0))
    tokens = jax.ShapeDtypeStruct((4, n_tokens), "int32")
    memory = loss_and_gradient(shape).lower(tree, tokens).compile().memory_analysis()
    return memory.temp_size_in_bytes


def test_chunked_loss_stores_the_logits_of_one_chunk():
    logits_bytes = 4 * 64 * 8192 * 4
    fields = {"vocab_size": 8192, "n_layers": 1}
    assert temporary_bytes(65, **fields, loss_chunks=1) > 1.9 * logits_bytes
    assert temporary_bytes(65, **fields, loss_chunks=8) < logits_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_layers", "scan_unroll", "ratio"), [(2, 8, 0.8), (6, 8, 0.5), (12, 1, 0.5)]
)
def test_recomputation_reduces_memory_at_every_depth(n_layers, scan_unroll, ratio):
    none, elementwise, dots, full = (
        temporary_bytes(129, n_layers=n_layers, scan_unroll=scan_unroll, remat=remat)
        for remat in ("none", "elementwise", "dots", "full")
    )
    assert full < dots < none and full < ratio * none
    assert elementwise < 0.9 * none


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"sliding_window": 4, "full_attention_interval": 2}])
def test_elementwise_recomputation_supports_segments(params, tokens_BT, fields):
    """Layers with and without a window get their flag as an argument."""
    segments_BT = jnp.array([[0] * 4 + [1] * 12] * len(tokens_BT))

    def loss(params, remat):
        shape = dataclasses.replace(SHAPE, remat=remat, **fields)
        logits_BTV = transformer.compute_logits(shape, params, tokens_BT, segments_BT)
        return transformer.cross_entropy(logits_BTV, tokens_BT)[0].mean()

    expected, actual = (
        jax.jit(jax.grad(loss), static_argnums=1)(params, r) for r in ("none", "elementwise")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected)


@pytest.mark.parametrize("n_blocks", [1, 4])
def test_segments_isolate_documents(params, n_blocks):
    shape = dataclasses.replace(SHAPE, attention_query_blocks=n_blocks)
    tokens_BT = random_tokens(2, 2, 16)
    segments_BT = np.array([[0] * 4 + [1] * 12, [0] * 16])
    segmented = compute_logits(shape, params, tokens_BT, segments_BT)
    alone_shape = dataclasses.replace(shape, attention_query_blocks=1)
    alone = compute_logits(alone_shape, params, tokens_BT[:1, 4:])
    np.testing.assert_allclose(segmented[0, 4:], alone[0], atol=2e-5)
    unsegmented = compute_logits(shape, params, tokens_BT)
    np.testing.assert_allclose(segmented[1], unsegmented[1], atol=1e-5)
    assert np.abs(segmented[0, 4:] - unsegmented[0, 4:]).max() > 1e-3


@pytest.mark.parametrize("output_shape", [(12,), (3, 4)])
def test_projection_has_the_gradients_of_a_product(output_shape):
    shapes = [(2, 5, 6), (6, *output_shape), (2, 5, *output_shape)]
    rng = np.random.default_rng(0)
    x_BTD, weight, dy = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    actual, expected = (
        jax.jit(jax.grad(lambda x, w, f=f: (f(x, w) * dy).sum(), (0, 1)))(x_BTD, weight)
        for f in (layers.project, lambda x, w: jnp.einsum("btd,d...->bt...", x, w))
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), actual, expected
    )


def test_initial_loss_is_near_that_of_uniform_predictions():
    shape = model_sizes.ladder_model("100K", vocab_size=256)
    tokens_BT = random_tokens(0, 4, 32)
    nats_BT, _ = jax.jit(transformer.cross_entropy)(
        compute_logits(shape, init_params(shape), tokens_BT), tokens_BT
    )
    assert abs(np.mean(nats_BT) - np.log(256)) < 0.6 and nats_BT.dtype == jnp.float32


def test_cross_entropy_is_the_negative_log_softmax():
    logits_BTV = np.random.default_rng(0).normal(size=(1, 3, 5)).astype(np.float32) * 4
    targets_BT = np.array([[0, 4, 2]])
    nats_BT, log_z_BT = jax.jit(transformer.cross_entropy)(logits_BTV, targets_BT)
    expected_BT = np.log(np.exp(logits_BTV).sum(-1))
    np.testing.assert_allclose(log_z_BT, expected_BT, atol=1e-5)
    target_logits_BT = np.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(nats_BT, expected_BT - target_logits_BT, atol=1e-5)


def test_soft_cap_bounds_the_logits(params, tokens_BT):
    capped = dataclasses.replace(SHAPE, logit_softcap=0.25)
    assert np.abs(compute_logits(capped, params, tokens_BT)).max() <= 0.25
    assert np.abs(compute_logits(SHAPE, params, tokens_BT)).max() > 0.5


def test_tied_head_is_the_transposed_embedding(tokens_BT):
    tied = dataclasses.replace(SHAPE, tie_embeddings=True)
    params = init_params(tied)
    assert "head" not in params
    expected = compute_logits(SHAPE, params | {"head": params["embed"].T}, tokens_BT)
    np.testing.assert_allclose(compute_logits(tied, params, tokens_BT), expected, atol=1e-6)


def test_bfloat16_logits_are_near_float32_logits(params, tokens_BT):
    """Weights and logits are float32 in both cases."""
    half = dataclasses.replace(SHAPE, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(init_params(half))} == {jnp.dtype("float32")}
    half_logits = compute_logits(half, params, tokens_BT)
    difference = np.abs(half_logits - compute_logits(SHAPE, params, tokens_BT))
    assert half_logits.dtype == jnp.float32 and 1e-6 < difference.max() < 0.1


def test_each_axis_of_a_weight_has_a_name():
    tree = jax.eval_shape(lambda: transformer.init_params(SHAPE, 0))
    names = transformer.param_axes(SHAPE)
    jax.tree.map(
        lambda leaf, names: len(leaf.shape) == len(names) or pytest.fail(str(names)), tree, names
    )
    assert names["blocks"]["mlp"]["gate"] == ("layers", "embed", "mlp")


def test_program_size_does_not_depend_on_depth():
    def count_lines(n_layers):
        shape = dataclasses.replace(SHAPE, n_layers=n_layers, scan_unroll=1)
        tree = jax.eval_shape(lambda: transformer.init_params(shape, 0))
        tokens = jax.ShapeDtypeStruct((2, 16), "int32")
        lowered = jax.jit(lambda p, t: transformer.compute_logits(shape, p, t)).lower(tree, tokens)
        return lowered.as_text().count("\n")

    assert count_lines(64) == count_lines(4)


@pytest.mark.slow
def test_compile_time_hardly_depends_on_depth():
    def compile_seconds(n_layers):
        shape = dataclasses.replace(SHAPE, n_layers=n_layers, scan_unroll=1)
        tree = jax.eval_shape(lambda: transformer.init_params(shape, 0))
        tokens = jax.ShapeDtypeStruct((2, 17), "int32")
        start = time.process_time()
        loss_and_gradient(shape).lower(tree, tokens).compile()
        return time.process_time() - start

    is_cache_enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        pairs = [(compile_seconds(4), compile_seconds(64)) for _ in range(3)]
    finally:
        jax.config.update("jax_enable_compilation_cache", is_cache_enabled)
    ratio = min(deep for _, deep in pairs) / min(shallow for shallow, _ in pairs)
    print(f"ratio of compile seconds, 64 layers to 4 layers: {ratio:.2f}")
    assert ratio < 1.5


def test_step_flops_count_loops_and_recomputation():
    run = schema.Run(model=dataclasses.replace(SHAPE, scan_unroll=1, attention_query_blocks=1))
    run.data.seq_len, run.data.batch_size = 16, 2
    head_flops = 6 * 2 * 16 * 32 * 64
    layer_flops = (cost.count_step_flops(run) - head_flops) / 2
    run.model.n_layers = 4
    assert cost.count_step_flops(run) - head_flops == 4 * layer_flops
    run.model.remat = "full"
    assert 1.2 < (cost.count_step_flops(run) - head_flops) / (4 * layer_flops) < 1.4


def test_learned_positions_start_again_in_each_segment(tokens_BT):
    params = init_params(GPT2)
    segments_BT = np.repeat(np.array([[3, 1], [0, 5]]), 8, axis=1)
    packed = compute_logits(GPT2, params, tokens_BT, segments_BT)
    alone = [compute_logits(GPT2, params, tokens_BT[:, part]) for part in (slice(8), slice(8, 16))]
    np.testing.assert_allclose(packed, np.concatenate(alone, axis=1), atol=1e-5)
    assert np.abs(compute_logits(GPT2, params, tokens_BT)[:, 8:] - alone[1]).max() > 1e-2


@pytest.mark.parametrize(
    "shape",
    [
        GPT2,
        dataclasses.replace(SHAPE, bias=True, qk_norm=False),
        dataclasses.replace(SHAPE, **small_model.VARIANT),
    ],
)
def test_logits_are_equal_on_split_rows_and_heads(shape, tokens_BT):
    shape = dataclasses.replace(shape, attention_query_blocks=2)
    params = jax.tree.map(lambda w: w + 0.01, init_params(shape))  # the biases are not 0
    device_mesh = mesh.make_mesh(schema.Mesh(sequence=2, tensor=2))
    sharded_params = jax.tree.map(
        lambda w, names: jax.device_put(w, mesh.named_sharding(device_mesh, *names)),
        params,
        transformer.param_axes(shape),
    )
    with jax.set_mesh(device_mesh):
        actual = compute_logits(shape, sharded_params, tokens_BT)
    np.testing.assert_allclose(actual, compute_logits(shape, params, tokens_BT), atol=1e-5)


def test_weight_decay_excludes_norms_and_biases():
    """The table of learned positions decays."""
    leaves = jax.tree_util.tree_leaves_with_path(
        transformer.param_axes(GPT2), is_leaf=mesh.is_axis_names
    )
    assert len(leaves) == 20
    for path, names in leaves:
        is_vector = any(name in str(path) for name in ("bias", "norm"))
        assert (parametrization.weight_role(names) == "norm") == is_vector, path
    assert parametrization.weight_role(("positions", "embed")) == "input"


def test_row_longer_than_the_learned_positions_is_refused():
    with pytest.raises(ValueError, match="learned_positions=24 must be at least data.seq_len=128"):
        validation.validate_run(schema.Run(model=GPT2))


@pytest.mark.parametrize("fields", [{"mlp": "gelu"}, {"bias": True}])
def test_experts_with_another_mlp_are_refused(fields):
    with pytest.raises(ValueError, match="is not implemented for experts: set"):
        validation.validate_run(schema.Run(model=model_sizes.ladder_model("300K-A100K", **fields)))
