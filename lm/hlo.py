"""What a compiled program sends between devices, read from its text (HLO).

found = collectives(compiled.as_text(), n_devices=16)
found[0].kind, found[0].n, found[0].bytes       "all-gather", times a step, bytes each time
"""

import dataclasses
import math
import re

KINDS = (
    *("all-gather", "reduce-scatter", "all-reduce"),
    *("all-to-all", "ragged-all-to-all", "collective-permute"),
)
BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16}
BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128}
HEAD = re.compile(r"^(?:ENTRY )?%?([^\s(]+) \(.*\{$")
LINE = re.compile(r"^\s+(?:ROOT )?%?([^\s=]+) = (.*?) ([a-z][a-z0-9-]*)\(")
CALLED = re.compile(r"(?:calls|to_apply|called_computation|async_execution_thread)=%?([^\s,}]+)")
LOOP = re.compile(r"condition=%?([^\s,]+), body=%?([^\s,]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclasses.dataclass
class Collective:
    kind: str  # one of KINDS
    n: int  # times a step: once a pass through every loop around it
    bytes: float  # that leave a device each time, in rings: all but its own share
    group: tuple[int, ...]  # places in the mesh of one group of those that take part


def collectives(text: str, n_devices: int) -> list[Collective]:
    """Every collective that an optimised program runs, loops unrolled in the count.

    One that is split into a start, steps within other work and an end is counted once. A TPU's
    all-reduce that keeps only a slice counts as the reduce-scatter that it is.
    """
    bodies, entry = _computations(text)
    found: dict[str, Collective] = {}
    _walk(bodies, entry, 1, n_devices, found)
    return list(found.values())


def totals(found: list[Collective]) -> dict[str, dict[str, float]]:
    """Kind -> how many a step and how many bytes they send from each device, most bytes first."""
    rows = {}
    for kind in KINDS:
        mine = [one for one in found if one.kind == kind]
        if mine:
            sent = sum(one.n * one.bytes for one in mine)
            rows[kind] = {"n": sum(one.n for one in mine), "bytes": sent}
    return dict(sorted(rows.items(), key=lambda row: -row[1]["bytes"]))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by its name, and the name of the first to run."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        head = HEAD.match(line)
        if head and not line.startswith("HloModule"):
            bodies[head[1]] = lines = []
            entry = head[1] if line.startswith("ENTRY") else entry
        elif line.startswith(" "):
            lines.append(line)
    return bodies, entry


def _walk(bodies, name: str, times: int, n_devices: int, found: dict[str, Collective]) -> None:
    for line in bodies.get(name, []):
        parsed = LINE.match(line)
        if not parsed:
            continue
        _, shape, operation = parsed.groups()
        kind = operation.removesuffix("-start")
        if operation == "while":
            loop = LOOP.search(line)
            assert loop, line
            _walk(bodies, loop[2], times * _trips(bodies, line, loop[1]), n_devices, found)
        elif kind in KINDS:
            channel = CHANNEL.search(line)
            key = channel[1] if channel else f"{name}/{parsed[1]}"
            if key not in found:
                group = _group(line, n_devices)
                sliced = kind == "all-reduce" and name.startswith("all-reduce-scatter")
                sent = _sent(kind, shape, len(group), operation.endswith("-start"))
                kind, sent = ("reduce-scatter", sent / 2) if sliced else (kind, sent)
                found[key] = Collective(kind, times, sent, group)
        elif operation == "conditional":
            branches = BRANCHES.search(line)
            for branch in branches[1].split(",") if branches else []:
                _walk(bodies, branch.strip().lstrip("%"), times, n_devices, found)
        elif operation in ("fusion", "call", "async-start"):
            for called in CALLED.findall(line):
                _walk(bodies, called, times, n_devices, found)


def _trips(bodies: dict[str, list[str]], line: str, condition: str) -> int:
    """How often a loop runs: as the compiler says, or the number its counter is held against."""
    known = TRIPS.search(line)
    if known:
        return int(known[1])
    numbers = re.findall(r"[su]32\[\]\S* constant\((\d+)\)", "\n".join(bodies.get(condition, [])))
    return max((int(number) for number in numbers), default=1)


def _sent(kind: str, shape: str, size: int, started: bool) -> float:
    """Bytes that a ring sends from each device for a result of this shape (of a start: in, out)."""
    parts = [
        math.prod(int(n) for n in sides.split(",") if n) * BITS.get(dtype, 8) / 8
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    ]
    total, others = sum(parts), (size - 1) / size
    if kind == "collective-permute":
        return max(parts)
    if kind == "all-gather":
        return others * (total * size / (size + 1) if started else total)
    if kind == "reduce-scatter":  # its result is a share of what each brings
        return (size - 1) * (total / (size + 1) if started else total)
    return others * total * (2 if kind == "all-reduce" else 1)


def _group(line: str, n_devices: int) -> tuple[int, ...]:
    """The first group of replica_groups, which is written in four ways, or of a permutation."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
    if pairs:
        return int(pairs[1]), int(pairs[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    if listed:
        return tuple(int(n) for n in listed[1].split(","))
    counted = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line)
    if counted:
        size = int(counted[1].split(",")[-1])
        sides = [int(n) for n in counted[2].split(",")]
        order = [int(n) for n in counted[3].split(",")] if counted[3] else range(len(sides))
        return tuple(_transposed(sides, list(order), i) for i in range(size))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line)
    if named:
        sides = [(a, int(n)) for a, n in re.findall(r"'([^']+)'=(\d+)", named[1])]
        places = [0]
        stride = math.prod(size for _, size in sides)
        for axis, size in sides:
            stride //= size
            if f"'{axis}'" in named[2]:
                places = [place + i * stride for place in places for i in range(size)]
        return tuple(places)
    return tuple(range(n_devices))


def _transposed(sides: list[int], order: list[int], place: int) -> int:
    """The number at `place` of 0, 1, 2 ... laid out by `sides`, its axes then put in `order`."""
    number = 0
    for axis in reversed(order):
        place, at = divmod(place, sides[axis])
        number += at * math.prod(sides[axis + 1 :])
    return number
