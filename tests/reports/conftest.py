"""Fits that the tests of reports share: half of their fits repeat a fit of another test."""

import copy

import pytest

from lm.laws import estimation


@pytest.fixture(scope="session")
def finished_fits() -> dict[str, tuple]:
    """Return the fits of this process by the text of all inputs of a fit."""
    return {}


@pytest.fixture(scope="module", autouse=True)
def equal_problems_are_fitted_once(request, finished_fits):
    """Copy the fit of an equal problem to equal rows. The tests of audits repeat each fit."""
    with pytest.MonkeyPatch.context() as patch:
        if "audit" not in request.path.parts:
            patch.setattr(estimation, "fit_problem", _fit_once(finished_fits))
        yield


def _fit_once(finished_fits: dict):
    """Return estimation.fit_problem with a store. The folders of the rows are no input of a fit."""
    fit_problem = estimation.fit_problem

    def fit_once(problem, data, options, weights=None):
        rows = [{name: row[name] for name in row if name != "dir"} for row in data.rows]
        arrays = [problem.starts, problem.lower, problem.upper, data.groups, weights]
        arrays += data.columns.values()
        others = {
            name: value
            for name, value in vars(problem).items()
            if not callable(value) and name not in ("starts", "lower", "upper")
        }
        texts = [None if array is None else array.tobytes() for array in arrays]
        key = repr((others, texts, list(data.columns), data.names, rows, data.mixed, vars(options)))
        if key not in finished_fits:
            result = fit_problem(problem, data, options, weights)
            finished_fits[key] = (copy.deepcopy(result, {id(data): data}), data)
        result, fitted_data = finished_fits[key]
        return copy.deepcopy(result, {id(fitted_data): data})

    return fit_once
