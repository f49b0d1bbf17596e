"""The notebooks: their format, and their execution on synthetic sweeps and on a tiny run."""

import pathlib
import re

import nbclient
import nbformat
import pytest
from fixtures import made_up_sweep

from lm.runs import records
from lm.training import loop

STORED_OUTPUTS = ("learning_curves",)  # notebooks that show committed records
NOTEBOOKS = sorted((pathlib.Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))


def read_notebook(path):
    return nbformat.read(path, as_version=4)


def execute(path, sweep_dir, monkeypatch) -> list:
    """Execute a notebook in its own directory and return the outputs of its cells."""
    monkeypatch.setenv("SWEEP_DIR", str(sweep_dir))
    monkeypatch.setenv("PYTHONPATH", str(path.parent.parent))
    notebook = read_notebook(path)
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources=resources
    )
    client.execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def path_of(name: str) -> pathlib.Path:
    return next(path for path in NOTEBOOKS if path.stem == name)


def printed_text(outputs) -> str:
    return "".join(output.get("text", "") for output in outputs)


def count_figures(outputs) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs)


def html_tables(outputs) -> list[str]:
    return [
        output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})
    ]


def markdown_texts(outputs) -> list[str]:
    return [output.get("data", {}).get("text/markdown", "") for output in outputs]


def started_sweep(tmp_path) -> pathlib.Path:
    """Write a sweep with one running run and no finished run."""
    return made_up_sweep.sweep(
        tmp_path,
        status={"30K": ("running", "")},
        missing=tuple(made_up_sweep.SIZES)[1:],
        predict=False,
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_and_few_store_outputs(path):
    cells = read_notebook(path).cells
    assert len(cells) <= 12
    has_outputs = any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert has_outputs == (path.stem in STORED_OUTPUTS)
    code = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    assert not [line for line in code if line.lstrip().startswith(("def ", "class ", "lambda"))]
    assert "arxiv.org" in "".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_the_public_api(path):
    code = [cell.source for cell in read_notebook(path).cells if cell.cell_type == "code"]
    assert "import lm" in code[0].splitlines()
    assert not re.search(r"^from lm import", "\n".join(code), re.M)


def test_scaling_curves_draws_a_finished_sweep(tmp_path, monkeypatch):
    outputs = execute(path_of("scaling_curves"), made_up_sweep.sweep(tmp_path), monkeypatch)
    assert count_figures(outputs) == 5
    assert any("inside its own" in text for text in markdown_texts(outputs))
    assert "nearest size of the ladder" in html_tables(outputs)[-1]


@pytest.mark.slow
def test_scaling_curves_explains_an_unfinished_sweep(tmp_path, monkeypatch):
    outputs = execute(path_of("scaling_curves"), started_sweep(tmp_path), monkeypatch)
    assert any("No law:" in output.get("text", "") for output in outputs)
    assert any("0 of 6" in text for text in markdown_texts(outputs))


def test_emergence_explains_the_jumps_of_a_sweep(tmp_path, monkeypatch):
    outputs = execute(path_of("emergence"), made_up_sweep.sweep(tmp_path), monkeypatch)
    assert count_figures(outputs) == 1
    assert "p^k" in "".join(html_tables(outputs))
    assert any("before p 0." in output.get("text", "") for output in outputs)


def test_abilities_follows_the_tasks_of_a_sweep(tmp_path, monkeypatch):
    outputs = execute(path_of("abilities"), made_up_sweep.sweep(tmp_path), monkeypatch)
    assert count_figures(outputs) == 4
    assert "6 runs are done" in printed_text(outputs)
    laws, abilities, metrics = html_tables(outputs)
    assert "acc(L) = " in laws and "is at chance" in laws
    assert "stored no predicted abilities" in abilities
    assert "p_right" in metrics and "predictable from" in metrics


@pytest.mark.slow
@pytest.mark.parametrize("name", ["isoflop", "transfer"])
def test_law_notebooks_explain_a_missing_sweep(name, tmp_path, monkeypatch):
    text = printed_text(execute(path_of(name), tmp_path, monkeypatch))
    assert "0 runs" in text and "the list is empty" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["abilities", "emergence"])
def test_task_notebooks_explain_an_unfinished_sweep(name, tmp_path, monkeypatch):
    text = printed_text(execute(path_of(name), started_sweep(tmp_path), monkeypatch))
    assert "0 runs" in text and "0 tasks" in text


@pytest.mark.parametrize("name", ["abilities", "scaling_curves"])
def test_default_sweep_is_in_the_repository(name):
    text = "".join(cell.source for cell in read_notebook(path_of(name)).cells)
    assert 'else "data/real_ladder"' in text


def test_transfer_draws_all_three_sweeps(tmp_path, monkeypatch):
    made_up_sweep.tuned(tmp_path)
    outputs = execute(path_of("transfer"), tmp_path, monkeypatch)
    text = printed_text(outputs)
    assert count_figures(outputs) == 6
    assert "21 runs of transfer, 12 of specialists, 8 of unseen" in text
    assert text.count("gain 0.") == 9
    assert text.count("sums: 3.0 times the FLOPs of fine-tuning") == 3
    assert "D* = " in text and "4 clusters, new compositions: 0.800" in text
    assert "0.200 ± 0.030, with 0.800" in text


def test_hyperparameters_finds_the_known_exponents(tmp_path, monkeypatch):
    outputs = execute(path_of("hyperparameters"), made_up_sweep.rates(tmp_path), monkeypatch)
    text = printed_text(outputs)
    assert count_figures(outputs) == 2
    assert "54 runs, 11 parametrizations and shapes" in text and "warning" not in text
    exponents = re.findall(r"(\w+) by (\w+): (\S+) \[(\S+), (\S+)\]", text)
    known = {("standard", "d_model"): -1, ("standard", "n_layers"): -0.5}
    assert len(exponents) == 4
    for rule, along, _, lo, hi in exponents:
        assert float(lo) - 0.01 <= known.get((rule, along), 0) <= float(hi) + 0.01
    assert "step law" in text


def test_isoflop_fits_a_sweep_with_a_known_law(tmp_path, monkeypatch):
    outputs = execute(path_of("isoflop"), made_up_sweep.isoflop(tmp_path), monkeypatch)
    text = printed_text(outputs)
    assert count_figures(outputs) == 2
    assert "24 runs" in text and text.count("best size") == 4 and "Akima: N* = " in text


def test_checkpoints_branches_and_exports_a_run(tiny, monkeypatch):
    """The notebook changes no file of the run, except pins that protect its checkpoints."""
    loop.train(tiny)
    run_dir = records.run_dir(tiny)
    before = sorted(file for file in run_dir.rglob("*") if "pins" not in file.parts)
    monkeypatch.setenv("RUN", str(run_dir))
    monkeypatch.setenv("DATA", tiny.data.cache_dir)
    outputs = execute(path_of("checkpoints"), run_dir, monkeypatch)
    text = printed_text(outputs)
    assert count_figures(outputs) == 2
    assert "step 13: loss" in text and "step 22: loss" in text
    assert "Qwen3ForCausalLM" in text and "bit-identical: True" in text
    assert sorted(file for file in run_dir.rglob("*") if "pins" not in file.parts) == before


@pytest.mark.slow
def test_learning_curves_forecasts_the_committed_runs(monkeypatch):
    """The printed numbers are those of the stored outputs."""
    path = path_of("learning_curves")
    stored = [output for cell in read_notebook(path).cells for output in cell.get("outputs", ())]
    monkeypatch.delenv("SWEEP_DIR", raising=False)
    notebook = read_notebook(path)
    resources = {"metadata": {"path": str(path.parent)}}
    monkeypatch.setenv("PYTHONPATH", str(path.parent.parent))
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert printed_text(outputs) == printed_text(stored) and count_figures(outputs) == 2
