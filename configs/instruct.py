"""Fine-tune a pre-trained run on instructions, with clusters of tasks held out.

    uv run python -m experiments.train \\
        --config=configs/instruct.py:runs/base-100K,my/instructions/train.jsonl.gz

Lines have a prompt and a target, with task and category, or messages: see lm/data/sources/chat.py.
FORBIDDEN lists categories that the file must not contain, else the run is rejected. Training
documents that share 13 words in a row with held-out examples are dropped and counted. Without a
file, the run tunes on synthetic tasks.

Hardware and time: the 100K model takes about 20 seconds on two CPU cores.
"""

from configs import base
from lm.config import schema
from lm.runs import records

FORBIDDEN = ("paraphrase", "nli", "fact_checking", "big_bench_hard")
SYNTHETIC = "tasks:copy?template=chat+upper?template=chat+sort?template=chat"


def get_config(parent_and_file: str = "") -> schema.Run:
    """Return the recipe for "PARENT,FILE": a run directory and a file. Both are optional."""
    parent, _, file = parent_and_file.partition(",")
    run = records.read_config(parent) if parent else base.get_config()
    tuned = schema.Run(name=f"{run.name}-instructed", dir=run.dir, model=run.model, optim=run.optim)
    tuned.start.run = run.name
    tuned.data.tokenizer, tuned.data.cache_dir = run.data.tokenizer, run.data.cache_dir
    tuned.data.sources = {f"chat:{file}?cap=500" if file else SYNTHETIC: 0.9, "docs": 0.1}
    tuned.data.packing, tuned.data.loss_on = "documents", "answers"
    tuned.data.seq_len, tuned.data.batch_size = run.data.seq_len, run.data.batch_size
    tuned.data.forbidden_tasks, tuned.data.decontaminate_ngram = ",".join(FORBIDDEN), 13
    tuned.optim.lr = run.optim.lr / 4
    tuned.steps = 400
    tuned.eval.interval, tuned.eval.patience = 50, 3
    tuned.eval.n_sequences, tuned.eval.n_completions = 256, 0
    return tuned
