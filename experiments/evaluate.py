"""Evaluate a run or published models on held-out text, on other text or on tasks.

uv run python -m experiments.evaluate --run=runs/quickstart/600K
uv run python -m experiments.evaluate --run=runs/quickstart/600K --sources='{"text:lm": 1}'
uv run python -m experiments.evaluate --run=runs/quickstart/600K \\
    --tasks="copy?length=4 file:notebooks/data/examples/capitals"
uv run python -m experiments.evaluate --run=runs/quickstart/600K --harness=lambada_openai,arc_easy
uv run python -m experiments.evaluate --models=out/600K --dir=runs/published \\
    --sources='{"text:lm": 1}' --trained_tokens=1e6

The text is encoded by the tokenizer in the run directory. Up to --n_sequences rows are evaluated
per source: of all its documents, or of its held-out part if the run was trained on it. Tasks are
compared with baselines (lm/evaluation/baselines). Their n-gram models are counted in the prepared
training text. The records of the run change only with --keep and --harness.

--harness evaluates tasks of lm-evaluation-harness and adds the results to the records of the run.
Their names have the options: harness:arc_easy?n=100&shots=5&template=chat.

--models evaluates models in the format of transformers and writes their results below --dir like
those of runs. Each model is evaluated on all documents of --sources, or on the held-out documents
of --run. Losses per token of different tokenizers are not comparable: compare bits per byte.
"""

import dataclasses
import pathlib

from absl import flags

from experiments.common import (
    cli,
    console,
    flag_checks,
    harness_tasks,
    next_command,
    progress_view,
    published_models,
)

_RUN = flags.DEFINE_string("run", None, "folder of the run")
_SOURCES = flags.DEFINE_string("sources", None, "JSON of sources and weights; default: of the run")
_ALLOW = cli.allow_path_flag()
_CACHE = cli.cache_dir_flag()
_STEP = flags.DEFINE_integer("step", None, "step of the checkpoint; default: the last")
_TASKS = flags.DEFINE_string(
    "tasks", None, "space-separated tasks instead of held-out text; quote a name with a space"
)
_OVERLAP = flags.DEFINE_integer(
    "overlap",
    0,
    "count examples that share this number of consecutive words with training text",
    lower_bound=0,
)
_KEEP = flags.DEFINE_bool("keep", False, "add the task results to the records of the run")
_ANSWERS = flags.DEFINE_string("answers", None, "JSON Lines file for the generated answers")
_SEQUENCES = flags.DEFINE_integer(
    "n_sequences",
    None,
    "held-out sequences per source; default: eval.n_sequences of the run",
    lower_bound=1,
)
_SEQ_LEN = flags.DEFINE_integer(
    "seq_len",
    None,
    "tokens of context per sequence; default: data.seq_len of the run",
    lower_bound=1,
)


published_models.define_flags()
harness_tasks.define_flags()


def main() -> int:
    _check_flags()
    sources = cli.parse_sources(_SOURCES.value) if _SOURCES.value else None
    if published_models.names():
        _evaluate_models(sources)
        return 0
    stored_run = cli.load_run(_RUN.value, _ALLOW.value)  # before JAX is imported
    stored_run = _check_permissions(stored_run, sources)
    run = _evaluated_run(stored_run, sources)
    if flags.FLAGS.harness:
        _evaluate_harness(run)
    elif _TASKS.value:
        _evaluate_tasks(run, _TASKS.value)
    else:
        _evaluate_text(stored_run, run, sources)
    _print_end(run)
    return 0


def _print_end(run) -> None:
    """Print the next command, and the file that has changed."""
    from lm.runs import records

    has_written = bool(_KEEP.value or flags.FLAGS.harness)
    folder = records.run_dir(run)
    if has_written:
        is_in_sweep = (folder.parent / "sweep.json").exists()
        next_command.print_next("report", f"--dir={folder.parent if is_in_sweep else folder}")
        console.print_line(f"results: {folder / 'evals.jsonl'}")
    else:
        next_command.print_next("sample", f"--run={_RUN.value}")


def _check_flags() -> None:
    """Check the combinations of flags. Raises ValueError for a flag without effect."""
    published_models.check_flags()
    harness_tasks.check_flags()
    if published_models.names():
        _check_model_flags()
        return
    if flags.FLAGS.harness and _TASKS.value:
        raise ValueError(
            f"--harness and --tasks={_TASKS.value} exclude each other: use two commands"
        )
    text_flags = {"--sources": _SOURCES.value, "--n_sequences": _SEQUENCES.value}
    task_flags = {
        "--overlap": _OVERLAP.value,
        "--keep": _KEEP.value,
        "--answers": _ANSWERS.value,
    }
    if flags.FLAGS.harness:
        unused, problem = text_flags | task_flags, "has no effect with --harness"
    elif _TASKS.value:
        unused, problem = text_flags, "has no effect with --tasks"
    else:
        unused, problem = task_flags, "has an effect only with --tasks"
    for name, value in unused.items():
        if value:
            raise ValueError(f"{name}={value} {problem}: remove it")
    if _ANSWERS.value:
        flag_checks.check_output_file("answers", _ANSWERS.value)


def _check_model_flags() -> None:
    """Raise ValueError for flags without effect on --models, and without a text."""
    unused = {
        "--step": _STEP.value,
        "--overlap": _OVERLAP.value,
        "--keep": _KEEP.value,
        "--answers": _ANSWERS.value,
    }
    for name, value in unused.items():
        if value:
            raise ValueError(f"{name}={value} has no effect with --models: remove it")
    if bool(_SOURCES.value) == bool(_RUN.value):
        raise ValueError(
            "--models needs a text: either all documents of --sources=JSON, or the held-out"
            " documents of --run=FOLDER"
        )


def _check_permissions(stored_run, sources: dict[str, float] | None):
    """Return the run with the folder of --cache_dir, and without text that may not be read.

    Raises ValueError for a path that the config names and that needs --allow_path.
    """
    from lm.data.sources import path_permissions

    permissions = path_permissions.grant_permissions(_RUN.value, _ALLOW.value)
    stored_run.data.cache_dir = _CACHE.value or stored_run.data.cache_dir
    # Published models are always evaluated on text as well, a run alone only without tasks.
    prepares_text = bool(published_models.names()) or not (_TASKS.value or flags.FLAGS.harness)
    if not prepares_text and not _OVERLAP.value:
        return stored_run  # only the tasks of the command line are read
    if prepares_text:
        folders = [*_ALLOW.value, _CACHE.value] if _CACHE.value else _ALLOW.value
        writable = path_permissions.grant_permissions(_RUN.value, folders)
        path_permissions.check_cache_folders(stored_run, writable)
    return path_permissions.check_sources(stored_run, permissions, sources)


def _evaluated_run(stored_run, sources: dict[str, float] | None):
    """Return the config of the run with the values of the flags. Raises ValueError if invalid."""
    from lm.config import validation

    _check_stored_length(stored_run.data.seq_len)
    data = dataclasses.replace(
        stored_run.data,
        sources=stored_run.data.sources if sources is None else sources,
        seq_len=_SEQ_LEN.value or stored_run.data.seq_len,
    )
    n_sequences = _SEQUENCES.value or stored_run.eval.n_sequences
    settings = dataclasses.replace(stored_run.eval, n_sequences=n_sequences)
    run = dataclasses.replace(stored_run, data=data, eval=settings)
    validation.validate_evaluation(run)
    return run


def _check_stored_length(seq_len: int) -> None:
    """Raise ValueError if results of another context than that of the run would be stored."""
    flag = "--keep" if _KEEP.value else "--harness"
    if (_KEEP.value or flags.FLAGS.harness) and _SEQ_LEN.value not in (None, seq_len):
        raise ValueError(
            f"--seq_len={_SEQ_LEN.value} must be data.seq_len={seq_len} of the run with {flag},"
            " because the records do not name the context: remove it"
        )


def _evaluate_models(sources: dict[str, float] | None) -> None:
    """Evaluate published models on the documents of sources, or on the held-out part of --run."""
    from lm.config import schema

    if sources is None:
        stored_run = _check_permissions(cli.load_run(_RUN.value, _ALLOW.value), None)
        settings = schema.Run(seed=stored_run.seed, data=stored_run.data, eval=stored_run.eval)
    else:
        settings = schema.Run()
        settings.data.sources = sources
        settings.data.heldout_fraction = 1.0
        settings.data.seq_len = published_models.DEFAULT_CONTEXT
        settings.data.cache_dir = _CACHE.value or settings.data.cache_dir
    settings.eval.n_sequences = _SEQUENCES.value or settings.eval.n_sequences
    published_models.evaluate(settings, _SEQ_LEN.value, _TASKS.value or "", _ALLOW.value)


def _evaluate_harness(run) -> None:
    """Evaluate tasks of lm-evaluation-harness, and add the results to the records of the run."""
    import jax

    from lm.data import evaluation_text
    from lm.parallel import mesh
    from lm.runs import records
    from lm.training import loaded_model

    loaded_tasks = harness_tasks.load_tasks()
    tokenizer = evaluation_text.load_run_tokenizer(run)
    mesh.initialize_devices()
    run = loaded_model.fit_to_devices(run, is_sharded_on_cpu=True)
    program, state = loaded_model.restore_model(run, _STEP.value)
    with jax.set_mesh(program.mesh):
        columns = harness_tasks.evaluate(
            loaded_tasks, run, program.mesh, state["params"], tokenizer
        )
    records.extend_evals(records.run_dir(run), int(state["step"]), columns)


def _evaluate_text(stored_run, run, sources: dict[str, float] | None) -> None:
    """Evaluate held-out text and print the results."""
    import jax

    from lm.data import evaluation_text
    from lm.evaluation import heldout
    from lm.parallel import mesh
    from lm.training import loaded_model

    stored_run.data = dataclasses.replace(stored_run.data, seq_len=run.data.seq_len)
    text, parts = evaluation_text.open_evaluation_text(stored_run, sources, progress_view.preparing)
    mesh.initialize_devices()
    run = loaded_model.fit_to_devices(run, is_sharded_on_cpu=True)
    program, state = loaded_model.restore_model(run, _STEP.value)
    with jax.set_mesh(program.mesh):
        row = heldout.evaluate_heldout(run, program.mesh, program.score, state["params"], text)
    console.print_line(f"{run.name}: checkpoint of step {int(state['step'])}")
    for source, part in parts.items():
        n_documents = text.manifests[source].documents["heldout"]
        n_rows = len(text.heldout(source, run.eval.n_sequences))
        console.print_line(
            f"{source}: {part}, {n_documents:,} documents; evaluated: {n_rows:,} sequences of"
            f" {run.data.seq_len} tokens"
        )
    console.evaluation(row)


def _evaluate_tasks(run, names: str) -> None:
    """Evaluate tasks, print the results, and add them to the records with --keep."""
    import jax

    from lm.data import evaluation_text, staging
    from lm.evaluation import contamination, task_eval, tasks
    from lm.evaluation.baselines import task_baselines
    from lm.parallel import mesh
    from lm.runs import records
    from lm.training import loaded_model

    task_list = tasks.load_tasks(names, "--tasks")
    if _ANSWERS.value and not any(task.generate for task in task_list):
        raise ValueError("--answers needs --tasks with a task that generates: add ?generate=1")
    tokenizer = evaluation_text.load_run_tokenizer(run)
    task_eval.validate_task_lengths(run, tokenizer, task_list)
    counts = _ngram_counts(run)
    # Without permission to use the cache folder there are no counts.
    cache = staging.local_folder(run.data) if counts else None
    task_list = task_baselines.add_baselines(task_list, tokenizer, counts, cache)
    mesh.initialize_devices()
    run = loaded_model.fit_to_devices(run, is_sharded_on_cpu=True)
    program, state = loaded_model.restore_model(run, _STEP.value)
    details = task_eval.TaskDetails()
    with jax.set_mesh(program.mesh):
        results = task_eval.evaluate_tasks(
            run, program.mesh, program.score, state["params"], tokenizer, task_list, details
        )
    console.tasks(results)
    if _ANSWERS.value:
        console.write_json_lines(_ANSWERS.value, details.answers)
    n_words = _OVERLAP.value
    overlaps = contamination.count_overlaps(task_list, run.data, n_words) if n_words else {}
    for name, counts in overlaps.items():
        console.print_line(
            f"{name}: {counts['n_overlap']} of {counts['n_checkable']} examples with at least"
            f" {n_words} words share {n_words} consecutive words with the training text"
        )
        results[name] |= {key: {"value": n} for key, n in counts.items()}
    if _KEEP.value:
        columns = task_eval.to_columns(results)
        _store_results(records.run_dir(run), int(state["step"]), columns, details.items)


def _store_results(folder: pathlib.Path, step: int, columns: dict, items: list) -> None:
    """Add results to the evaluation of a step. tasks.npz has the items of the last evaluation."""
    from lm.runs import records
    from lm.runs.items import task_items

    records.extend_evals(folder, step, columns)
    (row,) = records.load_runs(folder, include_others=True)
    if row.get("eval.step") == step:
        task_items.extend_items(folder, items)
    else:
        console.print_line(
            f"note: step {step} is not the final evaluation: {task_items.FILE} does not change"
        )


def _ngram_counts(run):
    """Return the n-grams of the training text, None with a note if the text cannot be read."""
    from lm.data import dataset, evaluation_text
    from lm.data.prepared import recorded_text
    from lm.data.sources import path_permissions
    from lm.evaluation.baselines import ngram_counts
    from lm.runs import records

    facts = records.read_facts(records.run_dir(run))
    try:
        permissions = path_permissions.grant_permissions(_RUN.value, _ALLOW.value)
        path_permissions.check_cache_folders(run, permissions)
        if (counts := ngram_counts.load_recorded_counts(run, facts)) is not None:
            return counts
        path_permissions.check_sources(run, permissions)
        text = dataset.open_dataset(
            evaluation_text.run_data(run), run.seed, progress_view.preparing
        )
    except (ValueError, OSError) as error:
        console.print_line(f"note: no n-gram baselines without the training text: {error}")
        return None
    if changed := recorded_text.changed_sources(run, text):
        names = ", ".join(changed)
        console.print_line(f"note: {names} has changed since the training: n-grams of the new text")
    return ngram_counts.count_ngrams(text)


if __name__ == "__main__":
    cli.run_main(main)
