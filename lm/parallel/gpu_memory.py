"""Part of a GPU's memory that JAX reserves for its programs.

JAX reserves the memory when it starts, by default 75%. The remaining memory holds the CUDA context,
the code of kernels, and the buffers of cuBLAS, cuDNN and NCCL. This file does not import JAX.
"""

import os
from collections.abc import Mapping, MutableMapping

VARIABLE = "XLA_PYTHON_CLIENT_MEM_FRACTION"
VARIABLES = (VARIABLE, "XLA_CLIENT_MEM_FRACTION")  # the second name is that of newer versions
DEFAULT_FRACTION = 0.92


def reserve_gpu_memory(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the part of a GPU's memory that JAX reserves, unless the environment sets it.

    Call before the first use of a device.
    """
    if not any(environment.get(name) for name in VARIABLES):
        environment[VARIABLE] = str(DEFAULT_FRACTION)


def gpu_memory_fraction(environment: Mapping[str, str] = os.environ) -> float:
    """Return the part of a GPU's memory that a program can use.

    Raises ValueError for a value of the environment that is not in (0, 1].
    """
    for name in VARIABLES:
        text = environment.get(name)
        if not text:
            continue
        try:
            fraction = float(text)
        except ValueError:
            fraction = float("nan")
        if not 0 < fraction <= 1:
            raise ValueError(f"{name}={text} must be above 0 and at most 1: remove the variable")
        return fraction
    return DEFAULT_FRACTION
