"""Test that invalid arguments of all public laws and functions raise one line of ValueError."""

import functools
import traceback

import numpy as np
import pytest

from lm import laws

NAN, INF = float("nan"), float("inf")


def loss_of(n, d):
    return 1.8 + 300 * n**-0.34 + 700 * d**-0.28


@functools.cache
def grid_rows() -> tuple[dict, ...]:
    """Return rows of six sizes and five ratios of tokens to parameters, and repeated data."""
    rng = np.random.default_rng(0)
    rows = []
    for n in np.geomspace(1e7, 1e9, 6):
        for ratio in (5, 10, 20, 40, 80):
            d = n * ratio
            loss = loss_of(n, d) * np.exp(0.003 * rng.standard_normal())
            accuracy = 0.25 + 0.7 / (1 + np.exp(6 * (loss - 2.7))) + 0.005 * rng.standard_normal()
            gain = 0.3 * d**0.6 * n**0.2 * np.exp(0.01 * rng.standard_normal())
            row = {"name": f"{n:.3g}x{ratio}", "n": n, "d": d, "u": n * min(ratio, 30)}
            rows.append(row | {"flops": 6 * n * d, "loss": loss, "acc": accuracy, "gain": gain})
    return tuple(rows)


def line_rows() -> list[dict]:
    return [row for row in grid_rows() if abs(row["d"] / row["n"] - 20) < 1e-6]


def isoflop_rows() -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {"flops": c, "n": n, "loss": 2 + 0.05 * np.log(n / c**0.5) ** 2 + 0.001 * rng.normal()}
        for c in (1e16, 1e17, 1e18)
        for n in np.geomspace(0.2, 5, 7) * c**0.5
    ]


def curve_rows() -> list[dict]:
    return [
        {"run": f"size {i}", "n": n, "flops": 6 * n * d, "loss": loss_of(n, d)}
        for i, n in enumerate(np.geomspace(1e7, 1e9, 9))
        for d in np.geomspace(1e8, 1e11, 12)
    ]


FORM = {"form": "E + A * N**-alpha", "x": {"N": "n"}}
FORM |= {"starts": {"E": 1.0, "A": 100.0, "alpha": 0.3}}
ND = {"n": "n", "d": "d", "y": "loss"}
# Law, its rows, its arguments, its result, and its first input.
LAWS = {
    "power": (laws.power, line_rows, {"x": "n", "y": "loss"}, "loss", "n"),
    "chinchilla": (laws.chinchilla, grid_rows, ND, "loss", "n"),
    "overtrained": (laws.overtrained, grid_rows, ND, "loss", "n"),
    "data_constrained": (laws.data_constrained, grid_rows, ND | {"unique": "u"}, "loss", "n"),
    "kaplan": (laws.kaplan, grid_rows, ND, "loss", "n"),
    "shifted_power": (laws.shifted_power, line_rows, {"x": "n", "y": "loss"}, "loss", "n"),
    "broken_power": (laws.broken_power, grid_rows, {"x": "n", "y": "loss"}, "loss", "n"),
    "custom": (laws.custom, line_rows, FORM | {"y": "loss"}, "loss", "n"),
    "isoflop": (laws.isoflop, isoflop_rows, {"x": "n", "y": "loss"}, "loss", "n"),
    "envelope": (laws.envelope, curve_rows, {"n": "n", "y": "loss"}, "loss", "n"),
    "transfer": (
        *(laws.transfer, grid_rows, {"d": "d", "n": "n", "effective": "gain"}, "gain", "d"),
    ),
    "accuracy_from_loss": (
        *(laws.accuracy_from_loss, grid_rows, {"x": "loss", "y": "acc"}, "acc", "loss"),
    ),
    "one_step": (laws.one_step, line_rows, {"y": "acc", "chance": 0.2}, "acc", "flops"),
    "log_linear": (laws.log_linear, line_rows, {"x": "n", "y": "d"}, "d", "n"),
}
NOT_NUMBERS = ("a", [1], NAN)
# Values that are invalid in each law, also in laws that do not have the option.
OPTIONS = {
    "bootstrap": (-1, 1.5, True, "5", None, NAN, INF),
    "seed": (-1, 1.5, None, *NOT_NUMBERS),
    "reach": (0, 0.5, None, *NOT_NUMBERS),
    "delta": (0, -1, INF, None, *NOT_NUMBERS),
    "loss": ("hubr", None, 5),
    "resample": ("all", None, 5),
    "max_starts": (0, -1, 1.5, "a", True),
    "starts": ([], {}, 5, [{}], "a", [1], {"E": NAN}, {"E": []}, {"E": "a"}),
    "fixed": ({"E": NAN}, {"E": None}, {"E": -1.0}, {"a": -1.0}, {"E": 99.0}, {"a": 99.0},
              {"unknown": 1.0}, ["E"], 5, {5: 1.0}, {"E": "1"}, {"A": NAN}),
    "weights": ("absent", 5, "name", ["n"]),
    "group": ("absent", 5, ["n"]),
    "where": ("a", 5, [1], {"absent": 1}, {"loss": -5}, lambda row: row["absent"]),
    "mixed": ("corpus", 5, ("unknown",)),
    "tied": ("a", 5, None),
    "floor": (99.0, -1.0, None, *NOT_NUMBERS),
    "bootstap": (5,),
}  # fmt: skip
OWN_OPTIONS = {
    "isoflop": {
        "method": ("a", None), "budgets": (5, [], [0], [-1, 1e16], ["a"], "a"), "c": (5, "absent"),
        "tolerance": (-1, 5, None, *NOT_NUMBERS), "nearest": (0, 2, 1.5, "a"), "log_loss": ("a", 5),
        "edges": ("a", 5), "points": (0, 1, 1.5, None, "a"), "noise": (-1, *NOT_NUMBERS),
        "median": ("a", 5), "weighted": ("a", 5), "resample": ("auto",),
    },
    "envelope": {
        "hull": ("a", 5), "points": (0, 1, 1.5, "a"), "edges": ("a",), "c": (5, "absent"),
        "run": ("absent", 5, None),
    },
    "accuracy_from_loss": {
        "form": ("a", 5, None), "chance": (-1, 1, True, *NOT_NUMBERS), "run": ("absent", 5),
        "anchor": (5, (1,), (1, 2, 3), ("a", 1), (NAN, 1), (0, 5)), "order": (5, ""),
        "drop": (-1, 1, "a"), "window": (0, 1.5, "a"),
    },
    "one_step": {"chance": (-1, 1, 2, None, *NOT_NUMBERS)},
    "broken_power": {"n_breaks": (0, 4, 1.5, "a", None, True)},
    "custom": {
        "form": ("", 5, "E +", "E + N * f(N)", "import os", lambda N: N, lambda **values: "a"),
        "x": ({}, {"N": 5}, {"N": "absent"}, "n", {5: "n"}, None),
        "bounds": (5, {"E": 5}, {"E": (1,)}, {"E": (2, 1)}, {"E": ("a", 1)}, {"q": (0, 1)}),
        "priors": (5, {"E": 5}, {"E": (1,)}, {"E": (1, 0)}, {"E": ("a", 1)}, {"q": (0, 1)}),
        "starts": (None, {"E": 1}, [{"E": 1}, {"A": 1}]),
    },
    "data_constrained": {
        "base": ({}, 5, "a", {"E": 1}, {"E": 1, "A": -1, "B": 1, "alpha": 0.3},
                 {"E": NAN, "A": 1, "B": 1, "alpha": 0.3}, {"E": 9, "A": 1, "B": 1, "alpha": 0.3}),
        "excess": ("a", 5),
    },
    "transfer": {"scratch": (5, "a"), "effective": (5, None)},
}  # fmt: skip


def invalid_rows(rows, result: str, first_input: str):
    """Yield (description, rows) of tables that no law can be fitted to."""
    yield from {"no rows": [], "None": None, "a path": "x.csv", "numbers": [1, 2]}.items()
    yield "one row", rows[:1]
    yield "duplicates", [*rows, rows[0]]
    for value in (0, -1.0, NAN, INF, "abc", [1, 2], None):
        yield f"{result}={value}", [{**row, result: value} for row in rows]
    inputs = ("n", "d", "u", "flops") if first_input != "loss" else ("loss",)
    yield "equal inputs", [{**row, **dict.fromkeys(inputs, 1e6)} for row in rows]
    if first_input != "loss":
        yield "zero inputs", [{**row, first_input: 0} for row in rows]
    if result == "loss":
        yield "equal results", [{**row, result: 2.0} for row in rows]


def describe_problem(call) -> str:
    """Return "" if a call raises one line of ValueError in lm, else a description."""
    try:
        result = call()
    except ValueError as error:
        file = traceback.extract_tb(error.__traceback__)[-1].filename
        is_own = "/lm/laws/" in file or "/lm/runs/" in file
        return "" if is_own and "\n" not in str(error) else f"{file}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"returned {str(result)[:60]}"


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.filterwarnings("error")
def test_invalid_arguments_of_a_law_have_one_line(name):
    law, make_rows, arguments, result, first_input = LAWS[name]
    rows = list(make_rows())
    columns = {
        key: (5, None, [], ["n", 5], "absent", "")
        for key, value in arguments.items()
        if isinstance(value, str) and key != "form" and (name, key) != ("transfer", "n")
    }
    cases = [
        (f"{option}={value!r}", rows, {option: value})
        for table in (columns, OPTIONS, OWN_OPTIONS.get(name, {}))
        for option, values in table.items()
        for value in values
    ]
    cases += [(text, table, {}) for text, table in invalid_rows(rows, result, first_input)]
    problems = {}
    for text, table, changes in cases:
        if name == "custom" and "fixed" in changes:
            continue  # See test_fixed_parameters_of_a_custom_law.
        values = {"bootstrap": 5} | arguments | changes
        problem = describe_problem(lambda table=table, values=values: law(table, **values))
        problems |= {text: problem} if problem else {}
    assert not problems


@pytest.mark.parametrize("name", LAWS)
def test_fixing_all_parameters_has_one_line(name):
    law, make_rows, arguments, _, _ = LAWS[name]
    fit = law(list(make_rows()), **arguments, bootstrap=0)
    call = functools.partial(law, list(make_rows()), **arguments, fixed=fit.params)
    with pytest.raises(ValueError, match=r"no free parameter|at least one free|no option"):
        call()


def test_fixed_parameters_of_a_custom_law():
    fit_law = functools.partial(laws.custom, line_rows(), **FORM, y="loss", bootstrap=0)
    for fixed in ({"q": 1.0}, {"E": NAN}, {"E": "1"}, ["E"], 5, {5: 1.0}):
        assert not describe_problem(lambda fixed=fixed: fit_law(fixed=fixed))
    assert not describe_problem(lambda: fit_law(fixed={"E": -1.0}, bounds={"E": (0, None)}))
    assert any("above every row" in text for text in fit_law(fixed={"E": 99.0}).warnings)


@functools.cache
def fits() -> dict:
    rows = list(grid_rows())
    return {
        "chinchilla": laws.chinchilla(rows, **ND, bootstrap=20),
        "power": laws.power(line_rows(), x="n", y="loss", bootstrap=20),
        "accuracy": laws.accuracy_from_loss(rows, "loss", "acc", bootstrap=20),
        "no draws": laws.power(line_rows(), x="n", y="loss", bootstrap=0),
    }


BASE = {"E": 1.7, "A": 400.0, "B": 400.0, "alpha": 0.34, "beta": 0.28}
NOT_POSITIVE = (0, -1, NAN, INF, "a", None, [1], True)
LEVELS = (0, 1, 95, NAN, "a", None, True)
WRONG_LAWS = (5, None, "a", {}, {"E": 1}, BASE | {"A": -1}, BASE | {"alpha": NAN}, [BASE])
CALLS = {
    "allocation": {"flops": NOT_POSITIVE, "flops_per_param_token": NOT_POSITIVE, "level": LEVELS,
                   "unique_tokens": (0, -1, NAN, "a"), "law": WRONG_LAWS},
    "inference_allocation": {"inference_tokens": (-1, NAN, INF, "a", None), "level": LEVELS,
                             "loss": (0, -1, 1.0, NAN, INF, "a", None, True), "law": WRONG_LAWS,
                             "flops": (1e20,)},
    "advise": {"budget": NOT_POSITIVE, "n_runs": (0, -1, 1.5, "a", None, True),
               "target": (5, "a", None, (1,), (1, 2, 3), {"N": 1}, {"N": 1, "Q": 2}, (NAN, 1), []),
               "candidates": (5, "a", [], [1], [(1e8,)], [("a", 1)], [(NAN, 1)], [{"N": 1}]),
               "cost": (5, "a", lambda n: 1, lambda n, d: "x", lambda n, d: -1.0),
               "min_gain": (-1, 2, "a", None, NAN), "law_fit": (5, None, {})},
    "holdout": {"rows": ([], None, 5, "a", [{}], [{"n": 1}]), "where": (5, "a", {"absent": 1}),
                "mixed": (5, "a", ["unknown"]), "law_fit": (5, None, {})},
    "backtest": {"by": (5, "absent", []), "origins": (0, -1, 1.5, "a"), "law_fit": (5, None, {}),
                 "bootstrap": (-1, "a", 1.5), "falling": (5, "a")},
    "load_fit": {"path": (5, None, "", [], "absent.json", "/")},
    "given": {"law": (5, None, "", {}, "unknown"), "params": (5, {"q": 1}, {"E": NAN}, {"E": "a"}),
              "columns": (5, {"N": 5}, {"N": "a"}, {"N": "n", "D": "d"}),
              "ranges": (5, {"N": 5}, {"N": (1, 2)}, {"N": (2, 1), "D": (1, 2)}),
              "draws": (5, {"E": 5}, {"E": []}, {"q": [1]}, {"E": [1, 2], "A": [1]}, {"E": [NAN]}),
              "sigma": (-1, "a", None, INF)},
    "two_step": {"step1": (5, None), "step2": (5, None)},
    "profile": {"name": ("q", 5, None), "values": (5, [], "a", ["a"], [NAN]), "law_fit": (5, None),
                "at": (5, (1,), ("a", 1), [])},
    "compare_laws": {"candidates": (5, None, "a", [5], {"a": 5})},
    "compare_conventions": {"law": (5, None), "by": ("absent",), "x": ([],), "q": (5,)},
    "try_fit": {"law": (5, None)},
    "final_evaluations": {"columns": (5, "loss", ["absent"], [5]), "run": (5, "absent"),
                          "order": (5, "absent"), "last": (0, -1, "a", 1.5), "rows": (5,)},
    "smooth_evaluations": {"columns": (5,), "order": ("absent",), "drop": (-1, 1, "a"),
                           "window": (0, "a", 1.5)},
}  # fmt: skip


def valid_arguments() -> dict[str, dict]:
    curve = [{"run": "a", "tokens": i + 1, "loss": 3 - 0.1 * i} for i in range(5)]
    curves = {"rows": curve, "columns": ["loss"]}
    chinchilla, power, accuracy, _ = fits().values()
    return {
        "allocation": {"law": chinchilla, "flops": 1e20},
        "inference_allocation": {"law": chinchilla, "inference_tokens": 1e12, "loss": 2.5},
        "advise": {"law_fit": chinchilla, "budget": 1e20, "target": (1e10, 1e11)},
        "holdout": {"law_fit": chinchilla, "rows": list(grid_rows())},
        "backtest": {"law_fit": power},
        "load_fit": {},
        "given": {"law": "hoffmann2022"},
        "two_step": {"step1": power, "step2": accuracy},
        "profile": {"law_fit": chinchilla, "name": "E"},
        "compare_laws": {},
        "compare_conventions": {"law": laws.power, "rows": line_rows(), "x": "n", "y": "loss"},
        "try_fit": {"rows": line_rows()},
        "final_evaluations": curves,
        "smooth_evaluations": curves,
    }


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("error")
def test_invalid_arguments_of_a_function_have_one_line(name):
    function, valid = getattr(laws, name), valid_arguments()[name]
    problems = {}
    for argument, values in CALLS[name].items():
        for value in values:
            arguments = valid | {argument: value}
            problem = describe_problem(lambda arguments=arguments: function(**arguments))
            problems |= {f"{argument}={value!r}": problem} if problem else {}
    assert not problems


@pytest.mark.filterwarnings("error")
def test_invalid_inputs_of_a_fit_have_one_line(tmp_path):
    fit = fits()["chinchilla"]
    inputs = [(), (1e9,), (1, 2, 3), ("a", 1), (None, 1), (NAN, 1), (0, 1), (-1, 1), (INF, 1)]
    inputs += [([1, 2], [1, 2, 3]), ([], []), ({"n": 1},), ([{"n": 1}],), ([[1], [1, 2]], 1)]
    calls = [functools.partial(fit.predict, *values) for values in inputs]
    calls += [functools.partial(fit.predict, 1e9, 1e10, level=level) for level in LEVELS]
    calls += [functools.partial(fit.predict, **{"N": 1, "Q": 2}), lambda: fit.predict(N=1)]
    calls += [functools.partial(fit.interval, "alpha", level) for level in LEVELS]
    calls += [functools.partial(fit.interval, name) for name in ("q", 5, None, [])]
    calls += [functools.partial(fit.save, path) for path in (5, None, "", "fit.txt")]
    (tmp_path / "file").write_text("")
    calls.append(lambda: fit.save(tmp_path / "file" / "fit.json"))
    assert [text for text in map(describe_problem, calls) if text] == []


def test_two_steps_without_draws_of_one_have_no_interval():
    fit = laws.two_step(fits()["no draws"], fits()["accuracy"])
    assert not fit.ensemble and np.isnan(fit.predict(1e9).lo)
