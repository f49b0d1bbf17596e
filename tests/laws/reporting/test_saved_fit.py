"""Tests of saved fits."""

import functools
import json
from typing import Any

import numpy as np
import pytest

from lm import laws
from lm.laws import diagnostics, run_table
from lm.laws.formulas import expressions
from lm.laws.goodness_of_fit import form_tests
from lm.laws.reporting import saved_fit

POWERS: dict[str, Any] = {"n": "n", "d": "d", "y": "loss", "bootstrap": 50}


def rows():
    rng = np.random.default_rng(0)
    return [
        {
            "name": f"{n:.3g}x{m}",
            "n": n,
            "d": n * m,
            "u": n * min(m, 30),
            "flops": 6 * n * n * m,
            "loss": (loss := (1.8 + 300 * n**-0.34 + 700 * (n * m) ** -0.28))
            * np.exp(0.003 * rng.standard_normal()),
            "acc": 0.25 + 0.7 / (1 + np.exp(6 * (loss - 2.7))) + 0.005 * rng.standard_normal(),
        }
        for n in np.geomspace(1e7, 1e9, 6)
        for m in (5, 10, 20, 40, 80)
    ]


def isoflop_rows():
    rng = np.random.default_rng(0)
    return [
        {"flops": c, "n": n, "loss": 2 + 0.05 * np.log(n / c**0.5) ** 2 + 0.001 * rng.normal()}
        for c in (1e16, 1e17, 1e18)
        for n in np.geomspace(0.2, 5, 7) * c**0.5
    ]


def shorten_backtest(fit: Any) -> Any:
    """Return a fit whose back-test has one origin. Most of the time of a test is its back-test."""
    fit.backtester = functools.partial(fit.backtester, origins=1, bootstrap=20)
    return fit


def two_step():
    step1 = laws.chinchilla(rows(), **POWERS)
    step2 = laws.accuracy_from_loss(rows(), "loss", "acc", bootstrap=50)
    return laws.two_step(shorten_backtest(step1), shorten_backtest(step2))


FITS = {
    "chinchilla": lambda: laws.chinchilla(rows(), **POWERS),
    "tied": lambda: laws.chinchilla(rows(), **POWERS, tied=True),
    "no floor": lambda: laws.power(rows(), x=["n", "d"], y="loss", floor=False, bootstrap=50),
    "overtrained": lambda: laws.overtrained(rows(), **POWERS),
    "isoflop": lambda: laws.isoflop(isoflop_rows(), x="n", y="loss", bootstrap=50),
    "line": lambda: laws.log_linear(rows(), x=["n", "d"], y="loss", bootstrap=50),
    "accuracy": lambda: laws.accuracy_from_loss(rows(), "loss", "acc", bootstrap=50),
    "exponential": lambda: laws.accuracy_from_loss(
        rows(), "loss", "acc", "exponential", bootstrap=50
    ),
    "two steps": two_step,
    "one step": lambda: laws.one_step(rows(), y="acc", chance=0.2, bootstrap=50),
    "repeated": lambda: laws.data_constrained(
        rows(), n="n", d="d", unique="u", y="loss", bootstrap=50,
        base={"E": 1.8, "A": 300, "B": 700, "alpha": 0.34, "beta": 0.28}),
    "custom": lambda: laws.custom(
        rows(), "E + A * N**-alpha", {"N": "n"}, "loss", {"E": 1, "A": 100, "alpha": 0.3},
        bounds={"E": (0, None)}, priors={"alpha": (0.34, 0.1)}, bootstrap=50),
}  # fmt: skip


@functools.cache
def fit_law(name: str) -> Any:
    """Return a fit of FITS with its back-test. Tests must not change it."""
    fit = FITS[name]()
    return fit if name == "two steps" else shorten_backtest(fit)


@pytest.mark.parametrize("name", FITS)
def test_loaded_fit_predicts_and_prints_like_the_saved_fit(name, tmp_path):
    fit = fit_law(name)
    fit.save(tmp_path / "fit.json")
    loaded = laws.load_fit(tmp_path / "fit.json")
    assert str(loaded) == str(fit)
    point = {"L": 2.6, "N": 3e9, "D": 6e10, "U": 2e10}
    inputs = [point.get(letter, 1e9) for letter in fit.inputs]
    before, after = fit.predict(*inputs), loaded.predict(*inputs)
    np.testing.assert_allclose(
        [after.value, after.lo, after.hi], [before.value, before.lo, before.hi], rtol=1e-9
    )
    assert after.note == before.note
    assert loaded.seed == fit.seed
    if name != "two steps":
        assert loaded.version and len(loaded.data_hash) == 64
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "fit.json").read_text()


def test_loaded_law_allocates_a_budget(tmp_path):
    fit = fit_law("chinchilla")
    fit.save(tmp_path / "fit.json")
    assert laws.allocation(laws.load_fit(tmp_path / "fit.json"), 1e21) == laws.allocation(fit, 1e21)


def test_hash_depends_on_the_data():
    first, second = (laws.power(r, x="n", y="loss", bootstrap=0) for r in (rows(), rows()[1:]))
    assert saved_fit.hash_data(first.data) != saved_fit.hash_data(second.data)


def test_changed_data_are_reported(tmp_path):
    path = tmp_path / "fit.json"
    laws.power(rows(), x="n", y="loss", bootstrap=0).save(path)
    content = json.loads(path.read_text())
    content["data"]["columns"]["loss"]["array"][0] += 1e-6
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its data differ from their hash"):
        laws.load_fit(path)


@pytest.mark.parametrize("text", ["", "[1]", '{"format": 99}', "{}"])
def test_other_files_are_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="is not a fit of format 1"):
        laws.load_fit(tmp_path / "x.json")
    with pytest.raises(ValueError, match="does not exist"):
        laws.load_fit(tmp_path / "absent.json")


def test_functions_and_other_suffixes_are_refused(tmp_path):
    def form(N, E, A):
        return E + A / N

    starts = {"E": 1.0, "A": 1e7}
    fit = laws.custom(rows(), form, {"N": "n"}, "loss", starts, bootstrap=0)
    with pytest.raises(ValueError, match="custom has no formula as text and cannot be saved"):
        fit.save(tmp_path / "fit.json")
    with pytest.raises(ValueError, match="must end in .json"):
        fit.save(tmp_path / "fit.pkl")
    with pytest.raises(ValueError, match="given coefficients has no rows"):
        laws.given("hoffmann2022").save(tmp_path / "fit.json")


def with_settings(table, seeds=2):
    """Return rows with settings, seeds, FLOPs and the columns of runs."""
    rng = np.random.default_rng(1)
    result = []
    for i, row in enumerate(table):
        for seed in range(seeds):
            settings = {"optim.lr": 0.01 / (1 + (i + seed) % 3), "model.d_model": 64, "seed": seed}
            properties = {"corpus.hash": "c", "data.tokenizer": "t", "start.run": "", "dir": "/x"}
            noise = {"loss": row["loss"] * np.exp(0.003 * rng.standard_normal())}
            name = {"name": f"{row['name']}-{seed}", "tokens": row["d"]}
            result.append({**row, **settings, **properties, **noise, **name})
    return result


def trunk_rows():
    """Return branches that start from trunk runs."""
    return [
        row | {"start.run": f"trunk {row['n']:.3g}", "start.restore": "full_state"}
        for row in with_settings(rows(), seeds=1)
    ]


def repeated_rows():
    """Return rows whose repeated tokens have less value."""
    rng = np.random.default_rng(2)
    table = []
    for row in rows():
        useful = row["u"] * (1 - 4 * np.expm1(-(row["d"] / row["u"] - 1) / 4))
        loss = 1.8 + 300 * row["n"] ** -0.34 + 700 * useful**-0.28
        table.append(row | {"loss": loss * np.exp(0.001 * rng.standard_normal())})
    return table


RICH_FITS = {
    "power": lambda: laws.power(with_settings(rows()[3::5]), x="n", y="loss", bootstrap=50),
    "chinchilla": lambda: laws.chinchilla(with_settings(rows()), **POWERS),
    "trunks": lambda: laws.chinchilla(trunk_rows(), **POWERS),
    "repeated": lambda: laws.data_constrained(repeated_rows(), unique="u", excess=False, **POWERS),
    "repeated, two exponents": lambda: laws.data_constrained(
        repeated_rows(), unique="u", tied=False, excess=False, **POWERS
    ),
    "custom": lambda: laws.custom(
        with_settings(rows()[3::5]), "E + A * N**-alpha", {"N": "n"}, "loss",
        {"E": 1, "A": 100, "alpha": 0.3}, bootstrap=50),
    "shifted": lambda: laws.shifted_power(with_settings(rows()[3::5]), "n", "loss", bootstrap=50),
    "kaplan": lambda: laws.kaplan(with_settings(rows()), **POWERS),
}  # fmt: skip


@pytest.mark.parametrize("name", RICH_FITS)
def test_loaded_fit_equals_the_saved_one_in_every_use(name, tmp_path):
    fit = shorten_backtest(RICH_FITS[name]())
    fit.save(tmp_path / "fit.json")
    loaded = laws.load_fit(tmp_path / "fit.json")
    assert "/x" not in (tmp_path / "fit.json").read_text()
    np.testing.assert_array_equal(loaded.data.replicates(loaded.x), fit.data.replicates(fit.x))
    assert diagnostics.seed_noise(loaded) == diagnostics.seed_noise(fit) == fit.seed_noise
    assert form_tests.lack_of_fit(loaded) == form_tests.lack_of_fit(fit)
    columns = [fit.columns[letter] for letter in fit.inputs]
    for tuned in (run_table.select_tuned(f.data.rows, columns, "loss") for f in (fit, loaded)):
        assert [row["name"] for row in tuned] == [
            row["name"] for row in run_table.select_tuned(fit.data.rows, columns, "loss")
        ]
    points = [3 * x for x in fit.x]
    expected, predicted = fit.predict(*points), loaded.predict(*points)
    for field in ("value", "lo", "hi", "lo_if_form_right", "hi_if_form_right"):
        np.testing.assert_allclose(getattr(predicted, field), getattr(expected, field), rtol=1e-9)
    assert loaded.intervals == fit.intervals and loaded.warnings == fit.warnings
    assert loaded.score.to_dict() == fit.score.to_dict()
    larger = [dict(row) | {fit.inputs[0]: row["n"], "n": 2 * row["n"]} for row in rows()[-3:]]
    errors = [p["error"] for p in laws.holdout(fit, larger).predictions]
    assert [p["error"] for p in laws.holdout(loaded, larger).predictions] == pytest.approx(errors)
    assert str(loaded.checklist()) == str(fit.checklist())
    if "repeated" not in name:
        target = [3 * float(x.max()) for x in fit.x]
        assert str(laws.advise(loaded, 1e20, target)) == str(laws.advise(fit, 1e20, target))


def test_loaded_fit_refuses_rows_of_another_corpus(tmp_path):
    RICH_FITS["power"]().save(tmp_path / "fit.json")
    other = [{**with_settings(rows())[-1], "corpus.hash": "other", "n": 2e9}]
    with pytest.raises(ValueError, match="not comparable"):
        laws.holdout(laws.load_fit(tmp_path / "fit.json"), other)


def test_changed_settings_are_reported_and_old_files_load(tmp_path):
    path, fit = tmp_path / "fit.json", RICH_FITS["power"]()
    fit.save(path)
    content = json.loads(path.read_text())
    content["data"]["run_columns"]["optim.lr"][0] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="its data differ from their hash"):
        laws.load_fit(path)
    for name in ("run_columns", "run_columns_hash", "mixed"):
        del content["data"][name]
    path.write_text(json.dumps(content))
    assert str(laws.load_fit(path)) == str(fit)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("excess", [True, False])
def test_formula_of_repeated_data_follows_the_draws(tied, excess):
    fit = laws.data_constrained(rows(), unique="u", tied=tied, excess=excess, **POWERS)
    expression = expressions.parse_expression(saved_fit.repeated_data_formula(fit.params))
    assert set(expression.names) == {*fit.params, "N", "D", "U"}
    for draw in range(5):
        params = {name: draws[draw] for name, draws in fit.ensemble.items()}
        inputs = dict(zip(fit.inputs, fit.x, strict=True))
        np.testing.assert_allclose(
            expression.evaluate(params | inputs), fit.values(params, *fit.x), rtol=1e-12
        )
