"""One function a figure: rows of runs in, a matplotlib Figure out, good enough for figure one.

    rows = records.rows("runs/quickstart")
    figure = plots.loss_against_params(rows, laws.power(rows))
    plots.save(figure, "loss", {"runs": plots.fingerprints(rows)})      # loss.png and loss.svg

N parameters without embeddings, D training tokens, C training FLOPs, L held-out loss. A size has
one colour in every figure. Filled marks are runs in the fit, open ones are not; the law is solid
over the runs it saw, dashed beyond, its interval a band; a diamond is the run that was predicted.
"""

from matplotlib.figure import Figure

from lm import marks, mastery, style

LIGHT, DARK, save = style.LIGHT, style.DARK, style.save  # all that a notebook needs of style


def loss_against_params(
    rows, fit=None, prediction=None, x="params.non_embedding", y="eval.loss", theme=LIGHT
) -> Figure:
    """Log-log: every finished run, the law with its interval, and what it said of the target.

    `fit` is what laws.power gave, `prediction` the content of prediction.json; either may be None.
    The inset sets the predicted interval beside the measured loss. Bars are one standard error.
    """
    figure, axes = style.start("Loss against parameters", x, y, theme)
    marks.law(axes, rows, fit, x, y, theme, prediction)
    if prediction and prediction["x"] == x and prediction["y"] == y:
        marks.inset(axes, rows, prediction, y, theme)
    return style.end(figure, axes, _law_caption(rows, fit, x, y), theme)


def loss_against_compute(
    rows, metrics=None, fit=None, x="flops", y="eval.loss", theme=LIGHT
) -> Figure:
    """Log-log: each run's way through compute (thin, training loss) to its held-out loss (mark).

    `metrics` is {name of run: records.metrics(its folder)}; `fit` a law in x, or None.
    """
    figure, axes = style.start("Loss against compute", x, y, theme)
    marks.curves(axes, rows, metrics or {}, x, theme, alpha=0.45)
    marks.law(axes, rows, fit, x, y, theme, words_at=(-4, -12))
    caption = _law_caption(rows, fit, x, y)
    thin = "Thin: training loss on the way." if metrics else ""
    return style.end(figure, axes, [*caption, thin], theme)


def learning_curves(rows, metrics, x="tokens", theme=LIGHT) -> Figure:
    """Log-log: training loss of every run on its way, half-done and diverged ones included.

    A point is the mean over a stretch of log x, for single steps are noise.
    """
    figure, axes = style.start("Learning curves", x, "Training loss (nats per token)", theme)
    ends = marks.curves(axes, rows, metrics, x, theme)
    marks.scales(axes, x, "eval.loss", right=0.14)
    named, names = ends, {row["name"]: marks.short(row) for row, _, _ in ends}
    if len(ends) > marks.MOST_NAMES:  # the longest of each size
        by_length = sorted(ends, key=lambda end: (end[1], -len(end[0]["name"])))
        named = list({end[0].get(style.SIZE, 0): end for end in by_length}.values())
        sizes = marks.names_at([row for row, _, _ in named])
        names = {row["name"]: sizes[row.get(style.SIZE, 0)] for row, _, _ in named}
    lifts = style.lifts(axes, [(at, loss) for _, at, loss in named])
    for (row, at, loss), lift in zip(named, lifts, strict=True):
        status = "" if row["status"] == "done" else f" {row['status']}"
        style.write(axes, at, loss, names[row["name"]] + status, theme, (5, lift - 3))
    caption = f"n = {_runs(ends)}. A point is the mean over a stretch of the logarithm of {x}."
    return style.end(figure, axes, [caption], theme)


def ability(rows, y="eval.completion", x="params.non_embedding", theme=LIGHT) -> Figure:
    """A share of right answers, in percent, against size."""
    figure, axes = style.start("Ability against parameters", x, y, theme)
    rows, which = marks.fullest(rows, x)
    done = marks.steps(axes, rows, x, y, theme, scale=100, words_at=(6, -11))
    marks.scales(axes, x, y)
    axes.set_ylim(bottom=0)
    asked = sorted({row[y + "_n"] for row in done if marks.finite(row.get(y + "_n"))})
    number = " to ".join(f"{n:,.0f}" for n in dict.fromkeys(asked[:1] + asked[-1:])) or "unknown"
    caption = f"n = {_runs(done)}, {number} questions each. Bars: one standard error."
    return style.end(figure, axes, [caption, which], theme)


def tasks_mastered(rows, x="params.non_embedding", theme=LIGHT) -> Figure:
    """How many tasks each run has mastered (line) or is above chance at (dashed), against size."""
    rows, which = marks.fullest(rows, x)
    counted = mastery.tally(rows)
    asked = max((row["tasks.n"] for row in counted), default=0)
    figure, axes = style.start("Tasks mastered", x, f"Tasks, of {asked}", theme)
    marks.steps(axes, counted, x, "tasks.above_chance", theme, line="--", words_at=None)
    done = marks.steps(axes, counted, x, "tasks.mastered", theme, words_at=(6, -11))
    for column, words in (("tasks.above_chance", "above chance"), ("tasks.mastered", "mastered")):
        for last in done[-1:]:
            style.write(axes, last[x], last[column], words, theme, (8, 8))
    marks.scales(axes, x, "tasks", right=0.22)
    best = max((row["tasks.above_chance"] for row in done), default=asked)
    axes.set_ylim(-0.12 * max(best, 4), min(1.35 * max(best, 4), asked + 0.5))
    axes.locator_params(axis="y", integer=True)
    rule = f"Above chance: exact binomial test, p < {mastery.LEVEL:g}; mastered: besides, at least "
    caption = f"n = {_runs(done)}. {rule}{mastery.SHARE:.0%} of the way from chance to 1."
    return style.end(figure, axes, [caption, which], theme)


def task_curves(rows, x="params.non_embedding", theme=LIGHT) -> Figure:
    """Accuracy in percent against size, a small panel a task; dotted: chance."""
    rows, which = marks.fullest(rows, x)
    asked = mastery.tasks(rows)
    figure, panels = style.panels("Accuracy by task", len(asked), theme)
    done = []
    for axes, task in zip(panels, asked, strict=False):
        y = mastery.column(task)
        done = marks.steps(axes, rows, x, y, theme, scale=100, words_at=None) or done
        chance = {row[x]: 100 * row[mastery.column(task, "chance")] for row in done}
        axes.plot(list(chance), list(chance.values()), ":", color=theme["muted"], linewidth=1)
        name = style.shortened(marks.task_name(task))
        axes.set_title(name, size=8.5, color=theme["ink"], loc="left", parse_math=False)
        marks.scales(axes, x, y)
        axes.set_ylim(-4, 104)
    numbers = sorted({row[mastery.column(t, "n")] for row in done for t in mastery.tasks([row])})
    words = " to ".join(f"{n:,.0f}" for n in dict.fromkeys(numbers[:1] + numbers[-1:]))
    caption = f"n = {_runs(done)}, {words} questions each. Right answers in percent; across:"
    rest = f"{style.label(x)}; bars: one standard error; dotted: chance."
    return style.end(figure, panels[0], [caption, rest, which], theme)


def emergence(rows, tasks, x="params.non_embedding", theme=LIGHT) -> Figure:
    """Is a jump the metric's? Probability p of an answer's token, p^k of all k, and exact match.

    For each of at most four tasks: the geometric mean of p (dotted), its power (dashed), what was
    measured (marks). Where the marks lie on the dashed line, exact match jumps because p^k does,
    while p does not (Schaeffer et al. 2023, arXiv:2304.15004).
    """
    rows, which = marks.fullest(rows, x)
    figure, axes = style.start("Emergence, or the metric", x, "Probability, share (%)", theme)
    done, ends = [], []
    for task, colour in zip(tasks, style.spread(theme), strict=False):
        p, exact = (mastery.column(task, m) for m in ("token_probability", "exact"))
        done = marks.points(rows, x, exact)
        k = [row[mastery.column(task, "tokens")] for row in done]
        axes.plot(*marks.means(done, x, p, 100), ":", color=colour, linewidth=1.3)
        powers = [{x: row[x], "p^k": row[p] ** n} for row, n in zip(done, k, strict=True)]
        axes.plot(*marks.means(powers, x, "p^k", 100), "--", color=colour, linewidth=1.3)
        for row in done:
            error = 100 * marks.error(row, exact)
            tip = f"{task}, {marks.short(row)}: exact {100 * row[exact]:.0f}%, p {row[p]:.2f}"
            marks.mark(axes, (row[x], 100 * row[exact]), colour, theme, tip, error)
        words = f"{marks.task_name(task)} (k = {k[-1]:.3g})" if k else ""
        ends += [(words, last[x], 100 * last[exact]) for last in done[-1:]]
    marks.scales(axes, x, "tasks", right=0.5)
    axes.set_ylim(-3, 118)  # room for the words of all that end at 100
    axes.set_yticks(range(0, 101, 20))
    lifts = style.lifts(axes, [(at, share) for _, at, share in ends])
    for (words, at, share), lift in zip(ends, lifts, strict=True):
        style.write(axes, at, share, words, theme, (8, lift - 3))
    caption = f"n = {_runs(done)}. Dotted: p of a token (geometric mean); dashed: p^k; marks: exact"
    return style.end(figure, axes, [caption, "match, bars one standard error.", which], theme)


def loss_by_source(rows, x="params.non_embedding", y="eval.loss", theme=LIGHT) -> Figure:
    """Log-log: held-out loss on every source (columns y.SOURCE) against size, a line a source."""
    rows, which = marks.fullest(rows, x)
    figure, axes = style.start("Loss by source", x, y, theme)
    names, last = marks.source_names(marks.source_columns(rows, y), y), []
    for place, column in enumerate(names):
        line, words_at = ("-", "--", ":", "-.")[place % 4], None if place else (6, 6)
        done = marks.steps(axes, rows, x, column, theme, line=line, words_at=words_at)
        last += [(style.shortened(names[column]), row[x], row[column]) for row in done[-1:]]
    marks.scales(axes, x, y, right=0.25)
    lifts = style.lifts(axes, [(at, loss) for _, at, loss in last])
    for (words, at, loss), lift in zip(last, lifts, strict=True):
        style.write(axes, at, loss, words, theme, (8, lift - 3))
    caption = f"n = {_runs(marks.points(rows, x, y))}. Bars: one standard error."
    return style.end(figure, axes, [caption, which], theme)


def predicted_against_measured(rows, fit, prediction=None, theme=LIGHT) -> Figure:
    """How far, in percent, each measured loss lies from the law's: a line a run, largest on top.

    Runs whose tokens lie outside of those that the law saw are left out: it does not speak of them.

    A bar is the law's interval for one measurement of that run; a mark on its bar is a law that
    held. For the target, the law is the one written down before it started.
    """
    x, y = fit.columns[fit.inputs[0]], fit.columns[fit.output]
    words = "Measured loss, off the law's (%)"
    figure, axes = style.start("Predicted against measured", words, "", theme)
    spoken = _spoken_of(rows, fit, prediction)
    done, colours = marks.points(spoken, x, y), style.size_colours(rows, theme)
    for place, row in enumerate(done):
        target = marks.is_target(row, prediction)
        value, lo, hi = said = _said(row, fit, prediction)
        bar = {"color": theme["soft" if target else "band"], "linewidth": 11, "zorder": 1}
        ends = [100 * (lo / value - 1), 100 * (hi / value - 1)]
        axes.plot(ends, [place, place], solid_capstyle="butt", **bar)
        off, error = 100 * (row[y] / value - 1), 100 * marks.error(row, y) / value
        law = "law {} [{}, {}]".format(*map(style.number, said))
        tip = f"{marks.short(row)}: measured {style.number(row[y])}, {law}, off {off:+.2f}%"
        full = target or marks.in_fit(row, fit)
        at, colour = (off, place), colours[row["name"]]
        marks.mark(axes, at, colour, theme, tip, xerr=error, full=full, target=target)
    axes.axvline(0, color=theme["ink"], linewidth=1, zorder=1.5)
    axes.set_yticks(range(len(done)), [marks.short(row) for row in done], parse_math=False)
    axes.set_ylim(-0.6, max(len(done), 1) - 0.4)
    axes.grid(axis="y", visible=False)
    caption = f"n = {_runs(done)}. Wide: {marks.LEVEL:.0%} interval for one measurement; thin: one"
    diamond = "Diamond: predicted before it started." if prediction else ""
    return style.end(figure, axes, [caption, "standard error.", diamond], theme)


def fingerprints(rows) -> dict[str, str]:
    """{name of run: fingerprint of all that its row says, but where it lies}."""
    known = {row["name"]: {k: v for k, v in row.items() if k != "dir"} for row in rows}
    return {name: style.fingerprint(row) for name, row in known.items()}


def _spoken_of(rows, fit, prediction) -> list[dict]:
    """The runs of a law, its target, and others of as many tokens as these."""
    mine = [row for row in rows if marks.in_fit(row, fit) or marks.is_target(row, prediction)]
    tokens = [row["tokens"] for row in mine if marks.finite(row.get("tokens"))]
    if not tokens:
        return list(rows)
    low, high = marks.SAME * min(tokens), max(tokens) / marks.SAME
    return [row for row in marks.ends(rows) if low <= row.get("tokens", low) <= high]


def _said(row, fit, prediction) -> tuple[float, float, float]:
    """(value, lo, hi) of a measurement of this run; for the target, as it was written down."""
    if prediction and marks.is_target(row, prediction):
        return marks.predicted(prediction)
    said = fit.predict(row, level=marks.LEVEL)
    return said.value, said.lo, said.hi


def _law_caption(rows, fit, x, y) -> list[str]:
    done = marks.points(rows, x, y)
    if fit is None:
        return [f"n = {_runs(done)}, no law fitted. Bars: one standard error."]
    used = [row for row in done if marks.in_fit(row, fit)]
    return [
        f"n = {_runs(used)} in the fit, of {len(done)} finished (open: not in it); dashed beyond.",
        f"Intervals: {fit.resampling}; bars: one standard error.",
    ]


def _runs(rows) -> str:
    return "1 run" if len(rows) == 1 else f"{len(rows)} runs"
