"""Prepare the text of a config or a sweep: read, deduplicate, split, tokenize, write token files.

uv run python -m experiments.prepare --config=configs/base.py
uv run python -m experiments.prepare --config=configs/base.py --sources='{"text:lm": 1}'
uv run python -m experiments.prepare --sweep=configs/sweeps/quickstart.py
uv run python -m experiments.prepare --config=configs/base.py --config.data.tokenizer=bpe:512 \\
    --num_workers=2
uv run python -m experiments.prepare --config=configs/base.py --from_prompts=feedback.jsonl
uv run python -m experiments.prepare --config=configs/web.py --engine=datatrove --num_workers=16 \\
    --config.data.quality_filters=gopher_quality,minhash

One machine is enough for about 10^7 documents or 100 GB of text. For more, --engine=datatrove (uv
sync --extra datatrove) divides a source into tasks for local processes, SLURM or Ray. The result is
the same corpus. A command whose tasks are submitted to SLURM ends at once; repeat it after their
end. The Ray executor has not been run with this project.
"""

import json
import time

from absl import flags

from experiments.common import cli, console, next_command, progress_view
from lm.config import validation

_SWEEP = flags.DEFINE_string("sweep", "", "FILE[:ARG] with get_sweep([ARG]) that yields runs")
_CONFIG = cli.config_flag()
_PROMPTS = flags.DEFINE_string(
    "from_prompts", "", "feedback file of experiments.sample: train on its answers that are rated +"
)
_ENGINE = flags.DEFINE_enum(
    "engine", "builtin", ["builtin", "datatrove"], "program that encodes the text"
)
_EXECUTOR = flags.DEFINE_enum(
    "executor", "local", ["local", "slurm", "ray"], "executor of datatrove; ray is untested"
)
_NUM_TASKS = flags.DEFINE_integer(
    "num_tasks", 0, "tasks of datatrove per source; 0 is one per file", lower_bound=0
)
_SLURM = flags.DEFINE_string(
    "slurm", "", "options of sbatch for --executor=slurm, such as '--partition=cpu --time=4:00:00'"
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 1, "processes that filter and tokenize", lower_bound=1, upper_bound=1024
)


def main() -> int:
    runs = cli.load_runs(_SWEEP.value, _CONFIG)
    from lm.data import corpus, splits
    from lm.data.large_corpora import datatrove_engine

    if _PROMPTS.value and _SWEEP.value:
        raise ValueError("--from_prompts and --sweep exclude each other: remove one")
    if _PROMPTS.value:
        _use_feedback(runs[0], _PROMPTS.value)
        validation.validate_run(runs[0])
    start_time = time.perf_counter()
    prepared = {}  # folder of a prepared source -> weight, tokenizer, manifest
    engine = _datatrove_engine()
    submitted_tasks = {}  # sources whose tasks a cluster has not finished
    for run in runs:
        try:
            options = {"workers": _NUM_WORKERS.value, "verify_all": True, "engine": engine}
            manifests = corpus.prepare_corpus(run.data, progress_view.preparing, **options)
        except datatrove_engine.TasksSubmitted as submitted:
            submitted_tasks |= dict.fromkeys(submitted.args)
            continue
        for source, m in manifests.items():
            prepared.setdefault(m.folder, (run.data.sources[source], run.data.tokenizer, m))
    for message in submitted_tasks:
        console.print_line(message)
    if submitted_tasks:
        return 0
    seconds = time.perf_counter() - start_time
    console.table(
        [
            {
                "source": m.source if len(m.source) < 36 else "..." + m.source[-32:],
                "weight": f"{weight:g}",
                "documents": f"{m.documents['train']:,}",
                "held out": splits.describe_heldout(
                    m.source, m.documents["heldout"], m.groups["heldout"]
                ),
                "duplicates": f"{m.duplicates:,}",
                "rejected": ", ".join(f"{n:,} {why}" for why, n in m.dropped.items()) or "none",
                "bytes": f"{m.bytes['train']:,}",
                "tokens": f"{m.tokens['train']:,}",
                "hash": m.hash[:12],
            }
            for weight, _, m in prepared.values()
        ]
    )
    n_bytes = sum(sum(m.bytes.values()) for _, _, m in prepared.values())
    names = ", ".join(dict.fromkeys(tokenizer for _, tokenizer, _ in prepared.values()))
    console.print_line(f"{n_bytes / 1e6:,.1f} MB in {seconds:.1f} s, {names}")
    for line in corpus.corpus_notes({m.source: m for _, _, m in prepared.values()}):
        console.print_line(line)
    arguments = next_command.sweep_or_config_arguments()
    if _PROMPTS.value:
        arguments += _feedback_arguments(runs[0])
    next_command.print_next("plan", *arguments)
    for folder in prepared:
        console.print_line(folder)
    return 0


def _datatrove_engine():
    """Return the engine of the flags, None for the built-in preparation."""
    from lm.data.large_corpora.datatrove_engine import DatatroveEngine

    if _ENGINE.value == "builtin":
        for flag in (_EXECUTOR, _NUM_TASKS, _SLURM):
            if flag.present:
                raise ValueError(f"--{flag.name} needs --engine=datatrove: add it")
        return None
    if _SLURM.value and _EXECUTOR.value != "slurm":
        raise ValueError(f"--slurm={_SLURM.value} needs --executor=slurm: add it")
    return DatatroveEngine(_EXECUTOR.value, _NUM_TASKS.value, _NUM_WORKERS.value, _SLURM.value)


def _feedback_arguments(run) -> list[str]:
    """Return the arguments that select the text of a feedback file in another command."""
    fields = [f"--config.data.{name}={getattr(run.data, name)}" for name in ("packing", "loss_on")]
    return [f"--sources={json.dumps(run.data.sources)}", *fields]


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
