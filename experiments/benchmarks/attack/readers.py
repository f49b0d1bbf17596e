"""Functions behind each command, with results as plain data that compare exactly.

`read_records` calls the functions that read the records of a sweep: load_runs, the summary of a
report, status, the advice of plan, the laws and the archive. `run_reader` runs a command that reads
a model or prepared text, and returns its numbers without rounding.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from experiments.benchmarks.attack import children

SWEEP, RUN = "runs/attack", "runs/attack/10K"
# Columns that differ between two undisturbed runs.
VARYING = ("seconds", "time", "date", "host", "started", "peak", "memory", "goodput", "where")
COMMANDS = {
    "evaluate": [f"--run={RUN}"],
    "sample": [f"--run={RUN}", "--prompt=scale loss", "--max_tokens=12", "--json"],
    "export": [f"--run={RUN}", "--out=exported"],
    "resume": ["--config=attack.py"],
}


def read_records() -> dict[str, Any]:
    """Return {reader: {"value" or "error": ..., "notes": lines}} of the sweep."""
    readers: dict[str, Callable[[], Any]] = {
        "load_runs": _load_runs,
        "report": _summarize,
        "status": _read_status,
        "advise": _advise,
        "laws": _fit_law,
        "paired": _pair_errors,
        "archive": _archive,
    }
    return {name: _call_quietly(reader) for name, reader in readers.items()}


def _call_quietly(function: Callable[[], Any]) -> dict[str, Any]:
    """Return the value of a function, or its error, and the lines that it printed."""
    output = io.StringIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with redirect_stdout(output), redirect_stderr(output):
            try:
                result = {"value": json.loads(json.dumps(function(), default=str))}
            except Exception as error:
                is_message = isinstance(error, (ValueError, OSError))
                kind = "refused" if is_message else type(error).__name__
                result = {"error": [kind, str(error)]}
    lines = [str(warning.message) for warning in caught] + output.getvalue().splitlines()
    return result | {"notes": "\n".join(lines)}


def _load_runs() -> Any:
    import lm

    return {"runs": {row["name"]: row for row in lm.load_runs(SWEEP)}}


def _summarize() -> Any:
    from lm.reports import summary

    sweep = summary.load_summary(SWEEP)
    laws = {name: _law_numbers(fit) or reason for name, (fit, reason) in sweep.laws.items()}
    prediction = sweep.prediction or {}
    return {
        "runs": {row["name"]: row for row in sweep.rows},
        "laws": laws | {"size": _law_numbers(sweep.fit) or sweep.refusal},
        "prediction": {key: prediction.get(key) for key in ("value", "lo", "hi", "target")},
        "measured": sweep.measured,
        "plan": sweep.plan,
        "losses": {
            name: {str(row["step"]): row.get("loss") for row in rows}
            for name, rows in sweep.metrics.items()
        },
        "notes": [*sweep.notes, sweep.refused],
    }


def _law_numbers(fit: Any) -> Any:
    return {"params": dict(fit.params), "n": fit.n} if fit else None


def _read_status() -> Any:
    from lm.runs import status

    rows, notes = status.folder_status(SWEEP)
    return {"runs": {row["name"]: row for row in rows}, "notes": notes}


def _advise() -> Any:
    from lm.reports import summary
    from lm.reports.sections import next_run_section

    sweep = summary.load_summary(SWEEP)
    plan = next_run_section.plan_next_runs(sweep)
    advice = {"target": plan.target, "budget": plan.budget, "runs": plan.advice.runs}
    return {"laws": advice, "notes": sweep.notes}


def _fit_law() -> Any:
    import lm

    fit = lm.laws.power(lm.load_runs(SWEEP), x="params.non_embedding", y="eval.loss")
    lines = str(fit).splitlines()
    return {"laws": {"size": _law_numbers(fit)}, "notes": lines[1:]}


def _pair_errors() -> Any:
    """Return the paired differences to the largest run; a run without them is not in the result."""
    import lm
    from lm.reports import paired_errors

    rows = lm.load_runs(SWEEP)
    pairs = {row["name"]: paired_errors.paired_difference([row], rows[-1:]) for row in rows}
    return {"runs": {name: pair for name, pair in pairs.items() if pair}}


def _archive() -> Any:
    import lm
    from lm.runs import archive

    archive.archive_sweep(SWEEP, "archived")
    return {"runs": {row["name"]: row for row in lm.load_runs("archived")}}


def read_results(run_folders: list[str] | None = None) -> dict[str, Any]:
    """Return {run: losses, evaluations and SHA-256 of the parameters} of the runs of the sweep."""
    from lm.runs import filesystem, records

    folders = run_folders or sorted(str(p.parent) for p in Path(SWEEP).glob("*/config.json"))
    results = {}
    for folder in folders:
        losses = {str(row["step"]): row["loss"] for row in records.load_metrics(folder)}
        evaluations = {
            str(row["step"]): {k: v for k, v in row.items() if is_compared(k)}
            for row in records.load_evals(folder)
        }
        results[folder.rpartition("/")[2]] = {
            "losses": losses,
            "evaluations": evaluations,
            "parameters": hash_parameters(folder),
            "status": records.read_facts(filesystem.open_path(folder)).get("status"),
        }
    return results


def hash_parameters(folder: str) -> str:
    """Return the SHA-256 of all parameters of the final checkpoint of a run."""
    import lm

    model = lm.load_model(folder)
    digest = hashlib.sha256(str(model.step).encode())
    for path, array in sorted(model.params.items()):
        digest.update(path.encode() + memoryview(_to_numpy(array)).tobytes())
    return digest.hexdigest()


def _to_numpy(array: Any) -> Any:
    import numpy as np

    return np.ascontiguousarray(array)


def is_compared(column: str) -> bool:
    """Return False for a column that differs between two undisturbed runs."""
    return column != "attempt" and not any(word in column for word in (*VARYING, "sha256", "check"))


def run_reader(command: str) -> Any:
    """Run evaluate, sample, export or resume in this process. Return its results as plain data."""
    from experiments.common import console

    rows: list[dict] = []
    if command == "evaluate":
        console.evaluation = rows.append
    output = io.StringIO()
    real_name = "train" if command == "resume" else command
    with redirect_stdout(output):
        children.execute_command(real_name, COMMANDS[command])
    if command == "resume":
        return read_results([RUN])
    if command == "export":
        return file_hashes(Path("exported"))
    lines = output.getvalue().splitlines()
    if command == "sample":
        return [json.loads(line) for line in lines if line.startswith("{")]
    return rows


def file_hashes(folder: Path) -> dict[str, str]:
    """Return {relative path: SHA-256} of all files of a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
