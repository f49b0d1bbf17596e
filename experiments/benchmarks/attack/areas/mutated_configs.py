"""Mutated configs: values of fields that no recipe has, through the checks before training.

A case mutates 40 configs, half of them by --config.FIELD=VALUE. Each check takes less than a second
of CPU time. One config that passes the checks is trained for two steps.
"""

import collections
import dataclasses
import random
import resource
import shutil
import signal
import time
from typing import Any

from experiments.benchmarks.attack import children, outcomes, subjects

N_CONFIGS = 40
UNTRAINED = {"steps", "stall_seconds"}  # A short limit of a stall ends any training.
MAX_SECONDS = 1.0
NUMBERS: tuple[Any, ...] = (
    *(
        0,
        1,
        -1,
        2,
        3,
        7,
        2**31 - 1,
        2**31,
        2**32,
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64,
        10**12,
        10**30,
    ),
    *(10**400, -(10**400), -(2**63), 0.5, 1.5, -0.0, 1e-300, 5e-324, 1e308, 1e-12, 0.999999999),
    *(float("inf"), float("-inf"), float("nan")),
)
TEXTS: tuple[Any, ...] = (
    *("", " ", ".", "..", "/", "a/b/c", "../x", "\0", "a\nb", "x" * 300, "x" * 5000, "<b>", "nan"),
    *("attack/checkpoints", "attack/damaged", "attack/report.html", "attack/sweep.json", "\udcff"),
    *("attack/plan.json", "attack/figures", "attack/.x", "bpe:0", "bpe:-1", "bpe:10000000000000"),
    *("bpe:", "file:nothing", "spm:nothing", "copy?n=99999999999", "copy?shots=100000", "copy?x=1"),
    *("copy?length=-1", "embed", "gs://", "s3://x", "~", "%s", "{}", "1e5", "inf", "0x10"),
)
OTHERS: tuple[Any, ...] = (None, True, False, [], [1], {}, {"a": 1}, (), b"", object)
SOURCES: tuple[Any, ...] = (
    *({"text:text": value} for value in (0, -1, 1e308, float("inf"), float("nan"), "1", None)),
    *({"text:text": 1, "text:text/": 1}, {"": 1}, {3: 1}, {"text:": 1}, {"text:nothing": 1}),
    *({"nothing:x": 1}, {"text:text?x=1": 1}, {"copy?length=10000000000": 1}, {"text:\0": 1}),
)


def run_case(seed: int, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Validate mutated configs, and train one of those that pass the checks."""
    folder = attacked.copy("prepared")
    ended = children.call(folder, validate_mutations, seed)
    if ended.status != 0:
        detail = f"exit status {ended.status}: {ended.errors[-400:]}"
        return outcomes.Outcome("failed", detail, {"failed": 1})
    counts = collections.Counter(ended.value["counts"])
    failures = list(ended.value["failures"])
    changes = ended.value["accepted"]
    if changes:
        trained = _train(folder, changes)
        counts[trained.kind] += 1
        if trained.kind == "failed":
            failures.append(f"trained with {changes}: {trained.detail}")
    shutil.rmtree(folder)
    if failures:
        return outcomes.Outcome("failed", "; ".join(failures), counts)
    return outcomes.Outcome("same", "", counts)


def validate_mutations(seed: int) -> dict[str, Any]:
    """Return the counts of outcomes, the failures, and the changes of one accepted config."""
    from lm.config import schema

    rng = random.Random(f"configs {seed}")
    fields = list(schema.flatten(schema.Run()))
    counts: collections.Counter = collections.Counter()
    failures, accepted = [], []
    _load_changed({})  # The first check imports the packages.
    for number in range(N_CONFIGS):
        names = rng.sample(fields, rng.choice((1, 1, 1, 2)))
        changes = {name: _random_value(name, rng) for name in names}
        is_override = number % 2 == 1
        outcome = _validate(changes, is_override)
        counts[outcome.kind] += 1
        if outcome.kind == "failed":
            shown = {name: repr(value)[:60] for name, value in changes.items()}
            kind = "override" if is_override else "config"
            failures.append(f"{kind} {shown}: {outcome.detail}")
        elif outcome.kind == "same" and is_override and not UNTRAINED & changes.keys():
            accepted.append([f"{name}={value}" for name, value in changes.items()])
    return {
        "counts": dict(counts),
        "failures": failures,
        "accepted": rng.choice(accepted) if accepted else [],
    }


def _random_value(name: str, rng: random.Random) -> Any:
    """Return a random value; most values have the type of the field."""
    from lm.config import schema

    default = schema.flatten(schema.Run())[name]
    if name == "data.sources" and rng.random() < 0.8:
        return rng.choice(SOURCES)
    if rng.random() < 0.25:
        return rng.choice((*NUMBERS, *TEXTS, *OTHERS))
    if isinstance(default, bool):
        return rng.choice((True, False, 1, "yes", 2))
    if isinstance(default, (int, float)):
        return rng.choice((*NUMBERS, default * 2, default * 1000, -default))
    return rng.choice(TEXTS)


def _validate(changes: dict[str, Any], is_override: bool) -> outcomes.Outcome:
    """Check a config with changes as the commands do before training."""
    began = time.process_time()
    signal.signal(signal.SIGALRM, _raise_timeout)
    signal.alarm(20)
    try:
        if is_override:
            _load_override(changes)
        else:
            _load_changed(changes)
        outcome = outcomes.Outcome("same")
    except (ValueError, OSError) as error:
        # A command prints an error in one line.
        outcome = outcomes.judge_message(str(error).replace("\n", " "), changes)
    except Exception as error:
        outcome = outcomes.Outcome("failed", f"traceback {type(error).__name__}: {error}"[:300])
    finally:
        signal.alarm(0)
    seconds = time.process_time() - began
    if seconds > MAX_SECONDS and outcome.kind != "failed":
        return outcomes.Outcome("failed", f"the check takes {seconds:.1f} s")
    return outcome


def _raise_timeout(*_) -> None:
    raise RuntimeError("the check takes more than 20 s")


def _load_override(changes: dict[str, Any]) -> None:
    from experiments.common import config_files

    texts = [f"{name}={value}" for name, value in changes.items()]
    _check_inputs(config_files.load_run_file("attack.py", texts))


def _load_changed(changes: dict[str, Any]) -> None:
    from experiments.common import config_files

    run = config_files.load_run_file("attack.py", [])
    for name, value in changes.items():
        group, _, field = name.rpartition(".")
        setattr(getattr(run, group) if group else run, field, value)
    _check_inputs(dataclasses.replace(run))


def _check_inputs(run: Any) -> None:
    from lm.evaluation import tasks
    from lm.runs import records
    from lm.sweeps import launcher

    launcher.validate_inputs([run])
    records.check_same_config(run)
    tasks.load_tasks(run.eval.tasks)


def _train(folder: Any, changes: list[str]) -> outcomes.Outcome:
    """Train an accepted config for two steps. It must end, or be refused in one line."""
    flags = [f"--config.{change}" for change in changes]
    # 6 GB: a shape that does not fit must be refused before it is allocated.
    options = children.Options(limits={resource.RLIMIT_DATA: 6 << 30}, timeout=60.0)
    ended = children.run_command(
        folder, "train", [subjects.CONFIG, *flags, "--config.steps=2"], options
    )
    names = [change.partition("=")[0] for change in changes]
    if ended.status == 1 and "diverged" in ended.output + ended.errors:
        return outcomes.Outcome("refused", "diverged")
    return outcomes.judge_command(ended.status, ended.output, ended.errors, names)
