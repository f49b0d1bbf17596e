"""The small records of a sweep, in a folder of their own that can be committed and drawn again.

    excerpt.write("runs/quickstart", "notebooks/data/quickstart")     # bytes written
    rows = records.rows("notebooks/data/quickstart")                  # as of the sweep's own folder

Kept are the knobs, facts, evaluations and events of every run, its log steps thinned out, and what
was planned and predicted; not weights, tokenizers or TensorBoard's files. Numbers of lines keep
seven digits. A path that leads out of the clone (/..., ~/..., ../..., gs://...) loses the folders
that say where and whose it was: jsonl:/home/me/text/books/*.gz becomes jsonl:books/*.gz.
"""

import json
import re
from pathlib import Path, PurePosixPath

from lm import records, storage

OF_SWEEP = ("sweep.json", "plan.json", "prediction.json")
OF_RUN = ("config.json", "facts.json", "metrics.jsonl", "evals.jsonl", "events.jsonl")
DRAWN = ("report.html", "figures")  # what a report writes beside them stays
LEFT_OUT = ("host",)  # facts that name a machine
LINES = (128, 64, 32, 16)  # log steps of a run: the most that fit
DIGITS = 7
OUTSIDE = re.compile(r"""(?<![\w.*~/])(?:gs:/|~|\.\.(?:/\.\.)*)?(?:/[^\s/:;,?&"'()]+)+/?""")
HOMES = re.compile(r"^(?:~|/root|/(?:home|Users)/[^/]+)(?=/|$)")


def write(sweep_dir, to, megabytes: float = 1.5) -> int:
    """Replaces the folder `to` by the records of a sweep; returns its bytes.

    ValueError if nothing is there to keep, if `to` holds anything that is no record, or if the
    records take more than `megabytes` even with the fewest lines of LINES.
    """
    path, to = storage.at(sweep_dir), storage.at(to)
    _check(path, to)
    whole = _read(path)
    names = _shortened(set().union(*(_outside(value) for value in whole.values())))
    kept: dict[str, str] = {}
    for most in LINES:
        kept = {name: _text(name, _renamed(value, names), most) for name, value in whole.items()}
        if _bytes(kept) <= megabytes * 1e6:
            break
    else:
        raise ValueError(
            f"the records of {path} take {_bytes(kept) / 1e6:.1f} MB even with {LINES[-1]} log "
            f"steps a run, over --megabytes={megabytes:g}: raise it, or keep fewer runs"
        )
    for stale in set(_present(to)) - set(kept):
        (to / stale).unlink()
    for name, text in kept.items():
        storage.write(to / name, text)
    return _bytes(kept)


def _check(path: Path, to: Path) -> None:
    here, there = Path(path).absolute(), Path(to).absolute()
    if here == there or here in there.parents or there in here.parents:
        raise ValueError(
            f"--keep={to} must lie outside of the sweep's folder {path}, and not hold it"
        )
    strange = [name for name in _present(to) if Path(name).name not in OF_SWEEP + OF_RUN]
    if strange:
        raise ValueError(f"--keep={to} holds {strange[0]}, no record of a sweep: name a new folder")


def _present(to: Path) -> list[str]:
    """Files below the folder, but those that a report draws."""
    found = (file for file in to.glob("**/*") if file.is_file())
    names = [file.relative_to(to) for file in found]
    return sorted(name.as_posix() for name in names if name.parts[0] not in DRAWN)


def _read(path: Path) -> dict[str, dict | list[dict]]:
    """{file, as seen from the sweep: what it holds}."""
    found: dict[str, dict | list[dict]] = {
        name: records.read_json(path / name) for name in OF_SWEEP if (path / name).exists()
    }
    runs = [file.parent for file in storage.find(path, "config.json")]
    if not runs:
        raise ValueError(f"{path} holds no runs: name a sweep's folder, such as runs/quickstart")
    for run in runs:
        place = PurePosixPath(run.relative_to(path))
        facts = {k: v for k, v in records.read_facts(run).items() if k not in LEFT_OUT}
        lines = (records.metrics(run), records.evals(run), records.events(run))
        contents = (records.read_json(run / "config.json"), facts, *lines)
        found |= {str(place / file): it for file, it in zip(OF_RUN, contents, strict=True) if it}
    return found


def _text(name: str, value, most: int) -> str:
    if isinstance(value, dict):
        return json.dumps(value, indent=1) + "\n"
    if name.endswith("metrics.jsonl") and len(value) > most:
        value = [value[round(i * (len(value) - 1) / (most - 1))] for i in range(most)]
    return "".join(json.dumps(_rounded(line), separators=(",", ":")) + "\n" for line in value)


def _rounded(line: dict) -> dict:
    return {
        key: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for key, value in line.items()
    }


def _bytes(kept: dict[str, str]) -> int:
    return sum(len(text.encode()) for text in kept.values())


def _outside(value) -> set[str]:
    """All paths that lead out of the clone, in the words of plain data."""
    if isinstance(value, dict):
        return set().union(*(_outside(part) for pair in value.items() for part in pair))
    if isinstance(value, (list, tuple)):
        return set().union(*map(_outside, value))
    return set(OUTSIDE.findall(value)) if isinstance(value, str) else set()


def _shortened(paths: set[str]) -> dict[str, str]:
    """Each path -> its last name, with a folder before a pattern; numbered where others have it."""
    found, taken = {}, {}
    for path in sorted(paths):
        names = _names(path)
        folder, *rest = names[-1 - ("*" in names[-1]) :]
        alike = taken.setdefault((folder, *rest), [])
        alike += [names] * (names not in alike)
        place = alike.index(names) + 1
        found[path] = "/".join([f"{folder}-{place}" if place > 1 else folder, *rest])
    return found


def _names(path: str) -> list[str]:
    inside = HOMES.sub("home", path).removeprefix("gs:/").rstrip("/")
    return [name for name in inside.split("/") if name not in ("", "..")] or ["folder"]


def _renamed(value, names: dict[str, str]):
    """Plain data with every path, in keys too, replaced."""
    if isinstance(value, dict):
        new = {_renamed(key, names): _renamed(part, names) for key, part in value.items()}
        if len(new) < len(value):
            raise ValueError(f"two of {', '.join(value)} have one name without their folders")
        return new
    if isinstance(value, (list, tuple)):
        return [_renamed(part, names) for part in value]
    return OUTSIDE.sub(lambda hit: names[hit[0]], value) if isinstance(value, str) else value
