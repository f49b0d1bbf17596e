"""Sentences about damaged and unverified records."""

from fixtures import made_up_sweep, verified_sweep

from lm.runs import records
from lm.runs.integrity import run_notes


def notes(folder) -> list[str]:
    return run_notes.folder_notes(records.load_folder(folder))


def test_intact_sweep_has_no_notes(tmp_path):
    assert notes(verified_sweep.write_sweep(tmp_path)) == []


def test_old_sweep_has_one_note(tmp_path):
    (note,) = notes(made_up_sweep.sweep(tmp_path))
    assert note.startswith("6 runs have no checksums (written by version 0.2)")


def test_damaged_lines_are_named_once(tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    file = folder / "a" / "metrics.jsonl"
    file.write_bytes(
        file.read_bytes().replace(b'"step": 5', b'"step": 6').replace(b'"step": 10', b"\xff")
    )
    assert notes(folder) == [f"{file}: lines 1, 2, 4 are damaged and not used"]


def test_cut_last_line_is_damage_only_after_the_end(tmp_path):
    folder = verified_sweep.write_sweep(tmp_path)
    file = folder / "a" / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    assert "metrics.jsonl: line 6 is damaged and not used" in notes(folder)[0]
    assert len(notes(folder)) == 1
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    assert notes(folder) == [f"{file} has no row of the last step"]
    records.write_facts(folder / "a", status="lost")
    assert notes(folder) == []
