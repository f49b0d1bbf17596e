"""Show the rows of a training step: source, epoch, row number, documents and text.

Only the config is needed, because a batch depends on the config, the seed and the step alone.

uv run python -m experiments.show_batch --config=configs/base.py:100K --step=70
uv run python -m experiments.show_batch --run=runs/quickstart/100K --step=70 --rows=2
"""

from absl import flags

from experiments.common import cli, console, next_command, progress_view

_CONFIG = cli.config_flag()
_RUN = flags.DEFINE_string("run", "", "folder of a run, instead of --config")
_ALLOW = cli.allow_path_flag()
_CACHE = cli.cache_dir_flag()
_STEP = flags.DEFINE_integer("step", 0, "training step, from 0", lower_bound=0)
_ROWS = flags.DEFINE_integer("rows", 4, "number of rows whose text is printed", lower_bound=0)


def main() -> int:
    if _RUN.value and _CONFIG.value:
        raise ValueError(f"--run={_RUN.value} and --config exclude each other: remove one")
    if not _RUN.value and not _CONFIG.value:
        raise ValueError("--config=FILE or --run=FOLDER is missing, such as --run=runs/base-100K")
    is_run = bool(_RUN.value)
    run = cli.load_run(_RUN.value, _ALLOW.value) if is_run else cli.load_config(_CONFIG)
    from lm.data import dataset, evaluation_text
    from lm.data.sources import path_permissions

    if is_run:
        run.data.cache_dir = _CACHE.value or run.data.cache_dir
        permissions = path_permissions.grant_permissions(_RUN.value, _ALLOW.value)
        if not _CACHE.value:
            path_permissions.check_cache_folders(run, permissions)
        run = path_permissions.check_sources(run, permissions)
        run.data = evaluation_text.run_data(run)
    text = dataset.open_dataset(run.data, run.seed, progress_view.preparing)
    batch, rows = text.batch(_STEP.value), text.rows_of(_STEP.value)
    weights = batch.get("weights")
    console.table(
        [
            {
                "row": str(b),
                "source": source,
                "epoch": str(rows["epoch"][b]),
                "row of source": f"{rows['row'][b]} of {text.n_rows[source]}",
                "documents": _ranges(dataset.row_documents(text, source, int(rows["row"][b]))),
                "document ends": str((batch["tokens"][b, :-1] == text.tokenizer.end).sum()),
                "targets": str(run.data.seq_len if weights is None else int(weights[b].sum())),
            }
            for b, source in enumerate(rows["source"])
        ],
        title=f"step {_STEP.value} of {run.steps}, seed {run.seed}, text {text.hash[:12]}",
    )
    epochs, last_epochs = text.epochs(_STEP.value), text.epochs(run.steps)
    console.table(
        [
            {
                "source": source,
                "rows": f"{n_rows:,}",
                "epochs before this step": f"{epochs[source]:.3f}",
                "epochs of the run": f"{last_epochs[source]:.3f}",
            }
            for source, n_rows in text.n_rows.items()
        ]
    )
    for b in range(min(_ROWS.value, len(batch["tokens"]))):
        console.print_line(f"--- row {b}: {rows['source'][b]}")
        documents = _split_documents(batch["tokens"][b], text.tokenizer)
        console.print_line("\n--- end of a document\n".join(documents))
    if is_run:
        next_command.print_next("evaluate", f"--run={_RUN.value}")
    else:
        next_command.print_next("train", *next_command.config_arguments())
    return 0


def _split_documents(ids, tokenizer) -> list[str]:
    """Return the text of a row, split at the tokens that end documents."""
    ends = (ids == tokenizer.end).nonzero()[0]
    spans = zip([0, *(ends + 1)], [*ends, len(ids)], strict=True)
    return [tokenizer.decode(ids[start:stop]) for start, stop in spans]


def _ranges(numbers) -> str:
    """Format document numbers: "3 to 5" if they are consecutive, else a list."""
    first, last = numbers.min(), numbers.max()
    if len(numbers) == last - first + 1:
        return f"{first} to {last}"
    return ", ".join(map(str, numbers))


if __name__ == "__main__":
    cli.run_main(main)
