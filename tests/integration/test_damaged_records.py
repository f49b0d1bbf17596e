"""Every record file of a sweep is damaged, and then read by the functions behind the commands.

Permitted outcomes: the same numbers; a run without a result and with a reason; one ValueError line.
"""

import pathlib
import random
import shutil
import warnings

import pytest
from fixtures import verified_sweep

from lm.reports import paired_errors, summary
from lm.runs import records, status
from lm.runs.integrity import sweep_files

N_FLIPS = 8  # bits per file


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> pathlib.Path:
    return verified_sweep.write_sweep(tmp_path_factory.mktemp("intact"))


@pytest.fixture(scope="module")
def other_sweep(tmp_path_factory) -> pathlib.Path:
    """Return another sweep."""
    return verified_sweep.write_sweep(tmp_path_factory.mktemp("other"), "other")


def read_everything(folder: pathlib.Path) -> dict:
    """Return what the commands read from a sweep: {run: (row, curves)}, notes and statuses."""
    loaded = records.load_folder(folder)
    runs, problems = {}, []
    for row in loaded.rows:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sums = paired_errors.load_document_sums(row)
        problems += [str(warning.message) for warning in caught]
        curves = (
            records.load_metrics(row["dir"]),
            records.load_evals(row["dir"]),
            records.load_events(row["dir"]),
            {name: value.nats.tolist() for name, value in sums.items()},
        )
        without_dir = {key: value for key, value in row.items() if key not in ("dir", "in_sweep")}
        runs[row["name"]] = (without_dir, *curves)
    statuses, notes = status.folder_status(folder)
    stable = [{key: run[key] for key in ("name", "status", "heldout_loss")} for run in statuses]
    sweep = summary.load_summary(folder)  # of the report
    prediction = sweep_files.read_prediction(folder)
    problems += sweep.notes
    return {
        "measured": sweep.measured,
        "runs": runs,
        "notes": notes + problems,
        "statuses": stable,
        "prediction": prediction,
    }


def check_outcome(folder: pathlib.Path, intact: dict, name: str, case: str) -> str:
    """Assert that the outcome of reading a damaged sweep is permitted, and return its kind.

    name: damaged file. case: damage. A file that is deleted or cut between two lines may lose its
    events, its plan or its prediction, which change no number.
    """
    try:
        result = read_everything(folder)
    except ValueError as error:
        assert "\n" not in str(error) and str(folder) in str(error), (case, error)
        return "refused"
    if result == intact:
        return "same"
    is_visible = not case.startswith(("bit", "exchanged")) and name.endswith(
        ("events.jsonl", "plan.json", "prediction.json", "proofs.jsonl")
    )
    is_visible = is_visible or name.endswith("npz")  # sums of another evaluation are not used
    assert result["notes"] or is_visible, (name, case, result)
    assert result["measured"] in (intact["measured"], None), (name, case)
    assert result["prediction"] in (intact["prediction"], {}), (name, case)
    for run, (row, *curves) in result["runs"].items():
        expected, *expected_curves = intact["runs"][run]
        if "eval.loss" in row:
            assert row == expected, (name, case)
        else:
            assert row["reason"] and f"{run.partition('/')[2]} has no result" in str(
                result["notes"]
            )
        if not name.endswith("evals.jsonl"):
            assert curves[1] == expected_curves[1], (name, case)
    missing = intact["runs"].keys() - result["runs"].keys()
    for run in missing:
        assert run.partition("/")[2] in " ".join(result["notes"]), (name, case, result["notes"])
    return "excluded" if missing else "noted"


def damages(content: bytes, generator: random.Random):
    """Yield (name, damaged content or None) for a file."""
    for _ in range(N_FLIPS if content else 0):
        position, bit = generator.randrange(len(content)), generator.randrange(8)
        damaged = bytearray(content)
        damaged[position] ^= 1 << bit
        yield f"bit {bit} of byte {position}", bytes(damaged)
    for position in (len(content) // 3, len(content) - 1, content.rfind(b"\n", 0, -1) + 1):
        yield f"truncated to {position}", content[:position]
    yield "emptied", b""
    yield "deleted", None


def replace(file: pathlib.Path, content: bytes | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)


ALL_FILES = [f"b/{name}" for name in verified_sweep.RUN_FILES] + [*verified_sweep.SWEEP_FILES]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_FILES)
def test_damaged_file_never_changes_a_number_silently(sweep, other_sweep, name, tmp_path):
    folder = shutil.copytree(sweep, tmp_path / "s")
    intact, content = read_everything(folder), (sweep / name).read_bytes()
    assert not intact["notes"]
    generator, outcomes = random.Random(name), []
    for case, damaged in damages(content, generator):
        replace(folder / name, damaged)
        outcomes.append(check_outcome(folder, intact, name, case))
    for exchanged in (sweep / name.replace("b/", "c/"), other_sweep / name):
        if exchanged != sweep / name:
            replace(folder / name, exchanged.read_bytes())
            outcomes.append(check_outcome(folder, intact, name, "exchanged"))
    shutil.copytree(sweep, folder, dirs_exist_ok=True)
    assert read_everything(folder) == intact
    assert len(outcomes) > N_FLIPS and set(outcomes) - {"same"}, outcomes
