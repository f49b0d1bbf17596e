"""Every notebook: small, without stored output, and it runs on any sweep."""

import pathlib
import re

import nbclient
import nbformat
import pytest
from fixtures import made_up_sweep

from lm.runs import records
from lm.training import loop

NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))


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


def path_of(name: str) -> pathlib.Path:
    return next(path for path in NOTEBOOKS if path.stem == name)


def text_of(shown) -> str:
    return "".join(output.get("text", "") for output in shown)


def n_figures(shown) -> int:
    return sum("image/png" in output.get("data", {}) for output in shown)


def tables(shown) -> list[str]:
    return [
        output["data"]["text/html"] for output in shown if "text/html" in output.get("data", {})
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_stores_no_output(path):
    cells = read(path).cells
    assert len(cells) <= 12
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    code = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    assert not [line for line in code if line.lstrip().startswith(("def ", "class ", "lambda"))]
    assert "arxiv.org" in "".join(cell.source for cell in cells if cell.cell_type == "markdown")


def test_scaling_curves_draws_a_finished_sweep(tmp_path, monkeypatch):
    path = path_of("scaling_curves")
    shown = outputs(path, made_up_sweep.sweep(tmp_path), monkeypatch)
    assert n_figures(shown) == 5
    assert any(
        "inside its own" in output.get("data", {}).get("text/markdown", "") for output in shown
    )


def test_scaling_curves_explains_a_sweep_that_has_hardly_begun(tmp_path, monkeypatch):
    path = path_of("scaling_curves")
    sizes = tuple(made_up_sweep.SIZES)
    folder = made_up_sweep.sweep(
        tmp_path, status={"30K": ("running", "")}, missing=sizes[1:], predict=False
    )
    shown = outputs(path, folder, monkeypatch)
    assert any("No law:" in output.get("text", "") for output in shown)
    assert any("0 of 6" in output.get("data", {}).get("text/markdown", "") for output in shown)


def test_emergence_takes_the_jumps_of_a_sweep_apart(tmp_path, monkeypatch):
    path = path_of("emergence")
    shown = outputs(path, made_up_sweep.sweep(tmp_path), monkeypatch)
    assert n_figures(shown) == 1
    assert "p to the k" in "".join(tables(shown))
    assert any("before p 0." in output.get("text", "") for output in shown)


def test_abilities_follows_the_tasks_of_a_sweep(tmp_path, monkeypatch):
    path = path_of("abilities")
    shown = outputs(path, made_up_sweep.sweep(tmp_path), monkeypatch)
    assert n_figures(shown) == 4
    assert "6 runs are done" in text_of(shown)
    laws, metrics = tables(shown)
    assert "acc(L) = " in laws and "is at chance" in laws
    assert "p_right" in metrics and "predictable from" in metrics


@pytest.mark.parametrize("name", ["isoflop", "transfer"])
def test_notebooks_of_other_sweeps_say_what_cannot_be_fitted_before_there_are_runs(
    name, tmp_path, monkeypatch
):
    text = "".join(out.get("text", "") for out in outputs(path_of(name), tmp_path, monkeypatch))
    assert "0 runs" in text and "the list is empty" in text


@pytest.mark.parametrize("name", ["abilities", "emergence"])
def test_notebooks_on_tasks_explain_a_sweep_that_has_hardly_begun(name, tmp_path, monkeypatch):
    path = path_of(name)
    sizes = tuple(made_up_sweep.SIZES)
    begun = {"30K": ("running", "")}
    folder = made_up_sweep.sweep(tmp_path, status=begun, missing=sizes[1:], predict=False)
    text = text_of(outputs(path, folder, monkeypatch))
    assert "0 runs" in text and "0 tasks" in text


@pytest.mark.parametrize("name", ["abilities", "scaling_curves"])
def test_a_fresh_clone_opens_the_records_that_come_with_it(name):
    text = "".join(cell.source for cell in read(path_of(name)).cells)
    assert 'else "data/real_ladder"' in text


def test_transfer_draws_gains_specialists_and_unseen_tasks(tmp_path, monkeypatch):
    path = path_of("transfer")
    made_up_sweep.tuned(tmp_path)
    shown = outputs(path, tmp_path, monkeypatch)
    text = text_of(shown)
    assert n_figures(shown) == 6
    assert "21 runs of transfer, 12 of specialists, 8 of unseen" in text
    assert text.count("gain 0.") == 9 and text.count("sums: 3.0 times the FLOPs of tuning") == 3
    assert "D* = " in text and "4 clusters, new compositions: 0.800" in text
    assert "0.200 ± 0.030, with 0.800" in text


def test_hyperparameters_tells_how_far_the_best_rate_moves(tmp_path, monkeypatch):
    path = path_of("hyperparameters")
    shown = outputs(path, made_up_sweep.rates(tmp_path), monkeypatch)
    text = text_of(shown)
    assert n_figures(shown) == 2
    assert "54 runs, 11 parametrizations and shapes" in text and "doubt" not in text
    told = re.findall(r"(\w+) by (\w+): (\S+) \[(\S+), (\S+)\]", text)
    known = {("standard", "d_model"): -1, ("standard", "n_layers"): -0.5}
    assert len(told) == 4
    for rule, along, _, lo, hi in told:
        assert float(lo) - 0.01 <= known.get((rule, along), 0) <= float(hi) + 0.01
    assert "by the step law" in text


def test_isoflop_fits_the_line_of_a_sweep_whose_law_is_known(tmp_path, monkeypatch):
    path = path_of("isoflop")
    shown = outputs(path, made_up_sweep.isoflop(tmp_path), monkeypatch)
    text = text_of(shown)
    assert n_figures(shown) == 2
    assert "24 runs" in text and text.count("best size") == 4 and "Akima: N* = " in text


def test_checkpoints_opens_a_run_goes_on_with_it_and_hands_it_over(tiny, monkeypatch):
    path = path_of("checkpoints")
    loop.train(tiny)
    folder = records.run_dir(tiny)
    before = sorted(file for file in folder.rglob("*") if "pins" not in file.parts)
    monkeypatch.setenv("RUN", str(folder))
    monkeypatch.setenv("DATA", tiny.data.cache_dir)
    shown = outputs(path, folder, monkeypatch)
    text = text_of(shown)
    assert n_figures(shown) == 2
    assert "step 13: loss" in text and "step 22: loss" in text
    assert "Qwen3ForCausalLM" in text and "the same bits: True" in text
    assert sorted(file for file in folder.rglob("*") if "pins" not in file.parts) == before
