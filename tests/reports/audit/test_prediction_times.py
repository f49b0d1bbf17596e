"""Order of a prediction and of the runs that share training with its target."""

import shutil

from lm.reports.audit import prediction_audit, prediction_chain, prediction_times
from lm.runs import json_files

PREDICTION = {"target": "s/branch", "written": "2026-01-01T10:00:00+00:00"}
TRUNK = {"name": "s/trunk", "start.run": "", "started": "2026-01-01T10:00:00+00:00"}
BRANCH = {"name": "s/branch", "start.run": "s/trunk", "started": "2026-01-01T12:00:00+00:00"}
OTHER = {"name": "s/other", "start.run": "", "started": "2026-01-01T08:00:00+00:00"}


def test_start_of_the_trunk_run_is_the_start_of_the_training():
    rows = [OTHER, BRANCH, TRUNK]
    text = prediction_times.describe_order(PREDICTION, rows)
    assert text.startswith("It was stored before trunk started, the first run that shares")
    assert "10:00:00 UTC, and trunk, the first related" in prediction_times.describe_times(
        PREDICTION, rows
    )
    later = PREDICTION | {"written": "2026-01-01T11:00:00+00:00"}
    assert "stored after trunk started" in prediction_times.describe_order(later, rows)
    sibling = OTHER | {"start.run": "s/trunk"}  # another branch has the training of the trunk run
    assert "stored after other started" in prediction_times.describe_order(
        PREDICTION, [*rows, sibling]
    )


def test_order_of_a_run_without_a_trunk_and_of_unknown_times():
    alone = BRANCH | {"start.run": ""}
    order = prediction_times.describe_order
    assert order(PREDICTION, [OTHER, alone]) == "It was stored before the run started."
    assert order(PREDICTION, [OTHER]) == "It was stored, and the run has not started."
    unknown = [BRANCH, TRUNK | {"started": None}]
    assert order(PREDICTION, unknown).startswith("The records do not show")
    assert prediction_times.describe_times(PREDICTION, unknown) == ""


def test_prediction_after_the_start_of_the_trunk_is_a_contradiction(tmp_path):
    folder = tmp_path / "ladder"
    shutil.copytree("notebooks/data/ability_ladder", folder)
    prediction = json_files.read_record(folder / "prediction.json")
    target = folder / prediction["target"].rpartition("/")[2]
    trunk = json_files.read_record(target / "config.json")["start"]["run"].rpartition("/")[2]

    def linked(status: str) -> list[str]:
        links = prediction_audit.audit_prediction(folder, should_refit=False)
        return [link.text for link in links if link.status == status and "shares" in link.text]

    assert trunk in linked(prediction_chain.VERIFIED)[0]
    file = folder / trunk / "facts.json"
    facts = json_files.read_record(file)
    json_files.write_record(file, facts | {"started": "2026-11-29T15:00:00+00:00"})
    assert trunk in linked(prediction_chain.CONTRADICTION)[0]
