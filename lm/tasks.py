"""Tasks: named examples with a prompt, what may be answered, and what is right.

    task = load("addition?digits=2&shots=2&n=100")           # a synthetic family: see families
    task = load("file:my/hellaswag?shots=2&n=500")           # a folder or file of JSON Lines
    task.examples[0].prompts, task.examples[0].answers, task.examples[0].right

A folder holds test.jsonl (or valid.jsonl; .gz and .zst too), and train.jsonl for the shots. What a
line asks is told by its fields: see forms.

Dials of all: shots=0 (solved examples before each), n (examples; 100 synthetic ones, all of a
file), seed (which ones), choices (of a synthetic task: the answer among answers of others; then
chance is one of so many), template (of chat: asked as a conversation). Of files: split=test,
generate=1 (the model also writes its answers, as
translations always are but with generate=0), only (tasks or categories, with commas between).
"""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from lm import chat, config, families, files, forms, overlap, sift, sources

SPLITS = ("test", "valid")
ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
SYNTHETIC = 100  # examples, unless n is given


Example = forms.Example


@dataclasses.dataclass(frozen=True)
class Task:
    name: str
    examples: list[Example]
    generate: bool = False  # the model writes answers too
    is_translation: bool = False
    stop: str = "\n"  # ends an answer that is written


def load(name: str) -> Task:
    """The task of a name; ValueError for one that does not exist, naming the nearest."""
    kind, _, rest = name.partition("?")
    dials: dict[str, str] = {}
    for dial in rest.split("&") if rest else []:
        key, _, value = dial.partition("=")
        dials[key] = value
    is_told = "generate" in dials
    shots, n, seed, choices, generate = (
        _number(name, dials, key, default)
        for key, default in (("shots", 0), ("n", 0), ("seed", 0), ("choices", 1), ("generate", 0))
    )
    template = dials.pop("template", "")
    if template not in ("", *chat.TEMPLATES):
        raise ValueError(f"task {name}: template must be one of {', '.join(chat.TEMPLATES)}")
    if kind.startswith("file:"):
        split, only = dials.pop("split", ""), dials.pop("only", "")
        if dials or choices != 1:
            unknown = next(iter(dials), "choices")
            known = "shots, n, seed, split, only, template, generate"
            raise ValueError(f"task {name}: {unknown} does not exist: take {known}")
        path = Path(kind.removeprefix("file:"))
        task = _from_files(name, path, split, only, shots, n, seed)
        writes = bool(generate) if is_told else task.is_translation
        return _as_chat(dataclasses.replace(task, generate=writes), template)
    if kind not in families.FAMILIES:
        known = [*families.FAMILIES, "file:FOLDER"]
        raise ValueError("task " + config.unknown(kind, known))
    rest = "&".join(f"{key}={value}" for key, value in dials.items())
    family = families.parse(f"{kind}?{rest}" if rest else kind)
    task = _from_family(name, family, shots, n or SYNTHETIC, seed, choices, bool(generate))
    return _as_chat(task, template)


def load_all(listed: str) -> list[Task]:
    """The tasks of run.eval.tasks: names with white space between them."""
    return [load(name) for name in listed.split()]


def met_in_training(asked: list[Task], data: config.Data, n: int = 13) -> dict[str, dict[str, int]]:
    """How many examples of each task share n words in a row with the training text of `data`.

    {task: {"n_overlap": examples that do, "n_checkable": those of at least n words}}. Reads all
    sources, once.
    """
    texts = {
        task.name: [example.prompts[example.right] + example.answers[example.right]
                    for example in task.examples]
        for task in asked
    }  # fmt: skip
    runs = {name: [overlap.runs(text, n) for text in mine] for name, mine in texts.items()}
    wanted = np.unique(
        np.concatenate([overlap.NONE, *(run for mine in runs.values() for run in mine)])
    )
    seen = np.zeros(len(wanted), bool)
    for source in data.sources if len(wanted) else ():
        for document in sources.documents(source):
            digest = hashlib.sha256(document.text.encode(errors="replace")).digest()
            if sift.share(document, digest) < data.heldout:
                continue
            mine = overlap.runs(document.text, n)
            place = np.minimum(np.searchsorted(wanted, mine), len(wanted) - 1)
            seen[place[wanted[place] == mine]] = True
    found = {}
    for name, mine in runs.items():
        met = [bool(seen[np.searchsorted(wanted, run)].any()) for run in mine if len(run)]
        found[name] = {"n_overlap": sum(met), "n_checkable": len(met)}
    return found


def _number(name: str, dials: dict, key: str, default: int) -> int:
    value = dials.pop(key, str(default))
    if not value.isdecimal():
        raise ValueError(f"task {name}: {key}={value} must be a whole number from 0 up")
    return int(value)


def _from_family(name, family, shots: int, n: int, seed: int, choices: int, generate) -> Task:
    rng = np.random.default_rng((seed, 2))
    asked = families.drawn(family, rng, heldout=True, n=n)
    if not asked:
        raise ValueError(f"task {name}: has no instance that is held out: turn its dials up")
    answers = sorted({one.answer for one in asked})
    if choices > len(answers):
        raise ValueError(f"task {name}: choices={choices} of {len(answers)} different answers")
    examples = []
    for one in asked:
        solved = families.drawn(family, rng, heldout=False, n=shots)
        shown = "".join(f"{shot.prompt}{shot.answer}\n" for shot in solved)
        if choices > 1:
            others = [str(a) for a in rng.permutation(answers) if a != one.answer][: choices - 1]
            said = tuple(f"{answer}\n" for answer in (one.answer, *others))
            prompts = (shown + one.prompt,) * choices
            examples.append(Example(prompts, said, 0, 1 / choices))
        else:
            prompt = (shown + one.prompt,)
            examples.append(Example(prompt, (one.answer + "\n",), 0, one.chance))
    return Task(name, examples, generate)


def _as_chat(task: Task, template: str) -> Task:
    """The same task as a conversation, whose answers end as they do in one."""
    if not template:
        return task
    after = chat.TEMPLATES[template][1]

    def said(answers: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(a.removeprefix(" ").removesuffix("\n") + after for a in answers)

    examples = [
        dataclasses.replace(
            one,
            prompts=tuple(chat.asked(template, prompt) for prompt in one.prompts),
            answers=said(one.answers),
            others=said(one.others),
        )
        for one in task.examples
    ]
    return dataclasses.replace(task, examples=examples, stop=after)


def _from_files(
    name: str, path: Path, split: str, only: str, shots: int, n: int, seed: int
) -> Task:
    path, wanted = path.expanduser(), set(only.split(","))
    rows = list(files.objects(path if path.is_file() else _part(name, path, split)))
    if only:
        rows = [(w, row) for w, row in rows if {row.get("task"), row.get("category")} & wanted]
    if not rows:
        raise ValueError(f"task {name}: holds no examples{f' of {only}' if only else ''}")
    labels = sorted({row["label_name"] for _, row in rows if "label_name" in row})
    examples = [forms.example(row, where, labels) for where, row in rows]
    train = next((path / f"train{e}" for e in ENDINGS if (path / f"train{e}").exists()), None)
    shown_from = files.objects(train) if train and shots else ()
    solved = [forms.example(row, where, labels) for where, row in shown_from]
    chosen = []
    for place in np.random.default_rng((seed, 3)).permutation(len(examples))[: n or None]:
        pool = solved or examples
        draws = np.random.default_rng((seed, 4, int(place))).permutation(len(pool))[: shots + 1]
        taken = [pool[i] for i in draws if solved or i != place][:shots]
        shown = "".join(f"{e.prompts[e.right]}{e.answers[e.right]}\n\n" for e in taken)
        prompts = tuple(shown + prompt for prompt in examples[place].prompts)
        chosen.append(dataclasses.replace(examples[place], prompts=prompts))
    is_translation = "tgt" in rows[0][1]
    return Task(name, chosen, is_translation=is_translation)


def _part(name: str, folder: Path, split: str) -> Path:
    """The file of a split in a folder."""
    for part in (split,) if split else SPLITS:
        for ending in ENDINGS:
            if (folder / f"{part}{ending}").exists():
                return folder / f"{part}{ending}"
    if folder.is_dir() and not split:
        inner = [p.parent.name for e in ENDINGS for p in folder.glob(f"*/test{e}")]
        why = f"has no test.jsonl; folders in it that have: {', '.join(sorted(inner)) or 'none'}"
        raise ValueError(f"task {name}: {folder} {why}")
    if not folder.is_dir():
        near = [f"file:{folder.parent / p.name}" for p in sorted(folder.parent.glob("*"))]
        raise ValueError("task " + config.unknown(f"file:{folder}", near or ["file:FOLDER"]))
    raise ValueError(f"task {name}: {folder} has no {split}.jsonl")
