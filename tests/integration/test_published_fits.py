"""Published fits, reproduced through the public functions.

The rows and the accepted numbers are in notebooks/data/published. Its README lists their sources.
"""

import csv
import functools
import json
import pathlib
import textwrap
from typing import Any

import nbclient
import nbformat
import numpy as np
import pytest

from lm import laws
from lm.laws import backtesting, estimation
from lm.laws.forms import (
    compute_optimal,
    downstream,
    evaluation_curves,
    isoflop,
    log_linear,
    power_laws,
)

DATA = pathlib.Path(__file__).parent.parent.parent / "notebooks" / "data" / "published"
EXPECTED = json.loads((DATA / "expected.json").read_text())
NAMES: dict[str, Any] = {"n": "params", "d": "tokens", "y": "loss"}
INCLUDED = {"in_fit": 1}
GRID: dict[str, Any] = {
    "log_A": np.arange(0, 30, 5.0),
    "log_B": np.arange(0, 30, 5.0),
    "log_E": [-1, -0.5, 0, 0.5, 1],
    "alpha": [0, 0.5, 1, 1.5, 2],
    "beta": [0, 0.5, 1, 1.5, 2],
}


@functools.cache
def rows(case):
    with open(DATA / f"{case}.csv") as file:
        return list(csv.DictReader(file))


def is_below_1e21(row):
    return row["in_fit"] == "1" and float(row["flops"]) < 1e21


@functools.cache
def surface(name):
    surface_rows = [row for row in rows("approach2-synthetic") if row["surface"] == name]
    line = isoflop.isoflop(
        surface_rows, x="tokens", y="loss", c="flops", method="parabola", bootstrap=0
    )
    law = power_laws.chinchilla(surface_rows, **NAMES, bootstrap=0)
    results = {
        "approach2_b": line.params["exponent"],
        "approach2_log10_b0": line.derived["log10_k"],
    }
    return results | {f"approach3_{key}": value for key, value in law.params.items()}


@functools.cache
def headline():
    return power_laws.chinchilla(
        rows("chinchilla-epoch"), **NAMES, where=INCLUDED, loss="absolute", bootstrap=0
    )


@functools.cache
def chinchilla(name):
    data = rows("chinchilla-epoch")
    if name == "huber_1e-3_240":
        fit = power_laws.chinchilla(
            data, **NAMES, where=INCLUDED, delta=1e-3, starts=GRID, bootstrap=0
        )
        assert fit.n_starts == 4500
        return fit.params | {"objective": fit.objective}
    if name == "headline_table":
        return headline().params
    if name == "bootstrap_4000":
        fit = power_laws.chinchilla(data, **NAMES, where=INCLUDED, bootstrap=4000)
        bounds = {f"ci95_{k}_lo": fit.interval(k)[0] for k in fit.params}
        bounds |= {f"ci95_{k}_hi": fit.interval(k)[1] for k in fit.params}
        return {f"se_{k}": fit.se[k] for k in fit.params} | bounds
    if name == "headline_with_outliers_245":
        return power_laws.chinchilla(data, **NAMES, loss="absolute", bootstrap=0).params
    if name == "least_squares_C_lt_1e21":
        fit = power_laws.chinchilla(data, **NAMES, where=is_below_1e21, loss="squares", bootstrap=0)
        return fit.params | {"rss": fit.objective, "train_mare": fit.mare}
    if name == "extrapolate_to_C_ge_1e21":
        large = [row for row in data if row["in_fit"] == "1" and not is_below_1e21(row)]
        errors = {}
        for key, loss in (("huber", "huber"), ("least_squares", "squares")):
            fit = power_laws.chinchilla(data, **NAMES, where=is_below_1e21, loss=loss, bootstrap=0)
            errors[f"{key}_test_mare"] = backtesting.holdout(fit, large).mean
        return errors
    if name == "approach2_isoflop":
        sweep: dict[str, Any] = {
            "x": "params",
            "y": "loss",
            "c": "isoflop_budget",
            "where": INCLUDED,
            "method": "parabola",
            "bootstrap": 0,
        }
        inside_only = isoflop.isoflop(data, **sweep)
        all_budgets = isoflop.isoflop(data, **sweep, edges="keep")
        return {
            "a_inside_only": inside_only.params["exponent"],
            "a_all_budgets": all_budgets.params["exponent"],
        }
    best = compute_optimal.allocation(headline(), 5.76e23)
    return {"tokens_per_param": best.tokens_per_param, "N": best.n}


@functools.cache
def optima(name):
    data = rows("isoflop-optima-tables")
    if name == "chinchilla_tokens_vs_params":
        where = {"table": "chinchilla_approach2"}
        fit = log_linear.log_linear(data, x="params_opt", y="tokens_opt", where=where)
        return {
            "slope": fit.params["exponent"],
            "intercept_log10": fit.derived["log10_k"],
            "tokens_for_124M": fit.predict(124e6).value,
            "a_implied_6ND": 1 / (1 + fit.params["exponent"]),
        }
    where = {"table": "nanochat_jan26", "count": name}
    exponents = {}
    for letter, column in (("N", "params_opt"), ("D", "tokens_opt")):
        fit = log_linear.log_linear(data, x="flops", y=column, where=where)
        exponents[f"{letter}_exponent"] = fit.params["exponent"]
    return exponents


@functools.cache
def ladder(task):
    data = rows("olmo-ladder")
    train = [row for row in data if row["split"] == "train"]
    names: dict[str, Any] = {"n": "params", "d": "tokens", "bootstrap": 0}
    if task == "c4_loss":
        step1 = power_laws.chinchilla(
            evaluation_curves.final_evaluations(train, ["c4_loss"], last=5), y="c4_loss", **names
        )
        return {"T13B_pred": step1.predict(target("13B", ["c4_loss"])).value} | {
            "train_mean_rel_err": step1.mare
        }
    bpb, acc = f"{task}_bpb", f"{task}_acc"
    step1 = power_laws.chinchilla(
        evaluation_curves.final_evaluations(train, [bpb], last=5), y=bpb, **names
    )
    recipe: dict[str, Any] = {
        "run": "run",
        "order": "tokens",
        "drop": 0.1,
        "window": 5,
        "anchor": (0, 1),
    }
    step2 = downstream.accuracy_from_loss(train, x=bpb, y=acc, chance=0.25, bootstrap=0, **recipe)
    two_step = downstream.two_step(step1, step2)
    target_7b, target_13b = target("7B", [bpb, acc]), target("13B", [bpb, acc])
    return {
        "T13B_step1_bpb_pred": step1.predict(target_13b).value,
        "T13B_step2_acc": step2.predict(target_13b[bpb]).value,
        "T13B_chained_acc": two_step.predict(target_13b).value,
        "T7B_chained_abs_rel_err": abs(two_step.predict(target_7b).value / target_7b[acc] - 1),
        "step1_train_mean_rel_err": step1.mare,
    }


def target(model, columns):
    model_rows = [row for row in rows("olmo-ladder") if row["model"] == model]
    return evaluation_curves.final_evaluations(model_rows, columns, last=5)[0]


REPRODUCTIONS = {
    "approach2-synthetic": surface,
    "chinchilla-epoch": chinchilla,
    "isoflop-optima-tables": optima,
    "olmo-ladder": ladder,
}
CASES = [
    (case, name, key)
    for case, content in EXPECTED.items()
    for name, fit in content["fits"].items()
    for key in fit["accept"]
]


@pytest.mark.parametrize(("case", "name", "key"), CASES)
def test_published_number_is_reproduced(case, name, key):
    rule = EXPECTED[case]["fits"][name]["accept"][key]
    value = REPRODUCTIONS[case](name)[key]
    if "max" in rule:
        assert value <= rule["max"]
    else:
        tolerance = rule["abs"] if "abs" in rule else rule["rel"] * abs(rule["target"])
        assert value == pytest.approx(rule["target"], rel=0, abs=tolerance)


def test_two_step_from_compute_has_published_accuracy():
    train = [row for row in rows("olmo-ladder") if row["split"] == "train"]
    for task in ("mmlu", "hellaswag", "arc_challenge", "openbookqa"):
        bpb, acc = f"{task}_bpb", f"{task}_acc"
        finals = evaluation_curves.final_evaluations(train, [bpb], last=5)
        step1 = power_laws.power(finals, x="flops", y=bpb, loss="huber", bootstrap=0)
        recipe: dict[str, Any] = {
            "run": "run",
            "drop": 0.1,
            "window": 5,
            "anchor": (0, 1),
            "bootstrap": 0,
        }
        step2 = downstream.accuracy_from_loss(train, x=bpb, y=acc, **recipe)
        published = EXPECTED["olmo-ladder"]["fits"][task]["published"]["T13B"]
        predicted = downstream.two_step(step1, step2).predict(target("13B", [bpb])).value
        assert predicted == pytest.approx(published["flops_chained_acc_pred"], abs=1e-4)


def test_docstring_example_compiles():
    example = (laws.__doc__ or "").split("Example:")[1].split("\nRows are")[0]
    compile(textwrap.dedent(example), "laws.__doc__", "exec")


@pytest.mark.parametrize(
    ("law", "option", "remedy"),
    [
        (power_laws.power, "bootstap", "use bootstrap, the nearest"),
        (power_laws.power, "exclusions", "use one of these names"),
        (power_laws.chinchilla, "tie", "use tied, the nearest"),
        (log_linear.log_linear, "weight", "use weights, the nearest"),
        (isoflop.isoflop, "tolerence", "use tolerance, the nearest"),
        (downstream.accuracy_from_loss, "windows", "use window, the nearest"),
    ],
)
def test_unknown_option_raises_with_the_nearest_name(law, option, remedy):
    columns = {"y": "b"} if law is power_laws.chinchilla else {"x": "a", "y": "b"}
    with pytest.raises(ValueError, match=f"{option}=3 is no option of .*{remedy}"):
        law([], **columns, **{option: 3})


def test_try_fit_returns_the_fit_or_the_reason():
    assert estimation.try_fit(power_laws.power, []) == (None, "no rows to fit: the list is empty")
    runs = [{"params": n, "loss": 2 + 40 * n**-0.3} for n in (1e5, 1e6, 1e7, 1e8)]
    fit, reason = estimation.try_fit(power_laws.power, runs, x="params", y="loss", bootstrap=0)
    assert fit.params["alpha"] == pytest.approx(0.3) and reason == ""


def test_all_public_names_are_documented():
    for name in laws.__all__:
        assert len(getattr(laws, name).__doc__ or "") > 80, name
        assert name in (laws.__doc__ or ""), name


@pytest.mark.slow
def test_published_notebook_draws_its_figures(monkeypatch):
    path = DATA.parent.parent / "03_published_laws.ipynb"
    monkeypatch.setenv("PYTHONPATH", str(path.parent.parent))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources=resources
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert "the residuals are curved in log D" in str(outputs)
    assert "477.84" in str(outputs) and "477.83" in str(outputs)
