"""Page of several sweeps: names, notes on comparability, answers, invalid folders."""

import re

import pytest
from fixtures import made_up_sweep

from lm.reports import summary
from lm.reports.two_sweeps import side_by_side
from lm.runs import records


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folders of two sweeps of the same name on different text."""
    first, second = (tmp_path_factory.mktemp(name) for name in ("a", "b"))
    folders = [made_up_sweep.sweep(first), made_up_sweep.sweep(second, missing=("700K", "1.6M"))]
    for size in ("30K", "60K", "120K", "300K"):
        records.write_facts(folders[1] / size, **{"corpus.hash": "f" * 16})
    return folders


@pytest.fixture(scope="module")
def page(folders):
    """Return the path of the page of the two sweeps."""
    return side_by_side.write_side_by_side(folders)


def test_page_answers_each_question_for_both_sweeps(folders, page):
    text = re.sub(r"<(script|style)>.*?</\1>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL)
    assert page == folders[0] / "side_by_side.html"
    for question in ("models", "law", "how sure", "with 10 times the compute", "abilities", "cost"):
        assert re.search(rf"\s{question}\s", text), question
    assert "different texts: their losses are not comparable" in text
    assert text.count("training FLOPs") == 2


def test_page_has_the_points_of_both_sweeps(folders, page):
    names = side_by_side.sweep_names([summary.load_summary(folder) for folder in folders])
    text = page.read_text()
    assert text.count("<figure") == text.count("<svg") == 1
    for name, n_points in zip(names, (6, 4), strict=True):
        assert text.count(f"<title>{name}, ") == n_points


def test_sweeps_of_one_name_are_distinguished(folders):
    sweeps = [summary.load_summary(folder) for folder in folders]
    names = side_by_side.sweep_names(sweeps)
    assert len(set(names)) == 2 and all(name.endswith("/toy") for name in names)


def test_invalid_folders_are_refused(folders, tmp_path):
    for given, expected in (
        (folders[:1], "1 sweeps: pass 2 to 4 folders"),
        ([folders[0], folders[0]], "given twice"),
        ([folders[0], tmp_path], "contains no runs"),
    ):
        with pytest.raises(ValueError, match=expected):
            side_by_side.write_side_by_side(given)
