"""What a run's rows of metrics and its facts hold: counts, costs, speed, spikes, doubts."""

import collections
import hashlib
import importlib.metadata
import json
import math
import platform

import jax
import numpy as np

from lm import config, data, fields, kernels, records, revision, sizes


def facts(run: config.Run, text: data.Text, device_mesh: jax.sharding.Mesh, peak: float) -> dict:
    """What analysis must never have to rebuild. peak: FLOP/s of the mesh in matrix products."""
    device = device_mesh.devices.flat[0]
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    found = sizes.facts(run) | {
        "config_hash": knobs_hash(run),
        "corpus.hash": text.hash,
        "unique_tokens": text.unique_tokens,
        "corpus.bytes_per_token": text.bytes_per_token,
        "host": platform.node(),
        "devices": device_mesh.size,
        "devices.kind": device.device_kind,
        "devices.mesh": dict(device_mesh.shape),
        "devices.cut": [
            run.optim.accumulate,
            run.model.loss_chunks,
            run.model.remat,
            run.mesh.rules,
        ],
        "devices.attention": kernels.chosen(run, device_mesh),
        "devices.peak_flops_per_second": peak,
        "versions.python": platform.python_version(),
        "code.version": revision.version(),
        "code.commit": revision.commit(),
    }
    found |= {f"versions.{p}": importlib.metadata.version(p) for p in packages}
    found |= {f"epochs.{source}": n for source, n in text.epochs(run.steps).items()}
    found |= {f"floor.{source}": nats for source, (nats, _) in data.entropy_bounds(text).items()}
    for source, rows in data.packing_stats(text).items():
        found |= {f"rows.{name}.{source}": value for name, value in rows.items()}
    return found


def knobs_hash(run: config.Run) -> str:
    """Of all knobs that say what the run learns."""
    knobs = {k: v for k, v in config.flatten(run).items() if k not in records.FREE}
    knobs = fields.for_hash(knobs, config.Run)
    return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:16]


def metrics(run: config.Run, text: data.Text, values: list[dict], done: int) -> dict:
    """Of a row of metrics.jsonl: loss and gradient norm are means over the steps since the last."""
    tokens = done * run.data.batch_size * run.data.seq_len
    loss, grad_norm = (_mean([m[name] for m in values]) for name in ("loss", "grad_norm"))
    return {
        "tokens": tokens,
        "flops": tokens * sizes.flops_per_token(run.model, run.data.seq_len)["full"],
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / text.bytes_per_token,
        "grad_norm": grad_norm,
        "lr": float(values[-1]["lr"]),
        "epoch": max(text.epochs(done).values()),
    } | {name: _mean([m[name] for m in values]) for name in values[0] if "experts." in name}


def speed(run: config.Run, steps: int, seconds: float, peak: float) -> dict:
    """Of a row of metrics.jsonl: how fast these steps were, against the matmul peak."""
    tokens_per_second = steps * run.data.batch_size * run.data.seq_len / seconds
    flops = tokens_per_second * sizes.flops_per_token(run.model, run.data.seq_len)["full"]
    return {
        "tokens_per_second": tokens_per_second,
        "flops_per_second": flops,
        "peak_share": flops / peak,
    }


def spikes(recent: collections.deque, row: dict) -> list[str]:
    """Names of what is over 6 deviations above its last 20 rows; then adds the row to them."""
    found = []
    for name in ("loss", "grad_norm"):
        past = np.array([old[name] for old in recent])
        if len(past) >= 10 and row[name] > past.mean() + 6 * past.std():
            found.append(name)
    recent.append(row)
    return found


def doubt(run: config.Run, evaluated: dict[int, dict], ends_at: int) -> str:
    """Why nobody should use what a run ends with, or "": one line.

    It says less of held-out text than a guess among all tokens does, or than the weights that it
    was to tune (learning rates of one kind of text may be too high for another).
    """
    if ends_at not in evaluated:
        return ""
    loss, guess = float(evaluated[ends_at]["loss"]), math.log(run.model.vocab_size)
    started = float(evaluated[0]["loss"]) if run.start.run and 0 in evaluated else math.inf
    least, of = min((guess, "guessing"), (started, "the weights it started from"))
    if loss <= least:
        return ""
    return f"held-out loss {loss:.3f} at the end, {least:.3f} by {of}: try a smaller optim.lr"


def _mean(values: list) -> float:
    """Of those that are numbers: what was skipped has none."""
    numbers = np.array(values, np.float64)
    return float(np.mean(numbers[np.isfinite(numbers)]))
