"""Comparison of each kernel with the plain kernel, forward and backward, on the attached device.

    for case in parity_cases(platform):
        row = check_kernel_parity(case)
        row["is_equal"], row["errors"]     # {"output": 0.002, "dq": 0.004, ...}

Random inputs are rounded to the type of the case. The plain kernel computes in float32. An error is
the largest difference divided by the largest value, and must be at most the tolerance of the type.
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lm.model import attention
from lm.model.kernels import fused_attention, grouped_products
from lm.parallel import mesh

TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
PADDING_SHARE = 0.1  # of a row with segments, as its last segment


@dataclasses.dataclass(frozen=True)
class ParityCase:
    """Sizes of one comparison.

    operation: attention or experts. kernel: a name of kernel_table. n_rows, seq_len: rows and
    positions; experts have n_rows x seq_len tokens, each of one expert. n_heads, n_kv_heads,
    d_head: for attention. has_segments: documents and padding. n_experts, d_model, d_expert: for
    experts; a tenth of the rows belongs to experts of another device.
    """

    operation: str
    kernel: str
    dtype: str = "bfloat16"
    n_rows: int = 2
    seq_len: int = 1024
    n_heads: int = 8
    n_kv_heads: int = 8
    d_head: int = 128
    has_segments: bool = False
    n_experts: int = 8
    d_model: int = 512
    d_expert: int = 1024


def parity_cases(platform: str, has_tokamax: bool) -> list[ParityCase]:
    """Return the comparisons of a platform: gpu or tpu; [] for cpu.

    They vary segments, grouped-query attention and head sizes of 64, 128 and 256.
    """
    kernels = {"gpu": ["cudnn", "tokamax"] if has_tokamax else ["cudnn"], "tpu": ["splash"]}
    shapes = (
        ParityCase("attention", ""),
        ParityCase("attention", "", has_segments=True),
        ParityCase("attention", "", n_kv_heads=2, d_head=64),
        ParityCase("attention", "", n_kv_heads=2, has_segments=True),
        ParityCase("attention", "", n_heads=4, n_kv_heads=4, d_head=256, has_segments=True),
    )
    cases = [
        dataclasses.replace(shape, kernel=kernel)
        for kernel in kernels.get(platform, [])
        for shape in shapes
    ]
    experts = {"gpu": ["tiles", *(["tokamax"] if has_tokamax else [])], "tpu": ["xla", "tiles"]}
    return cases + [ParityCase("experts", kernel) for kernel in experts.get(platform, [])]


def check_kernel_parity(case: ParityCase, is_interpreted: bool = False) -> dict:
    """Return one row: the fields of the case, its errors, its tolerance, and is_equal.

    errors: {"output", and the gradient of each input: error}, see the docstring of this file.
    is_interpreted: emulate the kernel on CPU. A kernel that raises gives is_equal=False and the
    first line of its message as "failure".
    """
    row = dataclasses.asdict(case) | {"tolerance": TOLERANCES[case.dtype], "errors": {}}
    compare = {"attention": _attention_errors, "experts": _expert_errors}[case.operation]
    try:
        row["errors"] = compare(case, is_interpreted)
    except Exception as error:  # a kernel may fail in any way; the other cases still run
        message = str(error).strip().splitlines() or [""]
        return row | {"is_equal": False, "failure": f"{type(error).__name__}: {message[0]}"}
    return row | {"is_equal": max(row["errors"].values()) <= row["tolerance"], "failure": ""}


def _attention_errors(case: ParityCase, is_interpreted: bool) -> dict[str, float]:
    """Return the errors of the output and of the gradients of queries, keys and values."""
    heads = (case.n_heads, case.n_kv_heads, case.n_kv_heads)
    shapes = [(case.n_rows, case.seq_len, n, case.d_head) for n in (*heads, case.n_heads)]
    *inputs, do_BTNH = _random_arrays(shapes, case.dtype)
    segments_BT = jnp.asarray(_random_segments(case)) if case.has_segments else None

    def fused(q_BTNH, k_BSKH, v_BSKH):
        return fused_attention.attend_fused(
            *(case.kernel, mesh.DEFAULT_RULES, q_BTNH, k_BSKH, v_BSKH, segments_BT),
            is_interpreted=is_interpreted,
        )

    def plain(q_BTNH, k_BSKH, v_BSKH):
        return attention.blockwise_attention(q_BTNH, k_BSKH, v_BSKH, 1, segments_BT)

    return _compare(fused, plain, inputs, do_BTNH, ("q", "k", "v"))


def _expert_errors(case: ParityCase, is_interpreted: bool) -> dict[str, float]:
    """Return the errors of the products and of the gradients of rows and weights."""
    n_tokens, n_experts = case.n_rows * case.seq_len, case.n_experts
    shapes = [
        (n_tokens, case.d_model),
        (n_experts, case.d_model, case.d_expert),
        (n_tokens, case.d_expert),
    ]
    a_PX, w_EXY, dy_PY = _random_arrays(shapes, case.dtype)
    expert_P = np.sort(np.random.default_rng(1).integers(n_experts, size=n_tokens * 9 // 10))
    size_E = jnp.asarray(np.bincount(expert_P, minlength=n_experts), jnp.int32)
    is_local_P1 = (jnp.arange(n_tokens) < len(expert_P))[:, None]

    def fused(a_PX, w_EXY):
        y_PY = grouped_products.multiply_groups(case.kernel, a_PX, w_EXY, size_E, is_interpreted)
        return jnp.where(is_local_P1, y_PY, 0)

    def plain(a_PX, w_EXY):
        group_P = jnp.asarray(np.resize(expert_P, n_tokens))
        one_hot_PE = (group_P[:, None] == jnp.arange(n_experts)).astype(a_PX.dtype)
        y_PY = jnp.einsum("px,exy,pe->py", a_PX, w_EXY, one_hot_PE)
        return jnp.where(is_local_P1, y_PY, 0)

    # Gradients of rows after the last group are not defined, and are not compared.
    return _compare(fused, plain, [a_PX, w_EXY], dy_PY, ("a", "w"), len(expert_P))


def _compare(
    fused: Callable,
    plain: Callable,
    inputs: Sequence[jax.Array],
    gradient: jax.Array,
    names: Sequence[str],
    n_first: int | None = None,
) -> dict[str, float]:
    """Return the errors of the output and of the gradients of all inputs.

    n_first: number of compared elements of the first axis of the output and of the first input.
    """

    def evaluate(function: Callable, *arrays: jax.Array):
        output, pullback = jax.vjp(function, *arrays[:-1])
        return output, *pullback(arrays[-1].astype(output.dtype))

    arrays = [*inputs, gradient]
    with jax.default_matmul_precision("float32"):
        exact = [x.astype(jnp.float32) for x in arrays]
        expected = jax.jit(lambda *x: evaluate(plain, *x))(*exact)
    actual = jax.jit(lambda *x: evaluate(fused, *x))(*arrays)
    errors = {}
    for name, x, y in zip(("output", *(f"d{n}" for n in names)), actual, expected, strict=True):
        n = n_first if name in ("output", f"d{names[0]}") else None
        x, y = (np.asarray(array, np.float32)[:n] for array in (x, y))
        errors[name] = float(np.abs(x - y).max() / np.abs(y).max())
    return errors


def _random_arrays(shapes: Sequence[tuple[int, ...]], dtype: str) -> list[jax.Array]:
    """Return normally distributed arrays."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [
        jax.random.normal(key, shape, jnp.dtype(dtype))
        for key, shape in zip(keys, shapes, strict=True)
    ]


def _random_segments(case: ParityCase) -> np.ndarray:
    """Return documents of random lengths, and padding at the end of each row, int32 [B, T]."""
    rng, n_padding = np.random.default_rng(2), int(case.seq_len * PADDING_SHARE)
    shape = (case.n_rows, case.seq_len)
    segments_BT = np.cumsum(rng.random(shape) < 8 / case.seq_len, axis=1).astype(np.int32)
    segments_BT[:, case.seq_len - n_padding :] = case.seq_len
    return segments_BT
