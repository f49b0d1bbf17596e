"""Tests of hyperparameters that are set by rules."""

import copy
import json
import pathlib

import pytest
from fixtures import tuned_runs as tuning_sweep

from configs import base
from lm.config import hyperparameter_rules, model_sizes, schema, validation
from lm.laws.tuning import hyperparameter_law
from lm.runs import records
from lm.sweeps import design, hyperparameter_values


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
    best = hyperparameter_law.hyperparameters(tuned_runs).predict(n, tokens, 16 * 128)
    assert run.optim.lr == pytest.approx(best.lr.value)
    assert run.data.batch_size == 16  # the power of two nearest to 2048 / 128
    assert model_sizes.training_tokens(run) == pytest.approx(tokens, rel=0.01)
    timescale = 1 / (run.optim.lr * run.optim.weight_decay * run.steps)
    assert timescale == pytest.approx(best.timescale.value, rel=0.01)


def test_rate_of_the_law_fits_the_batch_size_of_the_run(tuned_runs):
    """The fixture has a rate that grows with the batch size to the power 0.3."""
    rates = []
    for batch_size in (8, 32):
        run = make_run(lr="law:runs/tune")
        run.steps = run.steps * run.data.batch_size // batch_size
        run.data.batch_size = batch_size
        hyperparameter_values.resolve_rules(run)
        rates.append(run.optim.lr)
    assert rates[1] / rates[0] == pytest.approx(4**0.3, rel=0.02)


def test_law_of_the_committed_sweep_needs_no_training():
    rule = f"law:{pathlib.Path(__file__).parents[2] / 'notebooks/data/tune'}"
    run = make_run(lr=rule, weight_decay=rule, batch_size=rule)
    hyperparameter_values._load_law.cache_clear()
    with pytest.warns(UserWarning, match="best batch size is outside the tested values"):
        hyperparameter_values.resolve_rules(run)
    assert run.optim.lr == pytest.approx(0.0154, rel=0.05) and run.data.batch_size == 4
    assert 0.05 < run.optim.weight_decay < 0.5


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
    with pytest.raises(schema.ConfigError, match=f"optim.lr_rule=law:{tmp_path}: .* no runs"):
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


def test_branches_have_the_values_of_the_rules_of_their_trunk():
    """All runs have the rate and the batch size of the largest budget."""
    run = make_run(lr="step_law", weight_decay="power_lines", batch_size="step_law")
    unchanged, largest = copy.deepcopy(run), copy.deepcopy(run)
    largest.steps = model_sizes.steps_for_budget(run, tokens=1_600_000)
    hyperparameter_values.resolve_rules(largest)
    runs = design.cooldown_branches(run, tokens=[400_000, 1_600_000])
    assert run == unchanged and len(runs) == 3
    for member in runs:
        resolved = copy.deepcopy(validation.validate_run(member))
        hyperparameter_values.resolve_rules(resolved)
        assert resolved == member and member.data.batch_size == largest.data.batch_size
        assert member.optim.lr == largest.optim.lr
        assert member.optim.weight_decay == largest.optim.weight_decay


def test_rule_of_a_run_that_restores_the_full_state_is_refused():
    run = make_run(lr="step_law")
    run.start = schema.Start(run="s/trunk", restore="full_state")
    with pytest.raises(schema.ConfigError, match="lr_rule='step_law' contradicts start.restore"):
        hyperparameter_values.resolve_rules(run)
    run.start.restore = "weights"
    hyperparameter_values.resolve_rules(run)


@pytest.mark.parametrize("batch_size", [1, 128])
def test_batch_size_rule_scales_the_intervals(batch_size):
    """The run has as many evaluations and checkpoints as before, where its steps allow it."""
    run = make_run(batch_size="step_law")
    run.data.batch_size = batch_size
    run.steps = model_sizes.steps_for_budget(run, tokens=1_000_000)
    run.log_interval, run.checkpoint_interval = 1, run.steps // 4
    run.permanent_checkpoint_interval = 2 * run.checkpoint_interval
    run.eval.interval, run.eval.task_interval = run.steps // 8, 3 * (run.steps // 8)
    hyperparameter_values.resolve_rules(validation.validate_run(run))
    validation.validate_run(run)
    assert run.steps / run.checkpoint_interval == pytest.approx(4, rel=0.1)
    assert run.permanent_checkpoint_interval == 2 * run.checkpoint_interval
    assert run.steps / run.eval.interval == pytest.approx(8, rel=0.15)
    assert run.eval.task_interval == 3 * run.eval.interval and run.log_interval >= 1


def test_batch_size_rule_adds_no_interval():
    run = make_run(batch_size="step_law")
    run.eval.interval = run.eval.task_interval = run.permanent_checkpoint_interval = 0
    hyperparameter_values.resolve_rules(run)
    assert run.eval.interval == run.eval.task_interval == run.permanent_checkpoint_interval == 0
