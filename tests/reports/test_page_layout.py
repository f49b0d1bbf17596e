"""Report page in Chromium at two widths, light and dark: clipped, overlapping and faint text."""

import pathlib
import re
import shutil

import pytest
from fixtures import chromium, made_up_sweep

from lm.reports import report
from lm.reports.plots import style
from lm.reports.two_sweeps import side_by_side

ARCHIVES = pathlib.Path(__file__).parents[2] / "notebooks" / "data"
SIZES = tuple(made_up_sweep.SIZES)

pytestmark = pytest.mark.skipif(
    chromium.PROGRAM is None, reason="no Chromium: apt-get install chromium"
)


def test_page_has_no_clipped_or_overlapping_text(tmp_path, monkeypatch):
    """The sweep has a failed run and a long name, which widen its tables."""
    monkeypatch.setattr(style, "save_figure", lambda *_: [])
    status = {"60K": ("failed", "RESOURCE_EXHAUSTED:" + "x" * 300)}
    folder = made_up_sweep.sweep(tmp_path, status=status)
    page = report.write_report(folder)
    faults = chromium.layout_faults(page, tmp_path)
    assert len(faults) == 4 and not any(faults.values()), faults
    without_figures = re.sub(r"<figure.*?</figure>", "", page.read_text("utf-8"), flags=re.DOTALL)
    wide = without_figures.replace("<main>", '<main><div style="width:1500px">wide</div>')
    page.write_text(wide, encoding="utf-8")
    assert all(chromium.layout_faults(page, tmp_path).values())


def test_cut_tiny_and_covered_text_of_figures_is_reported(tmp_path):
    """Each drawing has one fault: text outside the window, in a scrolled box, tiny, covered."""
    drawing = '<svg aria-label="{}" viewBox="0 0 {} 100" width="100%">{}</svg>'
    text = '<text x="{}" y="50" style="font-size: {}px">{}</text>'
    marker = '<g class="tip"><g><use href="#dot" x="20" y="46"/></g></g>'
    drawings = [
        drawing.format("covered", 300, text.format(10, 12, "under") + marker),
        drawing.format("small", 2000, text.format(10, 12, "tiny")),
        drawing.format("cut", 300, text.format(280, 12, "too long")),
        f'<div style="overflow-x: auto; width: 100px"><div style="width: 2000px">'
        f"{drawing.format('scrolled', 300, text.format(150, 12, 'hidden'))}</div></div>",
    ]
    page = tmp_path / "page.html"
    definitions = '<svg width="0" height="0"><defs><circle id="dot" r="6"/></defs></svg>'
    body = definitions + "".join(f"<figure>{drawing}</figure>" for drawing in drawings)
    dark = "@media (prefers-color-scheme: dark) { body { background: #111 } }"
    css = f"body {{ background: #fff }} {dark}"
    page.write_text(f"<style>:root {{ color-scheme: light dark }} {css}</style>{body}", "utf-8")
    faults = " ".join(chromium.layout_faults(page, tmp_path)["390 light"])
    for fault in (
        "covered: under is under a marker",
        "small: tiny has",
        "cut: toolong is cut",
        "scrolled: hidden is outside the window",
    ):
        assert fault in faults, faults


@pytest.mark.slow
@pytest.mark.parametrize(
    "archive", ["ability_ladder", "real_ladder", "tune", "tune_check", "recipes/base"]
)
def test_pages_of_archives_have_no_clipped_or_overlapping_text(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "save_figure", lambda *_: [])
    folder = shutil.copytree(ARCHIVES / archive, tmp_path / pathlib.Path(archive).name)
    faults = chromium.layout_faults(report.write_report(folder), tmp_path)
    assert not any(faults.values()), faults


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", ["single", "two", "unfinished", "side by side", "rates", "isoflop"]
)
def test_pages_of_unusual_sweeps_have_no_layout_faults(case, tmp_path, monkeypatch):
    monkeypatch.setattr(style, "save_figure", lambda *_: [])
    sweep = made_up_sweep.sweep
    if case == "side by side":
        folders = [sweep(tmp_path, "first"), sweep(tmp_path, "second", noise=0.004, miss=0.05)]
        page = side_by_side.write_side_by_side(folders)
    elif case == "unfinished":
        running = {"300K": ("running", "")}
        page = report.write_report(sweep(tmp_path, status=running, missing=SIZES[4:]))
    elif case in ("rates", "isoflop"):
        page = report.write_report(getattr(made_up_sweep, case)(tmp_path))
    else:
        missing = SIZES[1 if case == "single" else 2 :]
        page = report.write_report(sweep(tmp_path, missing=missing, predict=False))
    faults = chromium.layout_faults(page, tmp_path)
    assert not any(faults.values()), faults
