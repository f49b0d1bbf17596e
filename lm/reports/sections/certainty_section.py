"""Certainty of the main law in plain words: tests, intervals beyond the runs, starts of the fit."""

import math
from collections.abc import Sequence

from lm.laws import fit
from lm.reports import summary
from lm.reports.plots import elements, style
from lm.runs import records

EXTRAPOLATIONS = (2, 10)  # factors beyond the largest input of the law, for stated predictions
INPUT_NAMES = {"N": "parameters", "D": "tokens", "C": "compute"}
MIN_COVERAGE = 0.9  # share of back-test results inside 95% intervals that does not contradict them
MIN_AGREEMENT = 0.5  # share of the starts of the curve fit that should reach the best objective


def describe_certainty(sweep: summary.SweepSummary) -> list[str]:
    """Return sentences about the range in which the law of a sweep is tested, and its intervals."""
    law_fit = sweep.fit
    sentences = [describe_trust(sweep), f"The law was fitted to {law_fit.n} runs."]
    for factor in EXTRAPOLATIONS:
        point = [factor ** (1 / len(law_fit.inputs)) * float(x.max()) for x in law_fit.x]
        try:
            estimate = law_fit.predict(*point)
        except ValueError:
            continue  # the law does not cover a point off the line of its runs
        inputs = ", ".join(
            f"{k} = {_format_input(k, v)}" for k, v in zip(law_fit.inputs, point, strict=True)
        )
        text = style.format_prediction(estimate.value, estimate.lo, estimate.hi)
        width = ""
        if math.isfinite(estimate.lo):
            width = f" (± {50 * (estimate.hi - estimate.lo) / estimate.value:.1f}%)"
        scale = describe_scale(factor, law_fit.inputs)
        sentences.append(f"At {inputs} ({scale}), it predicts a loss of {text}{width}.")
    return [*sentences, *_describe_backtest(law_fit), *_describe_starts(law_fit)]


def describe_scale(factor: float, inputs: Sequence[str]) -> str:
    """Return a product of inputs relative to the largest fitted run as text.

    factor: ratio of the products. With several inputs, each is multiplied by the same root of it.
    """
    each = factor ** (1 / len(inputs))
    names = " and ".join(INPUT_NAMES.get(letter, letter) for letter in inputs)
    count = f"{each:.3g} times"
    if len(inputs) > 1:
        return f"{count} the largest fitted {names}"
    return f"{count} the {names} of the largest fitted run"


def describe_trust(sweep: summary.SweepSummary) -> str:
    """Return how far the law can be trusted by the predicted run, or else by the back-test."""
    law_fit, measured, prediction = sweep.fit, sweep.measured, sweep.prediction or {}
    target, score = sweep.target or {}, law_fit.score
    size = target.get(prediction.get("x"))
    is_same_law = list(law_fit.columns.values()) == [prediction.get(k) for k in ("x", "y")]
    if measured is not None and is_same_law and records.is_finite(size):
        scale = describe_scale(size / float(law_fit.x[0].max()), law_fit.inputs)
        name = elements.short_run_name(target)
        value, lo, hi = elements.predicted_interval(prediction)
        deviation = summary.relative_error(measured, value)
        if not (records.is_finite(lo) and records.is_finite(hi)):
            return (
                f"Its only test: the result of {name}, at {scale}, is {deviation} the prediction."
            )
        if lo <= measured <= hi:
            return (
                f"Tested up to {style.format_si(size)} {INPUT_NAMES[law_fit.inputs[0]]}: the"
                f" result of {name}, at {scale}, is {deviation} the prediction and inside its"
                " interval. Larger models are untested."
            )
        return (
            f"Do not trust its intervals beyond the fitted runs: the result of {name}, at {scale},"
            f" is {deviation} the prediction and outside its {prediction['level']:.0%} interval."
            " Expect errors of at least this size for larger models."
        )
    if score is None or not score.predictions:
        return (
            "Nothing tests this law: no run was predicted before it started, and no back-test is"
            " possible. Its predictions beyond the fitted runs may be wrong by any amount."
        )
    distances = [p["distance"] for p in score.predictions if math.isfinite(p["distance"])]
    reach = f"up to {max(distances):.2g} times the fitted size" if distances else "in the back-test"
    if math.isfinite(score.coverage) and score.coverage < MIN_COVERAGE:
        return (
            f"Do not trust its intervals: {_count_inside(law_fit)} in the back-test. Its errors"
            f" were at most {score.worst:.1%} of the measured loss {reach}."
        )
    return (
        f"Tested {reach}, with errors of at most {score.worst:.1%} of the measured loss. Larger"
        " models are untested."
    )


def _describe_backtest(law_fit: fit.Fit) -> list[str]:
    """Return a sentence about the back-test of a law, [] without one."""
    score = law_fit.score
    if score is None or not (score.predictions or score.reason):
        return []
    if not score.predictions:
        return [f"Back-test: {score.reason}."]
    inside = _count_inside(law_fit)
    if len(score.predictions) == 1:
        verdict = f" and {'inside' if score.coverage else 'outside'} the 95% interval"
        return [
            "Back-test: the law of the smaller runs alone predicted 1 larger run, with an error of"
            f" {score.mean:.1%} of the measured loss{verdict if inside else ''}. One result is weak"
            " evidence."
        ]
    return [
        f"Back-test: laws of the smaller runs alone made {len(score.predictions)} predictions of"
        f" larger runs, with a mean error of {score.mean:.1%} and a largest error of"
        f" {score.worst:.1%} of the measured loss{f'; {inside}' if inside else ''}."
    ]


def _count_inside(law_fit: fit.Fit) -> str:
    """Return the number of back-test results inside their intervals, "" without intervals."""
    bounded = [p for p in law_fit.score.predictions if math.isfinite(p["lo"])]
    n_inside = sum(p["lo"] <= p["measured"] <= p["hi"] for p in bounded)
    if not bounded:
        return ""
    verb = "was" if len(bounded) == 1 else "were"
    results = "result" if len(bounded) == 1 else "results"
    return f"{n_inside} of {len(bounded)} {results} {verb} inside the 95% interval"


def _describe_starts(law_fit: fit.Fit) -> list[str]:
    """Return a sentence if few starts of the curve fit reached the fitted parameters."""
    if not law_fit.n_starts or law_fit.start_agreement >= MIN_AGREEMENT:
        return []
    n_agreeing = round(law_fit.start_agreement * law_fit.n_starts)
    return [
        f"Of {law_fit.n_starts:,} starting points, {n_agreeing:,} reach the best minimum. Other"
        " parameters fit these runs almost as well, so use the predictions and not the parameters."
    ]


def _format_input(letter: str, value: float) -> str:
    """Format an input of a law: FLOPs as a power of ten, counts with a suffix."""
    return style.power_of_ten(value) if letter == "C" else style.format_si(value)
