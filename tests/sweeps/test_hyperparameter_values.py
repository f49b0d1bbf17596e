"""Tests of hyperparameters that are set by rules."""

import json

import pytest
from fixtures import tuned_runs as tuning_sweep

from configs import base
from lm.config import hyperparameter_rules, model_sizes, schema
from lm.laws.tuning import hyperparameter_law
from lm.runs import records
from lm.sweeps import hyperparameter_values


def make_run(**rules):
    """Return a run of 25K parameters and 1M tokens with rules, by the names of their fields."""
    run = base.get_config("25K")
    run.steps = model_sizes.steps_for_budget(run, tokens=1_000_000)
    for name, rule in rules.items():
        setattr(run.data if name.startswith("batch") else run.optim, f"{name}_rule", rule)
    return run


@pytest.fixture
def tuned_runs(monkeypatch):
    """Return the rows of a tuned sweep, which every folder contains."""
    rows = tuning_sweep.tuned_rows()
    monkeypatch.setattr(records, "load_runs", lambda folder: rows)
    hyperparameter_values._load_law.cache_clear()
    yield rows
    hyperparameter_values._load_law.cache_clear()


def test_run_without_rules_is_unchanged():
    run, same = make_run(), make_run()
    hyperparameter_values.resolve_rules(run)
    assert run == same


def test_law_sets_the_hyperparameters_of_its_prediction(tuned_runs):
    run = make_run(lr="law:runs/tune", weight_decay="law:runs/tune", batch_size="law:runs/tune")
    tokens = model_sizes.training_tokens(run)
    hyperparameter_values.resolve_rules(run)
    n = model_sizes.count_parameters(model_sizes.resolved_model(run))["non_embedding"]
    best = hyperparameter_law.hyperparameters(tuned_runs).predict(n, tokens)
    assert run.optim.lr == pytest.approx(best.lr.value)
    assert run.data.batch_size == 16  # the power of two nearest to 2048 / 128
    assert model_sizes.training_tokens(run) == pytest.approx(tokens, rel=0.01)
    timescale = 1 / (run.optim.lr * run.optim.weight_decay * run.steps)
    assert timescale == pytest.approx(best.timescale.value, rel=0.01)


def test_published_rules_have_the_values_of_their_papers():
    run = make_run(lr="step_law", batch_size="step_law", weight_decay="power_lines")
    tokens = model_sizes.training_tokens(run)
    n = model_sizes.count_parameters(model_sizes.resolved_model(run))["non_embedding"]
    hyperparameter_values.resolve_rules(run)
    rates = hyperparameter_rules.step_law(n, tokens)
    assert run.optim.lr == rates.lr
    assert 0.7 < run.data.batch_size * run.data.seq_len / rates.batch_tokens < 1.42
    decay = hyperparameter_rules.power_lines_decay(run.optim.lr, run.steps, tokens / n)
    assert run.optim.weight_decay == pytest.approx(decay)


def test_horizon_rule_lowers_the_rate_of_longer_runs():
    run = make_run(lr="horizon:62500")
    rate, tokens = run.optim.lr, model_sizes.training_tokens(run)
    hyperparameter_values.resolve_rules(run)
    assert run.optim.lr == pytest.approx(rate * (62_500 / tokens) ** 0.3)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"lr": "steplaw"}, "optim.lr_rule='steplaw' is unknown; allowed: law:RUNS, step_law"),
        ({"lr": "law:"}, "optim.lr_rule='law:' is unknown"),
        ({"lr": "horizon:fast"}, "must name a number of tokens above 0"),
        ({"weight_decay": "step_law"}, "allowed: law:RUNS, power_lines"),
        ({"batch_size": "horizon:1e9"}, "data.batch_size_rule='horizon:1e9' is unknown"),
    ],
)
def test_unknown_rules_are_refused(rules, message):
    with pytest.raises(schema.ConfigError, match=message):
        hyperparameter_values.resolve_rules(make_run(**rules))


def test_folder_without_law_is_refused_in_one_line(tmp_path):
    with pytest.raises(schema.ConfigError, match=f"optim.lr_rule=law:{tmp_path}: "):
        hyperparameter_values.resolve_rules(make_run(lr=f"law:{tmp_path}"))


def test_law_without_batch_sizes_sets_no_batch_size(monkeypatch):
    grid = [(a, 0, 0) for a in (-2, -1, 0, 1, 2)]
    rows = tuning_sweep.tuned_rows(grid=grid)
    monkeypatch.setattr(records, "load_runs", lambda folder: rows)
    hyperparameter_values._load_law.cache_clear()
    with (
        pytest.warns(UserWarning, match="do not vary"),
        pytest.raises(schema.ConfigError, match="its runs do not vary the batch size"),
    ):
        hyperparameter_values.resolve_rules(make_run(batch_size="law:runs/rates"))
    hyperparameter_values._load_law.cache_clear()


def test_far_extrapolation_warns(monkeypatch):
    rows = tuning_sweep.tuned_rows(sigma=0.01)
    monkeypatch.setattr(records, "load_runs", lambda folder: rows)
    hyperparameter_values._load_law.cache_clear()
    run = make_run(lr="law:runs/noisy")
    run.steps *= 1_000_000
    with pytest.warns(UserWarning, match="the law is uncertain"):
        hyperparameter_values.resolve_rules(run)
    hyperparameter_values._load_law.cache_clear()


def test_run_stores_the_numbers_of_its_rules():
    run = make_run(lr="step_law")
    hyperparameter_values.resolve_rules(run)
    stored = json.loads(json.dumps(schema.to_dict(run)))
    assert stored["optim"]["lr"] == run.optim.lr and stored["optim"]["lr_rule"] == "step_law"
    assert schema.from_dict(stored) == run
