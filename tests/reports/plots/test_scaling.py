"""Scaling figures of a synthetic sweep with a known law."""

import re

import numpy as np
import pytest
from fixtures import made_up_sweep
from matplotlib.colors import to_hex
from matplotlib.text import Text

import lm
from lm.config import schema
from lm.laws.forms import power_laws
from lm.reports import summary
from lm.reports.plots import elements, scaling, style, task_accuracy
from lm.reports.plots.geometry import inline_svg
from lm.runs import json_files, records, run_selection


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Return rows, fit, prediction and metrics of a sweep with a diverged run."""
    status = {"60K": ("diverged", "loss is nan at step 7")}
    folder = made_up_sweep.sweep(tmp_path_factory.mktemp("runs"), status=status)
    rows = records.load_runs(folder)
    fit = power_laws.power([row for row in rows if not row["is_prediction_target"]])
    metrics = {row["name"]: records.load_metrics(row["dir"]) for row in rows}
    return rows, fit, json_files.read_object(folder / "prediction.json"), metrics


def every_figure(toy, theme=style.LIGHT):
    """Return {name: figure} of all figures against size and compute."""
    rows, fit, prediction, metrics = toy
    return {
        "params": scaling.loss_vs_parameters(rows, fit, prediction, theme=theme),
        "compute": scaling.loss_vs_compute(
            rows, metrics, power_laws.power(rows, "flops"), theme=theme
        ),
        "curves": scaling.learning_curves(rows, metrics, theme=theme),
        "ability": task_accuracy.accuracy_vs_size(rows, theme=theme),
        "sources": scaling.loss_by_source(rows, theme=theme),
        "predicted": scaling.predicted_vs_measured(rows, fit, prediction, theme=theme),
        "mastered": task_accuracy.tasks_mastered(rows, theme=theme),
        "tasks": task_accuracy.task_curves(rows, theme=theme),
        "emergence": task_accuracy.emergence(rows, ["copy?length=4"], theme=theme),
    }


@pytest.fixture(scope="module")
def light_figures(toy):
    """Return every_figure in the light theme. Tests must not change the figures."""
    return every_figure(toy)


def tips(figure) -> list[str]:
    """Return the tooltips of a figure."""
    (svg,), _ = inline_svg.to_inline_svgs(figure)
    return re.findall(r"<title>(.*?)</title>", svg)


def line_with_label(axes, label):
    return next(artist for artist in axes.get_lines() if artist.get_label() == label)


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_every_figure_states_n_and_units_and_uses_its_theme(toy, light_figures, theme):
    figures = light_figures if theme is style.LIGHT else every_figure(toy, theme)
    for name, figure in figures.items():
        axes = figure.axes[0]
        assert re.search(r"n = [1-9]\d* runs?\b", figure.get_supxlabel()), name
        assert axes.get_xlabel() or name == "tasks", name
        assert axes.get_ylabel() or name in ("predicted", "tasks")
        assert to_hex(figure.get_facecolor()) == theme["paper"]
        figure.draw_without_rendering()


def test_losses_have_log_axes(toy, light_figures):
    figures = light_figures
    for name in ("params", "compute", "curves", "sources"):
        axes = figures[name].axes[0]
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log"), name


def test_curve_is_the_law_and_band_is_its_interval(toy):
    rows, fit, prediction, _ = toy
    axes = scaling.loss_vs_parameters(rows, fit, prediction).axes[0]
    xs, ys = map(np.asarray, line_with_label(axes, elements.format_formula(fit)).get_data())
    np.testing.assert_allclose(ys, fit.predict(xs).value)
    fitted = [row for row in rows if row["status"] == "done" and not row["is_prediction_target"]]
    assert sorted(fit.data.names) == sorted(row["name"] for row in fitted)
    sizes = [row["params.non_embedding"] for row in fitted]  # the law is solid in their range
    assert min(sizes) * 0.95 < min(xs) and max(xs) < max(sizes) * 1.05
    band = next(artist for artist in axes.collections if "95% interval" in str(artist.get_label()))
    corners = np.asarray(band.get_paths()[0].vertices)
    for x in xs[::20]:
        interval, edges = fit.predict(x, noise=False), corners[np.isclose(corners[:, 0], x), 1]
        np.testing.assert_allclose([edges.min(), edges.max()], [interval.lo, interval.hi])


def test_example_of_the_facade_works_for_an_unfinished_sweep(tmp_path):
    status = {"60K": ("running", ""), "120K": ("failed", "disk is full")}
    folder = made_up_sweep.sweep(tmp_path, status=status, missing=("1.6M",), predict=False)
    json_files.write_object(
        folder / "new" / "config.json", schema.to_dict(schema.Run(name="toy/new"))
    )
    runs = lm.load_runs(str(folder))
    fit = lm.laws.power(runs, x="params.non_embedding", y="eval.loss")
    figure = lm.plots.loss_vs_parameters(runs, fit)
    figure.draw_without_rendering()
    assert "n = 3 runs in the fit, of 3 finished" in figure.get_supxlabel()


def test_law_of_other_runs_can_be_drawn(toy):
    rows, fit, _, _ = toy
    for runs in ([], [row | {"name": f"other/{i}"} for i, row in enumerate(rows)]):
        scaling.loss_vs_parameters(runs, fit).draw_without_rendering()


def test_law_of_other_columns_is_refused(toy):
    rows, fit, _, _ = toy
    with pytest.raises(ValueError, match="fit is a law of flops for eval.loss"):
        scaling.loss_vs_parameters(rows, power_laws.power(rows, "flops", bootstrap=0))
    with pytest.raises(ValueError, match="but the plot shows eval.bits_per_byte against params"):
        scaling.loss_vs_parameters(rows, fit, y="eval.bits_per_byte")


def test_wide_interval_does_not_compress_the_runs(toy):
    rows = [row for row in toy[0] if row["status"] == "done"][:4]
    loose = power_laws.power([row | {"eval.loss": row["eval.loss"] ** 0.1} for row in rows])
    loose.ensemble["A"] = loose.ensemble["A"] * 1000
    low, high = scaling.loss_vs_parameters(rows, loose).axes[0].get_ylim()
    assert high < 3 * max(row["eval.loss"] for row in rows)


def test_diverged_run_has_a_curve_but_no_point(toy, light_figures):
    figures = light_figures
    assert not [tip for tip in tips(figures["params"]) if tip.startswith("60K")]
    assert "60K, diverged" in tips(figures["curves"])


def test_target_shows_predicted_and_measured_loss(toy):
    rows, fit, prediction, _ = toy
    tooltips = tips(scaling.loss_vs_parameters(rows, fit, prediction))
    value, lo, hi = (f"{prediction[key]:#.4g}" for key in ("value", "lo", "hi"))
    measured = next(row["eval.loss"] for row in rows if row["is_prediction_target"])
    assert tooltips.count(f"predicted {value} [{lo}, {hi}]") == 1
    (tip,) = [tip for tip in tooltips if tip.startswith("1.6M: N = 1.61M, D = 32.2M, ")]
    assert f", {measured:#.4g} ± " in tip and ", law " in tip and tip.endswith("]")


def test_target_is_drawn_before_it_starts(toy):
    rows, fit, prediction, _ = toy
    figure = scaling.loss_vs_parameters(rows[:-1], fit, prediction)
    low, high = figure.axes[0].get_xlim()
    assert low < made_up_sweep.SIZES["1.6M"] < high
    assert "predicted" in " ".join(tips(figure)) and "measured" not in " ".join(tips(figure))


def test_size_has_one_color_in_every_figure(toy, light_figures):
    color = style.size_colors(toy[0])["toy/700K"]
    figures = light_figures
    for name in ("params", "compute", "ability", "sources", "predicted"):
        lines = [artist for axes in figures[name].axes for artist in axes.get_lines()]
        markers = [artist for artist in lines if str(artist.get_gid()).startswith("tip:700K:")]
        assert {artist.get_markerfacecolor() for artist in markers} == {color}, name
    curves = figures["curves"].axes[0].get_lines()
    curve = next(artist for artist in curves if artist.get_gid() == "tip:700K, done")
    assert curve.get_color() == color


def test_open_markers_are_runs_outside_the_fit(toy):
    rows, _, _, _ = toy
    fit = power_laws.power([row for row in rows if row["name"] not in ("toy/30K", "toy/1.6M")])
    axes = scaling.loss_vs_parameters(rows, fit).axes[0]
    faces = {
        str(artist.get_gid()).split(":")[1]: artist.get_markerfacecolor()
        for artist in axes.get_lines()
        if artist.get_gid()
    }
    open_names = {name for name, face in faces.items() if face == style.LIGHT["paper"]}
    assert open_names == {"30K", "1.6M"}


def test_scaling_figures_of_no_runs_can_be_drawn():
    for figure in (
        scaling.loss_vs_parameters([]),
        scaling.loss_vs_compute([]),
        scaling.learning_curves([], {}),
        task_accuracy.accuracy_vs_size([]),
        scaling.loss_by_source([]),
    ):
        figure.draw_without_rendering()
        assert "n = 0 runs" in figure.get_supxlabel()


def test_names_with_formula_characters_are_drawn_verbatim(toy):
    rows = [row | {"name": f"toy/$\\frac{{{row['name'][-3:]}"} for row in toy[0]]
    task_accuracy.accuracy_vs_size(rows).draw_without_rendering()
    scaling.loss_vs_parameters(rows).draw_without_rendering()


def test_run_hash_depends_on_results_but_not_on_the_folder(toy):
    row = toy[0][0]
    moved, changed = row | {"dir": "elsewhere"}, row | {"eval.loss": row["eval.loss"] + 1e-9}
    assert scaling.run_fingerprints([moved]) == scaling.run_fingerprints([row])
    assert scaling.run_fingerprints([changed]) != scaling.run_fingerprints([row])


def test_emergence_plots_power_of_p_beside_exact_match(toy):
    rows = toy[0]
    axes = task_accuracy.emergence(rows, ["copy?length=4"]).axes[0]
    p, power = (np.asarray(artist.get_ydata()) for artist in axes.get_lines()[:2])
    np.testing.assert_allclose(power / 100, (p / 100) ** 4)
    exact = [r["eval.task.copy?length=4.exact"] for r in rows if r["status"] == "done"]
    np.testing.assert_allclose(power / 100, sorted(exact))


def test_mastered_tasks_are_counted_among_evaluated_tasks(toy):
    axes = task_accuracy.tasks_mastered(toy[0]).axes[0]
    assert axes.get_ylabel() == "Tasks, of 3"
    lines = [artist for artist in axes.get_lines() if len(artist.get_xdata()) > 1]
    above, mastered = (artist.get_ydata() for artist in lines)
    assert (np.asarray(mastered) <= np.asarray(above)).all() and max(mastered) <= 2
    texts = " ".join(text.get_text() for text in axes.figure.findobj(Text))
    assert "Above baseline: better than each" in texts and "Benjamini-Hochberg" in texts


BUDGETS = {"trunk": 2_000_000, "1M": 1_000_000, "2M": 2_000_100}
SOURCES = ("jsonl:/a/books/*.jsonl.gz?field=body", "text:my/code.txt", "docs")


@pytest.fixture(scope="module")
def ladder() -> list[dict]:
    """Six sizes with a trunk run and branches of two budgets. The second size has two seeds."""
    rows = []
    for i, (size, n) in enumerate(made_up_sweep.SIZES.items()):
        for seed in ("", "-seed1") if i == 1 else ("",):
            trunk = f"ladder/{size}{seed}-trunk"
            for budget, tokens in BUDGETS.items():
                branch = (
                    {"start.run": trunk, "start.restore": "full_state"} if budget != "trunk" else {}
                )
                loss = made_up_sweep.loss(n) * (1 + 1e5 / tokens) + 0.01 * bool(seed)
                row = {"name": f"ladder/{size}{seed}-{budget}", "status": "done", "tokens": tokens}
                row |= {"params.non_embedding": n, "flops": 6 * n * tokens, "eval.loss": loss}
                row |= {f"eval.loss.{source}": loss for source in SOURCES} | branch
                row |= {f"eval.{key}": v for key, v in made_up_sweep.task_columns(1 / loss).items()}
                rows.append(row | {"eval.completion": 1 / loss})
    return rows


def test_figures_against_size_use_one_token_budget_and_no_trunks(ladder):
    assert not [
        row
        for row in run_selection.finished_with(ladder, "tokens", "eval.loss")
        if "trunk" in row["name"]
    ]
    selection = run_selection.largest_token_budget(ladder)
    assert {row["name"].rpartition("-")[2] for row in selection.rows} == {"2M"}
    assert len(selection.rows) == 7
    assert elements.budget_note(selection) == "Only runs on 2M tokens."
    incomplete = [row for row in ladder if row["name"].endswith("1M") or "30K-" in row["name"]]
    selection = run_selection.largest_token_budget(incomplete)
    assert len(selection.rows) == 7
    note = "Only the runs of each size with the most tokens."
    assert elements.budget_note(selection) == note
    single_budget = [row for row in ladder if row["name"].endswith("1M")]
    selection = run_selection.largest_token_budget(single_budget)
    assert selection.rows == single_budget and elements.budget_note(selection) == ""
    tuned = single_budget[0] | {"start.run": "another/run", "start.restore": "weights"}
    note = "Means over fine-tuned runs and runs from scratch."
    mixed = run_selection.largest_token_budget([*single_budget, tuned])
    assert mixed.is_complete and elements.budget_note(mixed) == note
    plots = (
        task_accuracy.accuracy_vs_size,
        scaling.loss_by_source,
        task_accuracy.tasks_mastered,
        task_accuracy.task_curves,
    )
    for plot in plots:
        caption = plot(ladder).get_supxlabel()
        assert "n = 7 runs" in caption and "Only runs on 2M tokens." in " ".join(caption.split())


def test_tasks_of_fine_tuned_runs_are_not_averaged_with_those_from_scratch(ladder):
    scratch = [row for row in ladder if row["name"].endswith("1M")]
    tuned = scratch[0] | {"start.run": "another/run", "start.restore": "weights"}
    selection = run_selection.select_task_runs([*scratch, tuned])
    assert selection.rows == scratch  # they have more sizes
    assert elements.budget_note(selection) == "Only runs from scratch."
    all_tuned = [row | {"start.run": "another/run", "start.restore": "weights"} for row in scratch]
    rows = [*scratch, *all_tuned]
    assert run_selection.select_task_runs(rows).rows == all_tuned
    caption = " ".join(task_accuracy.accuracy_vs_size(rows).get_supxlabel().split())
    assert "n = 7 runs" in caption and "Only fine-tuned runs." in caption
    prompts = [row | {"data.loss_on": "answers"} for row in rows]
    longer = prompts[0] | {"tokens": 6 * prompts[0]["tokens"]}  # for equal total FLOPs
    assert not run_selection.is_finetuned(longer)
    selected = run_selection.select_task_runs([longer, *prompts]).rows
    assert [row["name"] for row in selected] == [row["name"] for row in all_tuned]
    untested = {k: v for k, v in tuned.items() if not k.startswith("eval.task")}
    assert run_selection.select_task_runs([*scratch, untested]).rows == [*scratch, untested]
    branch = tuned | {"start.restore": "full_state"}
    assert run_selection.select_task_runs([*scratch, branch]).rows == [*scratch, branch]


def test_line_passes_through_the_mean_of_seeds(ladder):
    figure = task_accuracy.accuracy_vs_size(ladder)
    means = figure.axes[0].get_lines()[0].get_ydata()
    seeds = [row["eval.completion"] for row in ladder if row["name"].startswith("ladder/60K")]
    assert len(means) == 6
    np.testing.assert_allclose(means[1], 100 * np.mean([seeds[2], seeds[5]]))
    assert len([tip for tip in tips(figure) if tip.startswith("60K")]) == 2


def test_size_labels_omit_the_shared_suffix(ladder):
    names = elements.size_labels(run_selection.largest_token_budget(ladder).rows)
    assert list(names.values()) == list(made_up_sweep.SIZES)
    assert elements.size_labels(ladder[:1]) == {31_000: "30K-trunk"}


def test_longest_curve_of_each_size_is_labeled(ladder):
    lines = [{"step": step, "tokens": 4e5 * step, "loss": 5.0 - step / 9} for step in range(1, 6)]
    metrics = {row["name"]: lines[: 3 if row["tokens"] < 2e6 else 5] for row in ladder}
    axes = scaling.learning_curves(ladder, metrics).axes[0]
    labels = [text.get_text() for text in axes.texts]
    assert 1 <= len(labels) <= 6 and all(len(label.split("-")) <= 2 for label in labels)


def test_predictions_are_compared_on_the_fitted_token_budget(ladder):
    fit = power_laws.power(run_selection.largest_token_budget(ladder).rows, bootstrap=200)
    axes = scaling.predicted_vs_measured(ladder, fit).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert len(names) == 7 and all(name.endswith("2M") for name in names)


def test_file_sources_have_short_names():
    names = elements.source_names([f"eval.loss.{source}" for source in SOURCES])
    assert list(names.values()) == ["books", "code", "docs"]
    same_names = [f"eval.loss.text:{folder}/x.txt" for folder in "ab"]
    assert list(elements.source_names(same_names).values()) == ["a/x", "b/x"]


def test_law_of_size_and_tokens_needs_three_budgets(ladder):
    assert "use at least 3" in summary.fit_all_laws(ladder)["size and tokens"][1]
    third_budget = [
        row | {"tokens": 4e6, "eval.loss": row["eval.loss"] - 0.01, "name": row["name"] + "4"}
        for row in ladder
        if row["name"].endswith("2M")
    ]
    assert summary.fit_all_laws([*ladder, *third_budget])["size and tokens"][0]
