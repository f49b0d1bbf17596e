"""Section of the report about predicted abilities: intervals, probabilities and their results."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lm.reports import html, summary
from lm.reports.audit import (
    ability_backtest,
    ability_prediction,
    prediction_results,
    target_prediction,
    verdict_rounding,
)
from lm.runs import short_names

METHOD_NAMES = {
    ability_prediction.TWO_STEP: "two-step: size, loss, score",
    ability_prediction.DIRECT: "direct: size and tokens, score",
    ability_backtest.PREVIOUS: "the outcome of the previous size again",
    ability_backtest.BASE_RATE: "base rate of the previous size",
}
LEVEL = f"{ability_prediction.LEVEL:.0%}"
NOTE = (
    f"{{method}} Intervals of abilities are {LEVEL}, those of losses 95%. The probability of a task"
    " is that of being above baseline, after the correction for the number of tasks. The Brier"
    " score is the mean squared error of the probabilities: 0 is perfect, and 0.25 is a coin. The"
    " back-test predicts the largest fitted sizes from smaller ones. Previous size: each task has"
    " the same outcome and accuracy as at the largest fitted size. Mean error: mean absolute"
    " difference between predicted and measured accuracy, of single tasks and of means over"
    " paradigms."
)
METHOD_NOTES = {
    ability_prediction.TWO_STEP: "Two-step: size predicts the loss, and the loss the score.",
    ability_prediction.DIRECT: "Direct: size and tokens predict the score.",
}
SIMILAR_BRIER = 0.1  # relative difference of Brier scores that are about equal
MAX_WRONG = 12  # wrong predictions that are visible without a click
UNEXPECTED = 1 / 3  # largest probability of an outcome that the text calls unexpected


def predicted_abilities(sweep: summary.SweepSummary) -> Markup:
    """Return the predicted scores, the wrong predictions, the Brier scores, and each task."""
    prediction = sweep.prediction or {}
    abilities = prediction.get(target_prediction.ABILITIES, {})
    results = prediction_results.load_prediction_results(sweep.path, sweep.rows)
    by_method = {m: _quantities(abilities, results, m) for m in ability_prediction.METHODS}
    main = next((m for m in by_method if by_method[m]), ability_prediction.TWO_STEP)
    others = [m for m in by_method if by_method[m] and m != main]
    parts = [
        _table(by_method[main]),
        html.paragraph(NOTE.format(method=METHOD_NOTES[main]), "muted"),
        *_verdicts(results),
        _method_table(abilities, results),
        *map(html.paragraph, describe_skill(abilities, results)),
        html.collapsed_section(
            "Probability of each task to be above baseline", _paradigm_table(abilities, results)
        ),
    ]
    for method in others:
        body = [html.paragraph(METHOD_NOTES[method], "muted"), _table(by_method[method])]
        title = f"The same scores, predicted by the {method} method"
        parts.append(html.collapsed_section(title, html.join_html(body)))
    parts += [
        html.paragraph(f"No prediction ({METHOD_NAMES[method]}): {reason}.", "note")
        for method in ability_prediction.METHODS
        if (reason := abilities.get(method, {}).get("refused"))
    ]
    for earlier in results.get("earlier", []):
        scores = ", ".join(
            f"{METHOD_NAMES[method]} {score:.3f}" for method, score in earlier["brier"].items()
        )
        text = f"Earlier prediction of {earlier['target']}. Brier scores: {scores or 'none'}."
        parts += [html.paragraph(text), *_verdicts(earlier)]
    return html.join_html(parts)


def _verdicts(results: Mapping) -> list[Markup]:
    """Return the wrong predictions, and the right ones to unfold; [] without results."""
    if "wrong" not in results:
        return []
    counted = [
        quantity
        for quantity in results["quantities"]
        if quantity["method"] in prediction_results.LISTED_METHODS
    ]
    wrong, right = results["wrong"], results["right"]
    n_expected = sum(1 - quantity["level"] for quantity in counted)
    text = (
        f"Wrong predictions: {len(wrong)} of {len(counted)} results are outside their interval."
        f" Intervals of these levels exclude {n_expected:.1f} results on average."
    )
    shown = [html.paragraph(text), html.text_list(wrong[:MAX_WRONG])]
    if more := wrong[MAX_WRONG:]:
        shown.append(html.collapsed_section(f"{len(more)} more", html.text_list(more)))
    if unexpected := _unexpected_outcomes(results):
        shown.append(html.paragraph(f"Least expected outcomes: {unexpected}."))
    title = f"Right predictions, without single paradigms and bits per byte: {len(right)}"
    return [*shown, html.collapsed_section(title, html.text_list(right))]


def _unexpected_outcomes(results: Mapping) -> str:
    """Return the tasks whose outcome had a probability of at most UNEXPECTED, as text."""
    texts = []
    for line in results.get("paradigms", []):
        probability = line[ability_prediction.TWO_STEP]
        if probability is None:
            continue
        if (probability if line["is_above"] else 1 - probability) <= UNEXPECTED:
            outcome = "above" if line["is_above"] else "not above"
            name = short_names.shorten_task(line["task"])
            texts.append(f"{name} is {outcome} baseline (predicted to be above: {probability:.0%})")
    return ", ".join(texts)


def describe_skill(abilities: Mapping, results: Mapping) -> list[str]:
    """Return a sentence on each Brier score of the main method against that of the previous size.

    The list has the target, then the back-test, as far as there are scores.
    """
    backtest = {method: s.get("brier") for method, s in abilities.get("backtest", {}).items()}
    lines = []
    for subject, scores in (("the target", results.get("brier", {})), ("the back-test", backtest)):
        model, simple = (
            scores.get(m) for m in (ability_prediction.TWO_STEP, ability_backtest.PREVIOUS)
        )
        if model is None or simple is None:
            continue
        verdict = "better than" if model < simple else "worse than"
        if abs(model - simple) <= SIMILAR_BRIER * simple:
            verdict = "about as good as"
        lines.append(
            f"On {subject}, two-step is {verdict} the outcome of the previous size again: Brier"
            f" scores {model:.3f} and {simple:.3f}."
        )
    return lines


def _quantities(abilities: Mapping, results: Mapping, method: str) -> list[dict[str, Any]]:
    """Return the quantities without single paradigms, with results as far as they exist."""
    measured = {q["name"]: q for q in results.get("quantities", []) if q["method"] == method}
    entry = abilities.get(method, {})
    intervals = {prediction_results.NUMBER_ABOVE: entry.get("n_above", {})}
    intervals |= {
        column: interval
        for column, interval in entry.get("scores", {}).items()
        if "/" not in column.partition("#")[2]
    }
    return [
        {"name": column, "interval": interval, "q": measured.get(column)}
        for column, interval in intervals.items()
        if interval
    ]


def _table(quantities: Sequence[Mapping]) -> Markup:
    """Return the table of quantities. Accuracies are in percent."""
    lines = []
    for quantity in quantities:
        column, interval, result = quantity["name"], quantity["interval"], quantity["q"]
        is_share = column.endswith(".accuracy")
        measured = result["measured"] if result else math.nan
        values = [measured, interval["lo"], interval["hi"]]
        texts = [f"{value:.1f}" for value in values]
        if is_share:
            texts = verdict_rounding.format_percentages(*values)
        lines.append(
            {
                "quantity": prediction_results.quantity_name(column) + (" (%)" if is_share else ""),
                "predicted": f"{(100 if is_share else 1) * interval['value']:.1f}",
                f"{LEVEL} interval": f"{texts[1]} to {texts[2]}",
                "measured": texts[0] if result else None,
                "inside the interval": {None: "not yet", True: "yes", False: "no"}[
                    result and result["is_inside"]
                ],
            }
        )
    return html.html_table(lines) if lines else Markup()


def _method_table(abilities: Mapping, results: Mapping) -> Markup:
    """Return Brier scores and coverage of the methods, on the target and on the back-test."""
    backtest = abilities.get("backtest", {})
    errors = results.get(prediction_results.ERRORS, {})
    error_columns = {
        f"mean error of {group}, points": group for group in ("tasks", "means") if group in errors
    }
    columns = [f"scores inside their {LEVEL} interval, {on}" for on in ("target", "back-test")]
    lines = [
        {
            "method": name,
            "Brier score, target": results.get("brier", {}).get(method),
            "Brier score, back-test": backtest.get(method, {}).get("brier"),
            **{column: errors[group].get(method) for column, group in error_columns.items()},
            columns[0]: _count_inside(results, method),
            columns[1]: backtest.get(method, {}).get("coverage"),
            "runs of the back-test": backtest.get(method, {}).get("n_runs"),
        }
        for method, name in METHOD_NAMES.items()
    ]
    three_digits = "{:.3f}".format
    formats: dict[str, html.Format] = {
        "Brier score, target": three_digits,
        "Brier score, back-test": three_digits,
        columns[1]: "{:.0%}".format,
        **dict.fromkeys(error_columns, _format_points),
    }
    return html.html_table(lines, formats)


def _format_points(error: float) -> str:
    """Format an error of an accuracy in percentage points."""
    return f"{100 * error:.1f}"


def _count_inside(results: Mapping, method: str) -> str | None:
    """Return the number of scores inside their interval as text, None without results."""
    is_inside = [
        quantity["is_inside"]
        for quantity in results.get("quantities", [])
        if quantity["method"] == method and quantity["name"] != prediction_results.NUMBER_ABOVE
    ]
    return f"{sum(is_inside)} of {len(is_inside)}" if is_inside else None


def _paradigm_table(abilities: Mapping, results: Mapping) -> Markup:
    """Return the table of probabilities and outcomes, the most likely task first."""
    outcomes = {line["task"]: line for line in results.get("paradigms", [])}
    methods = (abilities.get(m, {}).get("above", {}) for m in ability_prediction.METHODS)
    probabilities = next((by_task for by_task in methods if by_task), {})
    previous = abilities.get(ability_backtest.PREVIOUS, {})
    lines = [
        {
            "task": short_names.shorten_task(task),
            "predicted probability": probabilities.get(task),
            "previous size above baseline": previous[task],
            "target above baseline": _outcome_text(outcomes.get(task)),
        }
        for task in sorted(previous, key=lambda task: -probabilities.get(task, 0.0))
    ]
    formats: dict[str, html.Format] = {
        "predicted probability": "{:.0%}".format,
        "previous size above baseline": _share_text,
    }
    return html.html_table(lines, formats, is_sortable=True) if lines else Markup()


def _share_text(share: float) -> str:
    """Return the share of runs of the previous size that are above baseline: yes, no or percent."""
    return {0.0: "no", 1.0: "yes"}.get(share, f"{share:.0%} of its runs")


def _outcome_text(outcome: Mapping | None) -> str:
    if outcome is None:
        return "not yet"
    if outcome["is_above"]:
        return "yes"
    return "no, below baseline" if outcome["is_below"] else "no"
