"""Report page in Chromium at two widths, light and dark: clipped, overlapping and faint text."""

import re

import pytest
from fixtures import chromium, made_up_sweep

from lm.reports import report
from lm.reports.plots import style

pytestmark = pytest.mark.skipif(
    chromium.PROGRAM is None, reason="no Chromium: apt-get install chromium"
)


def test_page_has_no_clipped_or_overlapping_text(tmp_path, monkeypatch):
    """The sweep has a failed run and a long name, which widen its tables."""
    monkeypatch.setattr(style, "save_figure", lambda figure, stem, meta: [])
    status = {"60K": ("failed", "RESOURCE_EXHAUSTED:" + "x" * 300)}
    folder = made_up_sweep.sweep(tmp_path, status=status)
    page = report.write_report(folder)
    faults = chromium.layout_faults(page, tmp_path)
    assert len(faults) == 4 and not any(faults.values()), faults
    without_figures = re.sub(r"<figure.*?</figure>", "", page.read_text("utf-8"), flags=re.DOTALL)
    wide = without_figures.replace("<main>", '<main><div style="width:1500px">wide</div>')
    page.write_text(wide, encoding="utf-8")
    assert all(chromium.layout_faults(page, tmp_path).values())
