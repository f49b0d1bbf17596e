"""A run that cannot fit into the memory of its devices is rejected before anything is compiled."""

import dataclasses
import importlib.util

import jax
import pytest

from lm.config import model_sizes, schema, validation
from lm.model import memory_estimate, transformer
from lm.parallel import device_memory, mesh, xla_flags
from lm.sweeps.planning import checkpoint_space
from lm.training import loop, optimizer, step

N_PARAMS = model_sizes.count_parameters(model_sizes.ladder_model("100K", vocab_size=256))["total"]


def small_run(**model) -> schema.Run:
    run = schema.Run(model=model_sizes.ladder_model("100K", **model))
    return validation.validate_run(run)


def test_parameters_and_moments_are_exact():
    estimate = memory_estimate.estimate_memory(small_run(), 1, "cpu")
    assert (estimate.params, estimate.optimizer) == (4 * N_PARAMS, 8 * N_PARAMS)
    assert estimate.temporaries == estimate.gradients + estimate.activations
    run = small_run()
    run.mesh.fsdp, run.mesh.data = 2, 1
    assert memory_estimate.estimate_memory(run, 2, "cpu").params < 0.51 * estimate.params


@pytest.mark.parametrize(
    ("remat", "d_model", "seq_len", "batch_size"),
    [
        ("none", 64, 128, 8),
        pytest.param("none", 128, 64, 16, marks=pytest.mark.slow),
        pytest.param("elementwise", 96, 96, 8, marks=pytest.mark.slow),
    ],
)
def test_estimate_is_within_15_percent_of_the_compiler(remat, d_model, seq_len, batch_size):
    """XLA reports the memory of a compiled step. Runs have its default code generator."""
    run = small_run(remat=remat, d_model=d_model, n_layers=3, d_ff=3 * d_model)
    run.data.seq_len, run.data.batch_size = seq_len, batch_size
    device_mesh = mesh.make_mesh(run.mesh, jax.devices()[:2])
    functions = step.build_train_functions(run, device_mesh)
    is_known = xla_flags.is_known("xla_cpu_use_fusion_emitters", True)
    options = {"xla_cpu_use_fusion_emitters": True} if is_known else {}
    with jax.set_mesh(device_mesh):
        memory = loop.lower_steps(functions, 1).compile(options).memory_analysis()
    estimate = memory_estimate.estimate_memory(run, 2, "cpu")
    assert estimate.temporaries == pytest.approx(memory.temp_size_in_bytes, rel=0.15)


@pytest.mark.parametrize("is_sharded", [False, True])
def test_estimate_of_micro_batches_is_within_15_percent(is_sharded, monkeypatch):
    monkeypatch.setattr(memory_estimate, "MAX_ACTIVATION_BYTES", 10 * 2**20)
    monkeypatch.setattr(memory_estimate, "SHARDED_STATE", 0 if is_sharded else 1e9)
    run = small_run(d_model=96, n_layers=3, d_ff=288)
    run.data.seq_len, run.data.batch_size = 128, 16
    device_mesh = mesh.make_mesh(run.mesh, jax.devices()[:2])
    functions = step.build_train_functions(run, device_mesh)
    with jax.set_mesh(device_mesh):
        memory = loop.lower_steps(functions, 1).compile().memory_analysis()
    assert memory_estimate.resolve_layout(run, 2, "cpu").optim.grad_accumulation_steps == 4
    estimate = memory_estimate.estimate_memory(run, 2, "cpu")
    assert estimate.temporaries == pytest.approx(memory.temp_size_in_bytes, rel=0.15)


@pytest.mark.parametrize("mlp", ["gated", "gelu"])
def test_estimate_of_a_loop_over_layers_is_within_15_percent(mlp):
    """More layers than model.scan_unroll are a loop, which stores other arrays."""
    run = small_run(n_layers=5, d_model=64, d_ff=176, mlp=mlp, scan_unroll=4)
    run.data.seq_len, run.data.batch_size = 128, 8
    device_mesh = mesh.make_mesh(run.mesh, jax.devices()[:2])
    functions = step.build_train_functions(run, device_mesh)
    with jax.set_mesh(device_mesh):
        memory = loop.lower_steps(functions, 1).compile().memory_analysis()
    estimate = memory_estimate.estimate_memory(run, 2, "cpu")
    assert estimate.temporaries == pytest.approx(memory.temp_size_in_bytes, rel=0.15)


def layout(platform: str = "cpu", **changes) -> tuple[int, bool]:
    """Return the number of micro-batches and whether two devices shard the state.

    The run has 25M parameters and 8 rows of 256 tokens. changes: values of its fields by path, with
    "__" in place of dots.
    """
    run = schema.Run()
    sizes = {"d_model": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "d_head": 64}
    run.model = schema.Model(vocab_size=256, d_ff=1376, **sizes)
    run.data.seq_len, run.data.batch_size = 256, 8
    for name, value in changes.items():
        group, field = name.split("__")
        setattr(getattr(run, group), field, value)
    resolved = memory_estimate.resolve_layout(run, 2, platform)
    return resolved.optim.grad_accumulation_steps, "data" in resolved.mesh.rules.get("embed", [])


def test_large_step_on_cpu_has_micro_batches_and_a_sharded_state():
    assert layout() == (2, True)
    assert layout(data__batch_size=6) == (1, True)  # three rows per device cannot be halved
    assert layout(data__batch_size=32) == (8, True)
    assert layout(data__batch_size=32, data__batch_size_warmup="10000,20000") == (4, True)
    assert layout(model__n_layers=1, model__d_model=64, data__batch_size=2) == (1, False)


def test_layout_of_the_config_and_of_accelerators_is_kept():
    assert layout(optim__grad_accumulation_steps=1) == (1, True)
    assert layout(mesh__fsdp=2, mesh__data=1) == (2, False)
    assert layout(mesh__deterministic_shards=2) == (1, False)
    assert layout(model__n_experts=4) == (1, True)  # the balance is that of a micro-batch
    assert layout("gpu") == layout("tpu") == (1, False)


def test_rejection_uses_a_third_of_the_temporaries():
    run = small_run()
    estimate = memory_estimate.estimate_memory(run, 1, "cpu")
    smallest = estimate.params + estimate.optimizer + estimate.temporaries / 3
    memory_estimate.check_memory(run, 1, "cpu", smallest * 1.001)
    with pytest.raises(schema.ConfigError) as error:
        memory_estimate.check_memory(run, 1, "cpu", smallest * 0.999)
    message = str(error.value)
    assert "data.batch_size=16 x data.seq_len=128 with 1.27e+05 parameters" in message
    assert "a step needs about" in message and "each of 1 cpu devices has" in message
    assert "model.remat='full'" in message and "\n" not in message
    memory_estimate.check_memory(dataclasses.replace(run, check_memory=False), 1, "cpu", 1.0)


def test_frozen_weights_have_no_moments():
    run = small_run()
    run.optim.frozen = "embed"
    estimate = memory_estimate.estimate_memory(run, 1, "cpu")
    memory_estimate.check_memory(run, 1, "cpu", estimate.params + estimate.activations / 3 + 1)


@pytest.mark.parametrize(
    "field",
    ["vocab_size", "d_model", "n_layers", "d_ff", "d_head", "n_experts", "learned_positions"],
)
def test_huge_size_is_rejected_without_tracing(field, monkeypatch):
    monkeypatch.setattr(memory_estimate, "list_weights", None)
    with pytest.raises(schema.ConfigError, match="the parameters alone need"):
        memory_estimate.check_memory(small_run(**{field: 2**31 - 2}), 4, "cpu", 2**36)


@pytest.mark.parametrize("field", ["batch_size", "seq_len"])
def test_huge_batch_is_rejected(field):
    run = small_run()
    setattr(run.data, field, 2**31 - 4)
    with pytest.raises(schema.ConfigError, match=rf"data.{field}=2147483644.* a step needs"):
        memory_estimate.check_memory(run, 4, "cpu", 2**40)


def test_run_is_rejected_before_its_text_is_prepared(tiny, tmp_path, monkeypatch):
    tiny.data.cache_dir = str(tmp_path / "cache")
    monkeypatch.setattr(device_memory, "available_bytes", lambda device_mesh: 1e5)
    with pytest.raises(schema.ConfigError, match="check_memory=False omits this check"):
        loop.train(tiny)
    assert not (tmp_path / "cache").exists() and not (tmp_path / "runs").exists()


def test_devices_of_a_cpu_share_the_free_memory(monkeypatch):
    monkeypatch.setattr(device_memory, "available_host_bytes", lambda: 8e9)
    assert device_memory.available_bytes(mesh.make_mesh(schema.Mesh())) == 2e9


@pytest.mark.parametrize("name, n_bytes", [("adamw", 6), ("lion", 2)])
def test_first_moment_in_bfloat16_needs_half_the_memory(name, n_bytes):
    """The second moment of AdamW has 4 bytes per weight."""
    run = small_run()
    run.optim.name, run.optim.moment_dtype = name, "bfloat16"
    estimate = memory_estimate.estimate_memory(run, 1, "cpu")
    assert estimate.optimizer == n_bytes * N_PARAMS
    n_checkpoint_bytes = checkpoint_space.checkpoint_bytes(run)
    assert n_checkpoint_bytes == (4 + n_bytes) * N_PARAMS


def test_mask_of_cudnn_is_in_the_estimate():
    """Documents on GPU need a mask and its gradient, without the extra kernels."""
    if importlib.util.find_spec("tokamax"):
        pytest.skip("tokamax needs no mask")
    runs = [small_run(dtype="bfloat16") for _ in range(2)]
    runs[1].data.attend_across_documents = False
    causal, documents = (memory_estimate.estimate_memory(run, 1, "gpu") for run in runs)
    n_scores = runs[0].data.batch_size * runs[0].data.seq_len ** 2
    n_layers = runs[0].model.n_layers
    assert documents.activations - causal.activations == 2 * 2 * n_scores * (n_layers + 1)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_optimizer_state_has_the_size_of_the_optimizer(name):
    """Compare with the state of optax, without its scalars and the coefficients of muon."""
    run = small_run(n_layers=2)
    run.optim.name = name
    axes = transformer.param_axes(run.model)
    update = optimizer.make_optimizer(run.optim, run.model, run.steps, axes)
    state = jax.eval_shape(lambda: update.init(transformer.init_params(run.model, 0)))
    n_bytes = sum(4 * leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert memory_estimate.estimate_memory(run, 1, "cpu").optimizer == pytest.approx(
        n_bytes, rel=1e-4
    )


def estimated_numbers(**model):
    """Return the estimated activations of 8 rows of 64 tokens on a CPU, in float32 numbers."""
    run = small_run(**{"n_layers": 2, "remat": "full", "mlp": "gated", **model})
    run.data.batch_size, run.data.seq_len = 8, 64
    return memory_estimate.estimate_memory(run, 1, "cpu").activations / 4


def test_activations_are_those_of_a_hand_count():
    """Count the arrays in which two runs differ. With full recomputation, one layer has arrays."""
    n_tokens, shape, base = 8 * 64, small_run().model, estimated_numbers()
    # Logits, their probabilities and their gradient, in chunks of the tokens.
    logits = n_tokens * shape.vocab_size
    assert estimated_numbers(vocab_size=2 * shape.vocab_size) - base == 3 * logits
    assert base - estimated_numbers(loss_chunks=2) == 3 * logits / 2
    # A layer stores its input.
    assert estimated_numbers(n_layers=3) - base == n_tokens * shape.d_model
    # Scores, probabilities and gradient: with two blocks of queries, a quarter is not computed.
    scores = n_tokens * 64 * shape.n_heads
    assert estimated_numbers(attention_query_blocks=1) - base == 3 * scores / 4
    # A hidden number is in each projection, in its gradient, and in the activation function.
    assert estimated_numbers(d_ff=shape.d_ff + 1) - base == n_tokens * (2 * 2 + 1)
    plain = {"mlp": "gelu"}
    wide = estimated_numbers(d_ff=shape.d_ff + 1, **plain)
    assert wide - estimated_numbers(**plain) == n_tokens * (2 + 1)
    # Without recomputation, each layer of a loop stores its arrays, and those of one are copied.
    stored = estimated_numbers(remat="none", scan_unroll=1)
    layer = estimated_numbers(remat="none", scan_unroll=1, n_layers=3) - stored
    last = 4 * n_tokens * shape.d_ff + 7 * n_tokens * shape.d_model  # in the last MLP
    assert last > 2 * logits + 5 * n_tokens * shape.d_model
    assert stored == pytest.approx(3 * layer + last)


def test_state_of_a_large_model_allows_larger_micro_batches(monkeypatch):
    """Activations may need as much memory as weights, gradients and moments."""
    assert layout(data__batch_size=16) == (4, True)
    monkeypatch.setattr(memory_estimate, "STATE_BYTES", 0)
    assert layout(data__batch_size=16) == (8, True)
