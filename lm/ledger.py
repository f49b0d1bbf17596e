"""Compute the facts and metric rows of a run: counts, costs, speed, spikes, warnings."""

import collections
import hashlib
import importlib.metadata
import json
import math
import platform

import jax
import numpy as np

from lm import config, data, fields, kernels, records, revision, sizes


class RowTime:
    """Time of the steps since the last row of metrics.

    total: seconds of training over all sessions. A restored window may have steps of an earlier
    session, which n_steps does not count.
    """

    def __init__(self, total: float = 0.0):
        self.total, self.n_steps, self.seconds, self.waited = total, 0, 0.0, 0.0

    def add(self, n_steps: int, seconds: float, waited: float) -> None:
        """Count steps and their duration."""
        self.total += seconds
        self.n_steps += n_steps
        self.seconds += seconds
        self.waited += waited


def facts(run: config.Run, text: data.Text, device_mesh: jax.sharding.Mesh, peak: float) -> dict:
    """Return the facts of a run, so that analysis need not rebuild it.

    peak: FLOP/s of the mesh in matrix products.
    """
    device = device_mesh.devices.flat[0]
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    facts = sizes.facts(run) | {
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
    facts |= {f"versions.{p}": importlib.metadata.version(p) for p in packages}
    facts |= {f"epochs.{source}": n for source, n in text.epochs(run.steps).items()}
    facts |= {f"floor.{source}": nats for source, (nats, _) in data.entropy_bounds(text).items()}
    for source, rows in data.packing_stats(text).items():
        facts |= {f"rows.{name}.{source}": value for name, value in rows.items()}
    return facts


def knobs_hash(run: config.Run) -> str:
    """Return a hash of all fields that determine what the run learns."""
    knobs = {k: v for k, v in config.flatten(run).items() if k not in records.FREE}
    knobs = fields.for_hash(knobs, config.Run)
    return hashlib.sha256(json.dumps(knobs, sort_keys=True).encode()).hexdigest()[:16]


def metrics(run: config.Run, text: data.Text, values: list[dict], done: int) -> dict:
    """Return a metrics row: loss and gradient norm are means over the steps since the last row."""
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
    """Return the throughput of the steps of a row, also as a share of the measured peak."""
    tokens_per_second = steps * run.data.batch_size * run.data.seq_len / seconds
    flops = tokens_per_second * sizes.flops_per_token(run.model, run.data.seq_len)["full"]
    return {
        "tokens_per_second": tokens_per_second,
        "flops_per_second": flops,
        "peak_share": flops / peak,
    }


def spikes(recent: collections.deque, row: dict) -> list[str]:
    """Return the metrics that are 6 standard deviations above their last 20 rows.

    Append the row to `recent`.
    """
    names = []
    for name in ("loss", "grad_norm"):
        past = np.array([old[name] for old in recent])
        if len(past) >= 10 and row[name] > past.mean() + 6 * past.std():
            names.append(name)
    recent.append(row)
    return names


def doubt(run: config.Run, evaluated: dict[int, dict], ends_at: int) -> str:
    """Return a warning of one line if the final loss is worse than a simple baseline, else "".

    The baselines are a uniform guess among all tokens and, for fine-tuning, the initial weights: a
    learning rate for one kind of text may be too high for another.
    """
    if ends_at not in evaluated:
        return ""
    loss, guess = float(evaluated[ends_at]["loss"]), math.log(run.model.vocab_size)
    started = float(evaluated[0]["loss"]) if run.start.run and 0 in evaluated else math.inf
    lowest, baseline = min((guess, "guessing"), (started, "the weights it started from"))
    if loss <= lowest:
        return ""
    return (
        f"held-out loss {loss:.3f} at the end, {lowest:.3f} by {baseline}: try a smaller optim.lr"
    )


def _mean(values: list) -> float:
    """Return the mean of the finite values: skipped updates have none."""
    numbers = np.array(values, np.float64)
    return float(np.mean(numbers[np.isfinite(numbers)]))
