"""Fine-tune a pre-trained run on instructions, with clusters of tasks held out.

    uv run python -m experiments.train \\
        --config=configs/instruct.py:runs/base-100K,my/instructions/train.jsonl.gz

Lines have a prompt and a target, with task and category, or messages: see lm/data/sources/chat.py.
The file may have its options, such as train.jsonl.gz?instruction=Translate+to+German, a line before
each prompt. The default is cap=500.
FORBIDDEN lists categories that the file must not contain, else the run is rejected. Training
documents that share 13 words in a row with held-out examples are dropped and counted. Without a
file, the run tunes on synthetic tasks. The learning rate is 4/3 of that of the parent.
Conversations differ from its text, and at 1/4 their held-out loss was higher (experiments/LOG.md).
The rate of an imported model is hyperparameter_rules.finetuning_lr.

Hardware and time: the 100K model takes about 20 seconds on two CPU cores.
"""

from configs import finetune
from lm.config import schema
from lm.data.sources import uri

FORBIDDEN = ("paraphrase", "nli", "fact_checking", "big_bench_hard")
SYNTHETIC = "tasks:copy?template=chat+upper?template=chat+sort?template=chat"


def get_config(parent_and_file: str = "") -> schema.Run:
    """Return the recipe for "PARENT,FILE": a run directory and a file. Both are optional."""
    parent, _, file = parent_and_file.partition(",")
    tuned = finetune.start_from(parent, lr_fraction=4 / 3)
    tuned.name += "-instructed"
    pretraining, options = tuned.data, uri.split_uri(file)[1]
    if file and "cap=" not in options:
        file += "&cap=500" if options else "?cap=500"
    tuned.data = schema.Data({f"chat:{file}" if file else SYNTHETIC: 0.9, "docs": 0.1})
    for field in ("tokenizer", "cache_dir", "seq_len", "batch_size"):
        setattr(tuned.data, field, getattr(pretraining, field))
    tuned.data.packing, tuned.data.loss_on = "documents", "answers"
    tuned.data.forbidden_tasks, tuned.data.decontaminate_ngram = ",".join(FORBIDDEN), 13
    tuned.steps = 400
    tuned.eval.interval, tuned.eval.patience = 50, 3
    tuned.eval.n_sequences, tuned.eval.n_completions = 256, 0
    return tuned
