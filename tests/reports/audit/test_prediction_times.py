"""Order of a prediction and of the runs that share training with its target."""

import shutil

from lm.reports.audit import prediction_audit, prediction_chain, prediction_times
from lm.runs import json_files

PREDICTION = {"target": "s/branch", "written": "2026-01-01T10:00:00+00:00"}
TRUNK = {"name": "s/trunk", "start.run": "", "started": "2026-01-01T10:00:00+00:00"}
ON_TRUNK = {"start.run": "s/trunk", "start.restore": "full_state"}
BRANCH = ON_TRUNK | {"name": "s/branch", "started": "2026-01-01T12:00:00+00:00"}
OTHER = {"name": "s/other", "start.run": "", "started": "2026-01-01T08:00:00+00:00"}


def test_start_of_the_trunk_run_is_the_start_of_the_training():
    rows = [OTHER, BRANCH, TRUNK]
    text = prediction_times.describe_order(PREDICTION, rows)
    assert text == (
        "The prediction was stored before trunk started, the first run that shares training with"
        " branch."
    )
    assert "10:00:00 UTC, and trunk, the first related" in prediction_times.describe_times(
        PREDICTION, rows
    )
    later = PREDICTION | {"written": "2026-01-01T11:00:00+00:00"}
    assert "stored after trunk started" in prediction_times.describe_order(later, rows)
    sibling = OTHER | ON_TRUNK  # another branch has the training of the trunk run
    assert "stored after other started" in prediction_times.describe_order(
        PREDICTION, [*rows, sibling]
    )


def test_order_of_a_run_without_a_trunk_and_of_unknown_times():
    alone = BRANCH | {"start.run": ""}
    order = prediction_times.describe_order
    assert order(PREDICTION, [OTHER, alone]) == "The prediction was stored before the run started."
    assert order(PREDICTION, [OTHER]).endswith("was stored, and the run has not started.")
    unknown = [BRANCH, TRUNK | {"started": None}]
    assert order(PREDICTION, unknown).startswith("The records do not show")
    assert prediction_times.describe_times(PREDICTION, unknown) == ""


def test_order_is_unknown_without_the_records_of_the_trunk():
    """A branch that started before the prediction still shows that the prediction is later."""
    order, sibling = prediction_times.describe_order, OTHER | ON_TRUNK
    assert order(PREDICTION, [BRANCH]).startswith("The records do not show")
    assert prediction_times.describe_times(PREDICTION, [BRANCH]) == ""
    assert "stored after other started" in order(PREDICTION, [BRANCH, sibling])


def test_runs_from_the_same_weights_of_another_sweep_share_no_training():
    tuned = [row | {"start.run": "base/1M", "start.restore": "weights"} for row in (BRANCH, OTHER)]
    order = prediction_times.describe_order(PREDICTION, tuned)
    assert order == "The prediction was stored before the run started."


def test_clocks_of_two_machines_may_differ():
    """The page and the audit compare times in the same way."""
    rows = [BRANCH, TRUNK]
    for second, expected in ((5, "before"), (6, "after")):
        stored = PREDICTION | {"written": f"2026-01-01T10:00:0{second}+00:00"}
        assert f"stored {expected} trunk" in prediction_times.describe_order(stored, rows)
        text = prediction_times.describe_times(stored, rows)
        assert ("may differ by 5 seconds" in text) == (expected == "before")
        assert ("The sweep stores a prediction before" in text) == (expected == "before")


def test_audit_names_a_trunk_without_records(tmp_path):
    rows = {row["name"]: row for row in (BRANCH, OTHER)}
    chain = prediction_chain.Chain(tmp_path, PREDICTION, [], rows, {}, None, False, {})
    links = list(prediction_audit._verify_first_start(chain, 0.0))
    assert [link.status for link in links] == [prediction_chain.UNVERIFIABLE]
    assert links[0].text.startswith("s/trunk, which shares training with s/branch, has no time")


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
