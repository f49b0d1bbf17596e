"""Figures of measured and predicted task accuracy."""

import re

import numpy as np
import pytest
from fixtures import figure_layout, made_up_sweep

from lm.reports import task_analysis
from lm.reports.plots import style, task_accuracy
from lm.reports.plots.geometry import inline_svg
from lm.runs import records, task_results


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    return records.load_runs(made_up_sweep.sweep(tmp_path_factory.mktemp("runs")))


def tips(figure) -> list[str]:
    return re.findall(r"<title>(.*?)</title>", "".join(inline_svg.to_inline_svgs(figure)[0]))


def test_accuracy_is_plotted_against_falling_loss_with_its_law(rows):
    curves = task_analysis.accuracy_curves(rows, bootstrap=50)
    figure = task_accuracy.accuracy_vs_loss(rows, curves)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert all(re.search(r" \(chance \d+%\)$", title) for title in titles)
    names = [title.partition(" ")[0] for title in titles]
    assert names == ["copy?length=4", "sort?length=3"]  # modular is at chance
    caption = " ".join(figure.get_supxlabel().split())
    assert "Tasks that no run has above baseline, not shown: 1." in caption
    axes, (fit, reason) = figure.axes[0], curves["copy?length=4"]
    assert fit and not reason and axes.get_xlim()[0] > axes.get_xlim()[1]
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), 100 * fit.predict(line.get_xdata()).value)
    assert "at chance" in curves["modular"][1] and curves["modular"][0] is None
    largest_tips = [tip for tip in tips(figure) if tip.startswith("1.6M: loss")]
    accuracies = [round(100 * rows[-1][task_results.task_column(task)]) for task in names]
    assert [float(tip.split()[-1].removesuffix("%")) for tip in largest_tips] == accuracies


def test_titles_of_long_task_names_are_inside_the_figure(rows):
    long_names = [f"pair:data/blimp#determiner_noun_agreement{i}" for i in range(5)]
    copies = [
        row
        | {
            key.replace("copy?length=4", name): value
            for key, value in row.items()
            for name in long_names
            if "copy?length=4" in key
        }
        for row in rows
    ]
    figure = task_accuracy.task_curves(copies, long_names)
    titles = [text for axes in figure.axes for text in axes.get_title(loc="left").split("\n")]
    assert titles[:2] == ["blimp/", "determiner_noun_agreement0"]
    assert not [fault for fault in figure_layout.faults(figure) if "outside" in fault]


def test_runs_on_fewer_tokens_have_open_markers(rows):
    short = [row | {"name": row["name"] + "-short", "tokens": row["tokens"] / 2} for row in rows]
    axes = task_accuracy.accuracy_vs_loss([*rows, *short], {}).axes[0]
    faces = [line.get_markerfacecolor() for line in axes.get_lines() if line.get_gid()]
    assert faces.count(style.LIGHT["paper"]) == len(rows) == len(faces) / 2


def test_predicted_accuracy_is_plotted_beside_measured(rows):
    task = "copy?length=4"
    predictions = {task: {"value": 0.5, "lo": 0.25, "hi": 0.75}}
    predictions["modular"] = {"refused": "at chance"}
    figure = task_accuracy.predicted_accuracy(predictions, rows[-1])
    measured = f"{task}: measured {100 * rows[-1][task_results.task_column(task)]:.0f}%"
    assert "n = 1 of 2 tasks" in figure.get_supxlabel()
    assert tips(figure) == [f"{task}: predicted 50% [25, 75]", measured]
    assert tips(task_accuracy.predicted_accuracy(predictions)) == [
        f"{task}: predicted 50% [25, 75]"
    ]
    not_started = task_accuracy.predicted_accuracy(predictions, {"name": "toy/9M"})
    assert tips(not_started) == tips(task_accuracy.predicted_accuracy(predictions))


def test_figures_without_tasks_state_zero_tasks(rows):
    without_tasks = [{k: v for k, v in row.items() if "task" not in k} for row in rows]
    for runs in ([], without_tasks):
        curves = task_analysis.accuracy_curves(runs)
        caption = task_accuracy.accuracy_vs_loss(runs, curves).get_supxlabel()
        assert "not shown: 0." in " ".join(caption.split())
    assert "n = 0 of 0 tasks" in task_accuracy.predicted_accuracy({}).get_supxlabel()
