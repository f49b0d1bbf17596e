"""Figure and table of the wall time of runs by phase.

    figure = goodput.time_by_phase(rows)     # one bar per run
    lines = goodput.phase_table(rows)        # seconds and shares per run

The phases are those of lm/runs/phase_timer.py. Goodput is the share of the wall time that training
steps use, without steps that were repeated after a restart.
"""

from matplotlib.figure import Figure

from lm.reports.plots import elements, style
from lm.runs import phase_timer, records

# Phase -> its name in figures and tables, in the order of the bars.
PHASES = {
    "steps": "steps",
    "input": "waiting for input",
    "save": "checkpoints",
    "evaluate": "evaluation",
    "compile": "compilation",
    "start": "start",
    "lost": "repeated steps",
    "log": "logging",
    "other": "other",
}


def timed_runs(rows) -> list[dict]:
    """Return the runs that recorded their time by phase."""
    return [row for row in rows if records.is_finite(row.get("clock.goodput"))]


def total_seconds(row: dict) -> float:
    """Return the wall time of a run over all attempts, in seconds."""
    return sum(row.get(f"clock.{part}", 0.0) for part in (*phase_timer.PHASES, "lost"))


def phase_shares(row: dict) -> dict[str, float]:
    """Return {phase: share of the wall time of a run over all attempts}."""
    total = total_seconds(row) or 1.0
    return {part: row.get(f"clock.{part}", 0.0) / total for part in PHASES}


def phase_table(rows) -> list[dict[str, str | float]]:
    """Return one line per timed run: its name, its seconds and the share of each phase."""
    return [
        {"run": elements.short_run_name(row), "seconds": total_seconds(row)}
        | {PHASES[part]: share for part, share in phase_shares(row).items()}
        for row in timed_runs(rows)
    ]


def time_by_phase(rows, theme=style.LIGHT) -> Figure:
    """Plot the share of the wall time of each phase in percent, as one divided bar per run.

    The smallest model is at the top. Runs without recorded phases are not shown. Of more than
    elements.MAX_LINES runs, only the largest are shown. The number beside the name of a run is the
    goodput in percent.
    """
    n_timed, rows = len(timed_runs(rows)), timed_runs(rows)[-elements.MAX_LINES :]
    figure, axes = style.new_figure("Time by phase", "Share of wall time (%)", "", theme)
    figure.set_figheight(2.2 + 0.27 * len(rows))
    ys, starts = list(range(len(rows))), [0.0] * len(rows)
    n_colors = len(PHASES) - 2  # the last two phases have neutral colors
    phase_colors = [*style.categorical_colors(theme, n_colors), theme["ink"], theme["grid"]]
    for part, color in zip(PHASES, phase_colors, strict=True):
        widths = [100 * phase_shares(row)[part] for row in rows]
        if max(widths, default=0.0) >= 0.05:
            axes.barh(ys, widths, left=starts, height=0.72, color=color, label=PHASES[part])
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    names = [f"{elements.short_run_name(row)}  {100 * row['clock.goodput']:.0f}%" for row in rows]
    axes.set_yticks(ys, names, parse_math=False)
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.grid(visible=False)
    caption = (
        f"n = {elements.describe_shown(rows, n_timed)}, all attempts. Numbers: goodput, the share"
        " of time in useful steps."
    )
    return style.finish_figure(figure, axes, [caption], theme)
