"""Repeated fit of the law of a prediction, which must give the same interval and draws."""

from collections.abc import Iterator, Mapping, Sequence

from lm.reports.audit import prediction_chain, target_prediction
from lm.runs import records

TOLERANCE = 1e-6  # relative, of a fit by another version of NumPy
DRAWS_TOLERANCE = 2e-3  # of scores and probabilities, which are fractions of draws
BOUNDS = ("value", "lo", "hi", "lo_if_form_right", "hi_if_form_right")


def verify_code(chain: prediction_chain.Chain) -> prediction_chain.Link:
    """Compare the code of the prediction with the installed code."""
    stored, current = chain.prediction.get("code", {}), target_prediction.describe_code()
    if stored.get("hash") == current["hash"]:
        return prediction_chain.Link(
            prediction_chain.VERIFIED,
            f"prediction.json was written by this code, {current['hash']}",
        )
    text = f"prediction.json was written by code {stored.get('hash')}, this is {current['hash']}"
    return prediction_chain.Link(prediction_chain.UNVERIFIABLE, text)


def verify_fit(chain: prediction_chain.Chain) -> Iterator[prediction_chain.Link]:
    """Fit the law again, and compare the intervals and the draws with the prediction.

    The law uses the inputs of the prediction. Candidates that ended later are no inputs.
    """
    stored, code = chain.prediction, target_prediction.describe_code()
    stored_code = stored.get("code", {})
    has_same_code = stored_code.get("hash") == code["hash"]
    has_same_packages = all(stored_code.get(p) == code[p] for p in target_prediction.PACKAGES)
    repeated = target_prediction.predict_target(
        [row for name, row in chain.rows.items() if name in stored["inputs"]],
        target_prediction.Candidates(**stored["candidates"]),
        stored[target_prediction.X],
        stored[records.TOKENS],
    )
    for law in ("size", "size and tokens"):
        old, new = (p if law == "size" else p.get("joint", {}) for p in (stored, repeated))
        if not old and not new:
            continue
        different = [
            f"{key}={old.get(key)} and {new.get(key)}"
            for key in BOUNDS
            if not prediction_chain.is_close(old.get(key), new.get(key), TOLERANCE)
        ]
        if old.get("runs") != new.get("runs"):
            different.append("the runs of the law")
        if different:
            status = (
                prediction_chain.UNVERIFIABLE
                if chain.is_archive or not has_same_code
                else prediction_chain.CONTRADICTION
            )
            text = f"the law of {law}, fitted again, differs from prediction.json"
            yield prediction_chain.Link(status, f"{text}: {', '.join(different)}")
            continue
        yield prediction_chain.Link(
            prediction_chain.VERIFIED, f"the law of {law}, fitted again, gives the interval"
        )
        if old.get("draws") != new.get("draws"):
            is_exact = has_same_code and has_same_packages and not chain.is_archive
            text = f"the draws of the law of {law} differ from their hash in prediction.json"
            yield prediction_chain.Link(
                prediction_chain.CONTRADICTION if is_exact else prediction_chain.UNVERIFIABLE, text
            )
    # Counts of draws can change with the last digits of another version of NumPy or SciPy.
    is_approximate = chain.is_archive or not has_same_code or not has_same_packages
    yield from _verify_abilities(stored, repeated, is_approximate)
    yield from _verify_source_losses(stored, repeated, is_approximate)


def _verify_source_losses(
    stored: Mapping, repeated: Mapping, is_approximate: bool
) -> Iterator[prediction_chain.Link]:
    """Compare the predicted losses of sources and tasks with those of the repeated fit.

    A prediction of an earlier version has no such losses, and gives no link. is_approximate: other
    code or packages, or rounded records, explain a difference.
    """
    old = stored.get(target_prediction.SOURCE_LOSSES)
    if old is None:
        return
    new = repeated.get(target_prediction.SOURCE_LOSSES, {})
    different = [
        column
        for column in sorted({*old, *new})
        if not all(
            prediction_chain.is_close(
                old.get(column, {}).get(key), new.get(column, {}).get(key), TOLERANCE
            )
            for key in BOUNDS[:3]
        )
    ]
    if different:
        status = prediction_chain.UNVERIFIABLE if is_approximate else prediction_chain.CONTRADICTION
        text = "the laws of sources and tasks, fitted again, differ from prediction.json in"
        yield prediction_chain.Link(status, f"{text} {_first_of(different)}")
    else:
        text = f"the laws of {len(old)} sources and tasks, fitted again, give the intervals"
        yield prediction_chain.Link(prediction_chain.VERIFIED, text)


def _first_of(names: Sequence[str]) -> str:
    """Return the first of several names, and the number of the others."""
    return f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]


def _verify_abilities(
    stored: Mapping, repeated: Mapping, is_approximate: bool
) -> Iterator[prediction_chain.Link]:
    """Compare the predicted abilities with those of the repeated fit, number by number.

    A prediction of an earlier version has no abilities, and gives no link. is_approximate: see
    `_verify_source_losses`.
    """
    old = stored.get(target_prediction.ABILITIES)
    if old is None:
        return
    numbers = _flatten(old)
    repeated_numbers = _flatten(repeated.get(target_prediction.ABILITIES, {}))
    different = [
        name
        for name in sorted({*numbers, *repeated_numbers})
        if not _is_equal_draw(numbers.get(name), repeated_numbers.get(name))
    ]
    if different:
        status = prediction_chain.UNVERIFIABLE if is_approximate else prediction_chain.CONTRADICTION
        names = _first_of([".".join(name) for name in different])
        text = f"the abilities, predicted again, differ from prediction.json in {names}"
        yield prediction_chain.Link(status, text)
    else:
        text = f"the abilities, predicted again, give the {len(numbers)} values"
        yield prediction_chain.Link(prediction_chain.VERIFIED, text)


def _is_equal_draw(first: object, second: object) -> bool:
    """Return True for equal values, or for numbers that differ by the rounding of some draws."""
    if records.is_finite(first) and records.is_finite(second):
        return abs(first - second) <= DRAWS_TOLERANCE * max(1.0, abs(first))
    return first == second


def _flatten(value: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
    """Return {path: value} of the entries of nested dicts."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        name: item for key, v in value.items() for name, item in _flatten(v, (*path, key)).items()
    }
