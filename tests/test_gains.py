"""Gains of earlier training from rows whose gains are known."""

import pytest

from lm import gains, plots


def row(size, tokens, loss, start="", seed=0, **more):
    name = f"s/{size}-{tokens}-{start}-{seed}"
    return {
        **{"name": name, "status": "done", "params.non_embedding": size, "unique_tokens": tokens},
        **{"eval.loss": loss, "eval.loss_se": 0.03, "start.run": start, "data.sources": {}},
        **more,
    }


ROWS = [
    row(size, tokens, 3 - tokens / 1e4 - size / 1e4 - (0.4 if start else 0.0), start)
    for size in (1000, 4000)
    for tokens in (1000, 8000)
    for start in ("", "s/parent")
]


def test_a_pair_holds_both_ways_and_the_error_of_their_difference():
    alone = row(1000, 2000, 2.0)
    failed = row(4000, 2000, 2.0, "s/parent", status="failed")
    found = gains.pairs([*ROWS, alone, failed])
    assert [(pair["size"], pair["tokens"]) for pair in found] == [
        (size, tokens) for size in (1000, 4000) for tokens in (1000, 8000)
    ]
    assert all(pair["gain"] == pytest.approx(0.4) for pair in found)
    assert found[0]["gain_se"] == pytest.approx(0.03 * 2**0.5)


def test_several_seeds_are_averaged():
    rows = [row(1000, 1000, loss, start, seed) for seed, loss in enumerate((2.0, 2.4))
            for start in ("", "s/p")]  # fmt: skip
    rows[1]["eval.loss"] = 1.0
    (pair,) = gains.pairs(rows)
    assert pair["scratch"] == pytest.approx(2.2) and pair["tuned"] == pytest.approx(1.7)
    assert pair["gain_se"] == pytest.approx(0.03)


def set_tasks(size, n, shares, seed=0):
    sources = {"tasks:" + "+".join(f"copy?length={i + 2}" for i in range(n)): 0.9, "docs": 0.1}
    columns = {f"eval.task.{task}.accuracy": share for task, share in shares.items()}
    errors = {f"eval.task_se.{task}.accuracy": 0.04 for task in shares}
    more = {"data.sources": sources, **columns, **errors}
    return row(size, 0, 2.0, "s/p" if n else "", seed, **more)


def test_abilities_are_means_over_the_tasks_of_a_group_and_the_seeds():
    rows = [
        set_tasks(1000, 0, {"a": 0.0, "b": 0.2}),
        set_tasks(1000, 3, {"a": 0.4, "b": 0.6, "c": 1.0}, 0),
        set_tasks(1000, 3, {"a": 0.6, "b": 0.8, "c": 1.0}, 1),
    ]
    found = gains.abilities(rows, {"new": ["a", "b"], "tuned": ["c"]})
    kinds = [(point["n_clusters"], point["group"], point["n_runs"]) for point in found]
    assert kinds == [(0, "new", 1), (3, "new", 2), (3, "tuned", 2)]
    assert [point["value"] for point in found] == pytest.approx([0.1, 0.6, 1.0])
    asked, apart = 0.04 / 2**0.5, 0.2**2 / 2
    assert found[0]["se"] == pytest.approx(asked)
    assert found[1]["se"] == pytest.approx(((asked**2 + apart) / 2) ** 0.5)


def test_the_figures_show_every_pair_and_every_group():
    figure = plots.fine_tuned([*ROWS, row(1000, 2000, 2.0)])
    (axes,) = figure.axes
    assert len([line for line in axes.lines if str(line.get_gid()).startswith("tip:")]) == len(ROWS)
    points = gains.abilities(
        [set_tasks(n, k, {"a": 0.5, "c": 1.0}) for n in (1000, 4000) for k in (0, 3)],
        {"new": ["a"], "tuned": ["c"]},
    )
    figure = plots.unseen(points)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["new", "tuned"]
    assert "4 runs" in figure.get_supxlabel()
    assert len(plots.fine_tuned([]).axes) == len(plots.unseen([]).axes) == 1  # nothing is no error
