"""Section of the report about predicted abilities: intervals, probabilities and their results."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lm.reports import html, summary
from lm.reports.audit import (
    ability_backtest,
    ability_prediction,
    prediction_results,
    target_prediction,
)
from lm.runs import short_names

METHOD_NAMES = {
    ability_prediction.TWO_STEP: "two-step: size, loss, score",
    ability_prediction.DIRECT: "direct: size and tokens, score",
    ability_backtest.PREVIOUS: "the outcome of the previous size again",
    ability_backtest.BASE_RATE: "base rate of the previous size",
}
NOTE = (
    "Two-step: size predicts the loss, and the loss predicts the score. Direct: size and tokens"
    " predict the score. The probability of a task is that of being above baseline, after the"
    " correction for the number of tasks. The Brier score is the mean squared error of the"
    " probabilities: 0 is perfect, and 0.25 is a coin. The back-test predicts the largest fitted"
    " sizes from smaller ones. Previous size: each task has the same outcome as at the largest"
    f" fitted size. Intervals of abilities are {ability_prediction.LEVEL:.0%}, those of losses 95%."
)
VERDICT_NOTE = (
    "These predictions are the losses, the scores of groups and of whole tasks, and the two-step"
    " probabilities. They do not include bits per byte and the scores of single paradigms, which"
    " are only in the tables."
)


def predicted_abilities(sweep: summary.SweepSummary) -> Markup:
    """Return tables of the predicted scores, of the Brier scores, and of each task."""
    prediction = sweep.prediction or {}
    abilities = prediction.get(target_prediction.ABILITIES, {})
    results = prediction_results.load_prediction_results(sweep.path, sweep.rows)
    parts = [
        _table(_quantities(abilities, results)),
        html.paragraph(NOTE, "muted"),
        _brier_table(abilities, results),
        html.collapsed_section("Probability of each task", _paradigm_table(abilities, results)),
    ]
    refused = [
        html.paragraph(f"No prediction ({METHOD_NAMES[method]}): {reason}.", "note")
        for method in ability_prediction.METHODS
        if (reason := abilities.get(method, {}).get("refused"))
    ]
    parts += _verdicts(results)
    for earlier in results.get("earlier", []):
        scores = ", ".join(
            f"{METHOD_NAMES[method]} {score:.3f}" for method, score in earlier["brier"].items()
        )
        text = f"Earlier prediction of {earlier['target']}. Brier scores: {scores or 'none'}."
        parts += [html.paragraph(text), *_verdicts(earlier)]
    return html.join_html([*parts, *refused])


def _verdicts(results: Mapping) -> list[Markup]:
    """Return the sentences about wrong and right predictions, to unfold; [] without results."""
    return [
        html.collapsed_section(
            f"{title}: {len(results[key])}",
            html.join_html(
                [html.paragraph(VERDICT_NOTE, "muted"), *map(html.paragraph, results[key])]
            ),
        )
        for title, key in (("Wrong predictions", "wrong"), ("Right predictions", "right"))
        if key in results
    ]


def _quantities(abilities: Mapping, results: Mapping) -> list[dict[str, Any]]:
    """Return the quantities without single paradigms, with results as far as they exist."""
    measured = {(q["name"], q["method"]): q for q in results.get("quantities", [])}
    lines = []
    for method in ability_prediction.METHODS:
        entry = abilities.get(method, {})
        intervals = {prediction_results.NUMBER_ABOVE: entry.get("n_above", {})}
        intervals |= {
            column: interval
            for column, interval in entry.get("scores", {}).items()
            if "/" not in column.partition("#")[2]
        }
        for column, interval in intervals.items():
            if interval:
                result = measured.get((column, method))
                lines.append({"name": column, "method": method, "interval": interval, "q": result})
    return lines


def _table(quantities: Sequence[Mapping]) -> Markup:
    """Return the table of quantities. Accuracies are in percent."""
    lines = []
    for quantity in quantities:
        column, interval, result = quantity["name"], quantity["interval"], quantity["q"]
        is_share = column.endswith(".accuracy")
        scale = 100 if is_share else 1
        lines.append(
            {
                "quantity": prediction_results.quantity_name(column) + (" (%)" if is_share else ""),
                "method": METHOD_NAMES[quantity["method"]].partition(":")[0],
                "predicted": scale * interval["value"],
                f"{ability_prediction.LEVEL:.0%} interval": (
                    scale * interval["lo"],
                    scale * interval["hi"],
                ),
                "measured": scale * result["measured"] if result else None,
                "inside the interval": {None: "not yet", True: "yes", False: "no"}[
                    result and result["is_inside"]
                ],
            }
        )
    formats = {
        "predicted": "{:.1f}".format,
        "measured": "{:.1f}".format,
        f"{ability_prediction.LEVEL:.0%} interval": lambda b: f"{b[0]:.1f} to {b[1]:.1f}",
    }
    return html.html_table(lines, formats) if lines else Markup()


def _brier_table(abilities: Mapping, results: Mapping) -> Markup:
    """Return the Brier scores and the coverage of the methods, of the back-test and the result."""
    backtest = abilities.get("backtest", {})
    lines = [
        {
            "method": name,
            "Brier score": results.get("brier", {}).get(method),
            "Brier score, back-test": backtest.get(method, {}).get("brier"),
            "scores inside their interval, back-test": backtest.get(method, {}).get("coverage"),
            "runs of the back-test": backtest.get(method, {}).get("n_runs"),
        }
        for method, name in METHOD_NAMES.items()
    ]
    three_digits = "{:.3f}".format
    formats: dict[str, html.Format] = {
        "Brier score": three_digits,
        "Brier score, back-test": three_digits,
        "scores inside their interval, back-test": "{:.0%}".format,
    }
    return html.html_table(lines, formats)


def _paradigm_table(abilities: Mapping, results: Mapping) -> Markup:
    """Return the table of probabilities and outcomes, the most likely task first."""
    outcomes = {line["task"]: line for line in results.get("paradigms", [])}
    main, direct = (abilities.get(m, {}).get("above", {}) for m in ability_prediction.METHODS)
    previous = abilities.get(ability_backtest.PREVIOUS, {})
    lines = []
    for task in sorted(previous, key=lambda task: -main.get(task, 0.0)):
        outcome = outcomes.get(task)
        lines.append(
            {
                "task": short_names.shorten_task(task),
                "two-step": main.get(task),
                "direct": direct.get(task),
                "previous size": previous[task],
                "above baseline": _outcome_text(outcome),
            }
        )
    formats: dict[str, html.Format] = {}
    formats |= dict.fromkeys(("two-step", "direct", "previous size"), "{:.0%}".format)
    return html.html_table(lines, formats, is_sortable=True) if lines else Markup()


def _outcome_text(outcome: Mapping | None) -> str:
    if outcome is None:
        return "not yet"
    if outcome["is_above"]:
        return "yes"
    return "no, below baseline" if outcome["is_below"] else "no"
