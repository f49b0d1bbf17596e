"""Evaluation of published models in a command: flags, evaluation of each model, table."""

import functools
import json
from pathlib import Path

from absl import flags

from experiments.common import console, harness_tasks, next_command, progress_view
from lm.config import schema
from lm.runs import filesystem

DEFAULT_CONTEXT = 1024  # largest default of --seq_len
MAX_TOKENS = 1e18  # of --trained_tokens, exclusive


def define_flags() -> None:
    """Define the flags of published models."""
    flags.DEFINE_list(
        "models",
        [],
        "folders of transformers, or OWNER/NAME[@REVISION] in the cache of the Hugging Face Hub,"
        " separated by commas",
    )
    flags.DEFINE_string("dir", None, "folder of the results of --models")
    flags.DEFINE_string(
        "trained_tokens",
        None,
        "training tokens of --models: a number for all, a JSON object {name: number}, or its file",
    )


def names() -> list[str]:
    """Return the values of --models."""
    return flags.FLAGS.models or []


def check_flags() -> None:
    """Raise ValueError for missing flags, and for flags without effect."""
    values = flags.FLAGS
    if not names():
        for name in ("dir", "trained_tokens"):
            if values[name].value:
                raise ValueError(f"--{name}={values[name].value} has an effect only with --models")
        return
    if not all(name.strip() for name in names()):
        raise ValueError(f"--models={','.join(names())} has an empty name: remove a comma")
    if not values.dir:
        raise ValueError("--dir=FOLDER of the results of --models is missing: --dir=runs/published")
    folder = filesystem.open_path(values.dir)
    is_bucket = filesystem.is_remote(values.dir) and str(folder.parent).endswith("//")
    if folder.name in ("", "..") or is_bucket:
        raise ValueError(f"--dir={values.dir} has no name of its own: name a folder below it")


def evaluate(settings: schema.Run, seq_len: int | None, task_names: str, allow_paths) -> None:
    """Evaluate the models of --models, write their records, and print a table.

    settings: run whose data, eval and seed describe the evaluation. seq_len: value of --seq_len.
    Models with results in --dir are not evaluated again. Raises ValueError before any model is
    evaluated if a model or a flag is invalid.
    """
    from lm.evaluation import tasks
    from lm.parallel import mesh
    from lm.training.published import model_folders, model_records

    folder = filesystem.open_path(flags.FLAGS.dir)
    models = [model_folders.read_model(name, allow_paths) for name in names()]
    _check_distinct(models)
    n_tokens = _parse_tokens(flags.FLAGS.trained_tokens or "", [model.name for model in models])
    task_list = tasks.load_tasks(task_names, "--tasks") if task_names else []
    settings.eval.tasks = task_names
    default = min(settings.data.seq_len, *(model.context for model in models))
    settings.data.seq_len = seq_len or default
    runs = [model_records.make_run(model, settings, folder) for model in models]
    loaded_tasks = harness_tasks.load_tasks()
    benchmark = None
    if loaded_tasks is not None:
        benchmark = functools.partial(harness_tasks.evaluate, loaded_tasks)
    evaluation = model_records.Evaluation(task_list, benchmark)
    mesh.initialize_devices()
    for run, model in zip(runs, models, strict=True):
        if model_records.is_evaluated(run):
            console.print_line(f"{run.name} has results: delete its folder to evaluate it again")
            continue
        text = model_records.open_text(run, model, progress_view.preparing)
        model_records.evaluate_model(run, model, text, evaluation, n_tokens.get(model.name))
        console.print_line(f"{run.name}: evaluated")
    _print_table(folder)
    next_command.print_next("report", f"--dir={folder}")
    console.print_line(f"results: {folder}")


def _check_distinct(models: list) -> None:
    """Raise ValueError if two models have one name, which is that of their records."""
    for i, model in enumerate(models):
        for other in models[:i]:
            if model.name.casefold() == other.name.casefold():
                raise ValueError(
                    f"--models: {other.folder} and {model.folder} both have the name {model.name}:"
                    " rename one of the folders"
                )


def _parse_tokens(text: str, model_names: list[str]) -> dict[str, int]:
    """Return the training tokens of the models of --trained_tokens."""
    flag = f"--trained_tokens={text}"
    if not text:
        return {}
    try:
        is_file = not text.lstrip().startswith("{") and Path(text).is_file()
        value = json.loads(Path(text).read_text(encoding="utf-8") if is_file else text)
    except (ValueError, OSError) as error:
        example = """3e11 or '{"pythia-70m": 3e11}'"""
        raise ValueError(
            f"{flag} is neither a number nor JSON ({error}): write {example}"
        ) from None
    by_name = value if isinstance(value, dict) else dict.fromkeys(model_names, value)
    n_tokens: dict[str, int] = {}
    for name, number in by_name.items():
        if name not in model_names:
            known = ", ".join(model_names)
            raise ValueError(f"{flag}: {name} is no model of --models, which are {known}")
        is_boolean = isinstance(number, bool)
        if not isinstance(number, int | float) or is_boolean or not 1 <= number < MAX_TOKENS:
            raise ValueError(
                f"{flag}: {name} has {number!r}: write a number of tokens from 1 to below"
                f" {MAX_TOKENS:g}"
            )
        n_tokens[name] = int(number)
    return n_tokens


def _print_table(folder: Path) -> None:
    """Print one line per model below a folder."""
    from lm.runs import records, task_results

    rows = [row for row in records.load_runs(folder) if row["status"] == "done"]
    lines = []
    for row in rows:
        line = {
            "model": row["name"].rpartition("/")[2],
            "family": row.get("imported.family", ""),
            "parameters": f"{row['params.total']:,}",
            "without embeddings": f"{row[records.N_PARAMS]:,}",
            "tokens": f"{row[records.TOKENS]:.3g}" if records.TOKENS in row else "unknown",
            "loss": _measurement(row, records.LOSS),
            "bits per byte": _measurement(row, records.BITS_PER_BYTE),
        }
        for task in task_results.summary_tasks(rows):
            result = task_results.task_result(row, task)
            line[task] = f"{result['value']:.3f}" if result else ""
        lines.append(line)
    console.table(lines)


def _measurement(row: dict, column: str) -> str:
    """Return a result and its standard error as text, "" if it is missing.

    A mean over a single group of documents has no standard error.
    """
    from lm.runs import records, task_results

    if not records.is_finite(row.get(column)):
        return ""
    error = task_results.standard_error(row, column)
    return f"{row[column]:.4f} ± {f'{error:.4f}' if error else 'unknown'}"
