"""Checksums of records: the SHA-256 of a JSON object, the CRC-32 of a JSON line.

{"format_version": 3, "status": "done", ..., "sha256": SHA-256 of the other entries}
{"attempt": 1, "step": 20, "loss": 3.1, "crc32": "9a3f01bc"}

The CRC-32 of a line begins with the run_id of the run. Therefore a line of another run is damaged
too. Readers verify the checksums and remove them.

Upgrade rule of the format: a reader accepts FORMAT_VERSION and the older versions from
OLDEST_VERSION on, and raises ValueError for newer ones. Versions:

1  version 0.1 of this project, which stored no version. It cannot be read.
2  version 0.2: no checksums, the version is the entry "format" of facts.json. Readers do not verify
   these records. The next attempt of such a run adds checksums to its lines.
3  checksums, and the entry "format_version" in each JSON file.
"""

import hashlib
import json
import re
import zlib
from pathlib import Path

FORMAT_VERSION = 3
OLDEST_VERSION = 2
VERSION, SHA256 = "format_version", "sha256"
LINE_CHECKSUM = re.compile(r', ?"crc32": ?"([0-9a-f]{8})"\}$')


def add_checksum(value: dict) -> dict:
    """Return a JSON object with its format version and its SHA-256. value: plain JSON data."""
    content = {VERSION: None} | value | {VERSION: FORMAT_VERSION}
    return content | {SHA256: object_sha256(content)}


def verify_object(path: Path, value: dict) -> dict:
    """Return a JSON object of a file without its SHA-256. Raises ValueError if it is damaged.

    An object without a version and without a SHA-256 was written by version 0.2 and is not
    verified. Raises ValueError for a newer format.
    """
    version = value.get(VERSION, OLDEST_VERSION if SHA256 not in value else None)
    if type(version) is int and version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version={version} is newer than {FORMAT_VERSION}, which this version"
            " of lm-scaling reads: install the version that wrote it"
        )
    if VERSION not in value and SHA256 not in value:
        return value
    if value.get(SHA256) != object_sha256(value):
        raise ValueError(
            f"{path} is damaged, its sha256 differs from its content: {describe_remedy(path)}"
        )
    return {key: item for key, item in value.items() if key != SHA256}


def describe_remedy(path: Path) -> str:
    """Return the remedy for a damaged file, which depends on what its deletion would change."""
    match path.name:
        case "config.json":  # a folder without a config is no run
            return "restore it, or delete the folder of the run"
        case "sweep.json":  # without it, the other runs of the folder belong to the sweep too
            return "restore it, or delete it and repeat the command of the sweep"
        case "prediction.json":  # a new one would be written after the result is known
            return "restore it, or delete it: the sweep then has no prediction"
    return "restore it, or delete it"


def object_sha256(value: dict, own_key: str = SHA256) -> str:
    """Return the SHA-256 of a JSON object without its entry `own_key`, in hexadecimal digits."""
    content = {key: item for key, item in value.items() if key != own_key}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def add_line_checksum(line: str, run_id: str) -> str:
    """Return the line of a JSON object with its CRC-32 as the last entry. line: not {}."""
    return f'{line[:-1]}, "crc32": "{_line_crc32(line, run_id)}"}}'


def verify_line(line: str, run_id: str | None) -> str | None:
    """Return a line without its CRC-32, or None if the CRC-32 is missing or differs.

    run_id: entry of config.json. None is a run without checksums, whose lines are not verified.
    """
    match = LINE_CHECKSUM.search(line)
    if match is None:
        return line if run_id is None else None
    content = f"{line[: match.start()]}}}"
    is_intact = run_id is None or match[1] == _line_crc32(content, run_id)
    return content if is_intact else None


def _line_crc32(line: str, run_id: str) -> str:
    """Return the CRC-32 of a line of a run, eight hexadecimal digits."""
    raw = line.encode(errors="surrogateescape")
    return f"{zlib.crc32(raw, zlib.crc32(run_id.encode())):08x}"
