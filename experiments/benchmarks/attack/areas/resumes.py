"""Resumes: text, tokenizer, devices or a config field change between a stop and the resume.

A changed text, tokenizer or field is refused, or has no effect on the bits. Fields of the execution
and the number of devices may change the last bits of later losses. Every evaluation after the
resumed step belongs to the last attempt.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.benchmarks.attack import children, outcomes, readers, subjects

# Fields that change the order of sums: later losses differ in their last bits.
ROUNDING = ("model.remat", "model.scan_unroll", "model.loss_chunks", "model.attention", "mesh.")
ROUNDING += ("optim.grad_accumulation_steps", "devices", "steps_per_call")
# Fields that change only the steps of rows and evaluations.
SCHEDULES = ("eval.interval", "log_interval", "eval.task_interval")
TOLERANCE = 1e-4
NAMES = ("data/", "text:text", "tokenizer", "corpus", "runs/attack/10K")


def run_case(seed: int, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Change one thing of a stopped run, resume it, and compare the results."""
    rng = random.Random(f"resumes {seed}")
    folder = attacked.copy("stopped")
    devices, flags = 1, []
    if seed % 5 < 2:
        edit = EDITS[(seed // 5 * 2 + seed % 5) % len(EDITS)]
        label = edit.__name__.strip("_")
        edit(folder, attacked.state("other"), rng)
    elif seed % 5 < 4:
        label, value = _changed_field(rng)
        flags = [f"--config.{label}={value}"]
    else:
        label = "devices"
        devices = rng.choice((2, 4))
    options = children.Options(devices=devices)
    ended = children.call(folder, resume, flags, options=options)
    names = [*NAMES, label]
    outcome = outcomes.judge_command(ended.status, ended.output, ended.errors, names)
    if outcome.kind in ("same", "repaired"):
        outcome = _judge_resumed(attacked.runs["10K"], ended.value, ended.errors.strip(), label)
    if outcome.kind != "failed":
        shutil.rmtree(folder)
    return outcome._replace(detail=f"{label} {' '.join(flags)}: {outcome.detail}")


def _judge_resumed(expected: Any, actual: Any, notes: str, label: str) -> outcomes.Outcome:
    """Compare the resumed run with the undisturbed one."""
    late = [step for step, attempt in actual["attempts"].items() if attempt != actual["last"]]
    wrong = [step for step in late if int(step) > actual["resumed_from"]]
    if wrong:
        detail = f"the evaluation of step {wrong[0]} is of attempt {actual['attempts'][wrong[0]]}"
        return outcomes.Outcome("failed", detail)
    results = actual["results"]["10K"]
    if label in SCHEDULES:
        expected, results = outcomes.common_parts(expected, results)
    outcome = outcomes.judge_results(expected, results, notes, NAMES)
    if outcome.kind == "failed" and label.startswith(ROUNDING):
        if _is_close(expected["losses"], results["losses"]):
            return outcomes.Outcome("same", "equal up to rounding")
    return outcome


def _is_close(expected: dict, actual: dict) -> bool:
    return expected.keys() == actual.keys() and all(
        abs(expected[step] - actual[step]) < TOLERANCE * expected[step] for step in expected
    )


def resume(flags: list[str]) -> dict[str, Any]:
    """Resume the stopped run. Return its results, and the attempt of each evaluation."""
    from lm.runs import records

    children.execute_command("train", [subjects.CONFIG, *flags])
    facts = records.read_facts(Path(readers.RUN))
    return {
        "results": readers.read_results([readers.RUN]),
        "attempts": {str(row["step"]): row["attempt"] for row in records.load_evals(readers.RUN)},
        "last": facts["attempts"],
        "resumed_from": facts["resumed_from"],
    }


def _changed_field(rng: random.Random) -> tuple[str, Any]:
    """Return a field and another value that is probably valid."""
    from lm.config import schema

    values = schema.flatten(schema.Run())
    kinds = schema.field_types(schema.Run)
    free = ("name", "dir", "resume", "data.sources", "mesh.rules", "wandb", "start.run")
    field = rng.choice([name for name in values if name not in free])
    value, choices = values[field], getattr(kinds.get(field), "__args__", ())
    if isinstance(value, bool):
        return field, not value
    if isinstance(value, int):
        return field, value * 2 or 2
    if isinstance(value, float):
        return field, value / 2 or 0.5
    others = [choice for choice in choices if choice != value and isinstance(choice, str)]
    return field, rng.choice(others) if others else f"{value}x"


def _texts(folder: Path, rng: random.Random, n: int) -> list[Path]:
    return rng.sample(sorted((folder / "text").glob("*.txt")), n)


def replace_words(folder: Path, other: Path, rng: random.Random) -> None:
    """Replace words by words of the same length in several documents."""
    for path in _texts(folder, rng, rng.choice((1, 5, 30))):
        path.write_text(path.read_text().replace("data", "tada"))


def replace_one_letter(folder: Path, other: Path, rng: random.Random) -> None:
    """Replace one letter of one document."""
    path = _texts(folder, rng, 1)[0]
    text = path.read_text()
    i = rng.randrange(len(text) - 1)
    path.write_text(f"{text[:i]}#{text[i + 1 :]}")


def add_document(folder: Path, other: Path, rng: random.Random) -> None:
    """Add a document."""
    shutil.copy(rng.choice(sorted((other / "text").glob("*.txt"))), folder / "text" / "new.txt")


def delete_document(folder: Path, other: Path, rng: random.Random) -> None:
    """Delete a document."""
    _texts(folder, rng, 1)[0].unlink()


def exchange_documents(folder: Path, other: Path, rng: random.Random) -> None:
    """Exchange the contents of two documents."""
    first, second = _texts(folder, rng, 2)
    texts = first.read_text(), second.read_text()
    first.write_text(texts[1])
    second.write_text(texts[0])


def rename_document(folder: Path, other: Path, rng: random.Random) -> None:
    """Rename a document, which changes the order of the documents."""
    path = _texts(folder, rng, 1)[0]
    path.rename(path.with_name(f"z{path.name}"))


def touch_documents(folder: Path, other: Path, rng: random.Random) -> None:
    """Change only the modification times of documents."""
    for path in _texts(folder, rng, 10):
        path.touch()


def delete_prepared_text(folder: Path, other: Path, rng: random.Random) -> None:
    """Delete the prepared text, which the source gives again."""
    shutil.rmtree(folder / "data")


def delete_text(folder: Path, other: Path, rng: random.Random) -> None:
    """Delete the source. The prepared text remains."""
    shutil.rmtree(folder / "text")


def exchange_prepared_text(folder: Path, other: Path, rng: random.Random) -> None:
    """Replace the prepared files by those of other text, in the folder of the first text."""
    target = next((folder / "data").glob("text-*"))
    for path in next((other / "data").glob("text-*")).iterdir():
        shutil.copyfile(path, target / path.name)


def exchange_tokenizers(folder: Path, other: Path, rng: random.Random) -> None:
    """Replace the tokenizers of the cache, or of the run, by those of other text."""
    new = next((other / "data").glob("bpe-*/tokenizer.json"))
    targets = [*(folder / "data").glob("*/tokenizer.json"), folder / subjects.RUN / new.name]
    for path in rng.sample(targets, rng.choice((1, len(targets)))):
        shutil.copyfile(new, path)


def swap_tokens(folder: Path, other: Path, rng: random.Random) -> None:
    """Exchange the ids of two tokens in a tokenizer."""
    targets = [*folder.glob("data/*/tokenizer.json"), folder / subjects.RUN / "tokenizer.json"]
    path = rng.choice(sorted(targets))
    value = json.loads(path.read_text())
    vocabulary = value["model"]["vocab"]
    first, second = rng.sample(sorted(vocabulary), 2)
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(value))


def delete_checkpoints(folder: Path, other: Path, rng: random.Random) -> None:
    """Delete the checkpoints. The run starts anew, and its evaluations belong to it."""
    shutil.rmtree(folder / subjects.RUN / "checkpoints")


EDITS: tuple[Callable[[Path, Path, random.Random], None], ...] = (
    *(replace_words, replace_one_letter, add_document, delete_document, exchange_documents),
    *(rename_document, touch_documents, delete_prepared_text, delete_text),
    *(exchange_prepared_text, exchange_tokenizers, swap_tokens, delete_checkpoints),
)
