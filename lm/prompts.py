"""Log of user prompts with model answers and ratings, and a tuning set of the rated answers.

    prompt_id = keep("prompts.jsonl", "Say 7 twice.", "7 7", "runs/mine")
    rate("prompts.jsonl", prompt_id, good=True)            # or better="7, 7": a corrected answer
    tuning_set("prompts.jsonl", "prompts.tuning.jsonl")    # 1: lines for a chat: source

The file is append-only: the last line of an id counts. Instruction models are tuned on such ratings
(Ouyang et al. 2022, arXiv:2203.02155).
"""

import json
import uuid
from pathlib import Path

from lm import files


def keep(path: str | Path, prompt: str, answer: str, run: str) -> str:
    """Append a prompt with its answer and return its id. Raises OSError if the write fails."""
    row = {"id": uuid.uuid4().hex, "run": run, "prompt": prompt, "target": answer, "rating": ""}
    _append(path, row)
    return row["id"]


def rate(path: str | Path, prompt_id: str, good: bool = False, better: str = "") -> None:
    """Append the rating of an answer. `better` replaces the answer and rates it good.

    Raises ValueError if the file has no prompt of this id.
    """
    rows = read(path)
    if prompt_id not in rows:
        raise ValueError(f"{path}: holds no prompt of id {prompt_id}: use an id of this file")
    row = rows[prompt_id] | {"rating": "good" if good or better else "bad"}
    _append(path, row | ({"target": better} if better else {}))


def read(path: str | Path) -> dict[str, dict]:
    """Return id -> its last line. Raises ValueError for a line of another format."""
    rows = {}
    for where, row in files.objects(Path(path)):
        if not {"id", "prompt", "target", "rating"} <= row.keys():
            fields = ", ".join(row) or "no fields"
            raise ValueError(f"{where}: is not a logged prompt: it has {fields}: delete the line")
        rows[row["id"]] = row
    return rows


def tuning_set(path: str | Path, out: str | Path) -> int:
    """Write the answers rated good as lines of prompt and target. Return the number of lines.

    Equal pairs are written once. Raises ValueError if no answer is rated good.
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


def _append(path: str | Path, row: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
