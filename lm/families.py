"""Synthetic tasks with a dial for difficulty, whose chance levels are known.

    family = parse("addition?digits=2-3")            # a dial takes a number or a range
    draw(family, np.random.default_rng(0))           # Instance("add 17+825=", "842", 0.001)
    next(documents(parse_all("copy?length=4+sort")))   # lines to learn from: "copy kqzt=kqzt\n..."

    copy, reverse, upper, sort   length   letters, as they are, backwards, in capitals, in order
    compose    length            two of these at once, as in "upper sort dab=ABD"
    apply      order, spelling, length   one of six orders of the letters (back, left, right, swap,
                                 tail, keep) written in one of four ways (plain, upper, next,
                                 before): "back upper dab=BAD"; dials choose by number, from 0
    recall     length            pairs of a letter and a digit; the digit of one letter
    follow     length, steps     arrows between letters; where so many steps lead
    brackets   depth             closes what is open
    addition   digits            of two numbers
    modular    modulus, terms    a sum, modulo
    translate  words, lexicon    a made-up language: other words, the verb first, adjectives last

Each line stands by itself or, with template=NAME (see chat), is a conversation of its own.

A share HELDOUT of all instances, by the hash of their prompt, is in no document: tasks ask for
these alone. Chance is what the best guess gets that has not read the question; of a rearrangement
that is any order of the letters shown, of `recall` and `follow` any value shown.
"""

import dataclasses
import hashlib
import math
import string
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from lm import chat, config

HELDOUT = 0.2
LINES = 8  # instances in a document
PAIRS = {"(": ")", "[": "]", "{": "}"}
AZ = string.ascii_lowercase
LETTERS, DIGITS = np.array(list(string.ascii_lowercase)), np.array(list(string.digits))


class Instance(NamedTuple):
    prompt: str
    answer: str
    chance: float


@dataclasses.dataclass(frozen=True)
class Family:
    name: str  # as it was asked for
    kind: str  # a row of FAMILIES
    dials: dict[str, tuple[int, int]]  # the least and the most of each
    megabytes: float = 0.5  # of documents
    seed: int = 0  # of the documents; of several families the first's
    template: str = ""  # of chat, in which a document is one instance; "": LINES of them as text


def parse(name: str) -> Family:
    """Of "copy?length=2-5&megabytes=2"; ValueError for a family or dial that does not exist."""
    kind, _, rest = name.partition("?")
    if kind not in FAMILIES:
        raise ValueError("task " + config.unknown(kind, list(FAMILIES)))
    known = FAMILIES[kind][1]
    dials, others = dict(known), {"megabytes": 0.5, "seed": 0, "template": ""}
    for dial in rest.split("&") if rest else []:
        key, _, value = dial.partition("=")
        try:
            if key in others:
                others[key] = type(others[key])(value)
            elif key in known:
                low, _, high = value.partition("-")
                dials[key] = int(low), int(high or low)
            else:
                names = ", ".join([*known, *others])
                raise ValueError(f"task {name}: {key} does not exist: take {names}") from None
        except ValueError as error:
            why = f"task {name}: {key}={value} must be a number, or two such as 1-3"
            raise ValueError(str(error) if "take" in str(error) else why) from None
    for key, (low, high) in dials.items():
        least, most = LIMITS[key]
        if not least <= low <= high <= most:
            raise ValueError(f"task {name}: {key} must be from {least} to {most}")
    if not 0 < others["megabytes"] <= 1e5 or others["seed"] < 0:
        raise ValueError(f"task {name}: megabytes must be above 0, and seed at least 0")
    if others["template"] not in ("", *chat.TEMPLATES):
        raise ValueError(f"task {name}: template must be one of {', '.join(chat.TEMPLATES)}")
    return Family(name, kind, dials, **others)


def draw(family: Family, rng: np.random.Generator) -> Instance:
    """One instance, held out or not."""
    make, _ = FAMILIES[family.kind]
    dials = {k: int(rng.integers(low, high + 1)) for k, (low, high) in family.dials.items()}
    return make(rng, **dials)


def is_heldout(instance: Instance) -> bool:
    """Whether no document holds it: by its hash, the same in every family, seed and process."""
    digest = hashlib.sha256(instance.prompt.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELDOUT * 2**64


def drawn(family: Family, rng: np.random.Generator, heldout: bool, n: int) -> list[Instance]:
    """At most n different instances of one side; fewer where the family has no more."""
    found: dict[str, Instance] = {}
    for _ in range(50 * n + 200):
        if len(found) == n:
            break
        one = draw(family, rng)
        if is_heldout(one) == heldout:
            found[one.prompt] = one
    return list(found.values())


def parse_all(names: str) -> list[Family]:
    """Of names with + between them; "all" stands for all families but compositions of others."""
    kinds = "+".join(kind for kind in FAMILIES if kind not in ("compose", "apply"))
    return [parse(name) for name in (kinds if names == "all" else names).split("+")]


def shared(members: list[Family], unseen: str) -> list[str]:
    """Those of the families named in `unseen`, with commas between, that the members can draw."""
    asked = [parse(name) for name in unseen.split(",") if name.partition("?")[0] in FAMILIES]
    return [
        one.name
        for one in asked
        if any(
            one.kind == member.kind
            and all(
                low <= one.dials[dial][1] and one.dials[dial][0] <= high
                for dial, (low, high) in member.dials.items()
            )
            for member in members
        )
    ]


def documents(members: list[Family]) -> Iterator[str]:
    """Training instances of one family each, the families in turns: LINES, or a conversation."""
    rng = np.random.default_rng((members[0].seed, 1))
    left, turn = sum(family.megabytes for family in members) * 1e6, 0
    while left > 0:
        family = members[turn % len(members)]
        kept = drawn(family, rng, heldout=False, n=1 if family.template else LINES)
        if family.template:
            turns = [chat.Turn(one.prompt, one.answer) for one in kept]
            text = chat.render(family.template, turns)
        else:
            text = "".join(f"{one.prompt}{one.answer}\n" for one in kept)
        yield text
        left, turn = left - len(text), turn + 1


def _letters(rng, length: int) -> str:
    return "".join(rng.permutation(LETTERS)[:length])


SKILLS: dict[str, Callable[[str], str]] = {
    "copy": lambda text: text,
    "reverse": lambda text: text[::-1],
    "upper": str.upper,
    "sort": lambda text: "".join(sorted(text)),
}


def _skill(name: str) -> Callable[..., Instance]:
    def make(rng, length: int) -> Instance:
        text = _letters(rng, length)
        return Instance(f"{name} {text}=", SKILLS[name](text), 1 / math.factorial(length))

    return make


def _compose(rng, length: int) -> Instance:
    first, second = (str(name) for name in rng.permutation(["reverse", "upper", "sort"])[:2])
    text = _letters(rng, length)
    answer = SKILLS[first](SKILLS[second](text))
    return Instance(f"{first} {second} {text}=", answer, 1 / math.factorial(length))


# Where the letters come from, and how they are written.
ORDERS: dict[str, Callable[[str], str]] = {
    "keep": lambda text: text,
    "back": lambda text: text[::-1],
    "left": lambda text: text[1:] + text[:1],
    "right": lambda text: text[-1:] + text[:-1],
    "swap": lambda text: text[1::-1] + text[2:],
    "tail": lambda text: text[:-2] + text[:-3:-1],
}
SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": lambda text: text,
    "upper": str.upper,
    "next": lambda text: text.translate(str.maketrans(AZ, AZ[1:] + AZ[:1])),
    "before": lambda text: text.translate(str.maketrans(AZ, AZ[-1:] + AZ[:-1])),
}


def _apply(rng, order: int, spelling: int, length: int) -> Instance:
    how, written = list(ORDERS)[order], list(SPELLINGS)[spelling]
    text = _letters(rng, length)
    answer = SPELLINGS[written](ORDERS[how](text))
    return Instance(f"{how} {written} {text}=", answer, 1 / math.factorial(length))


def _recall(rng, length: int) -> Instance:
    keys, values = rng.permutation(LETTERS)[:length], rng.permutation(DIGITS)[:length]
    pairs, asked = [k + v for k, v in zip(keys, values, strict=True)], int(rng.integers(length))
    return Instance(f"recall {' '.join(pairs)} {keys[asked]}=", str(values[asked]), 1 / length)


def _follow(rng, length: int, steps: int) -> Instance:
    ring = rng.permutation(LETTERS)[:length]
    arrows = [f"{a}{b}" for a, b in zip(ring, np.roll(ring, -1), strict=True)]
    start, steps = int(rng.integers(length)), min(steps, length - 1)
    shown = " ".join(str(arrow) for arrow in rng.permutation(arrows))
    end = str(ring[(start + steps) % length])
    return Instance(f"follow {shown} {ring[start]}{steps}=", end, 1 / (length - 1))


def _brackets(rng, depth: int) -> Instance:
    text, opened = "", []
    while len(opened) < depth:
        if opened and rng.random() < 0.3:
            text += PAIRS[opened.pop()]
        opened.append(str(rng.choice(list(PAIRS))))
        text += opened[-1]
    answer = "".join(PAIRS[one] for one in reversed(opened))
    return Instance(f"close {text}=", answer, len(PAIRS) ** -depth)


def _addition(rng, digits: int) -> Instance:
    a, b = (int(n) for n in rng.integers(0, 10**digits, 2))
    return Instance(f"add {a}+{b}=", str(a + b), 10.0**-digits)  # the likeliest sum is 99...9


def _modular(rng, modulus: int, terms: int) -> Instance:
    numbers = [int(n) for n in rng.integers(0, modulus, terms)]
    asked = "+".join(map(str, numbers))
    return Instance(f"mod{modulus} {asked}=", str(sum(numbers) % modulus), 1 / modulus)


def _translate(rng, words: int, lexicon: int) -> Instance:
    kinds = "ANVAN"[-words:]
    said = [(kind, int(rng.integers(lexicon))) for kind in kinds]
    order = [one for one in said if one[0] == "V"]
    for place, one in enumerate(said):
        if one[0] == "N":
            order += [one, said[place - 1]] if kinds[place - 1 : place] == "A" else [one]
    theirs, ours = (
        " ".join(WORDS[kind][side][i] for kind, i in text)
        for side, text in enumerate((said, order))
    )
    return Instance(f"say {theirs}=", ours, float(lexicon) ** -words)


def _lexicon() -> dict[str, tuple[list[str], list[str]]]:
    """Kind of word -> 32 words of one language and, in their order, of the other."""
    rng = np.random.default_rng(7)
    words = [a + b + c for a in "bdgklmnprst" for b in "aeiou" for c in "dklmnrst"]
    words = [str(word) for word in rng.permutation(words)[: 6 * 32]]
    parts = [words[32 * i : 32 * i + 32] for i in range(6)]
    return {kind: (parts[2 * i], parts[2 * i + 1]) for i, kind in enumerate("ANV")}


WORDS = _lexicon()
# Name -> how an instance is made, and its dials as they are unless turned: what models of 10^5
# parameters begin to learn. Answers of one length are far easier to learn than of several.
FAMILIES: dict[str, tuple[Callable[..., Instance], dict[str, tuple[int, int]]]] = {
    "copy":      (_skill("copy"),    {"length": (3, 3)}),
    "reverse":   (_skill("reverse"), {"length": (3, 3)}),
    "upper":     (_skill("upper"),   {"length": (3, 3)}),
    "sort":      (_skill("sort"),    {"length": (3, 3)}),
    "compose":   (_compose,          {"length": (3, 3)}),
    "apply":     (_apply,            {"order": (0, 5), "spelling": (0, 3), "length": (3, 3)}),
    "recall":    (_recall,           {"length": (2, 2)}),
    "follow":    (_follow,           {"length": (3, 3), "steps": (1, 1)}),
    "brackets":  (_brackets,         {"depth": (1, 4)}),
    "addition":  (_addition,         {"digits": (1, 1)}),
    "modular":   (_modular,          {"modulus": (9, 9), "terms": (2, 2)}),
    "translate": (_translate,        {"words": (2, 2), "lexicon": (16, 16)}),
}  # fmt: skip
LIMITS = {
    "order": (0, 5), "spelling": (0, 3),
    "length": (2, 10), "steps": (1, 9), "depth": (1, 20), "digits": (1, 15), "modulus": (2, 1000),
    "terms": (2, 10), "words": (1, 5), "lexicon": (2, 32),
}  # fmt: skip
