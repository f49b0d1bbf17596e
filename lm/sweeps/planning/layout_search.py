"""Mesh, pieces of a batch and remat policy with which a run fits a machine and is fastest there.

Arithmetic (lm/sweeps/planning/roofline.py) goes through all of them; the target's compiler judges
the best few.
"""

import copy
import dataclasses
import itertools
from collections.abc import Iterator

from lm.config import axis_rules, fields, schema
from lm.sweeps.planning import aot_compile, cost, hardware, roofline

POLICIES = fields.choices(schema.Run)["model.remat"]


@dataclasses.dataclass
class Candidate:
    run: schema.Run
    guess: roofline.Estimate

    @property
    def order(self) -> tuple[float, float]:
        """Seconds at best, to a part in fifty; among equals, those with the rest shortest."""
        parts = (
            self.guess.compute_seconds,
            self.guess.memory_seconds,
            self.guess.network_seconds,
        )
        return float(f"{max(parts):.2g}"), sum(parts)


def list_candidates(run: schema.Run, target: hardware.Target) -> list[Candidate]:
    """Every mesh, number of pieces and remat policy that the run's sizes allow, fastest first."""
    of, found = roofline.list_weights(run.model), []
    for sizes in list_meshes(run, target.n_devices):
        rows = run.data.batch_size // (sizes["data"] * sizes["fsdp"] * sizes["expert"])
        pieces = [n for n in divisors(rows) if n & (n - 1) == 0]  # powers of two
        for accumulate, remat in itertools.product(pieces, POLICIES):
            other = copy.deepcopy(run)
            other.optim.grad_accumulation_steps = accumulate
            other.model.remat = remat
            for axis, size in sizes.items():
                setattr(other.mesh, axis, size)
            try:
                found.append(Candidate(other, roofline.estimate_step(other, target, of)))
            except ValueError:  # a dimension that does not divide
                continue
    return sorted(found, key=lambda one: one.order)


def list_meshes(run: schema.Run, n_devices: int) -> Iterator[dict[str, int]]:
    """Every way to lay out the devices along the mesh axes that the run can use."""
    for tensor in divisors(n_devices, run.model.n_kv_heads):
        for sequence in divisors(n_devices // tensor, run.data.seq_len // 1024):
            for expert in divisors(n_devices // tensor // sequence, run.model.n_experts):
                rest = n_devices // tensor // sequence // expert
                for fsdp in divisors(rest):
                    sizes = (rest // fsdp, fsdp, expert, sequence, tensor)
                    yield dict(zip(axis_rules.MESH_AXES, sizes, strict=True))


def divisors(n: int, most: int | None = None) -> list[int]:
    """Of n, up to `most` and at least 1."""
    return [i for i in range(1, n + 1) if n % i == 0 and i <= max(1, n if most is None else most)]


def search_layouts(
    run: schema.Run, target: hardware.Target, n: int, compiling: bool = True
) -> list[dict]:
    """cost.plan_run of the n that promise most, fastest first, those that do not fit last.

    Where the compiler finds that a policy takes more than was guessed, what is left is judged by
    that. ValueError if nothing fits even by arithmetic.
    """
    left, rows = list_candidates(run, target), []
    factor = dict.fromkeys(POLICIES, 1.0)  # compiled over guessed temporaries
    least = min((one.guess.bytes for one in left), default=float("inf"))

    def fits(one: Candidate) -> bool:
        guess = one.guess
        more = (factor[one.run.model.remat] - 1) * guess.temporaries
        return guess.bytes + more <= target.spec.memory

    while len(rows) < n and (left := [one for one in left if fits(one)]):
        one = left.pop(0)
        sizes = axis_rules.resolve_mesh_shape(vars(one.run.mesh), target.n_devices)
        made = aot_compile.compile_step(one.run, target) if compiling else None
        rows.append(cost.combine_estimates(one.run, target, sizes, one.guess, made))
        if made:
            policy = one.run.model.remat
            factor[policy] = max(factor[policy], made.temporaries / one.guess.temporaries)
    if not rows:
        over = (least - target.spec.memory) / hardware.GIB
        raise ValueError(
            f"{run.name} fits {target.name} in no layout: {over:.1f} GiB too much in the smallest;"
            " try more devices, model.attention_query_blocks, model.loss_chunks or a smaller batch"
        )
    return sorted(rows, key=lambda r: (r["bytes_over"] > 0, r["roofline_seconds"] or 0.0))
