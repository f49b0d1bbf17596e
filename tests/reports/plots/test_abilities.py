"""Figures of abilities by family: counts, errors over seeds, gain and margin."""

import re

import pytest

from lm.reports.plots import abilities
from lm.reports.plots.geometry import inline_svg

SIZES = (1e4, 1e5, 1e6)


def runs() -> list[dict]:
    """Return runs of three sizes with two seeds, and minimal pairs of two phenomena."""
    rows = []
    for number, size in enumerate(SIZES):
        for seed in (0, 1):
            row = {"name": f"s/{size:g}-{seed}", "params.non_embedding": size, "status": "done"}
            row["tokens"] = 1e6
            better = 0.6 + 0.15 * number + 0.02 * seed
            for part, accuracy in (("a/1", better), ("a/2", 0.9 * seed), ("b/3", 0.55)):
                metrics = {"accuracy": accuracy, "chance": 0.5, "n": 1000, "margin": number}
                metrics |= {"baseline_bigram": 0.6, "p_above_baseline": 1e-9}
                metrics["p_below_baseline"] = 1e-9 if part == "b/3" else 1.0
                row |= {f"eval.task.pair:x#{part}.{key}": v for key, v in metrics.items()}
            rows.append(row)
    return rows


def tips(figure) -> list[str]:
    return re.findall(r"<title>(.*?)</title>", "".join(inline_svg.to_inline_svgs(figure)[0]))


def test_families_have_a_line_with_errors_over_seeds():
    figure = abilities.abilities_by_family(runs())
    caption = " ".join(figure.get_supxlabel().split())
    assert "n = 6 runs" in caption and "Largest run, below baseline: x/3." in caption
    assert "a: 1.5 above baseline" in tips(figure) and "b: 1 above baseline" in tips(figure)
    assert "a: 1.5 mastered" in tips(figure)
    ranges = abilities._mean_by_size(
        runs(), "params.non_embedding", "eval.task.pair:x#a/2.accuracy"
    )
    assert ranges[1] == [0.45] * 3 and ranges[2].tolist() == [[0.45] * 3, [0.45] * 3]
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["all tasks", "a", "b"] and "all tasks: 2.5 above baseline" in tips(figure)


def test_margin_is_drawn_beside_the_accuracy_gain():
    assert abilities.families_with_margin(runs()) == ["a", "b"]
    figure = abilities.gain_and_margin(runs())
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert [title for title in titles if title] == ["a", "b"]
    assert "b: points -5" in tips(figure) and "b: nats 2" in tips(figure)


@pytest.mark.parametrize("rows", [[], [{"name": "s/1", "status": "done", "tokens": 1.0}]])
def test_figures_without_tasks_are_empty(rows):
    assert "n = 0 runs" in abilities.abilities_by_family(rows).get_supxlabel()
    assert "n = 0 runs" in abilities.gain_and_margin(rows).get_supxlabel()
