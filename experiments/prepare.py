"""Prepares the text of a config: reads, removes duplicates, splits, writes token files.

uv run python -m experiments.prepare --config=configs/base.py
uv run python -m experiments.prepare --config=configs/base.py --sources='{"text:my/folder": 1}'
uv run python -m experiments.prepare --config=configs/mixture.py:my/corpora --workers=8
uv run python -m experiments.prepare --config=configs/base.py --from_prompts=prompts.jsonl
"""

import time

from absl import flags

from experiments.common import cli, console

_CONFIG = cli.config_flag()
_PROMPTS = flags.DEFINE_string("from_prompts", "", "kept by experiments.sample: those rated +")
_WORKERS = flags.DEFINE_integer("workers", 1, "processes that encode and judge", lower_bound=1)


def main() -> int:
    run = cli.load_config(_CONFIG)
    from lm.config import validation
    from lm.data import corpus

    if _PROMPTS.value:
        _take_prompts(run, _PROMPTS.value)
    validation.validate_run(run)
    began = time.perf_counter()
    manifests = corpus.prepare_corpus(run.data, console.preparing, _WORKERS.value)
    seconds = time.perf_counter() - began
    console.table(
        [
            {
                "source": source if len(source) < 36 else "..." + source[-32:],
                "weight": f"{run.data.sources[source]:g}",
                "documents": f"{m.documents['train']:,}",
                "held out": f"{m.documents['heldout']:,}",
                "duplicates": f"{m.duplicates:,}",
                "left out": ", ".join(f"{n:,} {why}" for why, n in m.dropped.items()) or "none",
                "bytes": f"{m.bytes['train']:,}",
                "tokens": f"{m.tokens['train']:,}",
                "hash": m.hash[:12],
            }
            for source, m in manifests.items()
        ]
    )
    for m in manifests.values():
        console.print_line(m.folder)
    n_bytes = sum(sum(m.bytes.values()) for m in manifests.values())
    console.print_line(f"{n_bytes / 1e6:,.1f} MB in {seconds:.1f} s, {run.data.tokenizer}")
    return 0


def _take_prompts(run, file: str) -> None:
    """Makes the prompts of a file, those rated good, what the run learns."""
    from lm.data.sources import chat

    out = file.removesuffix(".jsonl") + ".tuning.jsonl"
    n = chat.write_tuning_set(file, out)
    run.data.sources = {f"chat:{out}": 1.0}
    run.data.packing, run.data.loss_on = "documents", "answers"
    console.print_line(f"{n:,} prompts rated good are in {out}: the source chat:{out}")


if __name__ == "__main__":
    cli.run_main(main)
