"""Texts of the figures of a report: two sentences, and a section for each figure."""

import ast
import inspect

from lm.reports import figures
from lm.reports.plots import explanations
from lm.reports.sections import report_sections


def figure_names() -> set[str]:
    """Return the constant names of the figures in figures.py, and those with a suffix."""
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(figures))):
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            if isinstance(node.value, ast.Name) and node.value.id == "figures":
                names.add(node.slice.value)
    return names | {"rates_by_width", "rates_by_depth", "predicted_tasks"}


def test_every_figure_has_two_sentences_and_one_section():
    listed = [name for names in report_sections.FIGURES.values() for name in names]
    known = figure_names()
    assert len(known) > 15 and known == set(explanations.EXPLANATIONS)
    assert known - {"loss"} == set(listed) and len(listed) == len(set(listed))
    for sentences in explanations.EXPLANATIONS.values():
        assert len(sentences) == 2 and all(text.endswith(".") for text in sentences)
    assert explanations.explain_figure("other") == ""
    assert "gray band" not in explanations.explain_figure("loss", has_interval=False)
    assert "no law yet" in explanations.explain_figure("loss", has_law=False)
