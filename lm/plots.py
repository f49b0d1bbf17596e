"""Figures of scaling and of task accuracy. Each function takes rows of runs and returns a Figure.

    rows = records.rows("runs/quickstart")
    figure = plots.loss_against_params(rows, laws.power(rows))
    plots.save(figure, "loss", {"runs": plots.fingerprints(rows)})      # loss.png and loss.svg

N: parameters without embeddings. D: training tokens. C: training FLOPs. L: held-out loss. A model
size has the same color in every figure. Filled markers are runs in the fit, open markers are not.
A law is solid in the range of its runs and dashed outside. A diamond is the predicted run.
"""

from matplotlib.figure import Figure

from lm import marks, mastery, records, style

LIGHT, DARK, save = style.LIGHT, style.DARK, style.save  # for notebooks


def loss_against_params(
    rows, fit=None, prediction=None, x=records.N_PARAMS, y=records.LOSS, theme=LIGHT
) -> Figure:
    """Plot, on log axes, the loss of every finished run against its size, and the fitted law.

    fit: result of laws.power, or None. prediction: content of prediction.json, or None. An inset
    compares the predicted interval with the measured loss. Error bars are one standard error.
    """
    figure, axes = style.start("Loss against parameters", x, y, theme)
    marks.law(axes, rows, fit, x, y, theme, prediction)
    if prediction and prediction["x"] == x and prediction["y"] == y:
        marks.inset(axes, rows, prediction, y, theme)
    return style.end(figure, axes, _law_caption(rows, fit, x, y), theme)


def loss_against_compute(
    rows, metrics=None, fit=None, x=records.FLOPS, y=records.LOSS, theme=LIGHT
) -> Figure:
    """Plot, on log axes, the training curve of each run (thin) and its final held-out loss.

    metrics: {name of run: records.metrics(directory)}. fit: a law of x, or None.
    """
    figure, axes = style.start("Loss against compute", x, y, theme)
    marks.curves(axes, rows, metrics or {}, x, theme, alpha=0.45)
    marks.law(axes, rows, fit, x, y, theme, label_offset=(-4, -12))
    note = "Thin lines: training loss." if metrics else ""
    return style.end(figure, axes, [*_law_caption(rows, fit, x, y), note], theme)


def learning_curves(rows, metrics, x=records.TOKENS, theme=LIGHT) -> Figure:
    """Plot, on log axes, the training loss of every run, also of unfinished and diverged runs.

    Each point is a mean over an interval of log x, because single steps are noisy.
    """
    figure, axes = style.start("Learning curves", x, "Training loss (nats per token)", theme)
    curve_ends = marks.curves(axes, rows, metrics, x, theme)
    marks.scales(axes, x, records.LOSS, right=0.14)
    marks.write_ends(axes, _curve_labels(curve_ends), theme, dx=5)
    caption = f"n = {marks.n_runs(curve_ends)}. Points are means over intervals of log {x}."
    return style.end(figure, axes, [caption], theme)


def _curve_labels(curve_ends) -> list[tuple[str, float, float]]:
    """Return (text, x, loss) for each curve, or for the longest curve of each size if many."""
    names = {row["name"]: marks.short(row) for row, _, _ in curve_ends}
    if len(curve_ends) > marks.MAX_LABELS:
        by_length = sorted(curve_ends, key=lambda end: (end[1], -len(end[0]["name"])))
        by_size = {row.get(records.N_PARAMS, 0): (row, x, loss) for row, x, loss in by_length}
        curve_ends = list(by_size.values())
        sizes = marks.names_at([row for row, _, _ in curve_ends])
        names = {row["name"]: sizes[row.get(records.N_PARAMS, 0)] for row, _, _ in curve_ends}
    labels = []
    for row, x, loss in curve_ends:
        status = "" if row["status"] == "done" else f" {row['status']}"
        labels.append((names[row["name"]] + status, x, loss))
    return labels


def ability(rows, y="eval.completion", x=records.N_PARAMS, theme=LIGHT) -> Figure:
    """Plot an accuracy in percent against the model size."""
    figure, axes = style.start("Accuracy against parameters", x, y, theme)
    selection = records.largest_token_budget(rows, x)
    finished = marks.steps(axes, selection.rows, x, y, theme, scale=100, label_offset=(6, -11))
    marks.scales(axes, x, y)
    axes.set_ylim(bottom=0)
    counts = {row[y + "_n"] for row in finished if records.is_finite(row.get(y + "_n"))}
    caption = f"n = {marks.n_runs(finished)}, {_range(counts) or 'unknown'} questions each."
    note = marks.budget_note(selection)
    return style.end(figure, axes, [caption, "Bars: one standard error.", note], theme)


def tasks_mastered(rows, x=records.N_PARAMS, theme=LIGHT) -> Figure:
    """Plot the numbers of tasks that each run has solved and has above chance against size."""
    selection = records.largest_token_budget(rows, x)
    counted = mastery.tally(selection.rows)
    n_tasks = max((row["tasks.n"] for row in counted), default=0)
    figure, axes = style.start("Tasks solved", x, f"Tasks, of {n_tasks}", theme)
    marks.steps(axes, counted, x, "tasks.above_chance", theme, line="--", label_offset=None)
    finished = marks.steps(axes, counted, x, "tasks.mastered", theme, label_offset=(6, -11))
    for column, text in (("tasks.above_chance", "above chance"), ("tasks.mastered", "solved")):
        for row in finished[-1:]:
            style.write(axes, row[x], row[column], text, theme, (8, 8))
    marks.scales(axes, x, "tasks", right=0.22)
    most = max((row["tasks.above_chance"] for row in finished), default=n_tasks)
    axes.set_ylim(-0.12 * max(most, 4), min(1.35 * max(most, 4), n_tasks + 0.5))
    axes.locator_params(axis="y", integer=True)
    caption = [
        f"n = {marks.n_runs(finished)}.",
        f"Above chance: p < {mastery.LEVEL:g} in an exact binomial test. Solved: also at least",
        f"{mastery.SHARE:.0%} of the way from chance to 1.",
    ]
    return style.end(figure, axes, [*caption, marks.budget_note(selection)], theme)


def task_curves(rows, x=records.N_PARAMS, theme=LIGHT) -> Figure:
    """Plot the accuracy in percent against size, one small panel per task. Dotted: chance."""
    selection = records.largest_token_budget(rows, x)
    tasks = mastery.tasks(selection.rows)
    figure, panels = style.panels("Accuracy by task", len(tasks), theme)
    finished = []
    for axes, task in zip(panels, tasks, strict=False):
        y = records.task_column(task)
        shown = marks.steps(axes, selection.rows, x, y, theme, scale=100, label_offset=None)
        finished = shown or finished
        chance = {row[x]: 100 * row[records.task_column(task, "chance")] for row in finished}
        axes.plot(list(chance), list(chance.values()), ":", color=theme["muted"], linewidth=1)
        style.panel_title(axes, style.shortened(marks.task_name(task)), theme)
        marks.scales(axes, x, y)
        axes.set_ylim(-4, 104)
    counts = {
        metrics["n"]["value"]
        for row in finished
        for metrics in records.task_results(row).values()
        if "accuracy" in metrics
    }
    caption = [
        f"n = {marks.n_runs(finished)}, {_range(counts)} questions each. Accuracy in percent.",
        f"Horizontal: {style.label(x)}. Bars: one standard error. Dotted: chance.",
    ]
    return style.end(figure, panels[0], [*caption, marks.budget_note(selection)], theme)


def emergence(rows, tasks, x=records.N_PARAMS, theme=LIGHT) -> Figure:
    """Plot exact match beside p and p^k, to test if a jump comes from the metric.

    p is the geometric mean of the token probability (dotted), k the number of tokens of an answer,
    p^k is dashed. If the markers follow the dashed line, exact match jumps because p^k does, while
    p is smooth (Schaeffer et al. 2023, arXiv:2304.15004). At most four tasks.
    """
    selection = records.largest_token_budget(rows, x)
    figure, axes = style.start("Emergence and the choice of metric", x, "Probability (%)", theme)
    finished, labels = [], []
    for task, color in zip(tasks, style.spread(theme), strict=False):
        finished = records.finished_with(selection.rows, x, records.task_column(task, "exact"))
        _emergence_task(axes, finished, task, x, color, theme)
        for row in finished[-1:]:
            task_result = records.task_results(row)[task]
            text = f"{marks.task_name(task)} (k = {task_result['tokens']['value']:.3g})"
            labels.append((text, row[x], 100 * task_result["exact"]["value"]))
    marks.scales(axes, x, "tasks", right=0.5)
    axes.set_ylim(-3, 118)  # space for several labels at 100%
    axes.set_yticks(range(0, 101, 20))
    marks.write_ends(axes, labels, theme)
    caption = [
        f"n = {marks.n_runs(finished)}. Dotted: probability p of a token (geometric mean).",
        "Dashed: p^k. Markers: exact match with one standard error.",
    ]
    return style.end(figure, axes, [*caption, marks.budget_note(selection)], theme)


def _emergence_task(axes, finished, task, x, color, theme) -> None:
    points = []
    for row in finished:
        metrics = records.task_results(row)[task]
        p, k = metrics["token_probability"]["value"], metrics["tokens"]["value"]
        points.append({x: row[x], "p": p, "p^k": p**k})
    axes.plot(*marks.means(points, x, "p", 100), ":", color=color, linewidth=1.3)
    axes.plot(*marks.means(points, x, "p^k", 100), "--", color=color, linewidth=1.3)
    for row, point in zip(finished, points, strict=True):
        exact = records.task_results(row)[task]["exact"]
        share, error = 100 * exact["value"], 100 * exact["se"]
        tip = f"{task}, {marks.short(row)}: exact {share:.0f}%, p {point['p']:.2f}"
        marks.mark(axes, (row[x], share), color, theme, tip, error)


def loss_by_source(rows, x=records.N_PARAMS, y=records.LOSS, theme=LIGHT) -> Figure:
    """Plot, on log axes, the held-out loss of each source against size, one line per source."""
    selection = records.largest_token_budget(rows, x)
    figure, axes = style.start("Loss by source", x, y, theme)
    names = marks.source_names(marks.source_columns(selection.rows, y), y)
    labels = []
    for i, (column, name) in enumerate(names.items()):
        line, label_offset = ("-", "--", ":", "-.")[i % 4], None if i else (6, 6)
        finished = marks.steps(
            axes, selection.rows, x, column, theme, line=line, label_offset=label_offset
        )
        labels += [(style.shortened(name), row[x], row[column]) for row in finished[-1:]]
    marks.scales(axes, x, y, right=0.25)
    marks.write_ends(axes, labels, theme)
    n_runs = marks.n_runs(records.finished_with(selection.rows, x, y))
    caption = [f"n = {n_runs}. Bars: one standard error.", marks.budget_note(selection)]
    return style.end(figure, axes, caption, theme)


def predicted_against_measured(rows, fit, prediction=None, theme=LIGHT) -> Figure:
    """Plot the deviation of each measured loss from the law in percent, the largest run on top.

    A bar is the interval of the law for a single measurement of the run. The stored prediction is
    used for the target. Runs on other token budgets than the fitted runs are left out.
    """
    x, y = fit.columns[fit.inputs[0]], fit.columns[fit.output]
    figure, axes = style.start(
        "Predicted against measured", "Measured loss, deviation from the law (%)", "", theme
    )
    comparable = _comparable_runs(rows, fit, prediction)
    finished, colors = records.finished_with(comparable, x, y), style.size_colours(rows, theme)
    for i, row in enumerate(finished):
        is_target = marks.is_target(row, prediction)
        value, lo, hi = _predicted_loss(row, fit, prediction)
        bar = {"color": theme["soft" if is_target else "band"], "linewidth": 11, "zorder": 1}
        span = [100 * (lo / value - 1), 100 * (hi / value - 1)]
        axes.plot(span, [i, i], solid_capstyle="butt", **bar)
        off = 100 * (row[y] / value - 1)
        error = 100 * records.standard_error(row, y) / value
        law = f"law {style.number(value)} [{style.number(lo)}, {style.number(hi)}]"
        tip = f"{marks.short(row)}: measured {style.number(row[y])}, {law}, off {off:+.2f}%"
        kind = "diamond" if is_target else marks.fit_kind(row, fit)
        marks.mark(axes, (off, i), colors[row["name"]], theme, tip, xerr=error, kind=kind)
    axes.axvline(0, color=theme["ink"], linewidth=1, zorder=1.5)
    axes.set_yticks(range(len(finished)), [marks.short(row) for row in finished], parse_math=False)
    axes.set_ylim(-0.6, max(len(finished), 1) - 0.4)
    axes.grid(axis="y", visible=False)
    caption = [
        f"n = {marks.n_runs(finished)}. Wide bar: {marks.LEVEL:.0%} interval for one measurement.",
        "Thin bar: one standard error.",
        "Diamond: predicted before the run started." if prediction else "",
    ]
    return style.end(figure, axes, caption, theme)


def fingerprints(rows) -> dict[str, str]:
    """Return {name of run: hash of its row without the directory}."""
    contents = {row["name"]: {k: v for k, v in row.items() if k != "dir"} for row in rows}
    return {name: style.fingerprint(content) for name, content in contents.items()}


def _comparable_runs(rows, fit, prediction) -> list[dict]:
    """Return the runs whose token count is in the range of the fitted runs and the target."""
    fitted = [row for row in rows if marks.in_fit(row, fit) or marks.is_target(row, prediction)]
    tokens = [row[records.TOKENS] for row in fitted if records.is_finite(row.get(records.TOKENS))]
    if not tokens:
        return list(rows)
    low = records.BUDGET_TOLERANCE * min(tokens)
    high = max(tokens) / records.BUDGET_TOLERANCE
    runs = records.without_trunks(rows)
    return [row for row in runs if low <= row.get(records.TOKENS, low) <= high]


def _predicted_loss(row, fit, prediction) -> tuple[float, float, float]:
    """Return (value, lo, hi) for one measurement of a run; the stored values for the target."""
    if prediction and marks.is_target(row, prediction):
        return marks.predicted(prediction)
    estimate = fit.predict(row, level=marks.LEVEL)
    return estimate.value, estimate.lo, estimate.hi


def _law_caption(rows, fit, x, y) -> list[str]:
    finished = records.finished_with(rows, x, y)
    if fit is None:
        return [f"n = {marks.n_runs(finished)}, no law fitted. Bars: one standard error."]
    fitted = [row for row in finished if marks.in_fit(row, fit)]
    return [
        f"n = {marks.n_runs(fitted)} in the fit, of {len(finished)} finished (open: not in it).",
        f"Dashed: extrapolation. Intervals: {fit.resampling}. Bars: one standard error.",
    ]


def _range(counts) -> str:
    """Format the range of numbers: "100", "50 to 100", or "" for no numbers."""
    ordered = sorted(counts)
    return " to ".join(f"{n:,.0f}" for n in dict.fromkeys(ordered[:1] + ordered[-1:]))
