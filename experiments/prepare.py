"""Prepares the text of a config: reads, removes duplicates, splits, writes token files.

uv run python -m experiments.prepare --config=configs/base.py
uv run python -m experiments.prepare --config=configs/base.py --sources='{"text:my/folder": 1}'
uv run python -m experiments.prepare --config=configs/mixture.py:my/corpora --workers=8
uv run python -m experiments.prepare --config=configs/base.py --from_prompts=prompts.jsonl
"""

import time

from absl import flags

from experiments import cli, show

_CONFIG = cli.config_flag()
_PROMPTS = flags.DEFINE_string("from_prompts", "", "kept by experiments.sample: those rated +")
_WORKERS = flags.DEFINE_integer("workers", 1, "processes that encode and judge", lower_bound=1)


def main() -> int:
    run = cli.load_config(_CONFIG)
    from lm import checks, corpus

    if _PROMPTS.value:
        _take_prompts(run, _PROMPTS.value)
    checks.check(run)
    began = time.perf_counter()
    manifests = corpus.prepare(run.data, show.preparing, _WORKERS.value)
    seconds = time.perf_counter() - began
    show.table(
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
        show.say(m.folder)
    n_bytes = sum(sum(m.bytes.values()) for m in manifests.values())
    show.say(f"{n_bytes / 1e6:,.1f} MB in {seconds:.1f} s, {run.data.tokenizer}")
    return 0


def _take_prompts(run, file: str) -> None:
    """Makes the prompts of a file, those rated good, what the run learns."""
    from lm import prompts

    out = file.removesuffix(".jsonl") + ".tuning.jsonl"
    n = prompts.tuning_set(file, out)
    run.data.sources = {f"chat:{out}": 1.0}
    run.data.rows, run.data.score = "whole", "answers"
    show.say(f"{n:,} prompts rated good are in {out}: the source chat:{out}")


if __name__ == "__main__":
    cli.start(main)
