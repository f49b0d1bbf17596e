"""Synthetic tasks: correct answers, known chance, no instance in both splits."""

import collections

import numpy as np
import pytest

from lm.data.sources import documents, synthetic_tasks

RIGHT = {
    "copy": ("copy dab=", "dab"),
    "reverse": ("reverse dab=", "bad"),
    "upper": ("upper dab=", "DAB"),
    "sort": ("sort dab=", "abd"),
}


def draws(name, n, seed=0):
    family, rng = synthetic_tasks.parse_task(name), np.random.default_rng(seed)
    return [synthetic_tasks.sample_instance(family, rng) for _ in range(n)]


@pytest.mark.parametrize("name", RIGHT)
def test_a_skill_does_what_its_name_says(name):
    for one in draws(f"{name}?length=3", 20):
        text = one.prompt.removeprefix(f"{name} ").removesuffix("=")
        assert one.answer == synthetic_tasks.SKILLS[name](text)
    prompt, answer = RIGHT[name]
    assert synthetic_tasks.SKILLS[name](prompt.split()[1][:-1]) == answer


def test_sums_are_right_and_have_their_digits():
    for one in draws("addition?digits=2", 200):
        a, b = one.prompt.removeprefix("add ").removesuffix("=").split("+")
        assert int(one.answer) == int(a) + int(b) and len(a) <= 2
    for one in draws("modular?modulus=7&terms=3", 50):
        numbers = one.prompt.split()[1].removesuffix("=").split("+")
        assert int(one.answer) == sum(map(int, numbers)) % 7 and len(numbers) == 3


def test_brackets_close_what_is_open_in_its_order():
    for one in draws("brackets?depth=4", 100):
        text = one.prompt.removeprefix("close ").removesuffix("=") + one.answer
        while text:
            shorter = text.replace("()", "").replace("[]", "").replace("{}", "")
            assert shorter != text, one
            text = shorter
        assert len(one.answer) == 4


def test_recall_and_follow_answer_what_they_show():
    for one in draws("recall?length=5", 50):
        *pairs, asked = one.prompt.removeprefix("recall ").removesuffix("=").split()
        assert dict(pairs)[asked] == one.answer and one.chance == 1 / len(pairs)
    for one in draws("follow?length=5&steps=3", 50):
        *arrows, asked = one.prompt.removeprefix("follow ").removesuffix("=").split()
        at = asked[0]
        for _ in range(int(asked[1])):
            at = dict(arrows)[at]
        assert at == one.answer != asked[0] and one.chance == 1 / 4


def test_translation_puts_verb_first_and_adjectives_last():
    words = {kind: dict(zip(*pair, strict=True)) for kind, pair in synthetic_tasks.WORDS.items()}
    assert (
        len({w for pair in synthetic_tasks.WORDS.values() for side in pair for w in side}) == 6 * 32
    )
    for one in draws("translate?words=5", 20):
        a, n, v, a2, n2 = one.prompt.removeprefix("say ").removesuffix("=").split()
        A, N, V = (words[kind] for kind in "ANV")
        assert one.answer.split() == [V[v], N[n], A[a], N[n2], A[a2]]


@pytest.mark.parametrize(
    "name", ["addition?digits=1", "modular?modulus=5", "brackets?depth=2", "recall?length=2"]
)
def test_chance_is_what_the_best_guess_gets(name):
    asked = draws(name, 4000)
    counts = collections.Counter(one.answer for one in asked)
    best = counts.most_common(1)[0][1] / len(asked)
    if name.startswith("recall"):  # a value shown, at random
        best = np.mean([one.prompt.split()[1][1] == one.answer for one in asked])
    assert best == pytest.approx(asked[0].chance, abs=4 * (asked[0].chance / len(asked)) ** 0.5)


def test_no_document_contains_a_heldout_instance():
    for kind in synthetic_tasks.TASKS:
        name = f"{kind}?megabytes=0.01"
        shown = "\n".join(synthetic_tasks.task_documents(synthetic_tasks.parse_tasks(name)))
        lines = set(shown.split("\n"))
        family = synthetic_tasks.parse_task(kind)
        asked = synthetic_tasks.sample_distinct(
            family, np.random.default_rng(1), heldout=True, n=50
        )
        assert len(asked) > 5
        assert not {one.prompt + one.answer for one in asked} & lines
        share = np.mean([synthetic_tasks.is_heldout_instance(one) for one in draws(kind, 300)])
        assert 0.05 < share < 0.4


def test_documents_are_the_same_again_and_families_take_turns():
    name = "tasks:copy?megabytes=0.005+sort?megabytes=0.005"
    first = [document.text for document in documents.open_source(name)]
    assert first == [document.text for document in documents.open_source(name)]
    assert [text.split()[0] for text in first[:4]] == ["copy", "sort", "copy", "sort"]
    assert 0.009e6 < sum(map(len, first)) < 0.012e6
    assert len(synthetic_tasks.parse_tasks("all")) == len(synthetic_tasks.TASKS) - 2


@pytest.mark.parametrize(
    "name, words",
    [
        ("copyy", "did you mean copy"),
        ("copy?size=3", "size does not exist: use one of the fields length"),
        ("copy?length=x", "length=x must be a whole number, or a range such as 2-3, from 2 to 10"),
        ("copy?length=5-3", "length=5-3 must be a whole number, or a range .*, from 2 to 10"),
        ("copy?megabytes=0", "megabytes=0 must be a number from 1e-06 to 1"),
    ],
)
def test_invalid_task_name_is_refused_with_a_remedy(name, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        synthetic_tasks.parse_task(name)


def test_a_composition_is_an_order_and_a_spelling():
    said = {}
    for order, spelling in ((0, 0), (1, 1), (2, 2), (3, 3), (4, 0), (5, 0)):
        family = synthetic_tasks.parse_task(f"apply?order={order}&spelling={spelling}")
        one = synthetic_tasks.sample_instance(family, np.random.default_rng(1))
        said |= {one.prompt.rpartition(" ")[0]: one.answer}
    text = one.prompt.rpartition(" ")[2].removesuffix("=")
    shifted = {n: "".join(chr((ord(c) - 97 + n) % 26 + 97) for c in text) for n in (1, -1)}
    assert said == {
        "keep plain": text,
        "back upper": text[::-1].upper(),
        "left next": shifted[1][1:] + shifted[1][0],
        "right before": shifted[-1][2] + shifted[-1][:2],
        "swap plain": text[1] + text[0] + text[2],
        "tail plain": text[0] + text[2] + text[1],
    }


def test_unseen_tasks_are_refused_if_ranges_overlap():
    asked = "apply?order=2&spelling=1,copy?length=4"
    documents.validate_forbidden_tasks(
        "tasks:apply?order=0-1&spelling=1+apply?order=2&spelling=2", asked
    )
    with pytest.raises(ValueError, match="contains apply.order=2&spelling=1: choose other"):
        documents.validate_forbidden_tasks(
            "tasks:copy?length=3+apply?order=1-2&spelling=1-3", asked
        )
    with pytest.raises(ValueError, match="contains copy.length=4"):
        documents.validate_forbidden_tasks("tasks:copy?length=2-4", asked)


def test_with_a_template_an_instance_is_a_conversation():
    first = next(
        iter(synthetic_tasks.task_documents(synthetic_tasks.parse_tasks("upper?template=chat")))
    )
    prompt, answer = first.removesuffix("\x03").split("\x02")
    assert answer == prompt.removeprefix("\x01upper ").removesuffix("=").upper()
    with pytest.raises(ValueError, match="template=story must be one of .*chat, question"):
        synthetic_tasks.parse_task("upper?template=story")
