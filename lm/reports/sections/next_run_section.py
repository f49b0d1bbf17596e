"""Next runs of a sweep: the size for more compute, and the runs that narrow its prediction most.

plan = next_run_section.plan_next_runs(summary.load_summary("runs/quickstart"), n_runs=2)
print(plan.advice)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from lm.laws import fit
from lm.laws.design import experiment_design, run_cost
from lm.laws.forms import compute_optimal
from lm.laws.goodness_of_fit import form_tests
from lm.reports import html, summary
from lm.reports.plots import elements, style
from lm.reports.sections import certainty_section
from lm.reports.tables import ladder_sizes
from lm.runs import records, run_selection

BUDGET_FACTORS = (1, 3, 10)  # budgets of the section, relative to the most expensive fitted run
COMPUTE_FACTOR = 10.0  # compute of the recommended size, relative to the most expensive run
SIZE_RANGE = np.geomspace(1e-2, 1e4, 2001)  # relative to the largest fitted run
N_REFINEMENTS = 20  # repetitions of size and FLOPs per token, until they agree
TOKENS_PER_PARAMETER = 20  # of the published rule of Hoffmann et al. 2022 (arXiv:2203.15556)
PROPORTION = 1.2  # largest ratio of tokens per parameter among runs in proportion
NEARLY_EQUAL = 1.15  # largest ratio of the inputs of two runs that are nearly equal
FAR_FROM_RULE = 5.0  # ratio to the published rule from which the text has a caution
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
        largest = certainty_section.describe_scale(TARGET_FACTOR, self.law_fit.inputs)
        kind = "the target of the sweep" if self.is_sweep_target else largest
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
    """Return the section: the size for ten times the compute, and the best runs to add."""
    question = html.subheading(f"Which size for {COMPUTE_FACTOR:g} times the compute?")
    answer = html.join_html([question, html.paragraph(describe_size(sweep))])
    try:
        plan = plan_next_runs(sweep)
    except ValueError as error:
        # The section of the law has the reason for a missing law.
        cause = str(error) if sweep.fit else "the sweep has no law"
        reason = html.paragraph(f"No advice on the next run: {cause}.", "muted")
        return html.join_html(
            [answer, html.subheading("Which run makes the law more certain?"), reason]
        )
    lines, trained = [], ladder_sizes.trained_sizes(sweep.rows)
    for factor in BUDGET_FACTORS:
        budget = factor * plan.budget
        advice = plan.advice if factor == 1 else plan_next_runs(sweep, budget).advice
        line = _run_line(advice.runs[0], advice.before, advice.after, trained)
        if not lines or line["FLOPs"] != lines[-1]["FLOPs"]:  # more FLOPs may buy no better run
            lines.append({"budget, FLOPs": budget} | line)
    formats: dict[str, Any] = dict.fromkeys(("budget, FLOPs", "FLOPs"), style.power_of_ten)
    formats |= dict.fromkeys(TITLES.values(), style.format_si)
    first = plan.advice.runs[0]
    nearest = _describe_nearest(sweep, plan.law_fit.data.rows, first)
    benefit = (
        f"{_describe_refit(sweep, plan.law_fit)}Add a run{_describe_inputs(first)}."
        f"{nearest} It costs no more than the most expensive run of the law. If the"
        f" form of the law is right, the standard deviation of the prediction at"
        f" {plan.describe_target()} falls from {plan.advice.before:.3g} to"
        f" {plan.advice.after:.3g} nats."
    )
    note = (
        "Each line is the run within a budget that narrows this prediction the most per FLOP."
        f" The possible runs have up to {plan.law_fit.reach:g} times the inputs of the largest"
        " fitted run, and cost less than the run whose loss is predicted."
    )
    if "N" in plan.law_fit.inputs:
        note += f" {ladder_sizes.describe_ladder(sweep.rows)}"
    return html.join_html(
        [
            answer,
            html.subheading("Which run makes the law more certain?"),
            html.paragraph(benefit),
            html.html_table(lines, formats),
            html.paragraph(note, "muted"),
        ]
    )


def _describe_inputs(run: Mapping) -> str:
    """Return the size and the tokens of a proposed run as text."""
    size = f" of {style.format_si(run['N'])} parameters" if "N" in run else ""
    return size + (f" on {style.format_si(run['D'])} tokens" if "D" in run else "")


def _describe_refit(sweep: summary.SweepSummary, law_fit: fit.Fit) -> str:
    """Return the advice to use a finished target that is not in the law, "" without one."""
    if sweep.measured is None or not sweep.target or elements.is_in_fit(sweep.target, law_fit):
        return ""
    name = elements.short_run_name(sweep.target)
    return f"First fit the law again with {name}: it is finished and costs nothing. "


def _describe_nearest(sweep: summary.SweepSummary, rows: Sequence[Mapping], run: Mapping) -> str:
    """Return the fitted run of nearly the same inputs as a proposed run, "" if there is none.

    rows: runs of the law. Trunk runs are not considered. The tokens of a proposal by a law of size
    are unknown, so only its size is compared.
    """
    columns = {"N": records.N_PARAMS, "D": records.TOKENS}
    wanted = {column: run[letter] for letter, column in columns.items() if letter in run}
    names = {row["name"] for row in sweep.without_trunks}
    rows = [row for row in rows if row["name"] in names and _has_numbers(row, list(wanted))]
    if not rows or not wanted:
        return ""

    def distance(row: Mapping) -> float:
        """Return the largest factor between the inputs of a row and of the proposed run."""
        return max(abs(np.log(row[column] / value)) for column, value in wanted.items())

    nearest = min(rows, key=distance)
    if distance(nearest) > np.log(NEARLY_EQUAL):
        return ""
    inputs = "size and tokens" if len(wanted) > 1 else "size"
    return f" It has nearly the same {inputs} as {elements.short_run_name(nearest)}."


class SizeAdvice(NamedTuple):
    """Size for more compute, as sentences. Empty sentences are left out of the text."""

    budget: str  # the compute
    size: str  # size and tokens of the run, or the reason for an unknown size
    caution: str = ""  # origin of the size, and reasons to doubt it
    details: str = ""  # predicted losses and alternatives


def describe_size(sweep: summary.SweepSummary) -> str:
    """Return the text of `advise_size`."""
    return " ".join(text for text in advise_size(sweep) if text)


def advise_size(sweep: summary.SweepSummary) -> SizeAdvice:
    """Return the size to train with ten times the compute of the most expensive finished run.

    A law of size and tokens, or else an isoFLOP law, divides the budget. Without them, the size
    follows from the runs of the law of size, whose tokens are equal or in proportion to the size.
    """
    keys = (records.FLOPS, records.N_PARAMS, records.TOKENS)
    rows = [row for row in sweep.finished if _has_numbers(row, keys)]
    if not rows:
        return SizeAdvice("", "Size unknown, because no run with a loss is finished.")
    costs = [tuple(row[key] for key in keys) for row in rows]
    most_expensive = max(rows, key=lambda row: row[records.FLOPS])
    budget = COMPUTE_FACTOR * most_expensive[records.FLOPS]
    prefix = (
        f"{COMPUTE_FACTOR:g} times the compute of {elements.short_run_name(most_expensive)}"
        f" ({style.power_of_ten(most_expensive[records.FLOPS])} FLOPs, the most expensive run) is"
        f" {style.power_of_ten(budget)} FLOPs:"
    )
    for name in ("size and tokens", "isoFLOP"):
        law_fit = sweep.laws[name][0]
        if law_fit is None or (name == "isoFLOP" and not law_fit.output.startswith("N")):
            continue
        try:
            best = _divide_budget(law_fit, budget, costs)
        except ValueError:
            continue  # the runs do not determine the division of a budget
        low, high = map(style.format_si, best.n_interval)
        text = f"train {style.format_si(best.n)} parameters without embeddings (95% interval"
        text += f" {low} to {high}) on {style.format_si(best.d)} tokens."
        caution = describe_ratio(best.d / best.n, rows) + _describe_form(law_fit)
        if name != "isoFLOP" and (size := _isoflop_size(sweep, budget, costs)):
            caution += f" The isoFLOP law divides it at {style.format_si(size)} parameters."
        return SizeAdvice(prefix, text, caution, _describe_division(name, law_fit, best))
    return _size_without_division(sweep, prefix, budget)


def describe_ratio(ratio: float, rows: Sequence[Mapping]) -> str:
    """Return tokens per parameter beside the published rule, with a caution if they differ much.

    rows: finished runs except trunk runs. Their range is named if the ratio is outside.
    """
    text = f"this is {_format_ratio(ratio)} tokens per parameter;"
    text += f" the published rule is {TOKENS_PER_PARAMETER}"
    if max(ratio / TOKENS_PER_PARAMETER, TOKENS_PER_PARAMETER / ratio) < FAR_FROM_RULE:
        return f"{text.capitalize()}."
    ratios = [row[records.TOKENS] / row[records.N_PARAMS] for row in rows]
    untested = ""
    if ratios and not min(ratios) <= ratio <= max(ratios):
        bounds = dict.fromkeys(map(_format_ratio, (min(ratios), max(ratios))))
        untested = f", and the finished runs have {' to '.join(bounds)}"
    return f"Caution: {text} (Hoffmann et al. 2022){untested}."


def _format_ratio(ratio: float) -> str:
    """Format tokens per parameter: 0.63, 5.5, 24, 1,250."""
    return f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.2g}"


def _isoflop_size(
    sweep: summary.SweepSummary, budget: float, costs: Sequence[tuple[float, ...]]
) -> float:
    """Return the best size for a budget by the isoFLOP law of the size, 0.0 without such a law."""
    law_fit = sweep.laws["isoFLOP"][0]
    if law_fit is None or not law_fit.output.startswith("N"):
        return 0.0
    try:
        return _divide_budget(law_fit, budget, costs).n
    except ValueError:
        return 0.0


def _describe_division(name: str, law_fit: fit.Fit, best: compute_optimal.Allocation) -> str:
    """Return the loss of a divided budget with its interval."""
    loss = f"The {name} law gives this division and no loss."
    if np.isfinite(best.loss):
        estimate = law_fit.predict(best.n, best.d)
        text = style.format_prediction(best.loss, estimate.lo, estimate.hi)
        loss = f"The law of {name} gives this division and predicts a loss of {text}."
    return loss


def _describe_form(law_fit: fit.Fit) -> str:
    """Return a caution if the tests of the residuals reject the form of a law, "" otherwise."""
    caution = " Tests of the residuals reject the form of the law that divides this budget: the"
    caution += " size and the loss may be wrong by more than their intervals."
    return caution if any(form_tests.MISFIT in line for line in law_fit.warnings) else ""


def _divide_budget(
    law_fit: fit.Fit, budget: float, costs: Sequence[tuple[float, ...]]
) -> compute_optimal.Allocation:
    """Return the division of a budget by a law. costs: FLOPs, size and tokens of finished runs.

    Attention and the output layer belong to the FLOPs, so they exceed 6 N D by a factor that falls
    with the size. The factor is that of the most expensive run if all runs have one size.
    """
    flops, n_params, n_tokens = np.array(max(costs))
    best = compute_optimal.allocation(law_fit, budget, flops / n_params / n_tokens)
    flops_R, sizes_R, tokens_R = np.array(costs).T
    if np.ptp(sizes_R) == 0:
        return best
    per_token = run_cost.fit_flops_per_token(sizes_R, flops_R / tokens_R)
    for _ in range(N_REFINEMENTS):
        best = compute_optimal.allocation(law_fit, budget, float(per_token(best.n) / best.n))
    return best


def _has_numbers(row: Mapping, keys: Sequence[str]) -> bool:
    """Return True if all columns of a row are positive numbers."""
    return all(records.is_finite(row.get(key)) and row[key] > 0 for key in keys)


def _size_at_cost(law_fit: fit.Fit, budget: float) -> float:
    """Return the number of parameters of a run that costs a budget of FLOPs.

    Raises ValueError if the FLOPs of the rows are no function of the size.
    """
    sizes = law_fit.x[0].max() * SIZE_RANGE
    flops = run_cost.price_points(run_cost.cost_of_rows(law_fit), sizes[None])
    return float(np.exp(np.interp(np.log(budget), np.log(flops), np.log(sizes))))


def _size_without_division(sweep: summary.SweepSummary, prefix: str, budget: float) -> SizeAdvice:
    """Return the size for a budget of FLOPs by the law of size. prefix: sentence on the budget."""
    law_fit = sweep.fit
    if law_fit is None or law_fit.columns.get("N") != records.N_PARAMS:
        return SizeAdvice(prefix, "size unknown, because no law of size was fitted.")
    if not all(_has_numbers(row, (records.TOKENS,)) for row in law_fit.data.rows):
        reason = "size unknown, because the records have no numbers of tokens."
        return SizeAdvice(prefix, reason)
    largest = max(law_fit.data.rows, key=lambda row: row[records.N_PARAMS])
    ratios = [row[records.TOKENS] / row[records.N_PARAMS] for row in law_fit.data.rows]
    is_in_proportion = max(ratios) < PROPORTION * min(ratios)
    target = sweep.target if sweep.measured else None
    largest = max(largest, target or largest, key=lambda row: row[records.N_PARAMS])
    try:
        size = _size_at_cost(law_fit, budget)
    except ValueError as error:
        return SizeAdvice(prefix, f"size unknown: {error}.")
    factor = size / largest[records.N_PARAMS]
    tokens = largest[records.TOKENS] * (factor if is_in_proportion else 1)
    estimate = law_fit.predict(size)
    prediction = style.format_prediction(estimate.value, estimate.lo, estimate.hi)
    unknown = (
        "These runs do not determine the best division of compute between size and tokens, which"
        f" needs several sizes at {run_selection.MIN_BUDGETS} or more token budgets."
    )
    ruled_size = _size_by_rule(law_fit, budget)
    ruled_tokens = TOKENS_PER_PARAMETER * ruled_size
    if is_in_proportion or ruled_tokens <= tokens:  # the rule would train on less text
        same = "tokens per parameter" if is_in_proportion else "tokens"
        text = (
            f"train about {style.format_si(size)} parameters without embeddings on"
            f" {style.format_si(tokens)} tokens, the same {same} as the largest run;"
            f" the law predicts a loss of {prediction}."
        )
        names = {row["name"] for row in sweep.without_trunks}
        rows = [row for row in law_fit.data.rows if row["name"] in names]
        ratio = describe_ratio(tokens / size, rows)
        return SizeAdvice(prefix, text, f"{ratio} {unknown}")
    comparison = ""
    if ruled_size < largest[records.N_PARAMS]:
        largest_ratio = largest[records.TOKENS] / largest[records.N_PARAMS]
        comparison = (
            f"This model is smaller than {elements.short_run_name(largest)}, the largest run,"
            f" which was trained on only {_format_ratio(largest_ratio)} tokens per parameter: the"
            " additional compute pays for text. "
        )
    return SizeAdvice(
        prefix,
        f"train about {style.format_si(ruled_size)} parameters without embeddings on"
        f" {style.format_si(ruled_tokens)} tokens.",
        f"This is the published rule of {TOKENS_PER_PARAMETER} tokens per parameter (Hoffmann et"
        f" al. 2022). {unknown}",
        f"{comparison}The law of size was fitted at {style.format_si(tokens)} tokens, so it"
        f" predicts no loss for this run. The alternative is to train on {style.format_si(tokens)}"
        f" tokens again: the same FLOPs then train about {style.format_si(size)} parameters, with a"
        f" predicted loss of {prediction}. It is not recommended, because"
        f" {_format_ratio(tokens / size)} tokens per parameter are far from the published rule.",
    )


def _size_by_rule(law_fit: fit.Fit, budget: float) -> float:
    """Return the size whose training on TOKENS_PER_PARAMETER costs a budget of FLOPs."""
    columns = (records.N_PARAMS, records.FLOPS, records.TOKENS)
    sizes, flops, tokens = (np.array([row[key] for row in law_fit.data.rows]) for key in columns)
    candidates = sizes.max() * SIZE_RANGE
    per_token = run_cost.fit_flops_per_token(sizes, flops / tokens)
    costs = TOKENS_PER_PARAMETER * candidates * per_token(candidates)
    return float(np.exp(np.interp(np.log(budget), np.log(costs), np.log(candidates))))


def _run_line(
    run: dict[str, float], before: float, after: float, trained: Sequence[str]
) -> dict[str, Any]:
    """Return the table row of a proposed run. trained: sizes of the ladder that the sweep has."""
    line: dict[str, Any] = {TITLES.get(k, k): v for k, v in run.items() if k in TITLES}
    if "N" in run:
        size = ladder_sizes.nearest_ladder_size(run["N"])
        note = "" if size in trained else " (not in this sweep)"
        line["nearest size of the ladder"] = size + note
    return line | {
        "FLOPs": run["flops"],
        "standard deviation before, nats": f"{before:.3g}",
        "standard deviation after, nats": f"{after:.3g}",
    }
