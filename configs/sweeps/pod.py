"""Five rungs from 60 million to 2.5 billion parameters, for a slice of 16 chips.

uv run python -m experiments.plan --sweep=configs/sweeps/pod.py --target=tpu:v5e:4x4
uv run python -m experiments.sweep --sweep=configs/sweeps/pod.py

Weights are split over all `fsdp` devices of --sweep=configs/sweeps/pod.py:N, 16 where not said.
"""

from configs import pod

SIZES = ("60M", "150M", "400M", "1B", "2.5B")


def get_sweep(fsdp: str = "16"):
    for size in SIZES:
        run = pod.get_config(size)
        run.name = f"pod/{size}"
        run.mesh.fsdp = int(fsdp)
        run.optim.accumulate = 4  # four rows a chip at a time
        run.predict = size == SIZES[-1]
        yield run
