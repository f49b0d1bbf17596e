"""Tasks of lm-evaluation-harness (Gao et al. 2021, doi:10.5281/zenodo.5371628) by their names.

    tasks = load_harness_tasks(HarnessOptions(("arc_easy",), limit=100))
    results = evaluate_harness_tasks(tasks, adapter)
    results["harness:arc_easy?n=100"]["acc_norm"]   # {"value": 0.41, "se": 0.05}

The metrics are those of the harness. "acc" is named accuracy, as in the tasks of this project. A
metric of a filter that is not "none" has the name METRIC_FILTER. The metric chance is the accuracy
of a random choice, the mean of 1 / number of choices, and 0 for a task without choices.

The name of a result has the options that differ from those of the task, with the names of the
options of other tasks: harness:arc_easy?n=100&shots=5&template=chat.
"""

import contextlib
import dataclasses
import difflib
import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PREFIX = "harness:"  # of the names of results
METRIC_NAMES = {"acc": "accuracy"}
BOOTSTRAP_RESAMPLES = 1000  # of metrics whose standard error has no formula


@dataclasses.dataclass(frozen=True)
class HarnessOptions:
    """Tasks and options of the harness.

    names: of tasks, groups or tags, or YAML files. limit: examples per task; None is all. n_shots:
    solved examples before each example; None is the number of the task. include_path: folder of
    YAML files of tasks. uses_chat_template: True if prompts are conversations.
    """

    names: tuple[str, ...]
    limit: int | None = None
    n_shots: int | None = None
    include_path: str = ""
    uses_chat_template: bool = False

    def result_name(self, name: str) -> str:
        """Return the name of the results of a task or group with these options."""
        fields = {
            "n": self.limit,
            "shots": self.n_shots,
            "template": "chat" if self.uses_chat_template else None,
        }
        query = "&".join(f"{key}={value}" for key, value in fields.items() if value is not None)
        return f"{PREFIX}{name}?{query}" if query else f"{PREFIX}{name}"


class HarnessTasks(NamedTuple):
    """Loaded tasks of the harness. manager: a TaskManager of the harness."""

    options: HarnessOptions
    manager: Any


def load_harness_tasks(options: HarnessOptions) -> HarnessTasks:
    """Load tasks and their data sets.

    Raises ValueError if the harness is not installed, for an unknown task, and for a data set that
    cannot be loaded.
    """
    if not sys.stderr.isatty():  # read when the libraries are imported
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        harness = importlib.import_module("lm_eval.tasks")
    except ImportError:
        raise ValueError("lm-evaluation-harness needs: uv sync --extra harness") from None
    if options.include_path and not Path(options.include_path).is_dir():
        raise ValueError(f"--include_path={options.include_path} does not exist: correct the path")
    if options.include_path:  # without the index of all tasks, which takes seconds
        manager = harness.TaskManager(include_path=options.include_path, include_defaults=False)
        if not (_find_unknown(options, manager) or _load_problem(options, manager)):
            return HarnessTasks(options, manager)
    manager = harness.TaskManager(include_path=options.include_path or None)
    for name in _find_unknown(options, manager):
        near = difflib.get_close_matches(name, manager.all_tasks, n=3)
        hint = f"did you mean {' or '.join(near)}" if near else "see lm_eval ls tasks"
        raise ValueError(
            f"--harness={name} is no task of lm-evaluation-harness: {hint}, or name the folder of"
            " your task by --include_path"
        )
    if problem := _load_problem(options, manager):
        raise ValueError(
            f"--harness={problem}: its data set must be on this machine or on the Hugging Face Hub"
        )
    return HarnessTasks(options, manager)


def _find_unknown(options: HarnessOptions, manager: Any) -> list[str]:
    """Return the names that are neither tasks of a TaskManager nor files."""
    known = set(manager.all_tasks)
    return [name for name in options.names if name not in known and not Path(name).is_file()]


def _load_problem(options: HarnessOptions, manager: Any) -> str:
    """Load the tasks and their data sets. Return the first one that fails and the reason, or ""."""
    for name in options.names:
        try:
            with _quiet_logging():
                manager.load([name])
        except Exception as error:  # data sets have no common class of errors
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            return f"{name} cannot be loaded ({reason})"
    return ""


def evaluate_harness_tasks(tasks: HarnessTasks, adapter: Any) -> dict[str, dict[str, dict]]:
    """Return the metrics of each task and group: {name: {metric: {"value", "se"}}}.

    The names are those of HarnessOptions.result_name. adapter: see lm_eval_harness.make_adapter. A
    task has the metrics n, chance and n_truncated, the number of its requests whose context was
    truncated. A group has the metric n_paradigms, the number of its members, and their mean chance,
    weighted by their examples.
    """
    harness: Any = importlib.import_module("lm_eval")
    options = tasks.options
    with _quiet_logging():
        output = harness.simple_evaluate(
            model=adapter,
            tasks=list(options.names),
            task_manager=tasks.manager,
            num_fewshot=options.n_shots,
            limit=options.limit,
            bootstrap_iters=BOOTSTRAP_RESAMPLES,
            apply_chat_template=options.uses_chat_template,
            log_samples=False,
        )
    assert output is not None  # the harness returns None in other processes than the first
    results = {}
    sizes = {name: counts["effective"] for name, counts in output.get("n-samples", {}).items()}
    groups = output.get("group_subtasks", {})
    chances = {name: _random_accuracy(adapter.counts.choices.get(name, {})) for name in sizes}
    for name, columns in output["results"].items():
        metrics = _convert_metrics(columns)
        if name in sizes:
            metrics["n"] = {"value": sizes[name]}
            metrics["n_truncated"] = {"value": adapter.counts.n_truncated[name]}
            metrics["chance"] = {"value": chances[name]}
        elif members := groups.get(name):
            metrics["n_paradigms"] = {"value": len(members)}
            measured = [task for task in _tasks_of_group(name, groups) if task in sizes]
            total = sum(sizes[task] * chances[task] for task in measured)
            metrics["chance"] = {"value": total / max(sum(sizes[task] for task in measured), 1)}
        if metrics:
            results[options.result_name(name)] = metrics
    return results


def _random_accuracy(examples: Mapping[int, Mapping[int, bool]]) -> float:
    """Return the mean of 1 / number of choices, 0 if the examples have no choices.

    examples: True for each answer with an empty prompt, by index, of each example. Such answers
    beside others belong to metrics of mutual information, and are not counted as choices.
    """
    n_choices = [
        len(is_empty) - sum(is_empty.values()) or len(is_empty) for is_empty in examples.values()
    ]
    return sum(1 / n for n in n_choices if n > 1) / max(len(n_choices), 1)


def _tasks_of_group(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the tasks of a group and of the groups in it."""
    if not groups.get(name):
        return [name]
    return [task for member in groups[name] for task in _tasks_of_group(member, groups)]


def _convert_metrics(columns: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return {metric: {"value", "se"}} of the columns METRIC,FILTER of a task."""
    metrics: dict[str, dict[str, float]] = {}
    for column, value in columns.items():
        metric, comma, filter_name = column.partition(",")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not comma or metric.endswith("_stderr") or not is_number:
            continue
        error = columns.get(f"{metric}_stderr,{filter_name}")
        name = METRIC_NAMES.get(metric, metric)
        name += "" if filter_name == "none" else f"_{filter_name}"
        metrics[name.replace(".", "_")] = {"value": float(value)}
        if isinstance(error, int | float):
            metrics[name.replace(".", "_")]["se"] = float(error)
    return metrics


@contextlib.contextmanager
def _quiet_logging():
    """Show only the errors of the harness."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
