"""Audit of a prediction: hashes from the fitted runs to the result of the predicted run.

    for link in prediction_audit.audit_prediction("runs/quickstart"):
        print(link.status, link.text)

The links of the chain, each with the file that the next one contradicts:

    records of the fitted runs  ->  prediction.json        hashes and values of its inputs
    prediction.json             ->  predictions.jsonl      hash of the file
    predictions.jsonl           ->  events.jsonl           hash of the entry, before the first step
    config.json of the target   ->  prediction.json        hash of its fields
    records of the target       ->  predictions.jsonl      hashes after its last step
    both                        ->  prediction_results.json    predicted and measured values

The times must have this order as well: the end of the fitted runs, the prediction, the start of the
target and of all runs that share training with it, such as its trunk run. The law is fitted again,
which must give the same interval and the same draws.

A change of some of these files is detected. A person who rewrites all of them, with all hashes, is
not detected: the new files agree with each other. Only a hash that was published before the result
was known excludes this, for example in a pushed git tag or a public message. Therefore the audit
ends with the hash of the prediction. Records of earlier versions have no hashes, and archives have
rounded numbers. Their links are not verifiable, which is no contradiction.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lm.reports import paired_errors
from lm.reports.audit import (
    prediction_chain,
    prediction_times,
    repeated_fit,
    results_audit,
    target_prediction,
)
from lm.runs import records
from lm.runs.integrity import prediction_log, record_checksums, sweep_files

INPUT_TOLERANCE = 2e-6  # relative, of the values of an archived run, which have seven digits


def audit_prediction(
    sweep_dir: str | Path, should_refit: bool = True
) -> list[prediction_chain.Link]:
    """Verify the chain of a prediction. Return the links in the order of the chain.

    should_refit: fit the law again and compare its interval, which takes seconds.
    """
    try:
        chain = prediction_chain.load_chain(sweep_dir)
    except ValueError as error:
        return [prediction_chain.Link(prediction_chain.CONTRADICTION, str(error))]
    if not chain.prediction:
        return [_missing_prediction(chain)]
    links = [*_verify_log(chain), *_verify_start(chain), *_verify_target(chain)]
    if problem := prediction_chain.find_missing_entry(chain.prediction):
        file = chain.folder / "prediction.json"
        text = f"{file}: the entry {problem} is missing or invalid: an earlier version wrote it"
        return [
            *links,
            prediction_chain.Link(
                prediction_chain.CONTRADICTION if chain.entries else prediction_chain.UNVERIFIABLE,
                text,
            ),
        ]
    chain = _exclude_unfinished(chain)
    links += [*results_audit.verify_results(chain), *_verify_config(chain)]
    links += [*_verify_inputs(chain), *_verify_members(chain)]
    links += [*_verify_order(chain), repeated_fit.verify_code(chain)]
    return [*links, *repeated_fit.verify_fit(chain)] if should_refit else links


def prediction_sha256(sweep_dir: str | Path) -> str:
    """Return the hash of the prediction of a sweep, "" if there is none."""
    prediction = sweep_files.read_prediction(sweep_dir)
    prediction.pop(record_checksums.VERSION, None)
    return prediction_log.content_sha256(prediction) if prediction else ""


def _missing_prediction(chain: prediction_chain.Chain) -> prediction_chain.Link:
    file = chain.folder / "prediction.json"
    if chain.entries:
        return prediction_chain.Link(
            prediction_chain.CONTRADICTION,
            f"{file} is missing, and {prediction_log.FILE} has its hash",
        )
    return prediction_chain.Link(
        prediction_chain.UNVERIFIABLE, f"{chain.folder} has no prediction.json"
    )


def _verify_log(chain: prediction_chain.Chain) -> Iterator[prediction_chain.Link]:
    """Verify the entries of predictions.jsonl, and the hash of prediction.json in it."""
    file, predicted = (
        chain.folder / prediction_log.FILE,
        chain.entries_of(prediction_log.PREDICTION),
    )
    if not chain.entries:
        status = (
            prediction_chain.CONTRADICTION
            if "inputs" in chain.prediction
            else prediction_chain.UNVERIFIABLE
        )
        yield prediction_chain.Link(
            status, f"{file} is missing: nothing records when the prediction was made"
        )
        return
    if number := prediction_log.find_broken_entry(chain.entries):
        yield prediction_chain.Link(
            prediction_chain.CONTRADICTION,
            f"{file}: line {number} differs from its hash, or follows another",
        )
    else:
        n = len(chain.entries)
        yield prediction_chain.Link(
            prediction_chain.VERIFIED,
            f"{file}: each of {n} entries has the hash of the entry before",
        )
    current, entry = prediction_log.content_sha256(chain.prediction), (predicted or [{}])[-1]
    stored = entry.get("prediction", "none")
    is_same = (stored, entry.get("time")) == (current, chain.prediction.get("written"))
    if not is_same and chain.has_short_paths("prediction.json", current):
        text = "prediction.json: paths are shortened in an archive"
        yield prediction_chain.Link(prediction_chain.UNVERIFIABLE, text)
        return
    yield prediction_chain.compare(
        is_same, f"prediction.json has SHA-256 {current}", f"{file} records {stored}"
    )


def _verify_start(chain: prediction_chain.Chain) -> Iterator[prediction_chain.Link]:
    """Verify that the target has the hash of each entry, before its first step."""
    if chain.target_dir in chain.unreadable:
        return  # `_verify_target` has the reason
    file = chain.target_dir / "events.jsonl"
    entries = chain.entries_of(prediction_log.PREDICTION)
    events = prediction_log.predicted_events(chain.target_dir)
    if not events and (not entries or chain.is_archive):  # an archive omits runs without a start
        yield prediction_chain.Link(
            prediction_chain.UNVERIFIABLE, f"{file} has no hash of a prediction"
        )
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
        yield prediction_chain.Link(prediction_chain.CONTRADICTION, text)
        return
    yield prediction_chain.compare(
        expected == recorded and is_first,
        f"{file} has the hash of the prediction before the first step",
        f"{prediction_log.FILE} records another hash, time or step",
    )


def _verify_target(chain: prediction_chain.Chain) -> Iterator[prediction_chain.Link]:
    """Verify the records of the finished target, and its loss with the sums per document."""
    if chain.target_dir in chain.unreadable:
        yield prediction_chain.Link(
            prediction_chain.CONTRADICTION, chain.unreadable[chain.target_dir]
        )
        return
    row, results = chain.rows.get(chain.target), chain.entries_of(prediction_log.RESULT)
    if row is None:
        status = prediction_chain.CONTRADICTION if results else prediction_chain.UNVERIFIABLE
        text = f"{prediction_log.FILE} has its result" if results else "it has not started"
        yield prediction_chain.Link(status, f"{chain.target_dir} has no records, and {text}")
        return
    if not results:
        yield prediction_chain.Link(
            prediction_chain.UNVERIFIABLE, f"{prediction_log.FILE} has no entry of the result"
        )
    for number, entry in enumerate(results, 1):
        stored = entry.get("records")
        hashes = dict(stored) if isinstance(stored, dict) else {"facts.json": stored}
        if number < len(results):
            hashes.pop("facts.json", None)  # a later attempt has changed it
        yield _verify_records(chain, chain.target_dir, hashes, prediction_log.FILE)
    file = chain.target_dir / paired_errors.FILE
    if file.exists() and row["status"] == "done" and not row["eval.patience"]:
        yield prediction_chain.compare(
            bool(paired_errors.load_document_sums(row)),
            f"{chain.target_dir / 'evals.jsonl'}: the final loss is {row.get(target_prediction.Y)}",
            f"{file} gives another loss",
            f"as in {paired_errors.FILE}",
        )


def _verify_config(chain: prediction_chain.Chain) -> Iterator[prediction_chain.Link]:
    """Verify that the target was trained with the predicted config and number of tokens."""
    file = chain.target_dir / "config.json"
    if not file.exists():
        return
    try:
        hashes = {"config.json": chain.prediction.get("target_config")}
        yield _verify_records(chain, chain.target_dir, hashes, "prediction.json")
    except ValueError as error:
        yield prediction_chain.Link(prediction_chain.CONTRADICTION, str(error))
        return
    row = chain.rows.get(chain.target, {})
    for column in (target_prediction.X, records.TOKENS):
        if row.get("status") == "done" and not row["eval.patience"]:  # may stop early
            yield prediction_chain.compare(
                row.get(column) == chain.prediction.get(column),
                f"{chain.target_dir / 'facts.json'}: {column}={row.get(column)}",
                f"prediction.json has {chain.prediction.get(column)}",
            )


def _verify_inputs(chain: prediction_chain.Chain) -> Iterator[prediction_chain.Link]:
    """Verify the records and the values of each run that the law could use."""
    for name, stored in chain.prediction["inputs"].items():
        folder = target_prediction.run_folder(chain.folder, name)
        if folder in chain.unreadable:
            yield prediction_chain.Link(prediction_chain.CONTRADICTION, chain.unreadable[folder])
        elif name not in chain.rows:
            yield prediction_chain.Link(
                prediction_chain.CONTRADICTION,
                f"{folder} is missing, and prediction.json is based on it",
            )
        else:
            link = _verify_records(chain, folder, stored["records"], "prediction.json")
            changed = [
                f"{column}={chain.rows[name].get(column)!r}, and {value!r} in prediction.json"
                for column, value in stored["values"].items()
                if not prediction_chain.is_close(
                    chain.rows[name].get(column), value, INPUT_TOLERANCE
                )
            ]
            yield (
                prediction_chain.Link(
                    prediction_chain.CONTRADICTION, f"{folder}: {'; '.join(changed)}"
                )
                if changed
                else link
            )


def _verify_members(chain: prediction_chain.Chain) -> Iterator[prediction_chain.Link]:
    """Verify that no run of the sweep was removed, and that no finished run was left out."""
    members, file = set(chain.prediction["members"]), chain.folder / "sweep.json"
    if chain.members is None:
        yield prediction_chain.Link(
            prediction_chain.UNVERIFIABLE, f"{file} is missing: the runs of the sweep are unknown"
        )
        return
    removed = sorted(members - chain.members)
    candidates = {name for names in chain.prediction["candidates"].values() for name in names}
    used, added_runs, unused_runs = set(chain.prediction["inputs"]), [], []
    for name, row in chain.rows.items():
        if name in used or name == chain.target or not _is_before(row, chain.prediction):
            continue
        if name in candidates:
            unused_runs.append(name)
        elif name in chain.members and name not in members:
            added_runs.append(name)
    for names, problem in (
        (removed, "not in sweep.json any more, and in prediction.json"),
        (added_runs, "in sweep.json and ended before the prediction, which does not list them"),
        (unused_runs, "ended before the prediction, which does not use them"),
    ):
        if names:
            yield prediction_chain.Link(
                prediction_chain.CONTRADICTION, f"{file}: {', '.join(names)}: {problem}"
            )
    if not (removed or added_runs or unused_runs):
        unfinished = ", ".join(chain.prediction.get(target_prediction.UNFINISHED, []))
        more = f", which does not use the unfinished runs {unfinished}" if unfinished else ""
        text = f"{file} has the {len(members)} runs of prediction.json{more}"
        yield prediction_chain.Link(prediction_chain.VERIFIED, text)


def _exclude_unfinished(chain: prediction_chain.Chain) -> prediction_chain.Chain:
    """Move inputs that had not ended to the unfinished candidates, in a prediction without these.

    Earlier versions stored the hashes of all candidates. The law did not use an unfinished one,
    which has no loss in the prediction, and another attempt of that run changes its records.
    """
    prediction = chain.prediction
    if target_prediction.UNFINISHED in prediction:
        return chain
    unfinished = [
        name
        for name, stored in prediction["inputs"].items()
        if stored["values"].get(target_prediction.Y) is None
        and name in chain.rows
        and not _is_before(chain.rows[name], prediction)
    ]
    inputs = {name: run for name, run in prediction["inputs"].items() if name not in unfinished}
    changes = {"inputs": inputs, target_prediction.UNFINISHED: unfinished}
    return chain._replace(prediction=prediction | changes)


def _is_before(row: Mapping, prediction: Mapping) -> bool:
    """Return True if a run ended before a prediction was written."""
    ended, written = (
        prediction_times.parse_seconds(row.get("ended")),
        prediction_times.parse_seconds(prediction.get("written")),
    )
    if ended is None or written is None:
        return False
    return not prediction_times.is_in_order(written, ended)


def _verify_order(chain: prediction_chain.Chain) -> Iterator[prediction_chain.Link]:
    """Verify that the prediction was written after its inputs and before the target started."""
    written = prediction_times.parse_seconds(chain.prediction.get("written"))
    if written is None:
        yield prediction_chain.Link(prediction_chain.CONTRADICTION, "prediction.json has no time")
        return
    inputs = [chain.rows[name] for name in chain.prediction["inputs"] if name in chain.rows]
    end_times = [
        (prediction_times.parse_seconds(row.get("ended")), row["name"])
        for row in inputs
        if row["status"] == "done"
    ]
    if any(time is None for time, _ in end_times):
        yield prediction_chain.Link(
            prediction_chain.UNVERIFIABLE,
            "a fitted run has no time of its end: an earlier version wrote it",
        )
    known_times = [(time, name) for time, name in end_times if time is not None]
    if known_times:
        last, name = max(known_times)
        yield prediction_chain.compare(
            prediction_times.is_in_order(last, written),
            f"prediction.json was written at {chain.prediction['written']}, after its inputs",
            f"{name} ended later",
        )
    row = chain.rows.get(chain.target, {})
    started = prediction_times.parse_seconds(row.get("started"))
    if started is not None:
        yield prediction_chain.compare(
            prediction_times.is_in_order(written, started),
            f"{chain.target} started at {row['started']}, after the prediction",
            f"prediction.json was written later, at {chain.prediction['written']}",
        )
    elif row:
        yield prediction_chain.Link(
            prediction_chain.UNVERIFIABLE, f"{chain.target} has no time of its start"
        )
    yield from _verify_first_start(chain, written)


def _verify_first_start(
    chain: prediction_chain.Chain, written: float
) -> Iterator[prediction_chain.Link]:
    """Verify that the prediction is older than the other runs that share training with the target.

    They are its trunk run and the other branches of that run. written: seconds since 1970.
    """
    starts = prediction_times.related_starts(chain.target, list(chain.rows.values()))
    shares = f"which shares training with {chain.target}"
    known = [(time, row) for time, row in starts.known if row["name"] != chain.target]
    if known:
        first, row = known[0]
        yield prediction_chain.compare(
            prediction_times.is_in_order(written, first),
            f"{row['name']}, {shares}, started at {row['started']}, after the prediction",
            f"prediction.json was written later, at {chain.prediction['written']}",
        )
    for name in starts.unknown:
        if name != chain.target:
            yield prediction_chain.Link(
                prediction_chain.UNVERIFIABLE, f"{name}, {shares}, has no time of its start"
            )


def _verify_records(
    chain: prediction_chain.Chain, folder: Path, hashes: Mapping, origin: str
) -> prediction_chain.Link:
    """Compare the records of a run with hashes. origin: file that contains the hashes."""
    changed = prediction_log.changed_records(folder, hashes)
    if changed and chain.is_archive:
        return prediction_chain.Link(
            prediction_chain.UNVERIFIABLE, f"{folder}: {', '.join(changed)} rounded in an archive"
        )
    names = ", ".join(str(folder / name) for name in changed)
    files = f"{folder}: {', '.join(name for name in hashes if name != 'run_id')}"
    return prediction_chain.compare(
        not changed, names or files, f"{origin} has another hash", f"as in {origin}"
    )


def format_links(links: Iterable[prediction_chain.Link]) -> list[str]:
    """Return a line of text for each link."""
    return [f"{link.status}: {link.text}" for link in links]


def format_tag_command(sha256: str) -> str:
    """Return the shell command that publishes the hash of a prediction as an annotated git tag."""
    tag = f"prediction-{sha256}"
    return f"git tag -a {tag} -m 'SHA-256 of a prediction' && git push origin {tag}"
