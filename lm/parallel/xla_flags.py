"""XLA compiler options: collectives during computation, and kernels with reproducible bits.

On GPU, XLA measures several kernels for a product when it compiles, and the measurements decide.
JAX stores the measured choices next to its compiled programs (mesh.initialize_devices), so that the
next process with that cache has the same kernels.
"""

import functools

import jax

from lm.parallel import mesh

# The options are for several devices, because a single device has no collectives. Only libtpu
# accepts the TPU options.
COMPILER_OPTIONS: dict[str, dict[str, bool | int]] = {
    "cpu": {},
    "gpu": {
        "xla_gpu_enable_latency_hiding_scheduler": True,  # early start of collectives
        "xla_gpu_enable_pipelined_all_gather": True,  # of the next layer, during a layer
        "xla_gpu_enable_pipelined_reduce_scatter": True,
        "xla_gpu_enable_while_loop_double_buffering": True,  # two layers of a scan
        # Few large messages for the gradients, and for the weights that fsdp gathers.
        "xla_gpu_all_reduce_combine_threshold_bytes": 2**27,
        "xla_gpu_all_gather_combine_threshold_bytes": 2**27,
        "xla_gpu_reduce_scatter_combine_threshold_bytes": 2**27,
    },
    "tpu": {
        "xla_tpu_enable_async_collective_fusion": True,  # collectives during products
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_overlap_compute_collective_tc": True,
        "xla_enable_async_all_gather": True,
    },
}


# Kernels whose result is the same in every execution, chosen without measurements
# (openxla.org/xla/determinism).
DETERMINISTIC_OPTIONS: dict[str, bool | int] = {
    "xla_gpu_exclude_nondeterministic_ops": True,
    "xla_gpu_autotune_level": 0,
}


OPTIMIZED_INIT = 4e6  # parameters above which the program of the initial state is optimized


@functools.cache
def is_known(name: str, value: bool | int) -> bool:
    """Return True if the installed XLA has an option, False if its version has removed it."""
    increment = jax.jit(lambda x: x + 1, compiler_options={name: value})
    try:
        increment.lower(0).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True


def compiler_options(
    device_mesh: jax.sharding.Mesh, has_fixed_kernels: bool = False
) -> dict[str, bool | int] | None:
    """Return the compiler options of a step on these devices, for jax.jit; None if it has none.

    has_fixed_kernels: mesh.deterministic_kernels, which has an effect on GPU only.
    """
    platform = mesh.device_platform(device_mesh)
    options = COMPILER_OPTIONS[platform] if device_mesh.size > 1 else {}
    if platform == "gpu":
        options = {name: value for name, value in options.items() if is_known(name, value)}
    if has_fixed_kernels and platform == "gpu":
        options = options | DETERMINISTIC_OPTIONS
    return options or None


def init_options(device_mesh: jax.sharding.Mesh, n_parameters: float) -> dict | None:
    """Return the compiler options of the initial state, which is computed once.

    On CPU the newer code generator costs more time and memory than it saves. The optimization of
    the program costs 0.7 s and saves 0.17 s per million parameters. It changes last digits.
    """
    if mesh.device_platform(device_mesh) != "cpu":
        return None
    options: dict[str, bool | int] = {
        "xla_backend_optimization_level": int(n_parameters > OPTIMIZED_INIT)
    }
    has_old_generator = is_known("xla_cpu_use_fusion_emitters", False)
    return options | ({"xla_cpu_use_fusion_emitters": False} if has_old_generator else {})
