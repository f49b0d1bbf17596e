"""Runs and batches of accelerator.py."""

import numpy as np

from lm.config import schema, validation
from lm.model import memory_estimate
from lm.parallel import device_memory, mesh

SHAPES = {
    #        d_model n_layers n_heads d_head  d_ff
    "125M": (    768,      12,     12,    64, 2048),
    "350M": (   1024,      24,     16,    64, 2816),
    "1B":   (   2048,      16,     16,   128, 5632),
    "tiny": (     16,       1,      2,     8,   32),
}  # fmt: skip
MAX_ROWS = 64  # of a batch; the largest power of two whose estimated memory fits is used
MEMORY_SHARE = 0.9  # of the usable memory for this estimate
CHECKPOINT_INTERVAL = 8  # of the resume check


def benchmark_run(size: str, batch_size: int) -> schema.Run:
    """Return the run of a size of SHAPES: bfloat16, sequence 2048, separated documents."""
    is_tiny = size == "tiny"
    d_model, n_layers, n_heads, d_head, d_ff = SHAPES[size]
    run = schema.Run(name=size, checkpoint_interval=CHECKPOINT_INTERVAL, log_interval=1)
    run.model = schema.Model(
        vocab_size=256 if is_tiny else 32768, d_model=d_model, n_layers=n_layers, n_heads=n_heads,
        n_kv_heads=n_heads, d_head=d_head, d_ff=d_ff, dtype="bfloat16",
        loss_chunks=1 if is_tiny else 8,
    )  # fmt: skip
    run.data.seq_len, run.data.batch_size = 32 if is_tiny else 2048, batch_size
    run.data.attend_across_documents = False
    return validation.validate_run(run)


def fitting_run(size: str) -> schema.Run:
    """Return the run of a size with the largest batch whose estimated memory fits."""
    device_mesh = mesh.make_mesh(schema.Mesh())
    platform, n_bytes = (
        mesh.device_platform(device_mesh),
        device_memory.available_bytes(device_mesh),
    )
    n_rows = device_mesh.size if size == "tiny" else MAX_ROWS * device_mesh.size
    while n_rows > device_mesh.size:
        run = benchmark_run(size, n_rows)
        estimate = memory_estimate.estimate_memory(run, device_mesh.size, platform)
        if estimate.params + estimate.optimizer + estimate.temporaries < MEMORY_SHARE * n_bytes:
            return run
        n_rows //= 2
    return benchmark_run(size, n_rows)


def random_batch(run: schema.Run, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a batch of random tokens, in documents of a quarter row on average."""
    rng = np.random.default_rng(seed)
    shape = (run.data.batch_size, run.data.seq_len)
    tokens = rng.integers(run.model.vocab_size, size=(shape[0], shape[1] + 1), dtype=np.int32)
    starts = rng.random(shape) < 4 / shape[1]
    return {"tokens": tokens, "segments": starts.cumsum(axis=1).astype(np.int32)}
