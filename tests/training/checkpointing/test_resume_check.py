"""Comparison of the first loss after a restart with the stored loss."""

import dataclasses
import json
import math
import shutil
import warnings

import numpy as np
import pytest

from lm.config import schema
from lm.parallel import mesh
from lm.runs import json_files, records
from lm.training import loop
from lm.training.checkpointing import checkpoint_manifest, resume_check

HERE = json.dumps({"devices.cpu_model": "A", "versions.jaxlib": "1"})
OTHER = json.dumps({"devices.cpu_model": "B", "versions.jaxlib": "1"})
UPGRADED = json.dumps({"devices.cpu_model": "A", "versions.jaxlib": "2"})
OTHER_CODE = json.dumps({"code.version": "0", "devices.cpu_model": "A", "versions.jaxlib": "1"})
VERSION_02 = json.dumps(["A", "1"])  # list of values without names
BASE = resume_check.ResumeRules(HERE, "cpu", "float32", 0.0, False, False)
ONE_ULP = float(np.nextafter(np.float32(4.0), np.float32(5)))


def verify(tmp_path, rules, loss, expected=4.0, environment=HERE) -> str:
    """Return the warning of a comparison, which is also a Python warning."""
    restored = checkpoint_manifest.RestoredState(
        tmp_path / "a", 8, expected_next_loss=expected, next_environment=environment
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        message = resume_check.verify_loss(restored, loss, rules)
    assert [message] * bool(message) == [
        str(w.message).removeprefix(f"{tmp_path / 'a'}: ") for w in caught
    ]
    return message


@pytest.mark.parametrize("changes", [{}, {"platform": "gpu"}, {"has_fixed_order": True}])
def test_equal_loss_is_silent(tmp_path, changes):
    rules = dataclasses.replace(BASE, **changes)
    assert verify(tmp_path, rules, 4.0) == verify(tmp_path, rules, math.nan, math.nan) == ""


@pytest.mark.parametrize(
    ("changes", "environment"),
    [
        ({}, HERE),
        ({"dtype": "bfloat16"}, HERE),
        ({"has_fixed_order": True}, OTHER),
        ({"platform": "gpu", "has_fixed_order": True}, HERE),
        ({"platform": "gpu", "has_fixed_kernels": True}, HERE),
    ],
)
def test_one_ulp_is_refused_where_bits_are_promised(tmp_path, changes, environment):
    rules = dataclasses.replace(BASE, **changes)
    with pytest.raises(ValueError, match="equal bits are required") as error:
        verify(tmp_path, rules, ONE_ULP, environment=environment)
    message = str(error.value)
    assert "set resume_tolerance=2e-07 to continue" in message and "\n" not in message
    allowed = dataclasses.replace(rules, tolerance=2e-7)
    assert "at most 2e-07 is allowed" in verify(tmp_path, allowed, ONE_ULP)


@pytest.mark.parametrize(
    ("changes", "environment", "limit"),
    [
        ({}, OTHER, 1e-4),
        ({}, VERSION_02, 1e-4),
        ({}, "", 1e-4),
        ({"dtype": "bfloat16"}, OTHER, 1e-3),
        ({"platform": "gpu"}, HERE, 1e-4),
        ({"platform": "tpu", "dtype": "bfloat16"}, HERE, 1e-3),
        ({"platform": "gpu", "has_fixed_kernels": True}, OTHER, 1e-4),
        ({"tolerance": 0.02}, HERE, 0.02),
        ({"has_fixed_order": True}, UPGRADED, 1e-4),
        ({"has_fixed_order": True}, OTHER_CODE, 1e-4),
        ({"has_fixed_order": True}, VERSION_02, 1e-4),
        ({"has_fixed_order": True, "dtype": "bfloat16"}, UPGRADED, 1e-3),
        ({"dtype": "bfloat16"}, OTHER_CODE, 1e-2),
        ({"dtype": "bfloat16"}, VERSION_02, 1e-2),
    ],
)
def test_difference_within_the_tolerance_is_a_warning(tmp_path, changes, environment, limit):
    rules = dataclasses.replace(BASE, **changes)
    for sign in (-1, 1):
        loss = 4.0 * (1 + sign * 0.9 * limit)
        message = verify(tmp_path, rules, loss, environment=environment)
        assert f"step 9 has loss {loss!r} after the restart and 4.0 before it" in message
        with pytest.raises(ValueError, match=rf"above the allowed {limit:g}: set resume_tolerance"):
            verify(tmp_path, rules, 4.0 * (1 + sign * 1.1 * limit), environment=environment)


def test_message_names_the_changed_facts(tmp_path):
    message = verify(tmp_path, BASE, ONE_ULP, environment=OTHER)
    assert "(changed: devices.cpu_model='B', now 'A')" in message
    assert resume_check.describe_changes(VERSION_02, HERE) == ""
    many = json.dumps({f"versions.{i}": "1" for i in range(9)})
    assert resume_check.describe_changes(many, HERE).endswith("; 8 more)")


@pytest.mark.parametrize(("loss", "expected"), [(math.nan, 4.0), (4.0, math.nan), (math.inf, 4.0)])
def test_loss_that_is_not_finite_is_refused(tmp_path, loss, expected):
    with pytest.raises(ValueError, match="restore code and text, or choose a new name"):
        verify(tmp_path, dataclasses.replace(BASE, tolerance=9.0), loss, expected)


def test_rules_follow_from_the_run(tiny):
    device_mesh = mesh.make_mesh(schema.Mesh())
    tiny.model.dtype, tiny.resume_tolerance = "bfloat16", 0.5
    tiny.mesh.deterministic_kernels = True
    rules = resume_check.ResumeRules.from_run(tiny, device_mesh, HERE)
    assert rules == resume_check.ResumeRules(HERE, "cpu", "bfloat16", 0.5, False, True)


def test_inexact_resume_is_one_event_and_one_warning(finished_copy):
    """The stored loss of step 9 is changed by one ulp, as another GPU kernel would change it."""
    folder = records.run_dir(finished_copy)
    shutil.rmtree(folder / "checkpoints" / "12")
    records.write_facts(folder, status="lost")
    rows = json_files.read_rows(folder / "checkpoints" / "proofs.jsonl")
    row = next(row for row in rows if row["step"] == 8)
    facts = json.loads(row["where"])
    assert {"devices.cpu_model", "versions.jaxlib", "versions.platform"} <= facts.keys()
    assert "code.version" in facts
    row["next_loss"] = float(np.nextafter(np.float32(row["next_loss"]), np.float32(9)))
    (folder / "checkpoints" / "proofs.jsonl").unlink()
    records.append_record(folder / "checkpoints" / "proofs.jsonl", row)
    with pytest.raises(ValueError, match="equal bits are required: set resume_tolerance"):
        loop.train(finished_copy)
    facts["devices.cpu_model"] = "another CPU"
    records.append_record(
        folder / "checkpoints" / "proofs.jsonl", row | {"where": json.dumps(facts)}
    )
    with pytest.warns(UserWarning, match="step 9 has loss .* at most 0.0001 is allowed") as caught:
        loop.train(finished_copy)
    events = [event for event in records.load_events(folder) if event["event"] == "inexact resume"]
    warned = [warning for warning in caught if "has loss" in str(warning.message)]
    assert len(warned) == len(events) == 1
    assert "changed: devices.cpu_model='another CPU', now" in events[0]["words"]
    assert records.read_facts(folder)["status"] == "done"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"model.z_loss": 1e-4}, ["the z-loss (model.z_loss=0.0001)"]),
        ({"model.n_experts": 4}, ["router statistics (model.n_experts=4)"]),
        (
            {"model.n_experts": 4, "model.parametrization": "mup", "optim.name": "muon"},
            ["router statistics", "'mup' scales Muon and the router differently"],
        ),
        ({"model.parametrization": "completep", "model.lora_rank": 2}, ["scales LoRA differently"]),
        ({"model.parametrization": "completep"}, []),
        ({"optim.name": "muon"}, []),
    ],
)
def test_run_of_version_02_names_its_changed_objective(tiny, changes, parts):
    for field, value in changes.items():
        group, name = field.split(".")
        setattr(getattr(tiny, group), name, value)
    stored = schema.to_dict(tiny)
    assert resume_check.describe_changed_objective(tiny, stored) == ""
    del stored["model"]["gradient_dtype"]
    message = resume_check.describe_changed_objective(tiny, stored)
    assert bool(message) == bool(parts) and "\n" not in message
    assert all(part in message for part in parts)


def test_changed_objective_is_one_event_of_the_restart(tiny, tmp_path):
    config = schema.to_dict(tiny)
    tiny.model.z_loss = 1e-4
    del config["model"]["gradient_dtype"]
    folder = records.run_dir(tiny)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    restored = checkpoint_manifest.RestoredState(folder, 8, damage=["step 12 is damaged"])
    with pytest.warns(UserWarning, match="the z-loss") as caught:
        events = resume_check.list_events(tiny, restored)
    assert [name for name, _ in events] == ["damaged", "changed objective"] and len(caught) == 1
    assert resume_check.list_events(tiny, dataclasses.replace(restored, step=0)) == events[:1]
