"""Record of a comparison (comparison.json) and its verification.

    path = comparison_record.write_record(report, "runs/compare", {"A": "runs/a", "B": "runs/b"})
    links = comparison_record.verify_record("runs/compare")
    rows = comparison_record.summarize_records("runs/verdicts")    # of several comparisons

The record contains the numbers, the options, the hashes of all paired runs, and the code. The
comparison is deterministic, so the verification repeats it from the records of the runs.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm.laws.recipe_comparison import recipe_verdict
from lm.reports.audit import prediction_chain, target_prediction
from lm.reports.recipes import recipe_report
from lm.runs import filesystem, json_files, records
from lm.runs.integrity import prediction_log, record_checksums

FILE = "comparison.json"
TOLERANCE = 1e-6  # relative, of repeated numbers


def write_record(
    report: recipe_report.RecipeReport, folder: str | Path, sources: Mapping[str, str]
) -> Path:
    """Write comparison.json into a folder. sources: {"A": folder of a sweep, "B": folder}.

    Relative paths are stored relative to the folder, so it can be moved together with the sweeps.
    """
    folder = filesystem.open_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "relative_to": "record",
        "sources": {side: _path_from(folder, source) for side, source in sources.items()},
        "inputs": {
            _path_from(folder, name): hashes for name, hashes in _describe_inputs(report).items()
        },
        "result": report.to_dict(),
        "code": target_prediction.describe_code(),
        "written": records.current_time(),
    }
    json_files.write_record(folder / FILE, record)
    return folder / FILE


def read_record(folder: str | Path) -> dict[str, Any]:
    """Return the content of comparison.json, with paths relative to the current directory.

    Raises ValueError for a missing or damaged file.
    """
    folder, record = filesystem.open_path(folder), _read_stored(folder)
    if record.get("relative_to") == "record":  # earlier records: to the directory of the command
        record["sources"] = {side: _resolve(folder, record["sources"][side]) for side in "AB"}
        record["inputs"] = {_resolve(folder, name): x for name, x in record["inputs"].items()}
    return record


def _read_stored(folder: str | Path) -> dict[str, Any]:
    """Return the content of comparison.json as it is stored."""
    file = filesystem.open_path(folder) / FILE
    if not file.exists():
        raise ValueError(f"{file} is missing: write it with experiments.compare A B --out={folder}")
    record = json_files.read_record(file)
    record.pop(record_checksums.VERSION, None)
    kinds = {"sources": dict, "inputs": dict, "result": dict, "written": str}
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            raise ValueError(f"{file} has no entry {name}: delete it and compare again")
    if not all(isinstance(record["sources"].get(side), str) for side in "AB"):
        raise ValueError(f"{file} does not name the sweeps A and B: delete it and compare again")
    return record


def _path_from(folder: Any, location: str) -> str:
    """Return a local relative location as seen from a folder. Others are unchanged."""
    path, *selection = location.split("?", 1)
    if "://" in f"{folder}{path}" or os.path.isabs(path):
        return location
    return "?".join([Path(os.path.relpath(path, folder)).as_posix(), *selection])


def _resolve(folder: Any, location: str) -> str:
    """Return a location that is stored relative to a folder, relative to the current directory."""
    path, *selection = location.split("?", 1)
    if "://" in f"{folder}{path}" or os.path.isabs(path):
        return location
    return "?".join([os.path.normpath(os.path.join(folder, path)), *selection])


def summarize_records(folder: str | Path) -> list[dict[str, Any]]:
    """Return a row per comparison.json below a folder, sorted by the name of its folder.

    The columns are name, A, B, verdict, better, m with its interval lo and hi in the middle of the
    ladder, the factor of m per decade of cost, the probabilities that B is better at 10 and 100
    times the largest run, and the number of pairs. Raises ValueError for a damaged record.
    """
    rows = []
    for file in sorted(filesystem.find_files(filesystem.open_path(folder), FILE)):
        record = read_record(file.parent)
        result = record["result"]
        average = result["average"][result["cost"]]
        probabilities = result["probability_b_is_better"]
        rows.append(
            {
                "name": file.parent.name,
                **record["sources"],
                "verdict": result["verdict"],
                "better": result["better"],
                "m": average["value"],
                "lo": average["lo"],
                "hi": average["hi"],
                "m per decade": 10 ** result["slope"]["value"],
                **{f"P(B) at {factor}x": p for factor, p in probabilities.items()},
                "pairs": sum(size["n_pairs"] for size in result["sizes"]),
            }
        )
    return rows


def record_sha256(folder: str | Path) -> str:
    """Return the SHA-256 of the content of comparison.json."""
    return prediction_log.content_sha256(_read_stored(folder))


def verify_record(folder: str | Path) -> list[prediction_chain.Link]:
    """Verify that the paired runs are unchanged and that they give the stored numbers."""
    record = read_record(folder)
    links = list(_verify_inputs(record))
    try:
        report = _repeat_comparison(record)
    except (ValueError, TypeError) as error:
        problem = f"the comparison cannot be repeated: {error}"
        return [*links, prediction_chain.Link(prediction_chain.CONTRADICTION, problem)]
    new_runs = sorted(set(_describe_inputs(report)) - set(record["inputs"]))
    if new_runs:
        text = f"runs that were added after the comparison: {', '.join(new_runs)}"
        links.append(prediction_chain.Link(prediction_chain.CONTRADICTION, text))
    repeated = json.loads(json_files.to_json(report.to_dict()))
    changed = list(_changed_numbers(record["result"], repeated))
    text = f"the numbers of {FILE}"
    more = f"{len(changed)} differ when repeated, such as {', '.join(changed[:3])}"
    links.append(prediction_chain.compare(not changed, text, more, "agree when repeated"))
    return links


def _describe_inputs(report: recipe_report.RecipeReport) -> dict[str, Any]:
    """Return {folder of a run: hashes of its records} of all paired runs."""
    sizes = report.comparison.selection.sizes
    rows = [row for size in sizes for pair in size.pairs for row in pair]
    return {
        str(row["dir"]): prediction_log.hash_records(filesystem.open_path(row["dir"]))
        for row in rows
        if row.get("dir")
    }


def _verify_inputs(record: Mapping) -> Iterator[prediction_chain.Link]:
    """Compare the records of each paired run with the stored hashes."""
    for name, hashes in record["inputs"].items():
        folder = filesystem.open_path(name)
        if not folder.exists():
            yield prediction_chain.Link(prediction_chain.UNVERIFIABLE, f"{name} is missing")
            continue
        changed = prediction_log.changed_records(folder, hashes)
        files = ", ".join(str(folder / file) for file in changed) or name
        yield prediction_chain.compare(not changed, files, f"{FILE} has another hash", "unchanged")


def _repeat_comparison(record: Mapping) -> recipe_report.RecipeReport:
    """Return the comparison of the current runs with the stored options."""
    rows_a, rows_b = (recipe_report.load_recipe(record["sources"][side]) for side in "AB")
    stored = record["result"].get("options", {})
    options = recipe_verdict.ComparisonOptions(**stored)
    return recipe_report.compare_rows(rows_a, rows_b, options)


def _changed_numbers(stored: Any, repeated: Any, name: str = "") -> Iterator[str]:
    """Yield the names of entries whose values differ by more than TOLERANCE.

    Entries that only the repetition has are new in this version.
    """
    if isinstance(stored, Mapping) and isinstance(repeated, Mapping):
        for key in sorted(map(str, stored)):
            yield from _changed_numbers(stored.get(key), repeated.get(key), f"{name}.{key}")
    elif isinstance(stored, list) and isinstance(repeated, list) and len(stored) == len(repeated):
        for i, (first, second) in enumerate(zip(stored, repeated, strict=True)):
            yield from _changed_numbers(first, second, f"{name}.{i}")
    elif not prediction_chain.is_close(stored, repeated, TOLERANCE):
        yield name.removeprefix(".")
