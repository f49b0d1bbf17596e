"""Shows the rows of a step: source, epoch, place, documents and text, from the config alone.

uv run python -m experiments.show_batch --config=configs/base.py:100K --step=70
uv run python -m experiments.show_batch --run=runs/quickstart/100K --step=70 --rows=2
"""

from absl import flags

from experiments.common import cli, console

_CONFIG = cli.config_flag()
_RUN = flags.DEFINE_string("run", "", "folder of a run, instead of --config")
_STEP = flags.DEFINE_integer("step", 0, "step, from 0", lower_bound=0)
_ROWS = flags.DEFINE_integer("rows", 4, "rows whose text is shown", lower_bound=0)


def main() -> int:
    from lm.config import validation
    from lm.data import dataset
    from lm.runs import records

    run = (
        validation.validate_run(records.read_config(_RUN.value))
        if _RUN.value
        else cli.load_config(_CONFIG)
    )
    text = dataset.open_dataset(run.data, run.seed, console.preparing)
    batch, rows = text.batch(_STEP.value), text.rows_of(_STEP.value)
    weights = batch.get("weights")
    console.table(
        [
            {
                "row": str(b),
                "source": source,
                "seen before": f"{rows['epoch'][b]} times",
                "place": f"{rows['row'][b]} of {text.n_rows[source]}",
                "documents": _numbers(dataset.row_documents(text, source, int(rows["row"][b]))),
                "ends": str((batch["tokens"][b, :-1] == text.tokenizer.end).sum()),
                "scored": str(run.data.seq_len if weights is None else int(weights[b].sum())),
            }
            for b, source in enumerate(rows["source"])
        ],
        title=f"step {_STEP.value} of {run.steps}, seed {run.seed}, text {text.hash[:12]}",
    )
    console.table(
        [
            {
                "source": source,
                "rows": f"{n:,}",
                "seen by this step": f"{text.epochs(_STEP.value)[source]:.3f} times",
                "by the end": f"{text.epochs(run.steps)[source]:.3f} times",
            }
            for source, n in text.n_rows.items()
        ]
    )
    for b in range(min(_ROWS.value, len(batch["tokens"]))):
        parts, ids = [], batch["tokens"][b]
        ends = (ids == text.tokenizer.end).nonzero()[0]
        for start, stop in zip([0, *(ends + 1)], [*ends, len(ids)], strict=True):
            parts.append(text.tokenizer.decode(ids[start:stop]))
        console.print_line(f"--- row {b}: {rows['source'][b]}")
        console.print_line("\n--- end of a document\n".join(parts))
    return 0


def _numbers(documents) -> str:
    first, last = documents.min(), documents.max()
    if len(documents) == last - first + 1:
        return f"{first} to {last}"
    return ", ".join(map(str, documents))


if __name__ == "__main__":
    cli.run_main(main)
