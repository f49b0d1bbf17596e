"""Tune the sizes of sweeps/ability_ladder.py on prompts, against models trained from scratch.

    uv run python -m experiments.plan --sweep=configs/sweeps/ability_tuning.py:my/tasks,400K
    uv run python -m experiments.sweep --sweep=configs/sweeps/ability_tuning.py:my/tasks,400K

The argument is TASKS,LARGEST,PARTS,RUNS. TASKS is a folder, data/tasks by default. LARGEST is the
largest size, 4M by default. PARTS are names of this list, separated by +, all by default. RUNS is
the folder that contains ability_ladder, "runs" by default. It must exist: all models use the
tokenizer of the ladder.

captions      English-German captions, from the pre-trained weights and from scratch, for equal
              numbers of steps, at each rate of FACTORS: the sweep of learning rates
long          captions from scratch, for the FLOPs of pre-training and tuning together
double        captions with the best rates of the part captions, for twice the steps
seeds         captions with the best rates, from the other seeds of the ladder
prompts       all tasks at once, each with two of its INSTRUCTIONS, and many other instructions:
              from the pre-trained weights and from scratch
specialists   each classification and the paraphrases, from scratch and from the pre-trained weights

my/tasks contains a folder per task of TASKS, with train.jsonl.gz and test.jsonl.gz. A line of the
captions and paraphrases has the fields src and tgt, a line of the other tasks text and label_name.
Other formats are in lm/data/sources/example_formats.py. The folder instructions has
train.jsonl.gz, test_seen_task.jsonl.gz, test_unseen_template.jsonl.gz and
test_unseen_task.jsonl.gz. For other tasks, edit TASKS, INSTRUCTIONS, CAPTIONS, SHORT_TASKS and
UNSEEN in a copy of this file. The runs are in RUNS/ability_tuning.

Models of the part prompts are tested on held-out items, on the third of the INSTRUCTIONS of a task,
which the tuning does not have, and on UNSEEN kinds of tasks. Of the folder instructions, the tests
are the tasks with few different answers, of which the model chooses the most probable one. Runs of
the parts long, double and specialists stop when their held-out loss rises. All parts but prompts
use the weights with the lowest held-out loss. lm/reports/tuned_abilities/pretraining_gain.py
compares the runs.

Hardware and time: a tuning run of STEPS has a fifth of the FLOPs of its pre-training: 4 minutes at
60K and 11 minutes at 1M on one busy CPU core. All parts of a size with three seeds have about
thirty times the steps of one tuning run, if none stops early. The results are in
experiments/log/ability_ladder.md, and notebooks/data/ability_tuning has the records.
"""

import urllib.parse
import warnings
from collections.abc import Iterator

from configs.sweeps import ability_ladder
from lm.config import model_sizes, schema

PARTS = ("captions", "long", "double", "seeds", "prompts", "specialists")
CAPTIONS = "translate_en_de_multi30k"
SHORT_TASKS = ("ag_news", "sst2", "subjectivity", "goemotions", "quora_paraphrase")
TASKS = {  # weight of each task in the part prompts
    **{CAPTIONS: 0.35, "ag_news": 0.1, "sst2": 0.1, "subjectivity": 0.1, "goemotions": 0.1},
    **{"quora_paraphrase": 0.05, "instructions": 0.2},
}
INSTRUCTIONS = {  # lines before the prompts: two of the tuning, and one that only tests have
    CAPTIONS: (
        "Translate this sentence to German.",
        "How do you say this in German?",
        "Write this in German.",
    ),
    "ag_news": (
        "What is the topic of this news?",
        "Choose the section of this article.",
        "Which category does this text belong to?",
    ),
    "sst2": (
        "Is this review positive or negative?",
        "What does the critic think of the film?",
        "Choose the sentiment of this text.",
    ),
    "subjectivity": (
        "Is this sentence subjective or objective?",
        "Is this an opinion or a description?",
        "Does this text state a fact or a feeling?",
    ),
    "goemotions": (
        "Which emotion does this comment express?",
        "How does the writer feel?",
        "Choose the emotion of this text.",
    ),
    "quora_paraphrase": (
        "Ask this question in other words.",
        "Write a question with the same meaning.",
        "Paraphrase this text.",
    ),
}
UNSEEN = ("nli", "fact_checking", "big_bench_hard")  # categories that tuning never contains
CHOICES = 10  # largest number of different answers of a task of the instructions that is tested
STEPS = 1024
FACTORS = (4 / 3, 8 / 3, 16 / 3)  # of the learning rate of the pre-training
# Best factors of captions. From scratch, 8/3 is better than 4/3 at three sizes. Tuned models were
# trained with both at one size, where 8/3 is better by half a BLEU, one standard error. 16/3 equals
# 8/3 with both methods at 150K, the only size where it was tried. The results are in
# experiments/log/ability_ladder.md.
BEST = {"tuned": 8 / 3, "scratch": 8 / 3}


def get_sweep(argument: str = "") -> Iterator[schema.Run]:
    """Yield the runs of each size for "TASKS,LARGEST,PARTS,RUNS"."""
    defaults = "data/tasks", ability_ladder.SIZES[-1], "+".join(PARTS), "runs"
    folder, largest, part_names, runs = ability_ladder.split_argument(argument, defaults)
    parts = part_names.split("+")
    if unknown := [part for part in parts if part not in PARTS]:
        raise ValueError(f"part={unknown[0]} does not exist: use one of {', '.join(PARTS)}")
    parents = _pretrained_runs(largest, runs)
    for size in ability_ladder.SIZES[: ability_ladder.SIZES.index(largest) + 1]:
        seeds = ability_ladder.SEEDS.get(size, (0, 1, 2))
        first, *others = (parents[f"{size}-seed{seed}" if seed else size] for seed in seeds)
        if "captions" in parts:
            for factor in FACTORS:
                yield _captions(first, folder, "tuned", factor)
                yield _captions(first, folder, "scratch", factor)
        if "long" in parts:
            run = _captions(first, folder, "scratch", BEST["scratch"] / 2)
            run.name = run.name.replace("-scratch-", "-long-")
            run.steps += round(first.steps * _row_tokens(first) / _row_tokens(run))
            run.eval.interval = run.steps // 16
            yield run
        if "double" in parts:
            for item in BEST.items():
                run = _captions(first, folder, *item)
                run.name, run.steps = run.name.replace("-captions-", "-captions-double-"), 2 * STEPS
                yield run
        if "seeds" in parts:
            for parent in others:
                yield from (_captions(parent, folder, *item) for item in BEST.items())
        if "prompts" in parts:
            yield from (_prompts(first, folder, *item) for item in BEST.items())
        if "specialists" in parts:
            for task in SHORT_TASKS:
                yield from (_specialist(first, folder, task, *item) for item in BEST.items())


def _pretrained_runs(largest: str, runs: str) -> dict[str, schema.Run]:
    """Return {size, or size and seed: run of the largest token budget} of the ladder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the ladder has given the warnings of its law
        sweep = list(ability_ladder.get_sweep(f"data/corpora,,{largest}"))
    suffix = f"-{max(ability_ladder.TOKENS) / 1e6:g}M"
    parents = {}
    for run in sweep:
        if run.name.endswith(suffix):
            run.dir = runs
            run.model.vocab_size = model_sizes.named_vocab_size(run.data.tokenizer)
            run.data.tokenizer = f"file:{runs}/{run.name}/tokenizer.json"
            parents[run.name.partition("/")[2].removesuffix(suffix)] = run
    return parents


def _new_run(parent: schema.Run, name: str, method: str, factor: float) -> schema.Run:
    """Return a run on conversations, with the model of a pre-trained run.

    method: "tuned" starts from its weights, "scratch" from random weights. factor: learning rate,
    in units of that of the parent.
    """
    label = parent.name.partition("/")[2].rpartition("-")[0]
    run = schema.Run(name=f"ability_tuning/{label}-{name}-{method}-x{factor:.2g}", dir=parent.dir)
    run.model, run.seed, run.steps = parent.model, parent.seed, STEPS
    run.start.run = parent.name if method == "tuned" else ""
    run.data.tokenizer = parent.data.tokenizer
    run.data.packing, run.data.loss_on = "documents", "answers"
    run.data.seq_len, run.data.batch_size = 256, 8
    run.optim.lr = factor * parent.optim.lr
    run.checkpoint_interval = 256
    run.eval.n_sequences, run.eval.n_completions = 128, 0
    return run


def _captions(parent: schema.Run, folder: str, method: str, factor: float) -> schema.Run:
    """Return a run on the captions, which have less than two epochs in STEPS."""
    run = _new_run(parent, "captions", method, factor)
    run.data.sources = {f"chat:{folder}/{CAPTIONS}/train.jsonl.gz": 1.0}
    run.eval.tasks = f"file:{folder}/{CAPTIONS}?template=chat"
    run.eval.interval, run.eval.patience = STEPS // 4, 4
    return run


def _specialist(
    parent: schema.Run, folder: str, task: str, method: str, factor: float
) -> schema.Run:
    """Return a run on a single task, which stops when its held-out loss rises."""
    run = _new_run(parent, task, method, factor)
    run.data.sources, run.data.heldout_fraction = {f"chat:{folder}/{task}/train.jsonl.gz": 1.0}, 0.1
    run.eval.tasks = f"file:{folder}/{task}?template=chat&n=500"
    run.eval.interval, run.eval.patience = STEPS // 16, 4
    return run


def _prompts(parent: schema.Run, folder: str, method: str, factor: float) -> schema.Run:
    """Return a run on prompts of all tasks. Each task but the folder instructions has two lines."""
    run = _new_run(parent, "prompts", method, factor)
    run.data.sources = {f"chat:{folder}/instructions/train.jsonl.gz": TASKS["instructions"]}
    tests = []
    for task, (*tuned, unseen) in INSTRUCTIONS.items():
        for line in tuned:
            source = f"chat:{folder}/{task}/train.jsonl.gz?{_instruction(line)}"
            run.data.sources[source] = TASKS[task] / len(tuned)
        size = "" if task == CAPTIONS else "&n=500"
        tests += [
            f"file:{folder}/{task}?template=chat&{_instruction(line)}{size}"
            for line in (tuned[0], unseen)
        ]
    run.data.forbidden_tasks = ",".join(UNSEEN)
    instructions = f"file:{folder}/instructions"
    for file in ("test_seen_task", "test_unseen_template"):
        tests.append(f"{instructions}/{file}.jsonl.gz?template=chat&choices={CHOICES}")
    tests += [
        f"{instructions}/test_unseen_task.jsonl.gz?template=chat&choices={CHOICES}&only={name}"
        for name in UNSEEN
    ]
    run.eval.tasks = " ".join(tests)
    return run


def _instruction(line: str) -> str:
    """Return the field of a source or a task with a line before its prompts."""
    return f"instruction={urllib.parse.quote_plus(line, safe='.')}"


def _row_tokens(run: schema.Run) -> int:
    """Return the tokens per step."""
    return run.data.seq_len * run.data.batch_size
