"""Log of the predictions of a sweep, and hashes of the records that a prediction depends on.

    hashes = prediction_log.hash_records(run_dir)           # of a run that the law is fitted to
    prediction_log.register_prediction(sweep_dir, run_dir, prediction)
    prediction_log.register_result(sweep_dir, run_dir, target)
    entries = prediction_log.read_entries(sweep_dir)

predictions.jsonl in the folder of a sweep has a line per entry, and each line has the hash of the
line before:

{"kind": "prediction", "target": "s/600K", "prediction": SHA-256 of prediction.json, ...}
{"kind": "result", "target": "s/600K", "records": hashes of its records, "previous": ..., ...}

The predicted run has the hash of its entry in the first line of its events.jsonl, at step 0. The
sweep writes this line before the run starts.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm.config import fields, schema
from lm.runs import filesystem, json_files, records
from lm.runs.integrity import record_checksums, record_lines, stored_config

FILE = "predictions.jsonl"
PREDICTION, RESULT = "prediction", "result"  # kinds of an entry
EVENT = "predicted"  # event of the predicted run
PREVIOUS, SHA256 = "previous", record_checksums.SHA256
LINE_FILES = ("metrics.jsonl", "evals.jsonl", "events.jsonl")
# Facts without influence on the hash: an archive omits them, or a user may add them later.
UNHASHED_FACTS = ("host", "invalid_results", record_lines.N_LINES, record_lines.N_MISSING)


def content_sha256(value: Mapping) -> str:
    """Return the SHA-256 of plain data, independent of the order and the layout of its JSON."""
    return record_checksums.object_sha256(json.loads(json_files.to_json(dict(value))))


def config_sha256(run: schema.Run) -> str:
    """Return the SHA-256 of the config fields that affect the result of a run, without its name."""
    return content_sha256(fields.without_new_defaults(records.result_fields(run), schema.Run))


def hash_records(folder: Path) -> dict[str, Any]:
    """Return {file: hash} of the records of a run, and its run_id. Missing files have no entry.

    The hash of a .jsonl file is [number of lines, SHA-256 of these lines], because a later
    evaluation may append lines. The hash of config.json excludes the name and the fields that
    do not affect the result. Raises ValueError for a damaged config.json or facts.json.
    """
    facts = records.read_facts(folder)
    hashes: dict[str, Any] = {}
    if (folder / "config.json").exists():
        run, run_id = stored_config.load_config(folder, facts, is_used=False)
        hashes |= {"run_id": run_id, "config.json": config_sha256(run)}
    if facts:
        stable = {name: value for name, value in facts.items() if name not in UNHASHED_FACTS}
        hashes["facts.json"] = content_sha256(stable)
    for name in LINE_FILES:
        if lines := filesystem.read_lines(folder / name):
            hashes[name] = [len(lines), _lines_sha256(lines)]
    return hashes


def changed_records(folder: Path, hashes: Mapping[str, Any]) -> list[str]:
    """Return the files of a run whose content differs from its earlier `hash_records`.

    Lines that were appended later are no change.
    """
    current, changed = hash_records(folder), []
    for name, expected in hashes.items():
        if name in LINE_FILES:
            n_lines = expected[0] if isinstance(expected, list) and expected else None
            lines = filesystem.read_lines(folder / name)[:n_lines]
            if [len(lines), _lines_sha256(lines)] != expected:
                changed.append(name)
        elif current.get(name) != expected:
            changed.append(name)
    names = ("config.json" if name == "run_id" else name for name in changed)
    return list(dict.fromkeys(names))


def register_prediction(sweep_dir: Path, run_dir: Path, prediction: Mapping) -> str:
    """Append the hash of a prediction to the log, and that of its entry to the predicted run.

    run_dir: folder of the predicted run, which has not started. prediction: content of
    prediction.json. Return the hash of the prediction. The line of the run has attempt 0, because
    the first attempt is 1.
    """
    sha256 = content_sha256(prediction)
    content = {"prediction": sha256, "time": prediction["written"]}
    entry = _append_entry(sweep_dir, PREDICTION, prediction["target"], content)
    run_dir.mkdir(parents=True, exist_ok=True)
    row = {
        "attempt": 0,
        "step": 0,
        "event": EVENT,
        "words": f"prediction.json has SHA-256 {sha256}",
    }
    row |= {"prediction": sha256, "entry": entry[SHA256], "time": content["time"]}
    records.append_record(run_dir / "events.jsonl", row)
    return sha256


def is_registered(sweep_dir: Path, run_dir: Path, prediction: Mapping) -> bool:
    """Return True if a prediction is the last one in the log and in the events of its run."""
    entries = find_entries(sweep_dir, PREDICTION, prediction["target"])
    events = predicted_events(run_dir)
    is_last = bool(entries) and entries[-1].get("prediction") == content_sha256(prediction)
    return is_last and [e["entry"] for e in events] == [e.get(SHA256) for e in entries]


def predicted_events(run_dir: Path) -> list[dict]:
    """Return the lines of events.jsonl that `register_prediction` has appended."""
    events = json_files.read_rows(run_dir / "events.jsonl")
    return [event for event in events if event.get("event") == EVENT and "entry" in event]


def register_result(sweep_dir: Path, run_dir: Path, target: str) -> None:
    """Append the hashes of the records of a finished predicted run to the log.

    An attempt of the run is registered once.
    """
    n_attempts = records.read_facts(run_dir).get("attempts", 0)
    results = find_entries(sweep_dir, RESULT, target)
    if all(entry.get("attempts", 0) < n_attempts for entry in results):
        content = {"attempts": n_attempts, "records": hash_records(run_dir)}
        _append_entry(sweep_dir, RESULT, target, content | {"time": records.current_time()})


def read_entries(sweep_dir: Path) -> list[dict]:
    """Return the lines of the log, {} for a damaged line. Hashes are not verified."""
    return [_parse(line) for line in filesystem.read_lines(sweep_dir / FILE)]


def find_entries(sweep_dir: Path, kind: str, target: str) -> list[dict]:
    """Return the entries of one kind for a predicted run, in order."""
    entries = read_entries(sweep_dir)
    return [e for e in entries if (e.get("kind"), e.get("target")) == (kind, target)]


def find_broken_entry(entries: list[dict]) -> int:
    """Return the number of the first entry whose hash or previous hash is wrong, 0 if intact."""
    previous = ""
    for number, entry in enumerate(entries, 1):
        is_intact = entry.get(SHA256) == record_checksums.object_sha256(entry)
        if not is_intact or entry.get(PREVIOUS) != previous:
            return number
        previous = entry[SHA256]
    return 0


def _append_entry(sweep_dir: Path, kind: str, target: str, content: Mapping) -> dict:
    """Append a line to the log and return it."""
    filesystem.repair_append_file(sweep_dir / FILE)
    entries = read_entries(sweep_dir)
    entry = {"kind": kind, "target": target, **content}
    entry[PREVIOUS] = entries[-1].get(SHA256, "") if entries else ""
    entry[SHA256] = record_checksums.object_sha256(entry)
    filesystem.append_line(sweep_dir / FILE, json_files.to_json(entry))
    return entry


def _parse(line: str) -> dict:
    """Return the JSON object of a line, {} if it has none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _lines_sha256(lines: list[str]) -> str:
    text = "".join(f"{line}\n" for line in lines)
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()
