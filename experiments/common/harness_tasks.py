"""Evaluation by lm-evaluation-harness in a command: flags, results and their table."""

from absl import flags

from experiments.common import console


def define_flags() -> None:
    """Define the flags of the harness."""
    flags.DEFINE_list("harness", [], "tasks of lm-evaluation-harness, separated by commas")
    flags.DEFINE_integer("limit", None, "examples per task of --harness; default: all", 1)
    flags.DEFINE_integer(
        "num_fewshot", None, "solved examples per prompt of --harness; default: of the task", 0
    )
    flags.DEFINE_string("include_path", "", "folder of YAML files with further tasks")
    flags.DEFINE_bool("apply_chat_template", False, "make the prompts of --harness conversations")


def check_flags() -> None:
    """Raise ValueError for an option of the harness without --harness."""
    values = flags.FLAGS
    for name in ("limit", "num_fewshot", "include_path", "apply_chat_template"):
        if values[name].value not in (None, "", False) and not values.harness:
            raise ValueError(f"--{name}={values[name].value} has an effect only with --harness")


def load_tasks():
    """Return the loaded tasks of the flags, None without any. See harness_tasks.HarnessTasks."""
    from lm.evaluation.harness import harness_tasks

    values = flags.FLAGS
    if not values.harness:
        return None
    options = harness_tasks.HarnessOptions(
        names=tuple(values.harness),
        limit=values.limit,
        n_shots=values.num_fewshot,
        include_path=values.include_path,
        uses_chat_template=values.apply_chat_template,
    )
    return harness_tasks.load_harness_tasks(options)


def evaluate(tasks, run, device_mesh, params: dict, tokenizer) -> dict:
    """Evaluate tasks, print their metrics, and return the columns for evals.jsonl."""
    from lm.evaluation import lm_eval_harness, task_eval
    from lm.evaluation.harness import harness_tasks

    adapter = lm_eval_harness.make_adapter(run, device_mesh, params, tokenizer)
    results = harness_tasks.evaluate_harness_tasks(tasks, adapter)
    print_results(results)
    return task_eval.to_columns(results)


def print_results(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print one line per task and metric."""
    counts = ("n", "n_truncated", "n_paradigms", "chance")
    lines = [
        {
            "task": name,
            "n": f"{metrics['n']['value']:.0f}" if "n" in metrics else "",
            "metric": metric,
            "value": f"{numbers['value']:.4f}",
            "standard error": f"{numbers['se']:.4f}" if "se" in numbers else "",
        }
        for name, metrics in results.items()
        for metric, numbers in metrics.items()
        if metric not in counts
    ]
    console.table(lines)
    for name, metrics in results.items():
        if n_truncated := metrics.get("n_truncated", {"value": 0})["value"]:
            console.print_line(
                f"{name}: {n_truncated:.0f} requests longer than data.seq_len were truncated at the"
                " beginning"
            )
