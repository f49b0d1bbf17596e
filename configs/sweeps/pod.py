"""Train five sizes from 60 million to 2.5 billion parameters on a slice of 16 chips.

    uv run python -m experiments.plan --sweep=configs/sweeps/pod.py --target=tpu:v5e:4x4
    uv run python -m experiments.sweep --sweep=configs/sweeps/pod.py

Weights are sharded over N devices with --sweep=configs/sweeps/pod.py:N; the default is 16.

Hardware and time: not trained yet. `experiments.plan` estimates memory, time and cost per machine.
"""

from configs import pod

SIZES = ("60M", "150M", "400M", "1B", "2.5B")


def get_sweep(fsdp: str = "16"):
    """Yield one run per size."""
    for size in SIZES:
        run = pod.get_config(size)
        run.name = f"pod/{size}"
        run.mesh.fsdp = int(fsdp)
        # A micro-batch has at most four rows per device.
        run.optim.grad_accumulation_steps = max(run.data.batch_size // (4 * int(fsdp)), 1)
        run.is_prediction_target = size == SIZES[-1]
        yield run
