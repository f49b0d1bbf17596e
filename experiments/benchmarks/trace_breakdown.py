"""Breakdown of the time of a train step: the share of each part, from a profiler trace.

    with jax.profiler.trace(folder):
        ...                                          # some steps
    time_shares(folder, compiled.as_text(), wall_seconds, n_devices)
        # {"matmul": 0.55, "attention": 0.21, ..., "dispatch and waiting": 0.06}

The scopes in the names of operations determine the parts: see SCOPES.
"""

import pathlib
import re

import jax

# Part -> scope in the name of an operation (lm/training/step.py, lm/model/transformer.py). The
# first match determines the part.
SCOPES = {"optimizer": "optimizer", "attention": "attention", "softmax and loss": "loss"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
OTHER = "norms, rotation, gates, adding"
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?\b([a-z][\w-]*)\(", re.M)


def time_shares(folder: str, hlo: str, seconds: float, n_devices: int) -> dict[str, float]:
    """Return part -> share of `seconds` on n_devices, largest first.

    Time without any operation is "dispatch and waiting".
    """
    parts, part_seconds = operation_parts(hlo), {}
    for name, own_seconds in operation_seconds(folder):
        part = parts.get(name, OTHER)
        part_seconds[part] = part_seconds.get(part, 0.0) + own_seconds
    shares = {part: total / seconds / n_devices for part, total in part_seconds.items()}
    shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return shares | {"dispatch and waiting": max(0.0, 1 - sum(shares.values()))}


def operation_parts(hlo: str) -> dict[str, str]:
    """Return operation name -> part, for operations of a known part."""
    parts = {}
    for line in hlo.splitlines():
        instruction = INSTRUCTION.match(line)
        if not instruction:
            continue
        name, kind = instruction[1], instruction[2]
        scope = re.search(r'op_name="([^"]*)"', line)
        scope = scope[1] if scope else ""
        part = next((p for p, word in SCOPES.items() if re.search(rf"\b{word}\b", scope)), "")
        is_product = kind in ("dot", "convolution") or scope.endswith("dot_general")
        if kind.removesuffix("-start").removesuffix("-done") in COLLECTIVES:
            parts[name] = "collectives"
        elif is_product and part != "attention":
            parts[name] = "matmul"
        elif part:
            parts[name] = part
    return parts


def operation_seconds(folder: str) -> list[tuple[str, float]]:
    """Return (operation name, seconds) of the newest trace in a folder.

    The seconds of an operation exclude the operations within it.
    """
    path = max(pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    operations = []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            events = [event for event in line.events if "hlo_op" in dict(event.stats)]
            events.sort(key=lambda event: (event.start_ns, -event.duration_ns))
            own_ns = [event.duration_ns for event in events]
            stack = []  # indices of the events that contain the current event
            for i, event in enumerate(events):
                while stack and events[stack[-1]].end_ns <= event.start_ns:
                    stack.pop()
                if stack:
                    own_ns[stack[-1]] -= event.duration_ns
                stack.append(i)
            operations += [(e.name, ns / 1e9) for e, ns in zip(events, own_ns, strict=True)]
    return operations
