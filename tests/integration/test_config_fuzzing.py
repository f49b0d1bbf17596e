"""A mutated config is accepted, or rejected in one line, by the checks that the commands call.

A quick sample is part of each run of the tests. The long test, marked slow, examines 3,000 configs.
"""

import contextlib
import itertools
import random
import signal

import pytest

from experiments.common import config_files
from lm.config import schema
from lm.evaluation import tasks
from lm.model import memory_estimate
from lm.sweeps import launcher

GUARD_SECONDS = 30  # a check that takes longer has an endless loop
MAX_MESSAGE = 4500  # characters; a path or a source has at most 4096
SEED = 23
N_QUICK = 250
NUMBERS = [0, -1, 1, 3, 2**31 - 1, 2**31, 2**53, 2**63, 10**30, 10**400, -(10**400), 0.5, -0.0]
NUMBERS += [float("inf"), float("-inf"), float("nan"), 1e-300, 5e-324, 1e-30, 1e30, 1e300]
TEXTS = ["", "x", ".", "..", "/", "~", "-x", "\0", "a\0b", "a\nb", "é/ü", "日本", "\udcff", "CON"]
TEXTS += ["x" * 300, "x/" * 3000, "x" * 100_000, "%s{}", "bpe:" + "9" * 5000, "٣", "plan.json"]
OTHERS = [None, True, [], {}, b"x", 1j, {"code": 1.0}, {"code": [10**5000]}, {7: 1.0}, object()]
NAMES = ["copy?n=99999999999", "copy?shots=100000", "copy?n=" + "9" * 5000, "copy?length=99999999"]
NAMES += ["copy?seed=9999999999999", "copy?n=5000&shots=9", "copy?x", "copy?n=1&n=2", "copy?n=-1"]
NAMES += ["file:" + "x" * 5000, "file:a\0b", "file:/dev/zero", "text:" + "x" * 5000, "text:a\0b"]
NAMES += ["jsonl:" + "x" * 300 + "*.gz", "chat:x?shots=99999", "chat:x?cap=" + "9" * 5000, "text:"]
NAMES += ["synthetic:machine?megabytes=1e300", "synthetic:machine?megabytes=nan", "tasks:copy?n=1"]
NAMES += ["tasks:copy?megabytes=inf", "synthetic:" + "z" * 5000, "tfds:" + "z" * 5000, "code:x"]
RULES = [
    {"mlp": ["fsdp"] * 5000},
    {"x" * 5000: []},
    {"mlp": "x" * 5000},
    {"mlp": {}},
    {5: []},
    {"mlp": 10**5000},
    {10**5000: []},
]
ARGUMENTS = ["", "0", "-1", "1e999", "nan", "-inf", "9" * 5000, "1e-300", "0x10", "true", "null"]
ARGUMENTS += ["{}", "[]", '{"a": 1e999}', '{"mlp": NaN}', '{"code": "x"}', "\0", "é", "x" * 5000]
ARGUMENTS += ["[" * 100_000, '{"code": 1.0}', "99999999999999999999", "2147483648", "1,000", " "]


def single_changes() -> list[dict]:
    """Return {field: value} for every field and every extreme value."""
    changes = [
        {field: value}
        for field in schema.field_types(schema.Run)
        for value in [*NUMBERS, *TEXTS, *OTHERS]
    ]
    for name in NAMES:
        changes += [{"eval.tasks": name}, {"data.sources": {name: 1.0}}, {"data.tokenizer": name}]
        changes += [{"data.tokenizer": f"file:{name}"}, {"data.forbidden_tasks": name}]
        changes.append({"data.decontaminate_against": name, "data.decontaminate_ngram": 13})
    return changes + [{"mesh.rules": rules} for rules in RULES]


def combined_changes(valid: list[dict], n: int) -> list[dict]:
    """Return random pairs and triples of valid changes, for the checks of several fields."""
    generator = random.Random(SEED)
    parts = [generator.sample(valid, generator.choice((2, 3))) for _ in range(n)]
    return [dict(itertools.chain(*(change.items() for change in part))) for part in parts]


@contextlib.contextmanager
def hang_guard():
    """Raise an error in the test after GUARD_SECONDS."""

    def stop(*_):
        raise TimeoutError("the check does not end")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(GUARD_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def rejection(change: dict) -> str:
    """Return the message of the check that rejects a changed run, "" if it is valid.

    Any other error than a ValueError of one line fails the test.
    """
    run = schema.Run()
    for field, value in change.items():
        group, _, name = field.rpartition(".")
        setattr(getattr(run, group) if group else run, name, value)
    try:
        with hang_guard():
            launcher.validate_inputs([run])
            tasks.load_tasks(run.eval.tasks)
            memory_estimate.check_memory(run, 1, "cpu", 8e9)
    except ValueError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) <= MAX_MESSAGE, message[:500]
        return message
    return ""


def argument_rejection(field: str, text: str) -> str:
    """Return the message that rejects --config.FIELD=TEXT, "" if the value is valid."""
    try:
        with hang_guard():
            others, changes = config_files.field_changes([f"--config.{field}={text}"])
            assert others == []
            config_files.load_run_file("configs/base.py:10K", changes)
    except ValueError as error:
        message = str(error)
        assert message and "\n" not in message and len(message) <= MAX_MESSAGE, message[:500]
        return message
    return ""


def test_sample_of_mutated_configs_has_one_line_each():
    changes = random.Random(SEED).sample(single_changes(), N_QUICK)
    n_rejected = sum(bool(rejection(change)) for change in changes)
    assert n_rejected > N_QUICK / 2
    for name in NAMES:  # the lists of tasks and sources once had endless loops
        rejection({"eval.tasks": name})
        rejection({"data.sources": {name: 1.0}})


def test_sample_of_mutated_arguments_has_one_line_each():
    arguments = [*itertools.product(schema.field_types(schema.Run), ARGUMENTS)]
    for field, text in random.Random(SEED).sample(arguments, 150):
        argument_rejection(field, text)


@pytest.mark.parametrize(
    "argument",
    [
        *("--config.", "--config.=1", "--config..lr=1", "--config.optim..lr=1", "--config.optim=1"),
        *("--config.optim.lr", "--config.__class__=1", "--config.optim.__init__=1", "--config.é=1"),
        *(
            "--noconfig.steps",
            "--config.name.x=1",
            "--config." + "x" * 5000 + "=1",
            "--config.a\0=1",
        ),
    ],
)
def test_mutated_field_name_has_one_line(argument):
    with hang_guard(), pytest.raises(ValueError) as error:
        config_files.field_changes([argument])
    message = str(error.value)
    assert message and "\n" not in message and len(message) <= MAX_MESSAGE


@pytest.mark.slow
def test_many_mutated_configs_and_arguments_have_one_line_each():
    """The seed selects 2,500 changes of one field, and 500 of several fields."""
    changes = random.Random(SEED).sample(single_changes(), 2500)
    valid = [change for change in changes if not rejection(change)]
    assert 100 < len(valid) < 1250
    for change in combined_changes(valid, 500):
        rejection(change)
    arguments = [*itertools.product(schema.field_types(schema.Run), ARGUMENTS)]
    for field, text in random.Random(SEED).sample(arguments, 700):
        argument_rejection(field, text)
