"""Next runs of a sweep: the runs that narrow its prediction the most, and their section.

plan = next_run_section.plan_next_runs(summary.load_summary("runs/quickstart"), n_runs=2)
print(plan.advice)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from lm.config import model_sizes
from lm.laws import fit
from lm.laws.design import experiment_design
from lm.reports import html, summary
from lm.reports.plots import style
from lm.runs import records

BUDGET_FACTORS = (1, 3, 10)  # budgets of the section, relative to the most expensive fitted run
TARGET_FACTOR = 10.0  # product of the inputs of the target, relative to the largest fitted run
TITLES = {"N": "parameters without embeddings", "D": "tokens", "C": "FLOPs of a run"}


@dataclass(frozen=True)
class NextRuns:
    """Advice on the next runs of a sweep, with its law, its target and its budget."""

    law_fit: fit.Fit
    target: dict[str, float]
    is_sweep_target: bool  # True for the unfinished target of the sweep
    budget: float
    advice: experiment_design.Advice

    def describe_target(self) -> str:
        """Return the target as text, such as N = 5M."""
        inputs = ", ".join(f"{k} = {style.format_si(v)}" for k, v in self.target.items())
        kind = "the target of the sweep" if self.is_sweep_target else "ten times the largest run"
        return f"{inputs} ({kind})"


def plan_next_runs(
    sweep: summary.SweepSummary, budget: float | None = None, n_runs: int = 1
) -> NextRuns:
    """Return the next runs that narrow the prediction of a sweep at its target.

    The law is that of size and tokens if the sweep determines it, and otherwise the law of size.
    The target is the predicted run of the sweep. If that run is done or absent, the target is ten
    times the largest fitted run. budget: FLOPs of all proposed runs; None for the FLOPs of the most
    expensive fitted run. Raises ValueError if no law was fitted or if it gives no advice.
    """
    law_fit = sweep.laws["size and tokens"][0] or sweep.fit
    if law_fit is None:
        raise ValueError(f"the sweep has no law: {sweep.refusal}")
    if not law_fit.ensemble:
        raise ValueError(f"the law of {law_fit.n} runs has no intervals: train more runs")
    if budget is None:
        flops = [row.get(records.FLOPS) for row in law_fit.data.rows]
        budget = max((v for v in flops if records.is_finite(v)), default=0.0)
        if not budget:
            raise ValueError("the runs of the law have no FLOPs: pass a budget")
    target, is_sweep_target = _target_inputs(sweep, law_fit)
    advice = experiment_design.advise(law_fit, budget, target, n_runs=n_runs)
    return NextRuns(law_fit, target, is_sweep_target, budget, advice)


def _target_inputs(sweep: summary.SweepSummary, law_fit: fit.Fit) -> tuple[dict[str, float], bool]:
    """Return the inputs of the target, and True if it is the unfinished target of the sweep."""
    prediction = sweep.prediction or {}
    planned = {entry.get("name"): entry for entry in sweep.plan}.get(prediction.get("target"), {})
    known = {"N": prediction.get(records.N_PARAMS), "D": planned.get(records.TOKENS)}
    if sweep.measured is None and all(records.is_finite(known.get(k)) for k in law_fit.inputs):
        return {k: float(known[k] or 0) for k in law_fit.inputs}, True
    factor = TARGET_FACTOR ** (1 / len(law_fit.inputs))
    largest = (float(x.max()) * factor for x in law_fit.x)
    return dict(zip(law_fit.inputs, largest, strict=True)), False


def next_runs(sweep: summary.SweepSummary) -> Markup:
    """Return the section: the best next run for several budgets, or the reason for its absence."""
    try:
        plan = plan_next_runs(sweep)
    except ValueError as error:
        return html.paragraph(f"No advice: {error}.", "muted")
    lines = []
    for factor in BUDGET_FACTORS:
        budget = factor * plan.budget
        advice = plan_next_runs(sweep, budget).advice
        lines.append(
            {"budget, FLOPs": budget} | _run_line(advice.runs[0], advice.before, advice.after)
        )
    formats: dict[str, Any] = dict.fromkeys(("budget, FLOPs", "FLOPs"), style.power_of_ten)
    formats |= dict.fromkeys(TITLES.values(), style.format_si)
    text = (
        f"The run that narrows the prediction at {plan.describe_target()} the most per FLOP, if"
        " the form of the law is right. The first budget is the cost of the most expensive run of"
        " the law. Candidates are within the reach of the law and cheaper than the target."
    )
    return html.join_html([html.paragraph(text, "muted"), html.html_table(lines, formats)])


def _run_line(run: dict[str, float], before: float, after: float) -> dict[str, Any]:
    """Return the table row of a proposed run."""
    line: dict[str, Any] = {TITLES.get(k, k): v for k, v in run.items() if k in TITLES}
    if "N" in run:
        line["nearest size of the ladder"] = nearest_ladder_size(run["N"])
    return line | {
        "FLOPs": run["flops"],
        "standard deviation before": f"{before:.3g}",
        "after": f"{after:.3g}",
    }


def nearest_ladder_size(n_params: float) -> str:
    """Return the dense size of the ladder with the nearest number of parameters."""
    # Any vocabulary has the same number of parameters without the embedding and the head.
    models = {size: model_sizes.ladder_model(size, vocab_size=256) for size in model_sizes.LADDER}
    counts = {s: model_sizes.count_parameters(m)["non_embedding"] for s, m in models.items()}
    return min(counts, key=lambda size: abs(np.log(counts[size] / n_params)))
