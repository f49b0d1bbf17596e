"""Every notebook: small, without stored output, and it runs on any sweep."""

import pathlib

import made_up
import nbclient
import nbformat
import pytest

from lm import records, train

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def outputs(path, sweep_dir, monkeypatch) -> list:
    """Executes a notebook where it lies and returns what its cells showed."""
    monkeypatch.setenv("SWEEP_DIR", str(sweep_dir))
    monkeypatch.setenv("PYTHONPATH", str(path.parent.parent))
    notebook = read(path)
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources=where).execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_stores_no_output(path):
    cells = read(path).cells
    assert len(cells) <= 12
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    code = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    assert not [line for line in code if line.lstrip().startswith(("def ", "class ", "lambda"))]
    assert "arxiv.org" in "".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_scaling_curves_draws_a_finished_sweep(tmp_path, monkeypatch):
    path = next(path for path in NOTEBOOKS if path.stem == "scaling_curves")
    shown = outputs(path, made_up.sweep(tmp_path), monkeypatch)
    assert sum("image/png" in output.get("data", {}) for output in shown) == 5
    assert any(
        "inside its own" in output.get("data", {}).get("text/markdown", "") for output in shown
    )


def test_scaling_curves_explains_a_sweep_that_has_hardly_begun(tmp_path, monkeypatch):
    path = next(path for path in NOTEBOOKS if path.stem == "scaling_curves")
    sizes = tuple(made_up.SIZES)
    folder = made_up.sweep(
        tmp_path, status={"30K": ("running", "")}, missing=sizes[1:], predict=False
    )
    shown = outputs(path, folder, monkeypatch)
    assert any("No law:" in output.get("text", "") for output in shown)
    assert any("0 of 6" in output.get("data", {}).get("text/markdown", "") for output in shown)


def test_emergence_draws_the_tasks_of_a_sweep(tmp_path, monkeypatch):
    path = next(path for path in NOTEBOOKS if path.stem == "emergence")
    shown = outputs(path, made_up.sweep(tmp_path), monkeypatch)
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3
    tables = [
        output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})
    ]
    assert any("p to the k" in text for text in tables) and any(
        "p_right" in text for text in tables
    )
    assert any("before p 0." in output.get("text", "") for output in shown)


def test_transfer_draws_gains_specialists_and_unseen_tasks(tmp_path, monkeypatch):
    path = next(path for path in NOTEBOOKS if path.stem == "transfer")
    made_up.tuned(tmp_path)
    shown = outputs(path, tmp_path, monkeypatch)
    text = "".join(output.get("text", "") for output in shown)
    assert sum("image/png" in output.get("data", {}) for output in shown) == 6
    assert "21 runs of transfer, 12 of specialists, 8 of unseen" in text
    assert text.count("gain 0.") == 9 and text.count("sums: 3.0 times the FLOPs of tuning") == 3
    assert "D* = " in text and "4 clusters, new compositions: 0.800" in text
    assert "0.200 ± 0.030, with 0.800" in text


def test_checkpoints_opens_a_run_goes_on_with_it_and_hands_it_over(tiny, monkeypatch):
    path = next(path for path in NOTEBOOKS if path.stem == "checkpoints")
    train.train(tiny)
    folder = records.folder(tiny)
    before = sorted(file for file in folder.rglob("*") if "pins" not in file.parts)
    monkeypatch.setenv("RUN", str(folder))
    monkeypatch.setenv("DATA", tiny.data.cache)
    shown = outputs(path, folder, monkeypatch)
    text = "".join(output.get("text", "") for output in shown)
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert "step 13: loss" in text and "step 22: loss" in text
    assert "Qwen3ForCausalLM" in text and "the same bits: True" in text
    assert sorted(file for file in folder.rglob("*") if "pins" not in file.parts) == before
