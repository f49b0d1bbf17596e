"""Run directories that contain the results of published models, without weights.

    run = make_run(model, settings, Path("runs/pythia"))
    row = evaluate_model(run, model, task_list=[])
    rows = records.load_runs("runs/pythia")        # eval.loss, eval.bits_per_byte, params.total

The directory of a model has the records of a run that is done. Laws, figures and reports thus read
published models like runs of this project. Losses per token of models with different tokenizers are
not comparable: compare eval.bits_per_byte.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from lm.config import flops, schema, validation
from lm.data import corpus, dataset, tokenizers
from lm.data.tokenization import run_tokenizer
from lm.evaluation import heldout, task_eval, tasks
from lm.evaluation.baselines import task_baselines
from lm.model.hf import load
from lm.parallel import mesh
from lm.runs import records
from lm.runs.items import task_items
from lm.training import step
from lm.training.published import model_folders, model_weights

# Results of further benchmarks: (run, mesh, weights, tokenizer) -> columns of evals.jsonl.
Benchmark = Callable[[schema.Run, jax.sharding.Mesh, dict, tokenizers.Tokenizer], dict]


class Evaluation(NamedTuple):
    """Evaluation of published models besides the held-out loss.

    task_list: tasks. benchmark: see Benchmark; None for none.
    """

    task_list: Sequence[tasks.Task] = ()
    benchmark: Benchmark | None = None


def make_run(model: model_folders.PublishedModel, settings: schema.Run, folder: Path) -> schema.Run:
    """Return the run of a model below a folder.

    settings: run whose data, eval and seed describe the evaluation. Raises ValueError if the model
    has fewer positions than data.seq_len, or if the folder has a run with other settings.
    """
    seq_len = settings.data.seq_len
    if seq_len > model.context:
        raise ValueError(
            f"data.seq_len={seq_len} is above the context of {model.name}, {model.context} tokens:"
            " set --seq_len"
        )
    run = dataclasses.replace(
        settings,
        name=f"{folder.name}/{model.name}",
        dir=str(folder.parent),
        steps=1,
        model=model.shape,
        mesh=schema.Mesh(),
        data=dataclasses.replace(settings.data, batch_size_warmup="", unique_tokens=0),
    )
    run.data.tokenizer = model.tokenizer
    validation.validate_run(run)
    run.data.tokenizer = f"{model.tokenizer.partition(':')[0]}:{_tokenizer_file(run, model)}"
    records.check_same_config(run)
    return run


def is_evaluated(run: schema.Run) -> bool:
    """Return True if the records of a model have its results."""
    return records.read_facts(records.run_dir(run)).get("status") == "done"


def open_text(
    run: schema.Run,
    model: model_folders.PublishedModel,
    report: corpus.ProgressCallback | None = None,
) -> dataset.TokenDataset:
    """Prepare the text of a run with the tokenizer of the model, and open it.

    Raises ValueError for text that cannot be read, and for a source without a complete row.
    """
    data = dataclasses.replace(run.data, tokenizer=model.tokenizer)
    text = dataset.TokenDataset(data, run.seed, corpus.prepare_corpus(data, report))
    for source in data.sources:
        if not len(text.heldout(source, 1)):
            raise ValueError(
                f"{source}: its documents give no row of data.seq_len={data.seq_len} tokens: add"
                " text, or use a smaller --seq_len"
            )
    return text


def evaluate_model(
    run: schema.Run,
    model: model_folders.PublishedModel,
    text: dataset.TokenDataset,
    evaluation: Evaluation,
    n_tokens: int | None = None,
) -> dict:
    """Evaluate a model, write its records, and return its row of evals.jsonl.

    n_tokens: training tokens of the model, None if they are unknown. A model whose tokenizer puts a
    start token before each text has this token as the first input of each row of held-out text.
    """
    tokenizer = text.tokenizer
    run = model_weights.divide_over_devices(run)
    functions = step.build_train_functions(run, mesh.make_mesh(run.mesh))
    weights = model_weights.load_weights(model, run, functions.mesh)
    stored_run = dataclasses.replace(run, mesh=schema.Mesh())
    attempt = records.start_run(stored_run, model_facts(stored_run, model, tokenizer, n_tokens))
    tokenizer.save(records.run_dir(run))
    model_on_mesh = run, functions.mesh
    writer = records.Writer(records.run_dir(run))
    with jax.set_mesh(functions.mesh):
        score = _with_start_token(functions.score, tokenizer.start)
        row = heldout.evaluate_heldout(*model_on_mesh, score, weights, text, writer)
        task_list = task_baselines.add_baselines(evaluation.task_list, tokenizer, None)
        details = task_eval.TaskDetails()
        results = task_eval.evaluate_tasks(
            *model_on_mesh, functions.score, weights, tokenizer, task_list, details
        )
        row |= task_eval.to_columns(results)
        if evaluation.benchmark is not None:
            row |= evaluation.benchmark(*model_on_mesh, weights, tokenizer)
    task_items.extend_items(records.run_dir(run), details.items)
    writer.append("evals.jsonl", {"attempt": attempt, "step": 1} | row)
    writer.write_facts(status="done", ends_at=1)
    return row


def model_facts(
    run: schema.Run,
    model: model_folders.PublishedModel,
    tokenizer: tokenizers.Tokenizer,
    n_tokens: int | None = None,
) -> dict:
    """Return the facts of a model: its counts, its tokenizer and its origin.

    The FLOPs of its training are those of its tokens with a context of data.seq_len. Without
    n_tokens, the facts have no tokens and no FLOPs.
    """
    facts = {k: v for k, v in flops.run_facts(run).items() if k not in ("tokens", "flops")}
    if n_tokens is not None:
        facts |= {"tokens": n_tokens, "flops": n_tokens * facts["flops_per_token.full"]}
    facts |= run_tokenizer.tokenizer_facts(tokenizer) | {"tokenizer.hash": tokenizer.hash}
    return facts | {"imported.family": model.architecture, "imported.from": model.name}


def _tokenizer_file(run: schema.Run, model: model_folders.PublishedModel) -> Path:
    """Return the path of the tokenizer file in the run directory."""
    tokenizer = tokenizers.open_tokenizer(model.tokenizer)
    return records.run_dir(run) / load.tokenizer_file_name(tokenizer)


def _with_start_token(score: Callable, start: int | None) -> Callable:
    """Return `score` with a start token as the first input of each row."""
    if start is None:
        return score

    def score_rows(params: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        tokens_BT = batch["tokens"].at[:, 0].set(start)
        return score(params, batch | {"tokens": tokens_BT})

    return score_rows
