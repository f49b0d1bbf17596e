import copy
import dataclasses
import signal

import jax
import numpy as np
import pytest

from lm.config import schema
from lm.data import dataset, tokenizers
from lm.evaluation import heldout
from lm.parallel import mesh
from lm.runs import records
from lm.sweeps import launcher
from lm.training import checkpoints, loaded_model, loop, metric_log, step, warm_start


def final_params(run: schema.Run) -> list[np.ndarray]:
    _, state = loaded_model.restore_model(run)
    assert int(state["step"]) == run.steps
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state["params"])]


def losses(run: schema.Run) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in records.load_metrics(records.run_dir(run))}


def test_a_run_writes_what_it_is_and_how_it_went(tiny):
    seen = []
    loop.train(tiny, seen.append)
    folder = records.run_dir(tiny)
    facts, rows = records.read_facts(folder), records.load_metrics(folder)
    assert facts["status"] == "done" and facts["attempts"] == 1 and facts["devices"] == 4
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12] and seen == rows
    assert rows[-1]["tokens"] == facts["tokens"] == 12 * 8 * 32
    assert rows[-1]["flops"] == pytest.approx(facts["flops"])
    assert rows[-1]["loss"] < rows[0]["loss"] < 7
    assert rows[-1]["seconds"] > rows[0]["seconds"] > 0
    (row,) = records.load_runs(folder)
    assert row["eval.step"] == 12 and 0 < row["eval.loss_se"] < row["eval.loss"] < 6
    assert list((folder / "tensorboard").glob("events*"))


def test_training_learns_what_repeats(tiny):
    tiny.steps, tiny.optim.lr, tiny.log_interval, tiny.checkpoint_interval = 150, 0.02, 50, 150
    loop.train(tiny)
    (row,) = records.load_runs(records.run_dir(tiny))
    assert row["eval.loss"] < 0.8 and row["eval.completion"] > 0.5


def test_the_same_run_twice_is_the_same_bits(tiny):
    loop.train(tiny)
    again = dataclasses.replace(tiny, name="again")
    loop.train(again)
    assert losses(tiny) == losses(again)
    for a, b in zip(final_params(tiny), final_params(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stopped_by_a_signal_it_saves_and_goes_on_to_the_same_bits(tiny):
    tiny.log_interval, tiny.steps_per_call = 3, 2
    whole = dataclasses.replace(tiny, name="whole")
    loop.train(whole)

    def stop_after_six(row):
        if row["step"] == 6 and row["attempt"] == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Interrupted, match="stopped by SIGTERM at step 8 of 12"):
        loop.train(tiny, stop_after_six)
    (row,) = records.load_runs(records.run_dir(tiny))
    assert row["status"] == "lost" and not records.is_finished(tiny)
    loop.train(tiny, stop_after_six)  # from within a window of metrics
    assert records.read_facts(records.run_dir(tiny))["resumed_from"] == 8
    assert losses(tiny) == losses(whole)
    for a, b in zip(final_params(tiny), final_params(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_signal_after_the_last_step_ends_the_run_and_all_that_would_follow(tiny):
    def stop_at_the_end(row):  # before the last evaluation and the last checkpoint
        if row["step"] == tiny.steps:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Interrupted, match="stopped by SIGTERM at the end of tiny"):
        loop.train(tiny, stop_at_the_end)
    assert records.read_facts(records.run_dir(tiny))["status"] == "done"
    assert records.load_evals(records.run_dir(tiny))[-1]["step"] == tiny.steps


@pytest.mark.slow
def test_a_run_goes_on_in_other_pieces(tiny):
    whole, stopped = (dataclasses.replace(tiny, name=name) for name in ("whole", "stopped"))
    loop.train(whole)

    def stop_at_six(row):
        if row["step"] == 6:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Interrupted):
        loop.train(stopped, stop_at_six)
    stopped.optim = dataclasses.replace(tiny.optim, grad_accumulation_steps=2)
    stopped.model = dataclasses.replace(tiny.model, loss_chunks=4, remat="full")
    loop.train(stopped)
    assert list(losses(stopped)) == list(losses(whole))
    np.testing.assert_allclose(
        list(losses(stopped).values()), list(losses(whole).values()), rtol=1e-4
    )


def test_the_state_is_born_split_over_the_mesh(tiny):
    program = step.build_train_functions(
        tiny, mesh.make_mesh(schema.Mesh(data=1, fsdp=2, tensor=2))
    )
    with jax.set_mesh(program.mesh):
        state = program.init(0)
    gate = state["params"]["blocks"]["mlp"]["gate"]
    assert gate.addressable_shards[0].data.shape == (2, 8, 24) and gate.shape == (2, 16, 48)
    moments = [m for m in jax.tree.leaves(state["opt"]) if m.shape == gate.shape]
    assert moments and all(m.sharding == gate.sharding for m in moments)


def test_a_checkpoint_is_restored_on_another_mesh(tiny):
    loop.train(tiny)
    before = final_params(tiny)
    tiny.mesh = schema.Mesh(data=1, fsdp=2, tensor=2)
    for a, b in zip(before, final_params(tiny), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(tiny):
    tiny.optim.lr, tiny.optim.clip_norm, tiny.optim.warmup = 1e30, 0.0, 0.0
    with pytest.raises(loop.Diverged, match="tiny diverged: loss .* by step"):
        loop.train(tiny)
    facts = records.read_facts(records.run_dir(tiny))
    assert facts["status"] == "diverged" and "by step" in facts["reason"]
    assert records.is_finished(tiny) and not records.load_evals(records.run_dir(tiny))


def test_evaluations_come_when_due_and_a_lost_one_is_filled_in(tiny):
    tiny.eval.interval, tiny.log_interval = 3, 1

    def stop_at_three(row):
        if row["step"] == 2 and row["attempt"] == 1:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(loop.Interrupted):
        loop.train(tiny, stop_at_three)
    file = records.run_dir(tiny) / "evals.jsonl"
    file.unlink()  # as if the machine had died between the checkpoint and its evaluation
    loop.train(tiny, stop_at_three)
    assert [row["step"] for row in records.load_evals(records.run_dir(tiny))] == [3, 6, 9, 12]


def test_a_changed_config_is_refused_before_any_compute(tiny):
    loop.train(tiny)
    tiny.optim.lr = 1.0
    with pytest.raises(ValueError, match="optim.lr=0.003, now 1.0: choose a new name"):
        loop.train(tiny)


def test_a_vocabulary_that_is_too_small_is_refused(tiny):
    tiny.model.vocab_size = 128
    with pytest.raises(
        ValueError, match="model.vocab_size=128 must be at least the tokenizer's 256"
    ):
        loop.train(tiny)
    assert not records.run_dir(tiny).exists()


def test_only_the_continuation_of_a_cut_row_is_learned(tiny):
    tiny.data.packing = "continuation"
    program = step.build_train_functions(tiny, mesh.make_mesh(tiny.mesh))
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 256, (8, 33)).astype(np.int32)
    weights = (np.arange(32) >= rng.integers(0, 32, (8, 1))).astype(np.float32)
    with jax.set_mesh(program.mesh):
        state = program.init(0)
        nats, _ = program.score(state["params"], mesh.put_batch(program.mesh, {"tokens": tokens}))
        nats = np.asarray(nats)
        batch = mesh.put_batch(program.mesh, {"tokens": tokens, "weights": weights})
        _, metrics = program.step(state, batch, program.inputs)
    continued = float(np.average(nats, weights=weights))
    assert float(metrics["loss"]) == pytest.approx(continued, rel=1e-5)


@pytest.mark.parametrize(
    "knobs",
    [{"attend_across_documents": False}, {"packing": "continuation"}, {"packing": "documents"}],
)
def test_a_run_trains_on_rows_of_every_kind(tiny, knobs):
    tiny.data = dataclasses.replace(tiny.data, **knobs)
    loop.train(tiny)
    assert records.load_runs(records.run_dir(tiny))[0]["status"] == "done"


def test_a_run_keeps_what_its_token_ids_mean(tiny):
    tiny.data.tokenizer, tiny.model.vocab_size = "bpe:300", 300
    loop.train(tiny)
    text = dataset.open_dataset(tiny.data, tiny.seed)
    kept = tokenizers.load_tokenizer(records.run_dir(tiny))
    assert kept.hash == text.tokenizer.hash and kept.decode(kept.encode("a fox")) == "a fox"


def test_more_epochs_than_allowed_are_refused_before_any_compute(tiny):
    tiny.data.max_epochs = 0.01
    with pytest.raises(ValueError, match="data.max_epochs=0.01: steps=12 give"):
        loop.train(tiny)
    assert not records.run_dir(tiny).exists()


def test_the_state_is_donated(tiny):
    program = step.build_train_functions(tiny, mesh.make_mesh(schema.Mesh()))
    with jax.set_mesh(program.mesh):
        state = program.init(0)
        tokens = mesh.put_batch(program.mesh, {"tokens": np.ones((8, 33), np.int32)})
        program.step(state, tokens, program.inputs)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state["params"]))


def test_the_first_step_is_golden(tiny):
    """Update these numbers when the model, its init or the loss are changed on purpose."""
    program = step.build_train_functions(tiny, mesh.make_mesh(schema.Mesh()))
    tokens = np.tile(np.arange(33, dtype=np.int32) % 7 + 97, (8, 1))
    with jax.set_mesh(program.mesh):
        batch = mesh.put_batch(program.mesh, {"tokens": tokens})
        _, metrics = program.step(program.init(0), batch, program.inputs)
    assert float(metrics["loss"]) == pytest.approx(GOLDEN["loss"], rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(GOLDEN["grad_norm"], rel=1e-4)


GOLDEN = {"loss": 6.240035, "grad_norm": 4.279511}


def test_a_checkpoint_of_another_model_is_refused_by_the_leaf(tiny):
    loop.train(tiny)
    other = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, d_ff=40))
    program = step.build_train_functions(other, mesh.make_mesh(schema.Mesh()))
    words = r"opt/1/mu/blocks/mlp/down is float32\[2, 48, 16\], the run needs float32\[2, 40, 16\]"
    with checkpoints.CheckpointStore(tiny) as saved, pytest.raises(ValueError, match=words):
        saved.restore(12, program.abstract)


def test_a_run_without_progress_ends_and_its_best_checkpoint_is_what_it_gives(tiny, monkeypatch):
    tiny.eval.interval, tiny.eval.patience, tiny.log_interval = 1, 2, 5
    losses = dict(zip(range(1, 13), (5.0, 4.0, 4.5, 3.0, 3.1, 3.0, 2.0), strict=False))
    calls = iter(losses)
    monkeypatch.setattr(
        heldout, "evaluate_heldout", lambda *_, **__: {"loss": losses[next(calls)], "loss_se": 0.1}
    )
    loop.train(tiny)
    row = records.load_runs(records.run_dir(tiny))[0]
    assert row["status"] == "done" and row["ends_at"] == 4 and row["eval.loss"] == 3.0
    assert row["tokens"] == 6 * 8 * 32  # what was spent, not what was planned
    assert int(loaded_model.restore_model(tiny)[1]["step"]) == 4
    assert [e["event"] for e in records.load_events(records.run_dir(tiny))] == ["stopped early"]
    child = copy.deepcopy(tiny)
    child.name, child.start.run = "child", "tiny"
    assert warm_start.start_step(child, tiny) == 4


@pytest.mark.parametrize(
    "losses, start, words",
    [
        (
            {12: 6.0},
            "",
            "held-out loss 6.000 at the end, 5.545 by guessing: try a smaller optim.lr",
        ),
        ({0: 2.0, 8: 2.1, 12: 1.0}, "parent", "2.100 at the end, 2.000 by the weights it started"),
        ({0: 2.0, 8: 1.9, 12: 3.0}, "parent", ""),
        ({0: 6.5, 8: 5.0}, "", ""),
        ({12: "nan"}, "", "held-out loss nan at the end"),  # as records read it back
        ({8: 3.0, 12: 7.0}, "", ""),
        ({4: 9.0}, "", ""),
    ],
)
def test_what_a_run_ends_with_is_doubted_if_a_guess_or_its_start_was_better(losses, start, words):
    run = schema.Run(start=schema.Start(run=start))
    rows = {step: {"loss": loss} for step, loss in losses.items()}
    said = metric_log.quality_warning(run, rows, 8 if 8 in rows else 12)
    assert words in said and bool(words) == bool(said)


def test_a_run_that_is_worse_than_a_guess_is_done_and_says_so_everywhere(tiny, monkeypatch):
    monkeypatch.setattr(heldout, "evaluate_heldout", lambda *_, **__: {"loss": 9.0, "loss_se": 0.1})
    tiny.steps, said = 2, []
    launcher.run_pending([tiny], on_end=lambda run, reason: said.append(reason))
    row = records.load_runs(records.run_dir(tiny))[0]
    assert row["status"] == "done" and "9.000 at the end, 5.545 by guessing" in row["reason"]
    assert said == [row["reason"]]
    assert [e["event"] for e in records.load_events(records.run_dir(tiny))] == ["worthless"]
