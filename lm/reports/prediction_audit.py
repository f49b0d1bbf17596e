"""Audit of a prediction: hashes from the fitted runs to the result of the predicted run.

    for link in prediction_audit.audit_prediction("runs/quickstart"):
        print(link.status, link.text)

The links of the chain, each with the file that the next one contradicts:

    records of the fitted runs  ->  prediction.json        hashes and values of its inputs
    prediction.json             ->  predictions.jsonl      hash of the file
    predictions.jsonl           ->  events.jsonl           hash of the entry, before the first step
    config.json of the target   ->  prediction.json        hash of its fields
    records of the target       ->  predictions.jsonl      hashes after its last step

The times must have this order as well: the end of the fitted runs, the prediction, the start of the
target. The law is fitted again, which must give the same interval and the same draws.

A change of some of these files is detected. A person who rewrites all of them, with all hashes, is
not detected: the new files agree with each other. Only a hash that was published before the result
was known excludes this, for example in a signed git tag or a public message. Therefore the audit
ends with the hash of the prediction. Records of earlier versions have no hashes, and archives have
rounded numbers. Their links are not verifiable, which is no contradiction.
"""

import datetime
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from lm.reports import paired_errors, target_prediction
from lm.runs import filesystem, records
from lm.runs.integrity import prediction_log, record_checksums, sweep_files

VERIFIED, CONTRADICTION, UNVERIFIABLE = "verified", "contradiction", "not verifiable"
ARCHIVED = "archived"  # entry of the sweep.json of an archive, whose .jsonl files are rounded
INPUT_TOLERANCE = 2e-6  # relative, of the values of an archived run, which have seven digits
REFIT_TOLERANCE = 1e-6  # relative, of a fit by another version of NumPy
CLOCK_SECONDS = 5.0  # difference between the clocks of two machines
BOUNDS = ("value", "lo", "hi", "lo_if_form_right", "hi_if_form_right")


class Link(NamedTuple):
    """Result of the verification of one link of the chain."""

    status: str  # VERIFIED, CONTRADICTION or UNVERIFIABLE
    text: str  # the files that agree or differ


class _Chain(NamedTuple):
    """Files of a sweep that the links compare."""

    folder: Path
    prediction: dict  # content of prediction.json
    entries: list[dict]  # of predictions.jsonl
    rows: dict[str, dict]  # by name, of all runs in the folder
    unreadable: dict[Path, str]
    members: set[str] | None  # names in sweep.json
    is_archive: bool

    @property
    def target(self) -> str:
        return str(self.prediction["target"])

    @property
    def target_dir(self) -> Path:
        return target_prediction.run_folder(self.folder, self.target)

    def entries_of(self, kind: str) -> list[dict]:
        """Return the entries of a kind for the target."""
        return [e for e in self.entries if (e.get("kind"), e.get("target")) == (kind, self.target)]


def audit_prediction(sweep_dir: str | Path, should_refit: bool = True) -> list[Link]:
    """Verify the chain of a prediction. Return the links in the order of the chain.

    should_refit: fit the law again and compare its interval, which takes seconds.
    """
    folder = filesystem.open_path(sweep_dir)
    entries = prediction_log.read_entries(folder)
    try:
        prediction = sweep_files.read_prediction(folder)
        request = sweep_files.read_sweep(folder)
        loaded = records.load_folder(folder)
    except ValueError as error:
        return [Link(CONTRADICTION, str(error))]
    if not prediction:
        return [_missing_prediction(folder, entries)]
    prediction.pop(record_checksums.VERSION, None)
    names = request.get("runs")
    chain = _Chain(
        folder,
        prediction,
        entries,
        {row["name"]: row for row in (*loaded.rows, *loaded.others)},
        loaded.unreadable,
        None if names is None else set(map(str, names)),
        bool(request.get(ARCHIVED)),
    )
    links = [*_verify_log(chain), *_verify_start(chain), *_verify_target(chain)]
    if problem := _find_missing_entry(prediction):
        text = f"{folder / 'prediction.json'} has no {problem}: an earlier version wrote it"
        return [*links, Link(CONTRADICTION if entries else UNVERIFIABLE, text)]
    links += [*_verify_config(chain), *_verify_inputs(chain), *_verify_members(chain)]
    links += [*_verify_order(chain), _verify_code(chain)]
    return [*links, *_verify_fit(chain)] if should_refit else links


def prediction_sha256(sweep_dir: str | Path) -> str:
    """Return the hash of the prediction of a sweep, "" if there is none."""
    prediction = sweep_files.read_prediction(sweep_dir)
    prediction.pop(record_checksums.VERSION, None)
    return prediction_log.content_sha256(prediction) if prediction else ""


def _find_missing_entry(prediction: Mapping) -> str:
    """Return the name of an entry that the audit needs and that is missing or invalid, or ""."""
    for name in ("inputs", "candidates", "code"):
        if not isinstance(prediction.get(name), dict):
            return name
    inputs, candidates = prediction["inputs"].values(), prediction["candidates"]
    if not all(isinstance(i, dict) and {"records", "values"} <= i.keys() for i in inputs):
        return "valid inputs"
    if set(candidates) != set(target_prediction.Candidates._fields):
        return "valid candidates"
    numbers = (prediction.get(name) for name in (target_prediction.X, records.TOKENS))
    return "" if all(map(records.is_finite, numbers)) else "size of the target"


def _missing_prediction(folder: Path, entries: list[dict]) -> Link:
    if entries:
        text = f"{folder / 'prediction.json'} is missing, and {prediction_log.FILE} has its hash"
        return Link(CONTRADICTION, text)
    return Link(UNVERIFIABLE, f"{folder} has no prediction.json")


def _verify_log(chain: _Chain) -> Iterator[Link]:
    """Verify the entries of predictions.jsonl, and the hash of prediction.json in it."""
    file, predicted = (
        chain.folder / prediction_log.FILE,
        chain.entries_of(prediction_log.PREDICTION),
    )
    if not chain.entries:
        status = CONTRADICTION if "inputs" in chain.prediction else UNVERIFIABLE
        yield Link(status, f"{file} is missing: nothing records when the prediction was made")
        return
    if number := prediction_log.find_broken_entry(chain.entries):
        yield Link(
            CONTRADICTION, f"{file}: line {number} differs from its hash, or follows another"
        )
    else:
        n = len(chain.entries)
        yield Link(VERIFIED, f"{file}: each of {n} entries has the hash of the entry before")
    current, entry = prediction_log.content_sha256(chain.prediction), (predicted or [{}])[-1]
    stored = entry.get("prediction", "none")
    is_same = (stored, entry.get("time")) == (current, chain.prediction.get("written"))
    yield _compare(is_same, f"prediction.json has SHA-256 {current}", f"{file} records {stored}")


def _verify_start(chain: _Chain) -> Iterator[Link]:
    """Verify that the target has the hash of each entry, before its first step."""
    file = chain.target_dir / "events.jsonl"
    entries = chain.entries_of(prediction_log.PREDICTION)
    events = prediction_log.predicted_events(chain.target_dir)
    if not entries and not events:
        yield Link(UNVERIFIABLE, f"{file} has no hash of a prediction")
        return
    expected = [
        [e.get(record_checksums.SHA256), e.get("prediction"), e.get("time")] for e in entries
    ]
    recorded = [[e["entry"], e.get("prediction"), e.get("time")] for e in events]
    is_first = all(e["step"] == 0 and not e.get("attempt") for e in events)
    if len(expected) > len(recorded) and expected[len(expected) - len(recorded) :] == recorded:
        text = (
            f"{prediction_log.FILE} records {len(expected)} starts of {chain.target}, {file}"
            f" {len(recorded)}: records of an earlier start were removed"
        )
        yield Link(CONTRADICTION, text)
        return
    yield _compare(
        expected == recorded and is_first,
        f"{file} has the hash of the prediction before the first step",
        f"{prediction_log.FILE} records another hash, time or step",
    )


def _verify_target(chain: _Chain) -> Iterator[Link]:
    """Verify the records of the finished target, and its loss with the sums per document."""
    if chain.target_dir in chain.unreadable:
        yield Link(CONTRADICTION, chain.unreadable[chain.target_dir])
        return
    row = chain.rows.get(chain.target)
    if row is None:
        yield Link(UNVERIFIABLE, f"{chain.target} has not started")
        return
    results = chain.entries_of(prediction_log.RESULT)
    if not results:
        yield Link(UNVERIFIABLE, f"{prediction_log.FILE} has no entry of the result")
    for number, entry in enumerate(results, 1):
        hashes = dict(entry.get("records", {}))
        if number < len(results):
            hashes.pop("facts.json", None)  # a later attempt has changed it
        yield _verify_records(chain, chain.target_dir, hashes, prediction_log.FILE)
    file = chain.target_dir / paired_errors.FILE
    if file.exists() and row["status"] == "done" and not row["eval.patience"]:
        yield _compare(
            bool(paired_errors.load_document_sums(row)),
            f"{chain.target_dir / 'evals.jsonl'}: the final loss is {row.get(target_prediction.Y)}",
            f"{file} gives another loss",
            f"as in {paired_errors.FILE}",
        )


def _verify_config(chain: _Chain) -> Iterator[Link]:
    """Verify that the target was trained with the predicted config and number of tokens."""
    file = chain.target_dir / "config.json"
    if not file.exists():
        return
    try:
        hashes = {"config.json": chain.prediction.get("target_config")}
        yield _verify_records(chain, chain.target_dir, hashes, "prediction.json")
    except ValueError as error:
        yield Link(CONTRADICTION, str(error))
        return
    row = chain.rows.get(chain.target, {})
    for column in (target_prediction.X, records.TOKENS):
        if row.get("status") == "done":
            yield _compare(
                row.get(column) == chain.prediction.get(column),
                f"{chain.target_dir / 'facts.json'}: {column}={row.get(column)}",
                f"prediction.json has {chain.prediction.get(column)}",
            )


def _verify_inputs(chain: _Chain) -> Iterator[Link]:
    """Verify the records and the values of each run that the law could use."""
    for name, stored in chain.prediction["inputs"].items():
        folder = target_prediction.run_folder(chain.folder, name)
        if folder in chain.unreadable:
            yield Link(CONTRADICTION, chain.unreadable[folder])
        elif name not in chain.rows:
            yield Link(CONTRADICTION, f"{folder} is missing, and prediction.json is based on it")
        else:
            link = _verify_records(chain, folder, stored["records"], "prediction.json")
            changed = [
                f"{column}={chain.rows[name].get(column)!r}, and {value!r} in prediction.json"
                for column, value in stored["values"].items()
                if not _is_close(chain.rows[name].get(column), value, INPUT_TOLERANCE)
            ]
            yield Link(CONTRADICTION, f"{folder}: {'; '.join(changed)}") if changed else link


def _verify_members(chain: _Chain) -> Iterator[Link]:
    """Verify that no run of the sweep was removed, and that no finished run was left out."""
    members, file = set(chain.prediction["members"]), chain.folder / "sweep.json"
    if chain.members is None:
        yield Link(UNVERIFIABLE, f"{file} is missing: the runs of the sweep are unknown")
        return
    removed = sorted(members - chain.members)
    candidates = {name for names in chain.prediction["candidates"].values() for name in names}
    used, added, left_out = set(chain.prediction["inputs"]), [], []
    for name, row in chain.rows.items():
        if name in used or name == chain.target or not _is_before(row, chain.prediction):
            continue
        if name in candidates:
            left_out.append(name)
        elif name in chain.members and name not in members:
            added.append(name)
    for names, problem in (
        (removed, "not in sweep.json any more, and in prediction.json"),
        (added, "in sweep.json and ended before the prediction, which does not list them"),
        (left_out, "ended before the prediction, which does not use them"),
    ):
        if names:
            yield Link(CONTRADICTION, f"{file}: {', '.join(names)}: {problem}")
    if not (removed or added or left_out):
        yield Link(VERIFIED, f"{file} has the {len(members)} runs of prediction.json")


def _is_before(row: Mapping, prediction: Mapping) -> bool:
    """Return True if a run ended before a prediction was written."""
    ended, written = _seconds(row.get("ended")), _seconds(prediction.get("written"))
    return ended is not None and written is not None and ended + CLOCK_SECONDS < written


def _verify_order(chain: _Chain) -> Iterator[Link]:
    """Verify that the prediction was written after its inputs and before the target started."""
    written = _seconds(chain.prediction.get("written"))
    if written is None:
        yield Link(CONTRADICTION, "prediction.json has no time")
        return
    inputs = [chain.rows[name] for name in chain.prediction["inputs"] if name in chain.rows]
    ends = [(_seconds(row.get("ended")), row["name"]) for row in inputs if row["status"] == "done"]
    if any(end is None for end, _ in ends):
        yield Link(UNVERIFIABLE, "a fitted run has no time of its end: an earlier version wrote it")
    known = [(end, name) for end, name in ends if end is not None]
    if known:
        last, name = max(known)
        yield _compare(
            last <= written + CLOCK_SECONDS,
            f"prediction.json was written at {chain.prediction['written']}, after its inputs",
            f"{name} ended later",
        )
    row = chain.rows.get(chain.target, {})
    started = _seconds(row.get("started"))
    if started is not None:
        yield _compare(
            written <= started + CLOCK_SECONDS,
            f"{chain.target} started at {row['started']}, after the prediction",
            f"prediction.json was written later, at {chain.prediction['written']}",
        )
    elif row:
        yield Link(UNVERIFIABLE, f"{chain.target} has no time of its start")


def _verify_code(chain: _Chain) -> Link:
    """Compare the code of the prediction with the installed code."""
    stored, current = chain.prediction.get("code", {}), target_prediction.describe_code()
    if stored.get("hash") == current["hash"]:
        return Link(VERIFIED, f"prediction.json was written by this code, {current['hash']}")
    text = f"prediction.json was written by code {stored.get('hash')}, this is {current['hash']}"
    return Link(UNVERIFIABLE, text)


def _verify_fit(chain: _Chain) -> Iterator[Link]:
    """Fit the law again, and compare the intervals and the draws with the prediction."""
    stored, code = chain.prediction, target_prediction.describe_code()
    has_same_code = stored.get("code", {}).get("hash") == code["hash"]
    repeated = target_prediction.predict_target(
        list(chain.rows.values()),
        target_prediction.Candidates(**stored["candidates"]),
        stored[target_prediction.X],
        stored[records.TOKENS],
    )
    for law in ("size", "size and tokens"):
        old, new = (p if law == "size" else p.get("joint", {}) for p in (stored, repeated))
        if not old and not new:
            continue
        different = [
            f"{key}={old.get(key)} and {new.get(key)}"
            for key in BOUNDS
            if not _is_close(old.get(key), new.get(key), REFIT_TOLERANCE)
        ]
        if old.get("runs") != new.get("runs"):
            different.append("the runs of the law")
        if different:
            status = UNVERIFIABLE if chain.is_archive or not has_same_code else CONTRADICTION
            text = f"the law of {law}, fitted again, differs from prediction.json"
            yield Link(status, f"{text}: {', '.join(different)}")
            continue
        yield Link(VERIFIED, f"the law of {law}, fitted again, gives the interval")
        if old.get("draws") != new.get("draws"):
            has_same_numpy = all(
                stored["code"].get(p) == code[p] for p in target_prediction.PACKAGES
            )
            is_exact = has_same_code and has_same_numpy and not chain.is_archive
            text = f"the draws of the law of {law} differ from their hash in prediction.json"
            yield Link(CONTRADICTION if is_exact else UNVERIFIABLE, text)


def _verify_records(chain: _Chain, folder: Path, hashes: Mapping, origin: str) -> Link:
    """Compare the records of a run with hashes. origin: file that contains the hashes."""
    changed = prediction_log.changed_records(folder, hashes)
    names = ", ".join(str(folder / name) for name in changed)
    if changed and chain.is_archive:
        return Link(UNVERIFIABLE, f"{names}: rounded in an archive")
    count = f"{folder}: {', '.join(hashes)}" if hashes else f"{folder}: no record"
    return _compare(
        not changed, names or count, f"{origin} has another hash", f"agree with {origin}"
    )


def _compare(is_same: bool, subject: str, difference: str, agreement: str = "") -> Link:
    """Return a verified link, or a contradiction with a difference."""
    if is_same:
        return Link(VERIFIED, f"{subject} {agreement}".rstrip())
    return Link(CONTRADICTION, f"{subject}, and {difference}")


def _is_close(first: object, second: object, tolerance: float) -> bool:
    if records.is_finite(first) and records.is_finite(second):
        return math.isclose(first, second, rel_tol=tolerance)
    return first == second


def _seconds(time: object) -> float | None:
    """Return an ISO 8601 time in seconds since 1970, None if it is none."""
    try:
        return datetime.datetime.fromisoformat(str(time)).timestamp()
    except ValueError:
        return None


def format_links(links: Iterable[Link]) -> list[str]:
    """Return a line of text for each link."""
    return [f"{link.status}: {link.text}" for link in links]
