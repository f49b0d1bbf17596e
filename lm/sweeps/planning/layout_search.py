"""Search for the fastest layout of a run that fits into the memory of target hardware.

A layout is a mesh, a number of gradient accumulation steps and a rematerialization policy. The
analytic estimate (lm/sweeps/planning/roofline.py) ranks all layouts. The target's compiler then
checks the best of them.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator

from lm.config import axis_rules, schema
from lm.model import memory_estimate
from lm.sweeps.planning import aot_compile, cost, hardware, roofline

POLICIES = ("none", "dots", "full")  # the other values of model.remat are between these


@dataclasses.dataclass
class Candidate:
    """A run with one layout, and its analytic estimate."""

    run: schema.Run
    estimate: roofline.Estimate

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key: the longest time of a resource to two digits, then the sum of all times."""
        times = (
            self.estimate.compute_seconds,
            self.estimate.memory_seconds,
            self.estimate.network_seconds,
        )
        return float(f"{max(times):.2g}"), sum(times)


def list_candidates(run: schema.Run, target: hardware.Target) -> list[Candidate]:
    """Return all layouts that the sizes of the run allow, fastest first."""
    weights = memory_estimate.list_weights(run.model)
    candidates = []
    for axis_sizes in list_meshes(run, target.n_devices, target.n_slices):
        n_batch_shards = axis_sizes["data"] * axis_sizes["fsdp"] * axis_sizes["expert"]
        n_rows = run.data.batch_size // n_batch_shards
        powers_of_two = [n for n in divisors(n_rows) if n & (n - 1) == 0]
        for n_steps, remat in itertools.product(powers_of_two, POLICIES):
            candidate = copy.deepcopy(run)
            candidate.optim.grad_accumulation_steps = n_steps
            candidate.model.remat = remat
            for axis, size in axis_sizes.items():
                setattr(candidate.mesh, axis, size)
            try:
                estimate = roofline.estimate_step(candidate, target, weights)
            except ValueError:  # the mesh does not divide a dimension of the model
                continue
            candidates.append(Candidate(candidate, estimate))
    return sorted(candidates, key=lambda candidate: candidate.rank)


def list_meshes(run: schema.Run, n_devices: int, n_slices: int = 1) -> Iterator[dict[str, int]]:
    """Yield the sizes of the mesh axes of all meshes that the run can use.

    n_slices: slices or nodes, over which only the data axis extends.
    """
    for tensor in divisors(n_devices, run.model.n_kv_heads):
        for sequence in divisors(n_devices // tensor, run.data.seq_len // 1024):
            for expert in divisors(n_devices // tensor // sequence, run.model.n_experts):
                n_data_and_fsdp = n_devices // tensor // sequence // expert
                for fsdp in divisors(n_data_and_fsdp):
                    if n_data_and_fsdp // fsdp % n_slices:
                        continue
                    sizes = (n_data_and_fsdp // fsdp, fsdp, expert, sequence, tensor)
                    yield dict(zip(axis_rules.MESH_AXES, sizes, strict=True))


def divisors(n: int, limit: int | None = None) -> list[int]:
    """Return the divisors of n up to max(limit, 1), or all of them without a limit, in order."""
    small = [i for i in range(1, math.isqrt(n) + 1) if n % i == 0]
    largest = max(1, n if limit is None else limit)
    return sorted(i for i in {*small, *(n // i for i in small)} if i <= largest)


def search_layouts(
    run: schema.Run, target: hardware.Target, n: int, should_compile: bool = True
) -> list[dict]:
    """Return the rows of cost.plan_run for the n most promising layouts.

    Layouts that fit come first, sorted by time. If the compiler needs more temporaries for a
    rematerialization policy than estimated, the estimates of the remaining layouts with this policy
    are scaled up. Raises ValueError if no layout fits by the analytic estimate.
    """
    candidates, rows = list_candidates(run, target), []
    # Compiled divided by estimated temporaries.
    temporaries_factor: dict[str, float] = dict.fromkeys(POLICIES, 1.0)
    min_bytes = min((candidate.estimate.bytes for candidate in candidates), default=float("inf"))

    def fits(candidate: Candidate) -> bool:
        factor = temporaries_factor[candidate.run.model.remat]
        correction = (factor - 1) * candidate.estimate.temporaries
        return candidate.estimate.bytes + correction <= target.spec.memory_bytes

    while len(rows) < n:
        candidates = [candidate for candidate in candidates if fits(candidate)]
        if not candidates:
            break
        best = candidates.pop(0)
        axis_sizes = axis_rules.resolve_mesh_shape(vars(best.run.mesh), target.n_devices)
        compiled = aot_compile.compile_step(best.run, target) if should_compile else None
        row = cost.combine_estimates(best.run, target, axis_sizes, best.estimate, compiled)
        rows.append(row)
        if compiled:
            policy = best.run.model.remat
            factor = compiled.temporaries / best.estimate.temporaries
            temporaries_factor[policy] = max(temporaries_factor[policy], factor)
    if not rows:
        over = (min_bytes - target.spec.memory_bytes) / hardware.GIB
        raise ValueError(
            f"--target={target.name}: {run.name} fits in no layout. The smallest layout exceeds the"
            f" memory of a device by {over:.1f} GiB. Use more devices, a larger"
            " model.attention_query_blocks or model.loss_chunks, or a smaller data.batch_size."
        )
    return sorted(rows, key=lambda row: (row["bytes_over"] > 0, row["roofline_seconds"] or 0.0))
