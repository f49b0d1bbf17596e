"""Every figure, drawn from a made-up sweep whose law is known."""

import re

import made_up
import numpy as np
import pytest
from matplotlib.colors import to_hex

from lm import laws, marks, plots, records, style


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    status = {"60K": ("diverged", "loss is nan at step 7")}
    folder = made_up.sweep(tmp_path_factory.mktemp("runs"), status=status)
    rows = records.rows(folder)
    fit = laws.power([row for row in rows if not row["predict"]])
    metrics = {row["name"]: records.metrics(row["dir"]) for row in rows}
    return rows, fit, records.read_json(folder / "prediction.json"), metrics


def every_figure(toy, theme=plots.LIGHT):
    rows, fit, prediction, metrics = toy
    return {
        "params": plots.loss_against_params(rows, fit, prediction, theme=theme),
        "compute": plots.loss_against_compute(
            rows, metrics, laws.power(rows, "flops"), theme=theme
        ),
        "curves": plots.learning_curves(rows, metrics, theme=theme),
        "ability": plots.ability(rows, theme=theme),
        "sources": plots.loss_by_source(rows, theme=theme),
        "predicted": plots.predicted_against_measured(rows, fit, prediction, theme=theme),
        "mastered": plots.tasks_mastered(rows, theme=theme),
        "tasks": plots.task_curves(rows, theme=theme),
        "emergence": plots.emergence(rows, ["copy?length=4"], theme=theme),
    }


def tips(figure) -> list[str]:
    svg, _ = style.inline(figure)
    return re.findall(r"<title>(.*?)</title>", svg)


def line(axes, label):
    return next(one for one in axes.get_lines() if one.get_label() == label)


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK])
def test_every_figure_says_its_n_and_its_units_in_the_colours_of_its_theme(toy, theme):
    for name, figure in every_figure(toy, theme).items():
        axes = figure.axes[0]
        assert re.search(r"n = [1-9]\d* runs?\b", figure.get_supxlabel()), name
        assert axes.get_xlabel() or name == "tasks", name
        assert axes.get_ylabel() or name in ("predicted", "tasks")
        assert to_hex(figure.get_facecolor()) == theme["paper"]
        figure.draw_without_rendering()


def test_losses_stand_on_log_axes(toy):
    figures = every_figure(toy)
    for name in ("params", "compute", "curves", "sources"):
        axes = figures[name].axes[0]
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log"), name


def test_the_curve_is_the_law_and_the_band_its_interval(toy):
    rows, fit, prediction, _ = toy
    axes = plots.loss_against_params(rows, fit, prediction).axes[0]
    xs, ys = map(np.asarray, line(axes, marks.formula(fit)).get_data())
    np.testing.assert_allclose(ys, fit.predict(xs).value)
    names = [row["name"] for row in rows if row["status"] == "done" and not row["predict"]]
    assert sorted(fit.data.names) == sorted(names)
    seen = [row["params.non_embedding"] for row in rows if row["name"] in names]
    assert min(seen) * 0.95 < min(xs) and max(xs) < max(seen) * 1.05  # solid only where it saw runs
    band = next(one for one in axes.collections if "95% interval" in str(one.get_label()))
    corners = np.asarray(band.get_paths()[0].vertices)
    for x in xs[::20]:
        limits, edge = fit.predict(x, noise=False), corners[np.isclose(corners[:, 0], x), 1]
        np.testing.assert_allclose([edge.min(), edge.max()], [limits.lo, limits.hi])


def test_a_law_that_says_little_does_not_flatten_the_runs(toy):
    rows = [row for row in toy[0] if row["status"] == "done"][:4]
    loose = laws.power([row | {"eval.loss": row["eval.loss"] ** 0.1} for row in rows])
    loose.ensemble["A"] = loose.ensemble["A"] * 1000
    low, high = plots.loss_against_params(rows, loose).axes[0].get_ylim()
    assert high < 3 * max(row["eval.loss"] for row in rows)


def test_a_diverged_run_is_no_point_but_keeps_its_curve(toy):
    figures = every_figure(toy)
    assert not [tip for tip in tips(figures["params"]) if tip.startswith("60K")]
    assert "60K, diverged" in tips(figures["curves"])


def test_the_target_is_marked_with_what_was_predicted_and_what_came(toy):
    rows, fit, prediction, _ = toy
    said = tips(plots.loss_against_params(rows, fit, prediction))
    words = (
        f"predicted {prediction['value']:#.4g} [{prediction['lo']:#.4g}, {prediction['hi']:#.4g}]"
    )
    measured = next(row["eval.loss"] for row in rows if row["predict"])
    assert said.count(words) == 2  # on the curve and in the inset
    assert f"measured {measured:#.4g}" in said


def test_a_target_that_has_not_started_is_drawn_where_it_will_be(toy):
    rows, fit, prediction, _ = toy
    figure = plots.loss_against_params(rows[:-1], fit, prediction)
    low, high = figure.axes[0].get_xlim()
    assert low < made_up.SIZES["1.6M"] < high
    assert "predicted" in " ".join(tips(figure)) and "measured" not in " ".join(tips(figure))


def test_a_size_has_one_colour_in_every_figure(toy):
    colour = style.size_colours(toy[0])["toy/700K"]
    figures = every_figure(toy)
    for name in ("params", "compute", "ability", "sources", "predicted"):
        lines = [one for axes in figures[name].axes for one in axes.get_lines()]
        marked = [one for one in lines if str(one.get_gid()).startswith("tip:700K:")]
        assert {one.get_markerfacecolor() for one in marked} == {colour}, name
    curve = next(
        x for x in figures["curves"].axes[0].get_lines() if x.get_gid() == "tip:700K, done"
    )
    assert curve.get_color() == colour


def test_open_marks_are_runs_that_no_law_saw(toy):
    rows, _, _, _ = toy
    fit = laws.power([row for row in rows if row["name"] not in ("toy/30K", "toy/1.6M")])
    axes = plots.loss_against_params(rows, fit).axes[0]
    faces = {
        str(li.get_gid()).split(":")[1]: li.get_markerfacecolor()
        for li in axes.get_lines()
        if li.get_gid()
    }
    is_open = {name for name, face in faces.items() if face == plots.LIGHT["paper"]}
    assert is_open == {"30K", "1.6M"}


def test_figures_of_no_runs_at_all_can_be_drawn():
    for figure in (
        plots.loss_against_params([]),
        plots.loss_against_compute([]),
        plots.learning_curves([], {}),
        plots.ability([]),
        plots.loss_by_source([]),
    ):
        figure.draw_without_rendering()
        assert "n = 0 runs" in figure.get_supxlabel()


def test_names_that_look_like_formulas_are_drawn_as_they_are(toy):
    rows = [row | {"name": f"toy/$\\frac{{{row['name'][-3:]}"} for row in toy[0]]
    plots.ability(rows).draw_without_rendering()
    plots.loss_against_params(rows).draw_without_rendering()


def test_fingerprints_change_with_a_result_and_not_with_the_folder(toy):
    row = toy[0][0]
    moved, changed = row | {"dir": "elsewhere"}, row | {"eval.loss": row["eval.loss"] + 1e-9}
    assert plots.fingerprints([moved]) == plots.fingerprints([row])
    assert plots.fingerprints([changed]) != plots.fingerprints([row])


def test_emergence_sets_the_power_of_p_beside_exact_match(toy):
    rows = toy[0]
    axes = plots.emergence(rows, ["copy?length=4"]).axes[0]
    p, power = (np.asarray(one.get_ydata()) for one in axes.get_lines()[:2])
    np.testing.assert_allclose(power / 100, (p / 100) ** 4)
    exact = [r["eval.task.copy?length=4.exact"] for r in rows if r["status"] == "done"]
    np.testing.assert_allclose(power / 100, sorted(exact))


def test_tasks_mastered_are_counted_of_all_that_were_asked(toy):
    axes = plots.tasks_mastered(toy[0]).axes[0]
    assert axes.get_ylabel() == "Tasks, of 3"
    above, mastered = (one.get_ydata() for one in axes.get_lines() if len(one.get_xdata()) > 1)
    assert (np.asarray(mastered) <= np.asarray(above)).all() and max(mastered) <= 2
