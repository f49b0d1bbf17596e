"""Malicious folders: downloaded runs and models that try to read or write other folders.

Beside the working directory is a folder `private` with a made-up secret. An attacked command must
not open a file in it, must not copy the secret, and must not write there. Sizes in headers, nested
JSON and HTML in names are in the same area.
"""

import json
import os
import random
import re
import resource
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.benchmarks.attack import children, outcomes, readers, subjects

SECRET = "TOP SECRET made up 4711"
HTML = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>')
MEMORY = 8 << 30  # bytes that a command may allocate: headers must be checked before
Command = tuple[str, list[str]]
EVALUATE: Command = ("evaluate", readers.COMMANDS["evaluate"])
SAMPLE: Command = ("sample", readers.COMMANDS["sample"])
EXPORT: Command = ("export", readers.COMMANDS["export"])
IMPORT: Command = ("import_hf", ["--source=model", "--run=runs/imported"])
REPORT: Command = ("report", [f"--dir={readers.SWEEP}"])
STATUS: Command = ("status", [f"--dir={readers.SWEEP}"])


def run_case(seed: int, attacked: subjects.Subjects) -> outcomes.Outcome:
    """Prepare a malicious folder and read it by a command."""
    rng = random.Random(f"malicious {seed}")
    forge = FOLDERS[seed % len(FOLDERS)]
    copy = attacked.copy("finished")
    parent = copy.with_name(f"{copy.name}-parent")
    parent.mkdir()
    folder = copy.rename(parent / "work")
    (parent / "compiled").symlink_to(attacked.root / "compiled")
    private = parent / "private"
    shutil.copytree(attacked.state("other") / "text", private)
    for path in private.iterdir():
        path.write_text(f"{SECRET} {path.read_text()}")
    shutil.copyfile(
        next((attacked.state("other") / "data").glob("bpe-*/*.json")), private / "tokenizer.json"
    )
    command, flags = forge(folder, private, rng)
    before = readers.file_hashes(private)
    for path in private.iterdir():
        os.utime(path, (1, 2))  # A later read changes the first time, also by native code.
    opened = parent / "opened"
    options = children.Options(limits={resource.RLIMIT_DATA: MEMORY}, timeout=90.0)
    ended = children.call(
        folder, run_watched, command, flags, str(private), str(opened), options=options
    )
    names = ("config.json", "facts.json", "sweep.json", "plan.json", "prediction.json", "heldout")
    names += ("10K", "model.safetensors", "index.json", "tokenizer.json", ".jsonl")
    outcome = outcomes.judge_command(ended.status, ended.output, ended.errors, names)
    problem = _find_breach(folder, private, before, opened) or _find_markup(folder, ended.output)
    if problem:
        outcome = outcomes.Outcome("failed", problem)
    elif outcome.kind == "same" and forge in MUST_NOT_PASS:
        outcome = outcomes.Outcome("failed", f"accepted: {ended.output[-300:]}")
    if outcome.kind != "failed":
        shutil.rmtree(parent)
    return outcome._replace(detail=f"{forge.__name__}, {command}: {outcome.detail}")


def run_watched(command: str, flags: list[str], private: str, log: str) -> None:
    """Run a command, and log each path below `private` that it opens or lists."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def watch(event: str, arguments: tuple) -> None:
        if event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename") and arguments:
            path = arguments[0]
            is_path = isinstance(path, (str, os.PathLike))
            if is_path and os.path.realpath(path).startswith(private):
                os.write(descriptor, f"{event} {path}\n".encode())

    sys.addaudithook(watch)
    children.execute_command(command, flags)


def _find_breach(folder: Path, private: Path, before: dict[str, str], opened: Path) -> str:
    """Return the problem if a command read or changed the private folder, or copied from it."""
    read = [path.name for path in private.iterdir() if path.is_file() and path.stat().st_atime > 1]
    if read:
        return f"read outside the run: {read[0]}"
    if readers.file_hashes(private) != before:
        return "a file of another folder was written"
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and SECRET.encode() in path.read_bytes():
            return f"the secret is in {path.relative_to(folder)}"
    if opened.exists() and opened.read_text():
        return f"read outside the run: {opened.read_text().splitlines()[0]}"
    return ""


def _find_markup(folder: Path, output: str) -> str:
    """Return the problem if a page or a figure contains markup from a record."""
    for path in (folder / readers.SWEEP).rglob("*"):
        if path.suffix in (".html", ".svg"):
            text = path.read_text(errors="replace")
            match = re.search(r"<script>alert|<img src=x|<svg onload", text)
            if match:
                return f"{path.name} contains {match[0]}"
    return ""


def _change_config(folder: Path, **changes: Any) -> None:
    """Write another config of the run, as a stranger who knows the format would."""
    from lm.config import schema
    from lm.runs import json_files

    file = folder / subjects.RUN / "config.json"
    value = json_files.read_record(file)
    known = schema.flatten(schema.Run())
    for name, new in changes.items():
        name = name.replace("__", ".")
        assert name in known, name
        group, _, field = name.rpartition(".")
        (value[group] if group else value)[field] = new
    json_files.write_record(file, value)


def private_source(folder: Path, private: Path, rng: random.Random) -> Command:
    """Name private text as the training text."""
    path = rng.choice((str(private), "../private", "text/../../private"))
    kind = rng.choice((f"text:{path}", f"jsonl:{path}/*.txt"))
    _change_config(folder, data__sources={kind: 1.0})
    return EVALUATE


def added_source(folder: Path, private: Path, rng: random.Random) -> Command:
    """Name private text beside the training text."""
    _change_config(folder, data__sources={"text:text": 1.0, f"text:{private}": 1.0})
    return EVALUATE


def private_cache(folder: Path, private: Path, rng: random.Random) -> Command:
    """Name a private folder as the folder of token files."""
    field = rng.choice(("data__cache_dir", "data__local_cache_dir"))
    _change_config(folder, **{field: rng.choice((str(private), "../private/cache"))})
    return EVALUATE


def private_decontamination(folder: Path, private: Path, rng: random.Random) -> Command:
    """Name private text as held-out text."""
    against = {"data__decontaminate_against": f"text:{private}", "data__decontaminate_ngram": 8}
    _change_config(folder, **against)
    return EVALUATE


def private_tokenizer(folder: Path, private: Path, rng: random.Random) -> Command:
    """Name a private file as the tokenizer."""
    _change_config(folder, data__tokenizer=f"file:{private}/tokenizer.json")
    if rng.random() < 0.5:
        (folder / subjects.RUN / "tokenizer.json").unlink()
    return rng.choice((SAMPLE, EVALUATE, EXPORT))


def private_parent(folder: Path, private: Path, rng: random.Random) -> Command:
    """Name a private folder as the parent run and as the tasks."""
    _change_config(folder, start__run="../../private", eval__tasks=f"file:{private}")
    return rng.choice((SAMPLE, EVALUATE, EXPORT))


def strange_name(folder: Path, private: Path, rng: random.Random) -> Command:
    """Give the run a name that is no path of a run."""
    names = (
        "",
        ".",
        "/",
        "K",
        "../10K",
        "../../private/10K",
        "/private/10K",
        "a" * 5000,
        "\0",
        3,
        None,
    )
    _change_config(folder, name=rng.choice(names))
    return rng.choice((SAMPLE, EVALUATE, EXPORT))


def linked_file(folder: Path, private: Path, rng: random.Random) -> Command:
    """Replace the tokenizer of the run by a link to a private file."""
    path = folder / subjects.RUN / "tokenizer.json"
    path.unlink()
    path.symlink_to(private / "tokenizer.json")
    return rng.choice((SAMPLE, EVALUATE, EXPORT))


def absurd_shape(folder: Path, private: Path, rng: random.Random) -> Command:
    """Store sizes that no memory has."""
    field = rng.choice(("model__vocab_size", "model__d_model", "model__n_layers", "data__seq_len"))
    _change_config(folder, **{field: rng.choice((10**7, 10**12, 10**30, -1, 0, 1e300, "4"))})
    return rng.choice((SAMPLE, EVALUATE, EXPORT))


def nested_json(folder: Path, private: Path, rng: random.Random) -> Command:
    """Replace a record by deeply nested JSON, or by a number of many digits."""
    files = ("config.json", "facts.json", "tokenizer.json", "metrics.jsonl", "evals.jsonl")
    path = folder / subjects.RUN / rng.choice(files)
    if rng.random() < 0.3:
        path = folder / readers.SWEEP / rng.choice(("sweep.json", "plan.json"))
    text = rng.choice(("[" * 100_000, '{"a":' * 100_000, '{"step": ' + "9" * 6000 + "}\n"))
    path.write_text(text)
    return rng.choice((REPORT, STATUS, SAMPLE))


def strange_values(folder: Path, private: Path, rng: random.Random) -> Command:
    """Replace a value of a record by a value of another type."""
    from lm.runs import json_files
    from lm.runs.integrity import record_checksums

    files = ("facts.json", "../sweep.json", "../plan.json", "evals.jsonl", "metrics.jsonl")
    path = folder / subjects.RUN / rng.choice(files)
    new = rng.choice((None, [], {}, "text", -1, 10**400, [[]], {"a": {}}, True))
    if path.suffix == ".json":
        value = json_files.read_record(path)
        value[rng.choice(sorted(value))] = new
        json_files.write_record(path, value)
    else:
        run_id, rows = json_files.run_id(path), json_files.read_rows(path)
        row = rng.choice(rows)
        row[rng.choice(sorted(row))] = new
        lines = [json.dumps(row) for row in rows]
        if run_id:
            lines = [record_checksums.add_line_checksum(line, run_id) for line in lines]
        path.write_text("".join(f"{line}\n" for line in lines))
    return rng.choice((REPORT, STATUS))


def markup(folder: Path, private: Path, rng: random.Random) -> Command:
    """Write HTML into the texts of records."""
    from lm.runs import json_files, records

    run, html = folder / subjects.RUN, rng.choice(HTML)
    for column in ("host", "code.commit", "code.version", "reason", "devices.kind"):
        records.write_facts(run, **{column: html})
    records.append_record(run / "evals.jsonl", {"attempt": 1, "step": 20, f"task.{html}.acc": 1.0})
    records.log_event(run, 1, 20, "spike", html)
    sweep = json_files.read_record(folder / readers.SWEEP / "sweep.json")
    sweep |= {"sweep": html, "command": html, "created": html}
    sweep["runs"] = [*sweep["runs"], f"attack/{html}"]
    json_files.write_record(folder / readers.SWEEP / "sweep.json", sweep)
    return REPORT


def absurd_archive(folder: Path, private: Path, rng: random.Random) -> Command:
    """Replace the loss sums per document by an array with an absurd header."""
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }"
    if rng.random() < 0.4:
        header = "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }"
    raw = header.ljust(117).encode() + b"\n"
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + bytes(64)
    (folder / subjects.RUN / "heldout.npz").write_bytes(content)
    return rng.choice((REPORT, STATUS))


def _write_model(folder: Path, header: dict | None = None, size: int | None = None) -> Path:
    """Write a folder of transformers with a safetensors file. header: of the file."""
    model = folder / "model"
    model.mkdir()
    config = {"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32}
    (model / "config.json").write_text(json.dumps(config))
    shutil.copyfile(folder / subjects.RUN / "tokenizer.json", model / "tokenizer.json")
    raw = json.dumps(header or {}).encode()
    content = struct.pack("<Q", len(raw) if size is None else size) + raw + bytes(64)
    (model / "model.safetensors").write_bytes(content)
    return model


def index_outside(folder: Path, private: Path, rng: random.Random) -> Command:
    """List a private file in the index of the weights."""
    model = _write_model(folder)
    shutil.copyfile(model / "model.safetensors", private / "model.safetensors")
    name = rng.choice(("../../private/model.safetensors", str(private / "model.safetensors")))
    if rng.random() < 0.3:
        name = "linked.safetensors"
        (model / name).symlink_to(private / "model.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return IMPORT


def strange_index(folder: Path, private: Path, rng: random.Random) -> Command:
    """Write an index of other types."""
    model = _write_model(folder)
    index = rng.choice(([], {"weight_map": []}, {"weight_map": {"a": 3}}, {"weight_map": None}, 3))
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return IMPORT


def absurd_header(folder: Path, private: Path, rng: random.Random) -> Command:
    """Write a safetensors file whose header has absurd sizes."""
    offsets = rng.choice(([0, 64], [0, 2**60], [-8, 64], [0, 10**30], [2**62, 2**62 + 1200]))
    shape = rng.choice(([2**40, 2**40], [300, 16], [-1, 16], [10**30], []))
    entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    size = rng.choice((None, 2**60, 2**63, 2**64 - 1, 0, 7))
    _write_model(folder, {"model.embed_tokens.weight": entry}, size)
    return IMPORT


def absurd_model(folder: Path, private: Path, rng: random.Random) -> Command:
    """Write a config.json of transformers with absurd sizes."""
    model = _write_model(folder)
    config = json.loads((model / "config.json").read_text())
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    keys += ("intermediate_size", "max_position_embeddings")
    config[rng.choice(keys)] = rng.choice((10**7, 10**15, 10**40, -1, 0, 1.5, "16", [], True))
    (model / "config.json").write_text(json.dumps(config))
    return IMPORT


FOLDERS: tuple[Callable[[Path, Path, random.Random], Command], ...] = (
    *(private_source, added_source, private_cache, private_decontamination, private_tokenizer),
    *(private_parent, strange_name, linked_file, absurd_shape, nested_json, strange_values, markup),
    *(absurd_archive, index_outside, strange_index, absurd_header, absurd_model),
)
MUST_NOT_PASS = (index_outside, strange_index, absurd_header, absurd_model)
