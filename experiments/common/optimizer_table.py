"""Optimizers of the runs of a plan: learning rate, lengths in steps, decay per step."""

from experiments.common import console
from lm.config import hyperparameter_rules, optimizer_config, schema
from lm.config.schedules import batch_size_schedule

PARTS = ("warmup", "decay")  # parts of the schedule with a number of steps


def describe_optimizer(run: schema.Run) -> dict:
    """Return the optimizer fields of a run, with all lengths as numbers of steps.

    decay_steps is 0 unless the schedule is wsd. weight_decay_per_step: largest decay of a matrix
    in one step. tokens_per_step, b2: those of the last batch size. batch_sizes: {first step: batch
    size}, see data.batch_size_warmup. lr_range: see hyperparameter_rules.published_lr_range.
    """
    schedule = batch_size_schedule.BatchSizeSchedule.from_config(run.data)
    optim = batch_size_schedule.resolve_tokens(run.optim, schedule, run.steps)
    n_warmup = optimizer_config.count_warmup_steps(optim, run.steps)
    n_decay = optimizer_config.count_decay_steps(optim, run.steps)
    n_decay = n_decay if optim.schedule == "wsd" else 0
    n_tokens = schedule.count_tokens(run.steps)
    return {
        "optimizer": optim.name,
        "lr": optim.lr,
        "lr_range": hyperparameter_rules.published_lr_range(run),
        "tokens_per_step": run.data.batch_size * run.data.seq_len,
        "batch_sizes": {stage.first_step: stage.batch_size for stage in schedule.stages},
        "schedule": optim.schedule,
        "warmup_steps": n_warmup,
        "warmup_tokens": schedule.count_tokens(n_warmup),
        "decay_steps": n_decay,
        "decay_tokens": n_tokens - schedule.count_tokens(max(run.steps - n_decay, 0)),
        "b2": optim.b2,
        "weight_decay_per_step": optim.weight_decay
        * (1.0 if optim.independent_weight_decay else optim.lr),
    }


def print_optimizers(rows: list[dict]) -> None:
    """Print a table of the optimizers, and a warning for each learning rate above all rules.

    rows: rows with the entries of `describe_optimizer`.
    """
    table = []
    for row in rows:
        lengths = [
            f"{row[f'{part}_steps']:,} steps, {row[f'{part}_tokens']:.3g} tokens" for part in PARTS
        ]
        table.append(
            {
                "run": row["name"],
                "optimizer": row["optimizer"],
                "learning rate": f"{row['lr']:.3g}",
                "published rules": "-" if not row["lr_range"] else _format_range(row["lr_range"]),
                "tokens per step": f"{row['tokens_per_step']:,}",
                "warm-up": lengths[0],
                "decay": lengths[1] if row["decay_steps"] else row["schedule"],
                "b2": f"{row['b2']:.6g}",
                "weight decay per step": f"{row['weight_decay_per_step']:.3g}",
            }
        )
    console.table(table, "Optimizer")
    for row in rows:
        if len(sizes := row["batch_sizes"]) > 1:
            parts = [f"{size:,} rows from step {step:,}" for step, size in sizes.items()]
            console.print_line(f"{row['name']}: {', '.join(parts)}")
    for row in rows:
        if row["lr_range"] and row["lr"] > row["lr_range"][1]:
            console.print_line(
                f"warning: {row['name']}: optim.lr={row['lr']:g} is above the published rules for"
                f" this size, {_format_range(row['lr_range'])}"
            )


def _format_range(values: tuple[float, float]) -> str:
    return f"{values[0]:.2g} to {values[1]:.2g}"
