"""Figures of the loss against parameters, compute, training tokens and sources.

    rows = lm.load_runs("runs/quickstart")
    figure = scaling.loss_vs_parameters(rows, lm.laws.power(rows))
    style.save_figure(figure, "loss", {"runs": scaling.run_fingerprints(rows)})  # PNG and SVG

Symbols: N parameters without embeddings, D training tokens, C training FLOPs, L held-out loss.

Conventions of all figures: A model size has the same color in every figure. A filled marker is a
run in the fit, an open marker a run outside it, and a diamond the predicted run. A law is solid in
the range of its runs and dashed outside. Error bars are one standard error. Arguments x and y are
columns of the rows, and theme is style.LIGHT or style.DARK.
"""

from matplotlib.figure import Figure

from lm.reports.plots import elements, style
from lm.runs import records, run_selection, task_results


def loss_vs_parameters(
    rows, fit=None, prediction=None, x=records.N_PARAMS, y=records.LOSS, theme=style.LIGHT
) -> Figure:
    """Plot the loss of every finished run against its size, and the fitted law, on log axes.

    Unfinished runs and trunk runs are not shown. fit: result of laws.power for the columns x and y,
    or None. prediction: content of prediction.json, or None. Its interval is a bar
    at the size of the target.

    Raises ValueError if the law was fitted to other columns than x and y.
    """
    figure, axes = style.new_figure("Loss against parameters", x, y, theme)
    elements.draw_law(axes, rows, fit, x, y, theme, prediction, label_offset=(-5, -12))
    return style.finish_figure(figure, axes, _law_caption(rows, fit, x, y), theme)


def loss_vs_compute(
    rows, metrics=None, fit=None, x=records.FLOPS, y=records.LOSS, theme=style.LIGHT
) -> Figure:
    """Plot the final held-out loss of every finished run against compute, on log axes.

    metrics: {name of run: records.load_metrics(row["dir"])}, or None. It adds the training curve of
    each run as a thin line, also of unfinished runs. fit: result of laws.power for the columns x
    and y, or None.
    """
    figure, axes = style.new_figure("Loss against compute", x, y, theme)
    elements.draw_curves(axes, rows, metrics or {}, x, theme, alpha=0.45)
    elements.draw_law(axes, rows, fit, x, y, theme, label_offset=(-4, -12))
    note = "Thin lines: training loss." if metrics else ""
    return style.finish_figure(figure, axes, [*_law_caption(rows, fit, x, y), note], theme)


def learning_curves(rows, metrics, x=records.TOKENS, theme=style.LIGHT) -> Figure:
    """Plot the training loss of all runs against x, on log axes. Unfinished runs are included.

    rows: those of records.load_runs. metrics: {name of run: records.load_metrics(row["dir"])}. x: a
    column of the metrics: tokens, flops, step or seconds. Each point is a mean over an interval of
    log x, because single steps are noisy.
    """
    figure, axes = style.new_figure("Learning curves", x, "Training loss (nats per token)", theme)
    curve_ends = elements.draw_curves(axes, rows, metrics, x, theme)
    elements.set_scales(axes, x, records.LOSS, right=0.14)
    elements.label_line_ends(axes, _curve_labels(curve_ends), theme)
    caption = f"n = {elements.count_label(curve_ends)}. Points are means over intervals of log {x}."
    return style.finish_figure(figure, axes, [caption], theme)


def _curve_labels(curve_ends) -> list[tuple[str, float, float]]:
    """Return (text, x, loss) for each curve.

    If there are more than MAX_LABELS curves, only the longest curve of each size is labeled.
    """
    names = {row["name"]: elements.short_run_name(row) for row, _, _ in curve_ends}
    if len(curve_ends) > elements.MAX_LABELS:
        by_length = sorted(curve_ends, key=lambda end: (end[1], -len(end[0]["name"])))
        by_size = {row.get(records.N_PARAMS, 0): (row, x, loss) for row, x, loss in by_length}
        curve_ends = list(by_size.values())
        sizes = elements.size_labels([row for row, _, _ in curve_ends])
        names = {row["name"]: sizes[row.get(records.N_PARAMS, 0)] for row, _, _ in curve_ends}
    labels = []
    for row, x, loss in curve_ends:
        status = "" if row["status"] == "done" else f" {row['status']}"
        labels.append((names[row["name"]] + status, x, loss))
    return labels


def loss_by_source(rows, x=records.N_PARAMS, y=records.LOSS, theme=style.LIGHT) -> Figure:
    """Plot the held-out loss of each source against size, one line per source, on log axes.

    rows: those of records.load_runs. x: column of the size. y: column of the loss; the columns
    "y.SOURCE" have the loss of each source. Only finished runs of the largest token budget are
    shown, see run_selection.largest_token_budget. A line connects the means of runs of equal size.
    """
    selection = run_selection.largest_token_budget(rows, x)
    figure, axes = style.new_figure("Loss by source", x, y, theme)
    names = elements.source_names(elements.source_columns(selection.rows, y), y)
    labels = []
    for i, (column, name) in enumerate(names.items()):
        line, label_offset = ("-", "--", ":", "-.")[i % 4], None if i else (6, 6)
        finished = elements.draw_means(
            axes, selection.rows, x, column, theme, line=line, label_offset=label_offset
        )
        labels += [(style.truncate_label(name), row[x], row[column]) for row in finished[-1:]]
    elements.set_scales(axes, x, y, right=0.25)
    elements.label_line_ends(axes, labels, theme)
    n_runs = elements.count_label(run_selection.finished_with(selection.rows, x, y))
    caption = [f"n = {n_runs}. Bars: one standard error.", elements.budget_note(selection)]
    return style.finish_figure(figure, axes, caption, theme)


def predicted_vs_measured(rows, fit, prediction=None, theme=style.LIGHT) -> Figure:
    """Plot the deviation of each measured loss from a law in percent, one line per run.

    The largest run is at the top. fit: a law of one column. A wide bar is the interval of the law
    for a single measurement of the run. prediction: content of prediction.json, or None. It
    replaces the law for the predicted run. Only finished runs whose token counts are in the range
    of the fitted runs are shown, at most the elements.MAX_LINES largest.
    """
    x, y = fit.columns[fit.inputs[0]], fit.columns[fit.output]
    figure, axes = style.new_figure(
        "Predicted against measured", "Measured loss, deviation from the law (%)", "", theme
    )
    comparable = _comparable_runs(rows, fit, prediction)
    finished, colors = run_selection.finished_with(comparable, x, y), style.size_colors(rows, theme)
    n_finished, finished = len(finished), finished[-elements.MAX_LINES :]
    # A prediction takes milliseconds, and many runs have the same size.
    row_by_size = {row[x]: row for row in finished if not elements.is_target(row, prediction)}
    intervals = {size: _predicted_loss(row, fit) for size, row in row_by_size.items()}
    for i, row in enumerate(finished):
        is_target = elements.is_target(row, prediction)
        if is_target and prediction:
            value, lo, hi = elements.predicted_interval(prediction)
        else:
            value, lo, hi = intervals[row[x]]
        bar = {"color": theme["soft" if is_target else "band"], "linewidth": 11, "zorder": 1}
        span = [100 * (lo / value - 1), 100 * (hi / value - 1)]
        axes.plot(span, [i, i], solid_capstyle="butt", **bar)
        deviation = 100 * (row[y] / value - 1)
        error = 100 * task_results.standard_error(row, y) / value
        tip = (
            f"{elements.short_run_name(row)}: measured {style.format_number(row[y])},"
            f" law {style.format_prediction(value, lo, hi)}, deviation {deviation:+.2f}%"
        )
        kind = "diamond" if is_target else elements.fit_kind(row, fit)
        point = (deviation, i)
        elements.draw_point(axes, point, colors[row["name"]], theme, tip, xerr=error, kind=kind)
    figure.set_figheight(max(1.9 + 0.2 * len(finished), 3.9))
    axes.axvline(0, color=theme["ink"], linewidth=1, zorder=1.5)
    axes.set_yticks(
        range(len(finished)), [elements.short_run_name(row) for row in finished], parse_math=False
    )
    axes.set_ylim(-0.6, max(len(finished), 1) - 0.4)
    axes.grid(axis="y", visible=False)
    caption = [
        f"n = {elements.describe_shown(finished, n_finished)}. Wide bar:"
        f" {elements.LEVEL:.0%} interval for one measurement.",
        "Thin bar: one standard error.",
        "Diamond: predicted before the run started." if prediction else "",
    ]
    return style.finish_figure(figure, axes, caption, theme)


def run_fingerprints(rows) -> dict[str, str]:
    """Return {name of run: hash of its row without the entries that depend on its location}."""
    contents = {
        row["name"]: {k: v for k, v in row.items() if k not in ("dir", "in_sweep")} for row in rows
    }
    return {name: style.hash_data(content) for name, content in contents.items()}


def _comparable_runs(rows, fit, prediction) -> list[dict]:
    """Return the runs whose token count is in the range of the fitted runs and the target."""
    fitted = [
        row for row in rows if elements.is_in_fit(row, fit) or elements.is_target(row, prediction)
    ]
    tokens = [row[records.TOKENS] for row in fitted if records.is_finite(row.get(records.TOKENS))]
    if not tokens:
        return list(rows)
    low = run_selection.MIN_BUDGET_RATIO * min(tokens)
    high = max(tokens) / run_selection.MIN_BUDGET_RATIO
    runs = run_selection.without_trunks(rows)
    return [row for row in runs if low <= row.get(records.TOKENS, low) <= high]


def _predicted_loss(row, fit) -> tuple[float, float, float]:
    """Return (value, lo, hi) of a law for one measurement of a run."""
    estimate = fit.predict(row, level=elements.LEVEL)
    return estimate.value, estimate.lo, estimate.hi


def _law_caption(rows, fit, x, y) -> list[str]:
    """Return the caption sentences about the runs, the law and its intervals."""
    finished = run_selection.finished_with(rows, x, y)
    if fit is None:
        return [f"n = {elements.count_label(finished)}, no law fitted. Bars: one standard error."]
    fitted = [row for row in finished if elements.is_in_fit(row, fit)]
    return [
        f"n = {elements.count_label(fitted)} in the fit, of {len(finished)} finished (open: not"
        " in the fit).",
        f"Dashed: extrapolation. Intervals: {fit.resampling}. Bars: one standard error.",
    ]
