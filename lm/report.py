"""A sweep directory -> one page that opens from disk: what was predicted, what came, every run.

    path = report.write("runs/quickstart")   # report.html, and figures/NAME.png and .svg beside it

The page says what is missing: a sweep that is half done, a law that could not be fitted, a
prediction that did not hold. It reads records only, and can be written again at any time: with
refresh=SECONDS the page loads itself anew so often, for a sweep that still trains.
"""

from pathlib import Path

from lm import (
    config,
    drawings,
    goodput,
    marks,
    mastery,
    outcome,
    page,
    plots,
    records,
    revision,
    style,
)
from lm.marks import finite, short
from lm.outcome import Cell, Sweep

load, headline, table = outcome.load, outcome.headline, outcome.table  # for command lines


def write(sweep_dir, refresh: float = 0.0) -> Path:
    """Writes figures/ and report.html into the sweep's folder; returns the page's path.

    refresh: seconds after which the open page loads itself anew, 0 for never; it leaves figures/
    as they are, which takes most of the time.
    """
    sweep = outcome.load(sweep_dir)
    figures, times = [], goodput.table(sweep.rows)
    for name, (figure, meta) in drawings.every(sweep).items():
        if not refresh:
            plots.save(figure, sweep.path / "figures" / name, meta)
        figures.append(page.figure(figure, "" if refresh else f"figures/{name}"))
    return page.write(
        sweep.path / "report.html",
        title=sweep.path.name or sweep.path.resolve().name,
        headline=outcome.headline(sweep),
        tiles=_tiles(sweep),
        sections={
            "Figures": page.figures(figures),
            "The law": _law(sweep),
            "Predictions": _predictions(sweep),
            "Other laws": _laws(sweep),
            **({"Tasks": _tasks(sweep)} if mastery.tasks(sweep.rows) else {}),
            "Runs": page.table(outcome.full_table(sweep.rows), "sortable"),
            "Left out, unfinished, missing": _left_out(sweep),
            "What happened on the way": _events(sweep),
            "Plan against cost": _cost(sweep),
            **({"Where the time went": page.table(times)} if times else {}),
            "How to do it again": _again(sweep),
        },
        footer=f"lm-scaling {revision.version()}, from the records of {len(sweep.rows)} runs.",
        twins=style.twins(sweep.rows),
        refresh=refresh,
    )


def _tiles(sweep: Sweep) -> list[tuple[str, str]]:
    """The few numbers that say how large all this is."""
    columns = {
        key: [row[key] for row in sweep.rows if finite(row.get(key))]
        for key in ("params.non_embedding", "eval.loss", "seconds")
    }
    sizes, losses = columns["params.non_embedding"], columns["eval.loss"]
    done = sum(row["status"] == "done" for row in sweep.rows)
    tiles = [("runs done", f"{done} of {len(sweep.rows) + len(sweep.missing)}")]
    if sizes:
        words = f"{style.count(min(sizes))} to {style.count(max(sizes))}"
        tiles.append((f"sizes, {max(sizes) / min(sizes):.0f} times apart", words))
    if losses:
        tiles.append(("lowest loss, nats per token", style.number(min(losses))))
    own = sum(outcome.own_flops(row) for row in sweep.rows)
    tiles.append(("FLOPs in all", style.power_of_ten(own)))
    return [*tiles, ("training time", outcome.duration(sum(columns["seconds"])))]


def _law(sweep: Sweep) -> str:
    """The formula, its parameters with intervals, and every doubt there is about it."""
    fit = sweep.fit
    if fit is None:
        return page.words(f"No law could be fitted: {sweep.refusal}.", "note")
    lines = []
    for name, value in fit.params.items():
        lo, hi = fit.intervals.get(name, (float("nan"), float("nan")))
        interval: Cell = (f"{lo:.4g} to {hi:.4g}", lo) if finite(lo) else ("none", 0.0)
        lines.append({"": (name, name), "value": (f"{value:.4g}", value), "95% interval": interval})
    columns = "; ".join(style.label(column) for column in fit.columns.values())
    doubts = list(fit.warnings)
    written = (sweep.prediction or {}).get("fit", {}).get("params", {})
    if any(abs(written.get(k, v) - v) > 1e-4 * abs(v) for k, v in fit.params.items()):
        doubts.append(
            "It differs from the law in prediction.json: runs changed after the prediction."
        )
    return (
        page.words(marks.formula(fit), "formula")
        + page.words(columns, "muted")
        + page.table(lines)
        + "".join(page.words(doubt, "note") for doubt in doubts)
        + page.details("How it was fitted", page.code(fit))
    )


def _laws(sweep: Sweep) -> str:
    """What else these runs can say, each with intervals, or why they cannot."""
    lines, doubts = [], []
    for name, (fit, refusal) in sweep.laws.items():
        values = {**fit.params, **fit.derived} if fit else {}
        shown = [f"{key} {value:.4g}{_interval(fit, key)}" for key, value in values.items()]
        words = "; ".join(shown) if fit else f"refused: {refusal}"
        formula = marks.formula(fit) if fit else ""
        n = (str(fit.n), fit.n) if fit else ("", 0)
        lines.append(
            {"law": (name, ""), "formula": (formula, ""), "n": n, "95% intervals": (words, "")}
        )
        doubts += [f"{name}: {doubt}" for doubt in (fit.warnings if fit else ())]
    return page.table(lines) + "".join(page.words(doubt, "note") for doubt in doubts)


def _interval(fit, key: str) -> str:
    lo, hi = fit.intervals.get(key, (float("nan"), float("nan")))
    return f" [{lo:.3g}, {hi:.3g}]" if finite(lo) else ""


def _predictions(sweep: Sweep) -> str:
    said = sweep.prediction
    if not said:
        why = f": {sweep.refused}" if sweep.refused else ""
        return page.words(f"None was written down{why}.", "muted")
    every = {"size alone": said, "size and tokens": said.get("joint", {})}
    lines = [_prediction(sweep, law, one) for law, one in every.items() if "value" in one]
    notes = [
        f"By {law}: none, {one['refused']}." if "refused" in one else f"By {law}: from {of}."
        for law, one in every.items()
        for of in [", ".join(one.get("runs", ()))] * bool(one)
    ]
    return page.table(lines) + "".join(page.words(note, "muted") for note in notes)


def _prediction(sweep: Sweep, law: str, said: dict) -> dict[str, Cell]:
    """What one law said of the target before it started, beside what came."""
    whole, row, measured = sweep.prediction or {}, sweep.target or {}, sweep.measured
    value, lo, hi = marks.predicted(said)
    inside = "yes" if measured and lo <= measured <= hi else "no"
    return {
        "run": (whole["target"], ""),
        "law": (law, ""),
        "of": (style.label(whole["y"]), ""),
        "predicted": (style.number(value), value),
        f"{whole['level']:.0%} interval": (f"{style.number(lo)} to {style.number(hi)}", lo),
        "measured": outcome.measured(whole["y"])(row) if measured else ("not yet", ""),
        "off": (outcome.off(measured, value) if measured else "", ""),
        "inside": (inside if measured and finite(lo) else "", ""),
        "written": (whole.get("written", ""), ""),
    }


def _tasks(sweep: Sweep) -> str:
    """Each task's verdict, and which metric follows accuracy best."""
    done = [row for row in sweep.rows if row["status"] == "done"]
    lines: list[dict[str, Cell]] = [
        {
            "task": (marks.task_name(one["task"]), ""),
            "chance": (f"{one['chance']:.2g}", one["chance"]),
            "best accuracy": (f"{one['best']:.3g}", one["best"]),
            **_foretold(sweep, one["task"]),
            "signal": (f"{one['signal']:.2g}", one["signal"]),
            "sampling noise": (f"{one['sampling']:.2g}", one["sampling"]),
            "checkpoint noise": _known(one["checkpoint"]),
            "seed noise": _known(one["seed"]),
            "signal to noise": (f"{one['to_noise']:.2g}", one["to_noise"]),
            "verdict": (one["verdict"], ""),
        }
        for one in mastery.verdicts(done, {row["name"]: records.evals(row["dir"]) for row in done})
    ]
    follows: list[dict[str, Cell]] = [
        {
            "metric": (metric, ""),
            "rank correlation with accuracy, median": (f"{middle:.2f}", middle),
            "lowest": (f"{min(by_task.values()):.2f}", min(by_task.values())),
            "tasks": (str(len(by_task)), len(by_task)),
        }
        for metric, by_task in mastery.correlations(done).items()
        for middle in [mastery.median(by_task.values())]
    ]
    noise = (
        "Noise of one accuracy: from the examples asked; between a run's last evaluations, about a "
        "line; between seeds. The first and the larger of the others make the signal to noise."
    )
    return (
        page.table(lines, "sortable")
        + page.words(noise, "muted")
        + page.words("Which metric orders the runs as accuracy does (1: exactly so):", "muted")
        + page.table(follows)
    )


def _known(noise: float | None) -> Cell:
    return ("" if noise is None else f"{noise:.2g}", noise or 0.0)


def _foretold(sweep: Sweep, task: str) -> dict[str, Cell]:
    """What was said of the target's accuracy before it started, and what came."""
    every = (sweep.prediction or {}).get("tasks")
    if not every:
        return {}
    said = every.get(task, {})
    words = "none" if "value" not in said else "{value:.2f} [{lo:.2f}, {hi:.2f}]".format(**said)
    came = (sweep.target or {}).get(mastery.column(task))
    measured = (f"{came:.2f}", came) if finite(came) else ("", 0.0)
    return {"predicted for the target": (words, said.get("value", -1.0)), "measured": measured}


def _left_out(sweep: Sweep) -> str:
    """Runs that are not done, or that are and no law saw, with the reason."""
    why = dict(sweep.fit.excluded) if sweep.fit else {}
    lines = [(short({"name": name}), "missing", "not started") for name in sweep.missing]
    for row in sweep.rows:
        name, status = short(row), row["status"]
        if status != "done":
            planned = row["steps"] * row["data.batch_size"] * row["data.seq_len"]
            share = f"{row['tokens'] / planned:.0%} of its tokens were trained on"
            lines.append((name, status, f"{row.get('reason') or 'not finished'}; {share}"))
        elif sweep.fit and not marks.in_fit(row, sweep.fit) and row is not sweep.target:
            lines.append((name, status, why.get(row["name"]) or _unfitted(sweep, row)))
    if not lines:
        return page.words("Nothing: every run is done.", "muted")
    heads = ("run", "status", "why")
    return page.table(
        [{h: (text, "") for h, text in zip(heads, line, strict=True)} for line in lines]
    )


def _unfitted(sweep: Sweep, row: dict) -> str:
    """Why a run that is done is not among those of the law."""
    if row not in marks.ends(sweep.rows):
        return "a trunk: see its branches"
    used = {style.count(one["tokens"]) for one in sweep.rows if marks.in_fit(one, sweep.fit)}
    if finite(row.get("tokens")) and style.count(row["tokens"]) not in used and len(used) == 1:
        return f"on {style.count(row['tokens'])} tokens, where the law is one of {used.pop()}"
    return "not among the runs the law was fitted to"


def _events(sweep: Sweep) -> str:
    """Damaged checkpoints, skipped updates, rewinds and spikes, as the runs wrote them down."""
    lines: list[dict[str, Cell]] = [
        {
            "run": (short(row), ""),
            "attempt": (str(event["attempt"]), event["attempt"]),
            "step": (str(event["step"]), event["step"]),
            "event": (event["event"], ""),
            "words": (event["words"], ""),
        }
        for row in sweep.rows
        for event in records.events(row["dir"])
    ]
    return page.table(lines) if lines else page.words("Nothing but steps.", "muted")


def _cost(sweep: Sweep) -> str:
    """What plan.json said of each run, and of all that began, beside what it took."""
    rows = {row["name"]: row | {"flops": outcome.own_flops(row)} for row in sweep.rows}
    lines = []
    begun = [plan for plan in sweep.plan if plan["name"] in rows]
    sums = [
        {key: sum(one.get(key) or 0 for one in ones) for key in ("tokens", "flops", "seconds")}
        for ones in (begun, [rows[plan["name"]] for plan in begun])
    ]
    pairs = [(plan, rows.get(plan["name"], {})) for plan in sweep.plan]
    whole = {"name": f"all {len(begun)} that began"} | sums[0]
    for plan, row in [*pairs, *([(whole, sums[1])] if len(begun) > 1 else [])]:
        line: dict[str, Cell] = {"run": (short(plan), "")}
        for head, cell in outcome.COSTS.items():
            line |= {f"{head}, planned": cell(plan), f"{head}, spent": cell(row)}
        planned, spent = plan.get("seconds"), row.get("seconds")
        ratio = spent / planned if finite(spent) and finite(planned) and planned else ""
        line["time over plan"] = (f"{ratio:.2f}×" if ratio else "", ratio)
        lines.append(line)
    return page.table(lines)


def _again(sweep: Sweep) -> str:
    """Command, corpus, devices, versions; the knobs, those that differ between runs as a table."""
    keys = sorted({key for row in sweep.rows for key in row})
    kept = [key for key in keys if key.startswith(("code.", "corpus.", "devices", "versions."))]
    facts: list[dict[str, Cell]] = []
    for key in kept:
        values = sorted({str(row[key]) for row in sweep.rows if row.get(key) is not None})
        note = " (differs between runs)" if len(values) > 1 else ""
        facts += [{"fact": (key, ""), "value": (", ".join(values) + note, "")}] * bool(values)
    knobs = [knob for knob in config.field_types(config.Run) if knob not in ("name", "dir")]
    values = {knob: [str(row.get(knob)) for row in sweep.rows] for knob in knobs}
    differ = [knob for knob in knobs if len(set(values[knob])) > 1]
    own = [{"run": (short(row), "")} | {k: (str(row[k]), "") for k in differ} for row in sweep.rows]
    shared = "\n".join(f"{k} = {v[0]}" for k, v in values.items() if k not in differ and v)
    commits = {row["code.commit"].strip("+") for row in sweep.rows if row.get("code.commit")}
    checkout = (
        "".join(f"git checkout {commit}\n" for commit in commits) if len(commits) == 1 else ""
    )
    return (
        page.code(checkout + sweep.facts.get("command", "unknown command"))
        + page.words(f"Started {sweep.facts.get('created', 'at an unknown time')}.", "muted")
        + page.table(facts)
        + page.details("Knobs that differ between runs", page.table(own))
        + page.details("Knobs that all runs share", page.code(shared))
    )
