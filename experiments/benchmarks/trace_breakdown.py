"""Where the time of a train step goes: the operations of a trace, by what they are part of.

with jax.profiler.trace(folder):
    ...steps...
shares(folder, compiled.as_text(), wall_seconds, n_devices)
    {"matmul": 0.55, "attention": 0.21, ..., "dispatch and waiting": 0.06}
"""

import pathlib
import re

import jax

# Part -> a scope in the name of an operation (lm/training/step.py, lm/model/transformer.py), first
# match counts.
SCOPES = {"optimizer": "optimizer", "attention": "attention", "softmax and loss": "loss"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*?\b([a-z][\w-]*)\(", re.M)


def shares(folder: str, hlo: str, seconds: float, n_devices: int) -> dict[str, float]:
    """Part -> share of `seconds` on n_devices; what no operation took is dispatch and waiting."""
    parts, spent = parts_of(hlo), {}
    for name, took in operations(folder):
        part = parts.get(name, "norms, rotation, gates, adding")
        spent[part] = spent.get(part, 0.0) + took
    found = {part: took / seconds / n_devices for part, took in spent.items()}
    found = dict(sorted(found.items(), key=lambda item: -item[1]))
    return found | {"dispatch and waiting": max(0.0, 1 - sum(found.values()))}


def parts_of(hlo: str) -> dict[str, str]:
    """Name of an operation -> its part, for those that have one."""
    found = {}
    for line in hlo.splitlines():
        said = LINE.match(line)
        if not said:
            continue
        name, kind = said[1], said[2]
        scope = re.search(r'op_name="([^"]*)"', line)
        scope = scope[1] if scope else ""
        part = next((p for p, word in SCOPES.items() if re.search(rf"\b{word}\b", scope)), "")
        is_product = kind in ("dot", "convolution") or scope.endswith("dot_general")
        if kind.removesuffix("-start").removesuffix("-done") in COLLECTIVES:
            found[name] = "collectives"
        elif is_product and part != "attention":
            found[name] = "matmul"
        elif part:
            found[name] = part
    return found


def operations(folder: str) -> list[tuple[str, float]]:
    """(name, seconds without those of operations within it) of each operation in the last trace."""
    path = max(pathlib.Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    found = []
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            events = [e for e in line.events if "hlo_op" in dict(e.stats)]
            events.sort(key=lambda event: (event.start_ns, -event.duration_ns))
            open_, own = [], [event.duration_ns for event in events]
            for place, event in enumerate(events):
                while open_ and events[open_[-1]].end_ns <= event.start_ns:
                    open_.pop()
                if open_:
                    own[open_[-1]] -= event.duration_ns
                open_.append(place)
            found += [(e.name, ns / 1e9) for e, ns in zip(events, own, strict=True)]
    return found
