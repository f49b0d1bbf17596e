"""Prepares the text of a config: reads, removes duplicates, splits, writes token files.

uv run python -m experiments.prepare --config=configs/base.py
uv run python -m experiments.prepare --config=configs/base.py --sources='{"text:my/folder": 1}'
"""

from experiments import cli, show

_CONFIG = cli.config_flag()


def main() -> int:
    run = cli.load_config(_CONFIG)
    from lm import config, corpus

    config.check(run)
    manifests = corpus.prepare(run.data, show.preparing)
    show.table(
        [
            {
                "source": source,
                "weight": f"{run.data.sources[source]:g}",
                "documents": f"{m.documents['train']:,}",
                "held out": f"{m.documents['heldout']:,}",
                "duplicates": f"{m.duplicates:,}",
                "bytes": f"{m.bytes['train']:,}",
                "tokens": f"{m.tokens['train']:,}",
                "hash": m.hash[:12],
                "folder": m.folder,
            }
            for source, m in manifests.items()
        ]
    )
    return 0


if __name__ == "__main__":
    cli.start(main)
