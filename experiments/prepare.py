"""Prepare the corpus of a config: read, remove duplicates, split, tokenize, write token files.

uv run python -m experiments.prepare --config=configs/base.py
uv run python -m experiments.prepare --config=configs/base.py --sources='{"text:my/folder": 1}'
uv run python -m experiments.prepare --config=configs/mixture.py:my/corpora --num_workers=8
uv run python -m experiments.prepare --config=configs/base.py --from_prompts=feedback.jsonl
"""

import time

from absl import flags

from experiments.common import cli, console

_CONFIG = cli.config_flag()
_PROMPTS = flags.DEFINE_string(
    "from_prompts", "", "feedback file of experiments.sample: train on its answers that are rated +"
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 1, "processes that filter and tokenize", lower_bound=1
)


def main() -> int:
    run = cli.load_config(_CONFIG)
    from lm.config import validation
    from lm.data import corpus, splits

    if _PROMPTS.value:
        _use_feedback(run, _PROMPTS.value)
    validation.validate_run(run)
    start_time = time.perf_counter()
    manifests = corpus.prepare_corpus(run.data, console.preparing, _NUM_WORKERS.value)
    seconds = time.perf_counter() - start_time
    console.table(
        [
            {
                "source": source if len(source) < 36 else "..." + source[-32:],
                "weight": f"{run.data.sources[source]:g}",
                "documents": f"{m.documents['train']:,}",
                "held out": splits.describe_heldout(
                    source, m.documents["heldout"], m.groups["heldout"]
                ),
                "duplicates": f"{m.duplicates:,}",
                "rejected": ", ".join(f"{n:,} {why}" for why, n in m.dropped.items()) or "none",
                "bytes": f"{m.bytes['train']:,}",
                "tokens": f"{m.tokens['train']:,}",
                "hash": m.hash[:12],
            }
            for source, m in manifests.items()
        ]
    )
    n_bytes = sum(sum(m.bytes.values()) for m in manifests.values())
    console.print_line(f"{n_bytes / 1e6:,.1f} MB in {seconds:.1f} s, {run.data.tokenizer}")
    for line in corpus.corpus_notes(manifests):
        console.print_line(line)
    for m in manifests.values():
        console.print_line(m.folder)
    return 0


def _use_feedback(run, file: str) -> None:
    """Set the data fields of a run to train on the answers of a feedback file that are rated +."""
    from lm.data.sources import chat

    out = file.removesuffix(".jsonl") + ".tuning.jsonl"
    n = chat.write_tuning_set(file, out)
    run.data.sources = {f"chat:{out}": 1.0}
    run.data.packing, run.data.loss_on = "documents", "answers"
    console.print_line(f"{n:,} prompts rated good are in {out}: the source is chat:{out}")


if __name__ == "__main__":
    cli.run_main(main)
