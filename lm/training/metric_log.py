"""Facts and metric rows of a run.

    row = step_metrics(run, text, window, done) | throughput(run, steps, seconds, peak)

The session writes each row to metrics.jsonl; lm/training/trackers.py copies it.
"""

import collections
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Iterable

import jax
import numpy as np

from lm.config import fields, flops, hyperparameter_rules, schema
from lm.config.schedules import batch_size_schedule
from lm.data import dataset, tokenizers
from lm.data.prepared import recorded_text
from lm.data.tokenization import run_tokenizer
from lm.model import memory_estimate
from lm.model.kernels import kernel_table
from lm.parallel import distributed, peak_flops, platform_facts
from lm.runs import provenance, records

Report = Callable[[dict], None]  # receives rows of metrics.jsonl or evals.jsonl
# A loss within this distance of a uniform guess shows that the run learned nothing, in nats.
LOSS_TOLERANCE = 1e-3
LOSS_RISE = 0.2  # nats; a larger rise of the loss precedes the divergence of a run


def ignore_row(row: dict) -> None:
    """Ignore a reported row."""


class RowTime:
    """Time of the steps since the last row of metrics.

    total: seconds of training over all sessions. n_steps: number of steps of this session; steps
    of an earlier session in a restored window are not counted. seconds: duration of these steps.
    waited: seconds of it that were spent waiting for batches.
    """

    def __init__(self, total: float = 0.0):
        self.total, self.n_steps, self.seconds, self.waited = total, 0, 0.0, 0.0

    def add(self, n_steps: int, seconds: float, waited: float) -> None:
        """Add a number of steps and their duration."""
        self.total += seconds
        self.n_steps += n_steps
        self.seconds += seconds
        self.waited += waited


def collect_run_facts(
    run: schema.Run, text: dataset.TokenDataset, device_mesh: jax.sharding.Mesh, peak: float
) -> dict:
    """Return the facts of a run that its analysis needs: counts, costs, text, devices, versions.

    text: dataset of the run. device_mesh: mesh on which the run trains. peak: peak FLOP/s of the
    mesh in matrix products.
    """
    device = device_mesh.devices.flat[0]
    kernels = kernel_table.select_kernels(run, device_mesh)
    layout = memory_estimate.resolve_layout(run, device_mesh.size, device.platform)
    known_peak = peak_flops.find_peak(device.device_kind)
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    facts = flops.run_facts(run) | {
        "config_hash": config_hash(run),
        **recorded_text.text_facts(text),
        "unique_tokens": text.unique_tokens,
        "corpus.bytes_per_token": text.bytes_per_token,
        "corpus.warnings": [m.warning for m in text.manifests.values() if m.warning],
        "host": platform.node(),
        "devices": device_mesh.size,
        "devices.kind": device.device_kind,
        "devices.mesh": dict(device_mesh.shape),
        "devices.cut": [
            layout.optim.grad_accumulation_steps,
            layout.model.loss_chunks,
            layout.model.remat,
            layout.mesh.rules,
        ],
        "devices.attention": kernels.attention.name,
        "devices.peak_flops_per_second": peak,
        "devices.peak_source": known_peak.source if known_peak else "measured",
        "versions.python": platform.python_version(),
        "code.version": provenance.package_version(),
        "code.commit": provenance.git_commit(),
    }
    facts |= {f"versions.{p}": importlib.metadata.version(p) for p in packages}
    facts |= platform_facts.collect_platform_facts(device_mesh)
    facts |= {f"epochs.{source}": n for source, n in text.epochs(run.steps).items()}
    facts |= {f"floor.{source}": nats for source, (nats, _) in dataset.entropy_bounds(text).items()}
    for source, manifest in text.manifests.items():
        facts |= {f"documents.{split}.{source}": n for split, n in manifest.documents.items()}
        facts |= {f"dropped.{reason}.{source}": n for reason, n in manifest.dropped.items()}
        facts[f"duplicates.{source}"] = manifest.duplicates
        facts[f"heldout.groups.{source}"] = manifest.groups.get("heldout", 0)
    for source, rows in dataset.packing_stats(text).items():
        facts |= {f"rows.{name}.{source}": value for name, value in rows.items()}
    return facts


def start_attempt(
    run: schema.Run, facts: dict, tokenizer: tokenizers.Tokenizer, valid_until: int
) -> int:
    """Save the tokenizer of a run, then open its records. Return the number of the attempt.

    facts: entries of facts.json; the checksums of the tokenizer are added. valid_until: see
    records.start_run. Raises ValueError like records.start_run, and if a tokenizer file of an
    earlier attempt is damaged.
    """
    facts = facts | run_tokenizer.save_tokenizer(run, tokenizer)
    return records.start_run(run, facts, valid_until)


def config_hash(run: schema.Run) -> str:
    """Return a hash of all fields that determine the result of a run, 16 hexadecimal digits."""
    values = {k: v for k, v in schema.flatten(run).items() if k not in records.EXECUTION_FIELDS}
    values = fields.for_hash(values, schema.Run)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def describe_environment(run: schema.Run, facts: dict) -> str:
    """Return the facts on which the bits of a step depend, as JSON: devices and versions.

    facts: see collect_run_facts. The number of devices is left out with mesh.deterministic_shards.
    All processes return the facts of the primary.
    """
    prefixes = ["devices.kind", "devices.cpu", "devices.xla", "versions.", "code.version"]
    prefixes += [] if run.mesh.deterministic_shards else ["devices"]
    keys = (k for k in facts if k.startswith(tuple(prefixes)) and "peak" not in k)
    environment = json.dumps({k: facts[k] for k in sorted(keys)})
    return distributed.run_on_primary(lambda: environment)


def final_facts(run: schema.Run, done: int, flops_per_token: float) -> dict:
    """Return the status, tokens and FLOPs of a finished run. done: number of completed steps."""
    n_tokens = batch_size_schedule.BatchSizeSchedule.from_config(run.data).count_tokens(done)
    return {"status": "done", "tokens": n_tokens, "flops": n_tokens * flops_per_token}


def step_metrics(
    run: schema.Run, text: dataset.TokenDataset, values: list[dict], done: int
) -> dict:
    """Return the columns of a metrics row that follow from the metrics of its steps.

    values: metrics of the steps since the last row; losses and norms are averaged over them. done:
    number of completed steps.
    """
    tokens = batch_size_schedule.BatchSizeSchedule.from_config(run.data).count_tokens(done)
    loss, grad_norm = (_mean([m[name] for m in values]) for name in ("loss", "grad_norm"))
    return {
        "tokens": tokens,
        "flops": tokens * flops.flops_per_token(run.model, run.data.seq_len)["full"],
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / text.bytes_per_token,
        "grad_norm": grad_norm,
        "lr": float(values[-1]["lr"]),
        "epoch": max(text.epochs(done).values()),
    } | {name: _mean([m[name] for m in values]) for name in values[0] if "experts." in name}


def throughput(run: schema.Run, steps: range, seconds: float, peak: float) -> dict:
    """Return tokens per second, model FLOP/s and MFU over some steps.

    steps, seconds: consecutive steps and their duration. peak: FLOP/s of the mesh in matrix
    products.
    """
    schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
    n_tokens = schedule.count_tokens(steps.stop) - schedule.count_tokens(steps.start)
    tokens_per_second = n_tokens / seconds
    n_flops = tokens_per_second * flops.flops_per_token(run.model, run.data.seq_len)["full"]
    return {
        "tokens_per_second": tokens_per_second,
        "flops_per_second": n_flops,
        "mfu": n_flops / peak,
    }


def find_spikes(recent: collections.deque, row: dict) -> list[str]:
    """Return the metrics of a row that are more than 6 standard deviations above their mean.

    The metrics are "loss" and "grad_norm". recent: the rows before, of which at least 10 are
    needed. The row is appended to `recent`.
    """
    names = []
    for name in ("loss", "grad_norm"):
        past = np.array([old[name] for old in recent])
        if len(past) >= 10 and row[name] > past.mean() + 6 * past.std():
            names.append(name)
    recent.append(row)
    return names


def quality_warning(
    run: schema.Run, evaluated: dict[int, dict], ends_at: int, training_loss: float | None = None
) -> str:
    """Return a warning of one line if the final loss is not below a simple baseline, else "".

    The baselines are a uniform guess among all tokens and, for fine-tuning, the initial weights.
    evaluated: rows of evals.jsonl by step. ends_at: the final step. training_loss: last logged
    loss, for a run without held-out text.
    """
    kind, value = "held-out", evaluated.get(ends_at, {}).get("loss")
    if value is None:
        kind, value = "training", training_loss
    if value is None:
        return ""
    loss, guess_loss = float(value), math.log(run.model.vocab_size)
    has_initial_loss = bool(run.start.run) and "loss" in evaluated.get(0, {})
    initial_loss = float(evaluated[0]["loss"]) if has_initial_loss else math.inf
    lowest, baseline = min((guess_loss, "a uniform guess"), (initial_loss, "the initial weights"))
    if loss < lowest - LOSS_TOLERANCE or (has_initial_loss and loss <= lowest):
        return ""
    remedy = f"try another optim.lr={run.optim.lr:g}, or more steps"
    advice = "; ".join(hyperparameter_rules.unusual_values(run)) or remedy
    return f"{kind} loss {loss:.3f} at the end, {lowest:.3f} by {baseline}: {advice}"


def explain_nonfinite(
    run: schema.Run,
    done: int,
    window: list[dict],
    recent_rows: Iterable[dict],
    load_rows: Callable[[int], dict],
) -> str:
    """Return the observed cause of a non-finite loss or gradient and a remedy, in one line.

    done: number of completed steps. window: metrics of the last steps, of which one is not finite.
    recent_rows: rows of metrics before them. load_rows: function that returns a batch by step.
    """
    is_bad = [not np.isfinite([m["loss"], m["grad_norm"]]).all() for m in window]
    index = is_bad.index(True)
    step = done - len(window) + index  # steps before the first one that is not finite
    largest = int(np.max(load_rows(step)["tokens"]))
    if largest >= run.model.vocab_size:
        return (
            f"the batch of step {step + 1} has token {largest}, and model.vocab_size="
            f"{run.model.vocab_size}: delete the prepared text in data.cache_dir="
            f"{run.data.cache_dir} and repeat the command"
        )
    unusual = hyperparameter_rules.unusual_values(run)
    if step == 0:
        name = "gradient" if math.isfinite(window[index]["loss"]) else "loss"
        observation = f"the {name} of the initial weights is not finite, before any update"
        causes = [phrase for phrase in unusual if phrase.startswith("model.")]
        initial = f"the weights of start.run={run.start.run}" if run.start.run else "model.dtype"
        return f"{observation}: {'; '.join(causes) or f'examine {initial} and the model fields'}"
    losses = [*(row["loss"] for row in recent_rows), *(m["loss"] for m in window[:index])]
    if unusual:
        return "; ".join(unusual)
    if losses and losses[-1] > min(losses) + LOSS_RISE:
        observation = f"the loss rose from {min(losses):.3f} to {losses[-1]:.3f} before that"
        return f"{observation}: try a smaller optim.lr={run.optim.lr:g} or a longer optim.warmup"
    observed = f"the loss was {losses[-1]:.3f} before that and had not risen" if losses else ""
    return (
        f"{observed or 'no loss was recorded before that'}: a single batch can be the cause, which"
        " optim.on_nonfinite='skip' or 'rewind' passes over; otherwise try a smaller"
        f" optim.lr={run.optim.lr:g}"
    )


def _mean(values: list) -> float:
    """Return the mean of the finite values; skipped updates have values that are not finite."""
    array = np.array(values, np.float64)
    return float(np.mean(array[np.isfinite(array)]))
