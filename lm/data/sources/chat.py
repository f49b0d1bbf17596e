"""Conversations: templates, readers of JSON Lines, answer mask, and rated responses.

    render_conversation("chat", [Turn("Double: ha", "haha")])    # ^ADouble: ha^Bhaha^C
    render_prompt("chat", "Double: ho")                          # ^ADouble: ho^B
    answer_weights(tokens_BS, tokenizer)                         # 1 for targets in an answer

The special tokens are the control characters U+0001 (start of a user turn), U+0002 (start of an
answer) and U+0003 (end of an answer), written ^A, ^B, ^C above. They are removed from prompts and
answers. TEMPLATES lists the templates.

A line of a file is a prompt with its target, a task line of another format (example_formats.py), or
a list of messages. A task without a name gets the name of its folder:

    {"prompt": "...", "target": "...", "task": "rte", "category": "entailment"}
    {"src": "...", "tgt": "..."}                    any format, with its correct answer
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

The content of a message is a text or a list of text parts. A system message becomes the beginning
of the prompt that follows it. The instruction of a source is a line before the first prompt of each
conversation: chat:my/sst2.jsonl?instruction=Is+this+review+positive+or+negative. Without it, a
prompt does not name its task, unless its line has an instruction. An example is in the same split
with all instructions, but not with all templates.

With shots=N, the N latest earlier examples of the task precede each example; the first examples
have later ones. No held-out answer becomes part of training text: the hash of the last example
alone puts a conversation into the training or the held-out split, and shots have a hash that is in
the training split for all data.heldout_fraction up to MAX_HELDOUT_FRACTION.

Prompts of users are logged with the responses of a model and their ratings. The file is
append-only: the last line of an id counts. Responses that are rated good become a tuning set for
instruction tuning (Ouyang et al. 2022, arXiv:2203.02155):

    prompt_id = log_response("prompts.jsonl", "Repeat 7 twice.", "7 7", "runs/mine")
    rate_response("prompts.jsonl", prompt_id, good=True)         # or better="7, 7": a correction
    write_tuning_set("prompts.jsonl", "tuning.jsonl")            # 1 line for a chat: source

Axes: B rows, S tokens of a row, T = S - 1 targets.
"""

import dataclasses
import hashlib
import heapq
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm.data import tokenizers
from lm.data.sources import example_formats, readers, source_files, uri

USER, ANSWER, STOP = tokenizers.CHAT_TOKENS
# Name -> (format of the prompt, text after an answer). Without special tokens, every token of a
# conversation is a target of the loss.
TEMPLATES = {
    "chat":     (USER + "{}" + ANSWER,                            STOP),
    "question": (USER + "Question: {}\nAnswer: " + ANSWER,        STOP),
    "task":     (USER + "### Task\n{}\n### Result\n" + ANSWER,    STOP),
    "plain":    ("{}",                                            "\n"),
}  # fmt: skip
_REMOVAL_TABLE = str.maketrans("", "", "\0" + tokenizers.CHAT_TOKENS)
# Examples whose hash is below this fraction are no shots. It is half of all examples.
MAX_HELDOUT_FRACTION = 0.5
_FIELDS = {
    "template": uri.choice(TEMPLATES),
    "instruction": uri.sentence(),
    "only": uri.names(),
    "without": uri.names(),
    "cap": uri.count(),
    "shots": uri.count(uri.MAX_SHOTS),
}


class Turn(NamedTuple):
    """A prompt and its answer. Example hashes contain the names of this class and its fields."""

    prompt: str
    answer: str


class ChatExample(NamedTuple):
    """A conversation of a file."""

    turns: list[Turn]
    task: str
    category: str
    where: str  # file and line


@dataclasses.dataclass(frozen=True)
class ChatSource:
    """A chat source: files, template, and which conversations are selected."""

    path: str
    template: str = "chat"
    instruction: str = ""  # line before the first prompt of each conversation
    only: frozenset[str] = frozenset()  # tasks or categories to select; empty selects all
    without: frozenset[str] = frozenset()  # tasks or categories to exclude
    cap: int = 0  # examples per task, the same ones for every selection; 0: all
    shots: int = 0  # examples of the task that precede each example as turns

    def is_selected(self, example: ChatExample) -> bool:
        """Return True if `only` and `without` select the conversation."""
        names = {example.task, example.category}
        return (not self.only or bool(names & self.only)) and not names & self.without


def parse_chat_source(argument: str) -> ChatSource:
    """Parse "PATH?template=chat&only=a,b&without=c&cap=100&shots=2", and so on.

    All fields are optional: see ChatSource.

    Raises ValueError for an unknown field or value.
    """
    path, values = uri.parse_uri(argument, _FIELDS, "chat:")
    return ChatSource(path, **values)


def render_conversation(template: str, turns: Iterable[Turn]) -> str:
    """Return the text of a conversation in the format of a template, a name in TEMPLATES."""
    suffix = TEMPLATES[template][1]
    return "".join(
        f"{render_prompt(template, turn.prompt)}{_remove_special(turn.answer)}{suffix}"
        for turn in turns
    )


def render_prompt(template: str, prompt: str) -> str:
    """Return the text of a prompt in the format of a template. The answer follows directly.

    template: a name in TEMPLATES. prompt: text of one user turn, without earlier turns. Special
    characters in the prompt are removed.
    """
    before, _, after = TEMPLATES[template][0].partition("{}")
    return f"{before}{_remove_special(prompt)}{after}"


def chat_documents(argument: str, on_error: readers.ErrorHandler) -> Iterator[readers.Document]:
    """Yield the selected conversations of a source as documents, in file order.

    `on_error` is also called for each example of a task that has too few examples for its shots.
    """
    source = parse_chat_source(argument)
    capped_digests = _capped_digests(source) if source.cap else None

    def is_used(example: ChatExample) -> bool:
        is_capped = capped_digests is not None and _digest(example) not in capped_digests
        return not is_capped and source.is_selected(example)

    latest_shots = _first_shots(source, is_used) if source.shots else {}
    for example in chat_examples(source, on_error):
        if not is_used(example):
            continue
        home = _home(source, example)
        if not source.shots:
            text = _render_instructed(source, example.turns)
            yield readers.Document(text, example.where, home="" if home == text else home)
            continue
        candidates = latest_shots.setdefault(example.task, {})
        shots = [turns for other, turns in candidates.items() if other != home][-source.shots :]
        if len(shots) < source.shots:
            on_error(
                f"{example.where}: shots={source.shots} needs {source.shots} other training"
                f" examples of the task {example.task!r}, but there are {len(shots)}: use"
                f" shots={len(shots)}, or exclude the task by without="
            )
            continue
        turns = [turn for turns in (*shots, example.turns) for turn in turns]
        yield readers.Document(_render_instructed(source, turns), example.where, home=home)
        _add_shot(candidates, home, example, source.shots)


def _first_shots(
    source: ChatSource, is_used: Callable[[ChatExample], bool]
) -> dict[str, dict[str, list[Turn]]]:
    """Return the first shots + 1 examples of each task that may be shots, as {task: {text: turns}}.

    The number is shots + 1, because an example is not its own shot.
    """
    first_shots: dict[str, dict[str, list[Turn]]] = {}
    for example in chat_examples(source, lambda _: None):
        candidates = first_shots.setdefault(example.task, {})
        if len(candidates) <= source.shots and is_used(example):
            _add_shot(candidates, _home(source, example), example, source.shots)
    return first_shots


def _add_shot(
    candidates: dict[str, list[Turn]], text: str, example: ChatExample, n_shots: int
) -> None:
    """Make an example the latest of the n_shots + 1 candidates, if it may be a shot."""
    if _hash_fraction(text) >= MAX_HELDOUT_FRACTION:
        candidates.pop(text, None)
        candidates[text] = example.turns
        if len(candidates) > n_shots + 1:
            del candidates[next(iter(candidates))]


def chat_examples(
    source: ChatSource, on_error: readers.ErrorHandler = readers.raise_error
) -> Iterator[ChatExample]:
    """Yield all conversations of the files, including conversations that are not selected.

    `on_error` is called for each line that is not a conversation or has an empty prompt or answer.
    """
    for path in readers.json_files("chat", source.path).paths:
        for where, row in readers.read_json_lines(path, on_error):
            try:
                names = example_formats.task_names(row)
                task = names.get("task", path.parent.name)
                category = names.get("category", names.get("subject", ""))
                yield ChatExample(_turns(row, where), task, category, where)
            except ValueError as error:
                on_error(str(error))


def chat_task_names(argument: str) -> set[str]:
    """Return the tasks and categories of the selected conversations of a source."""
    source = parse_chat_source(argument)
    selected = (e for e in chat_examples(source, lambda _: None) if source.is_selected(e))
    return {name for example in selected for name in (example.task, example.category) if name}


def chat_files(argument: str) -> source_files.SourceFiles:
    """Return the files of a source. Raises ValueError if no file matches."""
    return readers.json_files("chat", parse_chat_source(argument).path)


def answer_weights(tokens_BS: np.ndarray, tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """Return loss weights of the targets, float32 [B, T].

    The weight is 1 for targets in answers and for the tokens that end an answer, else 0. Each
    document must follow an `end` token, as in rows of whole documents. A document that does not
    start with a user turn is plain text: all its targets have weight 1. An `end` token after
    another is padding and has weight 0.
    """
    assert tokenizer.marks is not None
    user, answer, stop = tokenizer.marks
    inputs_BT, targets_BT = tokens_BS[:, :-1], tokens_BS[:, 1:]
    specials = np.array([tokenizer.end, user, answer, stop])
    is_special_BT = np.isin(inputs_BT, specials)
    position_BT = np.where(is_special_BT, np.arange(inputs_BT.shape[1]), 0)
    # The last special token up to each input determines the part of the document.
    last_BT = np.take_along_axis(inputs_BT, np.maximum.accumulate(position_BT, axis=1), axis=1)
    starts_BT = (last_BT == tokenizer.end) & np.isin(targets_BT, (user, tokenizer.end))
    is_target_BT = ~np.isin(last_BT, (user, stop)) & ~(starts_BT & (inputs_BT == tokenizer.end))
    return is_target_BT.astype(np.float32)


def _turns(row: dict, where: str) -> list[Turn]:
    """Return the turns of a line. Raises ValueError for another format or an empty text."""
    if "messages" in row:
        turns = [Turn(*pair) for pair in example_formats.message_pairs(row["messages"], where)]
    elif {"prompt", "target"} <= row.keys():
        used = ("prompt", "target", *example_formats.ALIASES)
        example_formats.check_unused_fields(row, where, used)
        turns = [Turn(row["prompt"], row["target"])]
    else:
        labels = [str(row["label_name"])] if "label_name" in row else []
        example = example_formats.parse_example(row, where, labels)
        answer = example.answers[example.right].removeprefix(" ")
        turns = [Turn(example.prompts[example.right], answer)]
    for turn in turns:
        for field, text in zip(Turn._fields, turn, strict=True):
            if not isinstance(text, str):
                raise ValueError(f"{where}: {field} is {type(text).__name__}, not text")
            if not _remove_special(text).strip():
                raise ValueError(f"{where}: an empty {field}: fill it in, or data.on_error='skip'")
    return turns


def _render_instructed(source: ChatSource, turns: Sequence[Turn]) -> str:
    """Return the text of a conversation with the instruction before its first prompt."""
    first, *others = turns
    if source.instruction:
        first = Turn(f"{source.instruction}\n{first.prompt}", first.answer)
    return render_conversation(source.template, [first, *others])


def _home(source: ChatSource, example: ChatExample) -> str:
    """Return the text whose hash selects the split, which does not contain the instruction.

    An example is in the same split with all instructions of a file.
    """
    return render_conversation(source.template, example.turns)


def _capped_digests(source: ChatSource) -> set[bytes]:
    """Return the `cap` smallest hashes of the selected examples of each task.

    A smaller cap therefore selects a subset of a larger cap.
    """
    heaps: dict[
        str, list[int]
    ] = {}  # task -> its smallest hashes, negated: heapq pops the smallest
    for example in chat_examples(source, lambda _: None):
        if source.is_selected(example):
            heap = heaps.setdefault(example.task, [])
            negated_hash = -int.from_bytes(_digest(example), "big")
            if len(heap) < source.cap:
                heapq.heappush(heap, negated_hash)
            else:
                heapq.heappushpop(heap, negated_hash)
    return {(-negated).to_bytes(16, "big") for heap in heaps.values() for negated in heap}


def _digest(example: ChatExample) -> bytes:
    """Return a hash of the turns and the task."""
    return hashlib.blake2b(repr(example[:2]).encode(errors="replace"), digest_size=16).digest()


def _hash_fraction(text: str) -> float:
    """Return the hash that splits.py compares with data.heldout_fraction, from 0 to 1."""
    digest = hashlib.sha256(text.encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _remove_special(text: str) -> str:
    """Return the text with normalized newlines and without special tokens."""
    return readers.normalize_newlines(text).translate(_REMOVAL_TABLE)


def log_response(path: str | Path, prompt: str, answer: str, run: str) -> str:
    """Append a prompt with its answer to the log, and return its id.

    Raises OSError if the write fails.
    """
    row = {"id": uuid.uuid4().hex, "run": run, "prompt": prompt, "target": answer, "rating": ""}
    _append(path, row)
    return row["id"]


def rate_response(path: str | Path, prompt_id: str, good: bool = False, better: str = "") -> None:
    """Append the rating of an answer: good or bad. `better` replaces the answer and rates it good.

    Raises ValueError if the file has no prompt of this id.
    """
    rows = read_prompt_log(path)
    if prompt_id not in rows:
        raise ValueError(f"{path}: contains no prompt of id {prompt_id}: use an id of this file")
    row = rows[prompt_id] | {"rating": "good" if good or better else "bad"}
    _append(path, row | ({"target": better} if better else {}))


def read_prompt_log(path: str | Path) -> dict[str, dict]:
    """Return prompt id -> last line of the id. Raises ValueError for a line of another format."""
    rows = {}
    for where, row in readers.read_json_lines(Path(path)):
        if not {"id", "prompt", "target", "rating"} <= row.keys():
            fields = ", ".join(row) or "no fields"
            raise ValueError(f"{where}: is not a logged prompt: it has {fields}: delete the line")
        rows[row["id"]] = row
    return rows


def write_tuning_set(path: str | Path, out: str | Path) -> int:
    """Write the answers rated good as lines of prompt and target. Return the number of lines.

    Equal pairs are written once. Raises ValueError if no answer is rated good.
    """
    rows = read_prompt_log(path).values()
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
