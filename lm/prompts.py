"""Prompts that users typed, what a model said and what they thought of it; a tuning set of these.

    kept = keep("prompts.jsonl", "Say 7 twice.", "7 7", "runs/mine")     # only when asked to
    rate("prompts.jsonl", kept, good=True)                 # or better="7, 7": what it should say
    tuning_set("prompts.jsonl", "prompts.tuning.jsonl")    # 1: lines for the source chat:

The file only grows; of lines with one id the last counts. Kept prompts and ratings are what
instruction models were first tuned on (Ouyang et al. 2022, arXiv:2203.02155).
"""

import json
import uuid
from pathlib import Path

from lm import files


def keep(path: str | Path, prompt: str, answer: str, run: str) -> str:
    """Adds a line and returns its id. OSError if the file cannot be written."""
    row = {"id": uuid.uuid4().hex, "run": run, "prompt": prompt, "target": answer, "rating": ""}
    _add(path, row)
    return row["id"]


def rate(path: str | Path, kept: str, good: bool = False, better: str = "") -> None:
    """What a user thought of an answer; `better` replaces it. ValueError if there is none so."""
    rows = read(path)
    if kept not in rows:
        raise ValueError(f"{path}: holds no prompt of id {kept}")
    row = rows[kept] | {"rating": "good" if good or better else "bad"}
    _add(path, row | ({"target": better} if better else {}))


def read(path: str | Path) -> dict[str, dict]:
    """Id -> the last line of it. ValueError naming the line that is none."""
    found = {}
    for where, row in files.objects(Path(path)):
        if not {"id", "prompt", "target", "rating"} <= row.keys():
            raise ValueError(f"{where}: is no kept prompt: it has {', '.join(row) or 'nothing'}")
        found[row["id"]] = row
    return found


def tuning_set(path: str | Path, out: str | Path) -> int:
    """Writes those rated good as lines of prompt and target, each pair once; returns their number.

    ValueError if there are none.
    """
    rows = read(path).values()
    good = {(row["prompt"], row["target"]): row for row in rows if row["rating"] == "good"}
    if not good:
        raise ValueError(f"{path}: none of {len(rows)} prompts is rated good: rate with + after it")
    lines = [
        {"prompt": row["prompt"], "target": row["target"], "task": "prompts"}
        for row in good.values()
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    Path(out).write_text(text, encoding="utf-8")
    return len(lines)


def _add(path: str | Path, row: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
