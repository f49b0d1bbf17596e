"""Facts and metric rows."""

import types

import numpy as np
import pytest

from lm.config import flops, schema
from lm.data import dataset, tokenizers
from lm.data.tokenization import run_tokenizer
from lm.parallel import mesh
from lm.runs import records
from lm.training import metric_log


def test_run_records_the_documents_of_each_source(tiny):
    text = dataset.open_dataset(tiny.data, tiny.seed)
    facts = metric_log.collect_run_facts(tiny, text, mesh.make_mesh(tiny.mesh), 1e9)
    (source,) = tiny.data.sources
    manifest = text.manifests[source]
    assert facts[f"documents.heldout.{source}"] == manifest.documents["heldout"] > 0
    assert facts[f"duplicates.{source}"] == manifest.duplicates


def explanation(run: schema.Run, losses: list[float], tokens: int = 0, **bad) -> str:
    """Return the explanation of a bad step that follows steps with these losses."""
    window = [{"loss": loss, "grad_norm": 1.0} for loss in losses[-2:]]
    window.append({"loss": float("nan"), "grad_norm": float("nan")} | bad)
    rows = [{"loss": loss} for loss in losses[:-2]]
    batch = {"tokens": np.full((2, 3), tokens)}
    text = metric_log.explain_nonfinite(run, len(losses) + 1, window, rows, lambda step: batch)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("field", "value", "losses", "cause"),
    [
        (
            "optim.lr",
            3e-3,
            [3.0, 2.5, 2.4],
            "was 2.400 before that and had not risen: a single bat",
        ),
        (
            "optim.lr",
            0.1,
            [3.0, 2.5, 5.5],
            "rose from 2.500 to 5.500 before that: try a smaller op",
        ),
        ("optim.lr", 9.0, [3.0, 2.5], "optim.lr=9 is unusual (published runs: 1e-07 to 0.3)"),
        ("optim.eps", 0.5, [3.0, 2.5], "optim.eps=0.5 is unusual"),
        ("optim.b1", 0.9999, [3.0, 2.5], "optim.b1=0.9999 is unusual"),
        ("optim.weight_decay", 500.0, [3.0], "optim.lr x optim.weight_decay = 1.5 removes all of"),
        ("model.z_loss", 50.0, [3.0, 2.5], "model.z_loss=50 is unusual"),
        ("model.norm_eps", 0.9, [], "initial weights is not finite, before any update: model.norm"),
        (
            "optim.lr",
            9.0,
            [],
            "the loss of the initial weights is not finite, before any update: ex",
        ),
    ],
)
def test_divergence_names_the_observed_cause(field, value, losses, cause):
    run = schema.Run(model=schema.Model(256))
    group, name = field.split(".")
    setattr(getattr(run, group), name, value)
    assert cause in explanation(run, losses)
    text = explanation(run, losses, tokens=300)
    assert f"the batch of step {len(losses) + 1} has token 300, and model.vocab_size=256" in text


def test_divergence_at_the_first_step_does_not_blame_the_rate():
    run = schema.Run(model=schema.Model(256), start=schema.Start(run="parent"))
    assert "optim.lr" not in explanation(run, [])
    assert "examine the weights of start.run=parent" in explanation(run, [])
    assert "the gradient of the initial weights is not" in explanation(run, [], loss=3.0)


@pytest.mark.parametrize("loss", [5.5452, 5.5448, 9.0])
def test_run_that_learned_nothing_has_a_warning(loss):
    """A uniform guess among 256 tokens has the loss 5.5452."""
    run = schema.Run(model=schema.Model(256))
    warning = metric_log.quality_warning(run, {12: {"loss": loss}}, 12)
    assert "5.545 by a uniform guess: try another optim.lr=0.003, or more steps" in warning
    assert "training loss" in metric_log.quality_warning(run, {}, 12, loss)
    run.model.norm_eps = 1.0
    assert "model.norm_eps=1 is unusual" in metric_log.quality_warning(run, {}, 12, loss)
    assert not metric_log.quality_warning(run, {12: {"loss": 5.5}}, 12, loss)


def test_metrics_row_follows_from_its_steps(tiny):
    """Three of eight steps are in the row. FLOPs are counted per token."""
    text = types.SimpleNamespace(bytes_per_token=4.0, epochs=lambda done: {"a": 0.5, "b": done / 4})
    values = [
        {"loss": loss, "grad_norm": 2 * loss, "lr": loss / 10, "experts.balance": loss / 2}
        for loss in (3.0, 2.0, 1.0)
    ]
    row = metric_log.step_metrics(tiny, text, values, 8)
    n_tokens = 8 * tiny.data.batch_size * tiny.data.seq_len
    flops_per_token = flops.flops_per_token(tiny.model, tiny.data.seq_len)["full"]
    assert (row["tokens"], row["flops"]) == (n_tokens, n_tokens * flops_per_token)
    assert (row["loss"], row["grad_norm"], row["lr"], row["epoch"]) == (2.0, 4.0, 0.1, 2.0)
    assert 2 ** (4.0 * row["bits_per_byte"]) == pytest.approx(np.exp(2.0))
    assert row["experts.balance"] == 1.0
    speed = metric_log.throughput(tiny, range(8), 2.0, peak=1e9)
    assert speed["tokens_per_second"] == n_tokens / 2
    assert speed["flops_per_second"] == n_tokens / 2 * flops_per_token
    assert speed["mfu"] * 1e9 == pytest.approx(speed["flops_per_second"])


def test_attempt_records_its_tokenizer_and_its_facts(tiny):
    tokenizer = tokenizers.ByteTokenizer()
    assert metric_log.start_attempt(tiny, {"params.total": 5}, tokenizer, -1) == 1
    assert metric_log.start_attempt(tiny, {"params.total": 5}, tokenizer, -1) == 2
    facts = records.read_facts(records.run_dir(tiny))
    assert facts["params.total"] == 5
    assert facts.items() >= run_tokenizer.save_tokenizer(tiny, tokenizer).items()


def test_flops_per_second_are_those_of_the_tokens(tiny):
    speed = metric_log.throughput(tiny, range(3), 4.0, peak=1e12)
    n_tokens = 3 * tiny.data.batch_size * tiny.data.seq_len
    n_flops = flops.flops_per_token(tiny.model, tiny.data.seq_len)["full"] * n_tokens
    assert speed == pytest.approx(
        {
            "tokens_per_second": n_tokens / 4,
            "flops_per_second": n_flops / 4,
            "mfu": n_flops / 4e12,
        }
    )
