"""Section of the report about the law: formula, plain words, certainty, warnings, other laws."""

from markupsafe import Markup

from lm.laws import fit, prediction_intervals
from lm.laws.goodness_of_fit import form_tests
from lm.reports import html, summary
from lm.reports.plots import elements, style
from lm.reports.sections import certainty_section
from lm.runs import records, run_selection

NO_INTERVAL = (float("nan"), float("nan"))
MIN_LIMIT_SHARE = 0.05  # of the upper bound of E, below which the lower bound is practically 0
MEANINGS = {
    "E": "limit of this law for large {inputs}",
    "A": "scale of the part of the loss that falls with size",
    "B": "scale of the part of the loss that falls with tokens",
    "alpha": "exponent: how fast the loss falls with size or compute",
    "beta": "exponent: how fast the loss falls with tokens",
    "a": "exponent of the best size against compute",
    "b": "exponent of the best number of tokens against compute",
    "exponent": "exponent of the best size or number of tokens against compute",
    "k": "factor of the power of compute",
}
HIDDEN = ("log10_k",)  # parameters that repeat another one


def law_section(sweep: summary.SweepSummary, figure: Markup, other_figures: Markup) -> Markup:
    """Return formula, meaning, certainty, figure, parameters and warnings of the main law.

    figure: the main figure. other_figures: the figures of the other laws. Fitted other laws follow,
    and refused laws are collapsed.
    """
    law_fit = sweep.fit
    if law_fit is None:
        reason = html.paragraph(f"No law could be fitted: {sweep.refusal}.", "note")
        return html.join_html([reason, figure, _other_laws(sweep), other_figures])
    warnings = list(law_fit.warnings)
    if _differs_from_prediction(sweep):
        warnings.append(
            "This law differs from the law in prediction.json: runs changed after the prediction."
        )
    count = f"{len(warnings)} warnings" if len(warnings) != 1 else "1 warning"
    return html.join_html(
        [
            html.paragraph(elements.format_formula(law_fit), "formula"),
            html.paragraph(describe_law(law_fit)),
            figure,
            html.subheading("How sure is the law?"),
            html.text_list(certainty_section.describe_certainty(sweep)),
            html.paragraph(f"{count}:" if warnings else "The fit has no warnings."),
            html.warning_list(warnings),
            _parameters(law_fit),
            html.collapsed_section("Details of the fit", html.text_list(describe_fit(law_fit))),
            _other_laws(sweep),
            other_figures,
        ]
    )


def describe_law(law_fit: fit.Fit) -> str:
    """Return the columns of the law, its gain per doubling and its limit in plain words."""
    columns = [style.axis_label(column) for column in law_fit.columns.values()]
    inputs = " and ".join(f"{name[:1].lower()}{name[1:]}" for name in columns[:-1])
    text = f"{columns[-1]}, as a function of {inputs}."
    if len(law_fit.inputs) != 1 or not {"E", "alpha"} <= set(law_fit.params):
        return text
    low, high = law_fit.intervals.get("alpha", NO_INTERVAL)
    gain = 1 - 2 ** -law_fit.params["alpha"]
    between = ""
    if records.is_finite(low):
        between = f" (95% interval {1 - 2**-low:.1%} to {1 - 2**-high:.1%})"
    gain_text = (
        f"{text} Doubling {law_fit.inputs[0]} removes {gain:.1%}{between} of the part of the loss"
        " above the limit E."
    )
    at_tokens = _fixed_tokens(law_fit)
    gain_text += f" E is the limit of this law for large {law_fit.inputs[0]}{at_tokens}."
    if not is_limit_determined(law_fit):
        high = law_fit.intervals.get("E", NO_INTERVAL)[1]
        bound = f": it is at most {high:.3g} (95% interval)" if records.is_finite(high) else ""
        return f"{gain_text} These runs do not determine E{bound}."
    return f"{gain_text} It is {law_fit.params['E']:.3g}{_bounds_text(law_fit, 'E')}."


def is_limit_determined(law_fit: fit.Fit) -> bool:
    """Return False if the runs do not fix the limit E, or its interval begins practically at 0."""
    if "E" in law_fit.undetermined:
        return False
    low, high = law_fit.intervals.get("E", NO_INTERVAL)
    return not (records.is_finite(high) and low < MIN_LIMIT_SHARE * high)


def describe_fit(law_fit: fit.Fit) -> list[str]:
    """Return sentences about the columns, the objective and the intervals of a law."""
    columns = ", ".join(f"{letter} = {column}" for letter, column in law_fit.columns.items())
    lines = [
        f"Columns of the records: {columns}.",
        f"The fit minimizes the sum of {law_fit.loss}, which is {law_fit.objective:.3g} at the"
        f" minimum. Scaled gradient: {law_fit.gradient:.1e}.",
    ]
    if law_fit.ensemble:
        lines.append(
            f"Intervals of parameters are percentiles of {law_fit.resampling}. They assume that the"
            " form of the law is right; intervals of predictions include uncertainty about it."
        )
    return lines


def _fixed_tokens(law_fit: fit.Fit) -> str:
    """Return the number of tokens that all runs of a law of size share, as text, "" otherwise."""
    rows = law_fit.data.rows
    tokens = [row[records.TOKENS] for row in rows if records.is_finite(row.get(records.TOKENS))]
    if "D" in law_fit.inputs or "C" in law_fit.inputs or len(tokens) < len(rows):
        return ""
    budgets = {style.format_si(value) for value in tokens}
    return f" at {budgets.pop()} tokens" if len(budgets) == 1 else ""


def _meaning(law_fit: fit.Fit, name: str) -> str:
    """Return the meaning of a parameter in a law, "" if it has no known meaning."""
    if name != "E":
        return MEANINGS.get(name, "")
    unit = "nats per token" if law_fit.columns[law_fit.output] == records.LOSS else ""
    text = MEANINGS[name].format(inputs=" and ".join(law_fit.inputs)) + _fixed_tokens(law_fit)
    text += f", {unit}" if unit else ""
    return text if is_limit_determined(law_fit) else f"{text}; not determined by these runs"


def _differs_from_prediction(sweep: summary.SweepSummary) -> bool:
    """Return True if a parameter differs from that of the law in prediction.json."""
    stored = (sweep.prediction or {}).get("fit", {}).get("params", {})
    return any(
        records.is_finite(stored.get(k)) and abs(stored[k] - v) > 1e-4 * abs(v)
        for k, v in sweep.fit.params.items()
    )


def _parameters(law_fit: fit.Fit) -> Markup:
    """Return the table of the parameters with their meaning and their intervals."""
    lines = [
        {
            "parameter": name,
            "value": value,
            "95% interval": law_fit.intervals.get(name, NO_INTERVAL),
            "meaning": _meaning(law_fit, name),
        }
        for name, value in law_fit.params.items()
    ]
    return html.html_table(
        lines, {"value": style.format_parameter, "95% interval": _format_interval}
    )


def _format_interval(interval: tuple[float, float]) -> str:
    """Format the interval of a parameter, "none" if it is NaN."""
    lo, hi = interval
    if not (records.is_finite(lo) or records.is_finite(hi)):
        return "none"
    bounds = [style.format_parameter(v) if records.is_finite(v) else "unbounded" for v in interval]
    return " to ".join(bounds)


def _other_laws(sweep: summary.SweepSummary) -> Markup:
    """Return the fitted other laws with their intervals, and the refused laws to unfold."""
    lines, refused, warnings = [], [], []
    for name, (law_fit, refusal) in sweep.laws.items():
        if law_fit is None:
            refused.append(f"{name}: {refusal.removesuffix('.')}.")
            continue
        values = {**law_fit.params, **law_fit.derived}
        texts = [
            f"{key} {style.format_parameter(value)}{_bounds_text(law_fit, key)}"
            + _note(law_fit, key)
            for key, value in values.items()
            if key not in HIDDEN
        ]
        formula = elements.format_formula(law_fit)
        line = {"law": name, "formula": formula, "fitted points": law_fit.n}
        lines.append(line | {"95% intervals": texts})
        warnings += [f"{name}: {warning}" for warning in law_fit.warnings]
        n_finished = len(run_selection.without_trunks(sweep.finished))
        if name == "compute" and law_fit.n < n_finished:
            warnings.append(
                f"{name}: fitted to the {law_fit.n} runs, of {n_finished}, that have the least"
                " loss for their compute"
            )
    parts = []
    if lines:
        lines = [line | {"95% intervals": "; ".join(line["95% intervals"])} for line in lines]
        parts = [html.subheading("Other laws of these runs"), html.html_table(lines)]
        warnings.sort(key=lambda warning: form_tests.MISFIT not in warning)
        parts += [_meanings(lines), _compare_limits(sweep), html.warning_list(warnings)]
    if refused:
        parts.append(
            html.collapsed_section(
                f"Laws that these runs do not determine: {len(refused)}", html.text_list(refused)
            )
        )
    return html.join_html(parts)


def _compare_limits(sweep: summary.SweepSummary) -> Markup:
    """Return the reasons why the limits E of the laws differ, empty for less than two limits."""
    laws = {"size": sweep.fit, **{name: law_fit for name, (law_fit, _) in sweep.laws.items()}}
    limits = {name: law for name, law in laws.items() if law and "E" in law.params}
    if len(limits) < 2:
        return Markup()
    values = [f"{style.format_parameter(law.params['E'])} ({name})" for name, law in limits.items()]
    text = f"Why E differs: {', '.join(values)}. E is a limit far beyond these runs."
    unknown = [name for name, law in limits.items() if not is_limit_determined(law)]
    if unknown:
        text += (
            f" The runs do not determine E in the law of {' and of '.join(unknown)}: a lower E with"
            " a smaller exponent fits them about as well."
        )
    bounds = [law.intervals.get("E", NO_INTERVAL) for law in limits.values()]
    if all(records.is_finite(bound) for interval in bounds for bound in interval):
        if max(low for low, _ in bounds) <= min(high for _, high in bounds):
            text += " The intervals of E overlap, so these runs do not show that the limits differ."
        else:
            text += " Some intervals of E do not overlap."
    if "size" in limits and _fixed_tokens(limits["size"]):
        text += " E of the law of size also contains the loss that more tokens would remove."
    return html.paragraph(text)


def _note(law_fit: fit.Fit, key: str) -> str:
    """Return a remark on a parameter that the runs do not determine, "" otherwise."""
    return "" if key != "E" or is_limit_determined(law_fit) else " (not determined)"


def _meanings(lines: list[dict]) -> Markup:
    """Return the meaning of the parameters in the rows of the table of other laws."""
    names = {text.partition(" ")[0] for line in lines for text in line["95% intervals"].split("; ")}
    meanings = MEANINGS | {"E": "limit of its law for large inputs; each law has its own"}
    texts = [f"{name} ({meanings[name]})" for name in meanings if name in names]
    return html.paragraph(f"Parameters: {', '.join(texts)}.", "muted") if texts else Markup()


def _bounds_text(law_fit: fit.Fit, key: str) -> str:
    """Return the interval of a parameter as text, "" if it has none."""
    bounds = law_fit.intervals.get(key, NO_INTERVAL)
    if not all(map(records.is_finite, bounds)):
        return prediction_intervals.format_interval(*bounds, digits=3)
    low, high = map(style.format_parameter, bounds)
    return f" [{low}, {high}]"
