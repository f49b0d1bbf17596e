"""Compare the counts of a run with its config, and check which results a run must have.

stored_results.check_counts(folder, run, facts)  # raises ValueError for a wrong count
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from lm.config import flops, model_sizes, schema
from lm.config.schedules import batch_size_schedule

BUDGET = ("tokens", "flops")  # counts that follow from the number of completed steps


def check_counts(folder: Path, run: schema.Run, facts: Mapping) -> None:
    """Raise ValueError if the counts in facts.json do not follow from the config of a run.

    The counts are the parameters, FLOPs per token, training tokens, FLOPs and the last step.
    Facts without some of the parameter counts are not compared: another program wrote them. A run
    with eval.patience may have fewer tokens than its config plans.
    """
    if not (run.model.vocab_size or model_sizes.named_vocab_size(run.data.tokenizer)):
        return  # the vocabulary size is in a tokenizer file
    try:
        counts = flops.run_facts(run)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / 'config.json'} has no valid counts ({error}): restore the file"
        ) from error
    if not all(name in facts for name in counts if name not in BUDGET):
        return
    expected = {name: count for name, count in counts.items() if name not in BUDGET}
    if "tokens" in facts:
        # The config of a published model does not describe its training.
        is_given = "imported.from" in facts or _is_early_stop(run, facts)
        n_tokens = facts["tokens"] if is_given else counts["tokens"]
        expected |= {"tokens": n_tokens, "flops": n_tokens * counts["flops_per_token.full"]}
    if facts.get("ends_at") is not None and not run.eval.patience:
        expected["ends_at"] = run.steps
    for name, count in expected.items():
        if facts.get(name) != count:
            raise ValueError(
                f"{folder / 'facts.json'}: {name}={facts.get(name)!r}, config.json gives {count!r}:"
                " restore both files"
            )


def _is_early_stop(run: schema.Run, facts: Mapping) -> bool:
    """Return True if early stopping explains fewer training tokens than the config plans."""
    n_tokens, planned = facts["tokens"], model_sizes.training_tokens(run)
    is_possible = run.eval.patience > 0 and type(n_tokens) is int and 0 < n_tokens < planned
    schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
    return is_possible and schedule.count_tokens(schedule.find_step(n_tokens)) == n_tokens


def has_final_evaluation(row: Mapping) -> bool:
    """Return True if a run evaluates its last step, on held-out text or on tasks.

    row: config fields and facts of the run. An imported model has no evaluation.
    """
    is_evaluated = row["data.heldout_fraction"] > 0 or bool(row["eval.tasks"])
    return is_evaluated and "imported.from" not in row


def describe_missing_result(row: Mapping) -> str:
    """Return a sentence about a finished run without its final evaluation, "" for other runs."""
    is_missing = row["status"] == "done" and "eval.step" not in row
    if not is_missing or not has_final_evaluation(row):
        return ""
    reason = row.get("reason", "no evaluation")
    remedy = "Repeat the command of the run, which evaluates its last checkpoint"
    return f"{row['dir']} has no result and is excluded: {reason}. {remedy}"


def valid_rows(rows: Iterable[dict], facts: Mapping) -> list[dict]:
    """Return rows of evals.jsonl without the results that facts.json marks as invalid."""
    invalid = facts.get("invalid_results", {})
    return [drop_invalid(row, invalid) if invalid else row for row in rows]


def drop_invalid(row: dict, invalid: Iterable[str]) -> dict:
    """Return a row of evals.jsonl without the results named in `invalid`, and their errors."""
    columns = set()
    for result in invalid:
        measure, dot, name = result.partition(".")
        columns |= {result, f"{measure}_se{dot}{name}"}
    prefixes = tuple(f"{column}." for column in columns)
    return {
        key: value
        for key, value in row.items()
        if key not in columns and not key.startswith(prefixes)
    }
