"""The notebooks: their format, and their execution on synthetic sweeps and on a tiny run."""

import base64
import os
import pathlib
import re
import shutil

import nbclient
import nbformat
import pytest
from fixtures import made_up_sweep

from lm.runs import records
from lm.training import loop

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_FIGURE_BYTES = 200_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.>])/(?:home|Users|root|tmp|work|opt|mnt|usr|var)/")


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
    return next(path for path in NOTEBOOKS if path.stem[3:] == name)


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


def test_notebooks_are_numbered_as_a_course():
    assert [path.stem[:3] for path in NOTEBOOKS] == [f"{n:02}_" for n in range(1, 11)]
    for number, path in enumerate(NOTEBOOKS, 1):
        cells = read_notebook(path).cells
        assert cells[0].source.startswith(f"# {number}. ")
        assert cells[-1].source.startswith("# Use your own runs: ") and "SWEEP_DIR" in str(cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_and_store_their_outputs(path):
    cells = read_notebook(path).cells
    assert len(cells) <= 18
    code_cells = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code_cells] == list(range(1, len(code_cells) + 1))
    code = [line for cell in code_cells for line in cell.source.splitlines()]
    assert not [line for line in code if line.lstrip().startswith(("def ", "class ", "lambda"))]
    assert "arxiv.org" in "".join(cell.source for cell in cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_outputs_are_small_and_free_of_paths(path):
    outputs = [output for cell in read_notebook(path).cells for output in cell.get("outputs", ())]
    figures = [output["data"]["image/png"] for output in outputs if "image/png" in str(output)]
    assert figures and max(len(base64.b64decode(f)) for f in figures) < MAX_FIGURE_BYTES
    texts = [printed_text(outputs), *html_tables(outputs), *markdown_texts(outputs)]
    assert not ABSOLUTE_PATH.search("\n".join(texts))
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_the_public_api(path):
    code = [cell.source for cell in read_notebook(path).cells if cell.cell_type == "code"]
    assert "import lm" in code[0].splitlines()
    assert not re.search(r"^from lm import", "\n".join(code), re.M)


def test_first_law_draws_a_finished_sweep(tmp_path, monkeypatch):
    outputs = execute(path_of("first_scaling_law"), made_up_sweep.sweep(tmp_path), monkeypatch)
    assert count_figures(outputs) == 5
    assert any("inside its own" in text for text in markdown_texts(outputs))
    assert "nearest size of the ladder" in html_tables(outputs)[-1]


@pytest.mark.slow
def test_first_law_explains_an_unfinished_sweep(tmp_path, monkeypatch):
    outputs = execute(path_of("first_scaling_law"), started_sweep(tmp_path), monkeypatch)
    assert any("No law:" in output.get("text", "") for output in outputs)
    assert any("0 of 6" in text for text in markdown_texts(outputs))


@pytest.mark.slow
def test_abilities_follows_the_tasks_of_a_sweep(tmp_path, monkeypatch):
    outputs = execute(path_of("abilities"), made_up_sweep.sweep(tmp_path), monkeypatch)
    text = printed_text(outputs)
    assert count_figures(outputs) == 4
    assert "6 runs are done" in text and "no margins to compare" in text
    laws, abilities, metrics, emergence = html_tables(outputs)
    assert "acc(L) = " in laws and "is at chance" in laws
    assert "stored no predicted abilities" in abilities
    assert "probability of the correct answer" in metrics and "predictable from" in metrics
    assert "p^k" in emergence and "before p 0." in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learning_rate_transfer", "compute_optimal", "transfer"])
def test_law_notebooks_explain_a_missing_sweep(name, tmp_path, monkeypatch):
    text = printed_text(execute(path_of(name), tmp_path, monkeypatch))
    assert "0 runs" in text
    if name == "compute_optimal":
        assert "the list is empty" in text
    else:
        assert "uv run python -m experiments.sweep --sweep=configs/sweeps/" in text


@pytest.mark.slow
def test_abilities_explains_an_unfinished_sweep(tmp_path, monkeypatch):
    text = printed_text(execute(path_of("abilities"), started_sweep(tmp_path), monkeypatch))
    assert "0 runs" in text and "0 tasks" in text


@pytest.mark.slow
def test_design_notebook_plans_from_a_sweep(tmp_path, monkeypatch):
    outputs = execute(
        path_of("designing_a_study"), made_up_sweep.sweep(tmp_path, predict=False), monkeypatch
    )
    text = printed_text(outputs)
    assert count_figures(outputs) == 2 and "assumed: no size has two seeds" in text
    assert "next run: N = " in text and "gpu:h100:8" in html_tables(outputs)[0]


def test_unfinished_runs_do_not_hide_the_records_of_transfer(tmp_path, monkeypatch):
    """An interrupted sweep in ../runs has no result yet, and the records in data are complete."""
    made_up_sweep.sweep(
        tmp_path / "runs",
        "ability_tuning",
        status={"30K": ("failed", "")},
        missing=tuple(made_up_sweep.SIZES)[1:],
    )
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "data").symlink_to(ROOT / "notebooks" / "data")
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.delenv("SWEEP_DIR", raising=False)
    code = [cell.source for cell in read_notebook(path_of("transfer")).cells][1]
    names: dict = {}
    exec(code.replace("%matplotlib inline", ""), names)
    archived = records.load_runs(ROOT / "notebooks" / "data" / "ability_tuning")
    assert len(names["prompted"]) == len(archived) > 1


@pytest.mark.slow
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


@pytest.mark.slow
def test_learning_rates_find_the_known_exponents(tmp_path, monkeypatch):
    outputs = execute(path_of("learning_rate_transfer"), made_up_sweep.rates(tmp_path), monkeypatch)
    text = printed_text(outputs)
    assert count_figures(outputs) == 3
    assert "54 runs, 11 parametrizations and shapes" in text
    exponents = re.findall(r"(\w+) by (\w+): (\S+) \[(\S+), (\S+)\]", text)
    known = {("standard", "d_model"): -1, ("standard", "n_layers"): -0.5}
    assert len(exponents) == 4
    for rule, along, _, lo, hi in exponents:
        assert float(lo) - 0.01 <= known.get((rule, along), 0) <= float(hi) + 0.01
    assert "step law" in text


@pytest.mark.slow
def test_compute_optimal_fits_a_sweep_with_a_known_law(tmp_path, monkeypatch):
    outputs = execute(path_of("compute_optimal"), made_up_sweep.isoflop(tmp_path), monkeypatch)
    text = printed_text(outputs)
    assert count_figures(outputs) == 2
    assert "24 runs" in text and text.count("best size") == 4 and "Akima: N* = " in text


@pytest.mark.slow
def test_checkpoints_branches_and_exports_a_run(tiny, monkeypatch):
    """The notebook changes no file of the run, except pins that protect its checkpoints."""
    loop.train(tiny)
    run_dir = records.run_dir(tiny)
    before = sorted(file for file in run_dir.rglob("*") if "pins" not in file.parts)
    monkeypatch.setenv("RUN", str(run_dir))
    monkeypatch.setenv("DATA", tiny.data.cache_dir)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "4")  # those of the tests
    outputs = execute(path_of("checkpoints_and_models"), run_dir, monkeypatch)
    text = printed_text(outputs)
    assert count_figures(outputs) == 2
    assert "step 13: loss" in text and "step 22: loss" in text
    assert "resumed from step 8: weights are bit-identical: True" in text
    assert "Qwen3ForCausalLM" in text and text.count("bit-identical: True") == 2
    assert sorted(file for file in run_dir.rglob("*") if "pins" not in file.parts) == before


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_in_a_fresh_clone(path, tmp_path, monkeypatch):
    """The notebooks show committed records. The printed numbers of 09 are those in git."""
    for name in ("notebooks", "lm", "configs", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("SWEEP_DIR", "RUN", "DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notebook = read_notebook(path)
    resources = {"metadata": {"path": os.fspath(tmp_path / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    stored = [output for cell in read_notebook(path).cells for output in cell.get("outputs", ())]
    assert count_figures(outputs) == count_figures(stored)
    if path.stem == "09_forecasts":
        assert printed_text(outputs) == printed_text(stored)
