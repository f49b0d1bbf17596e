"""Synthetic tasks: correct answers, known chance accuracy, no instance in both splits."""

import collections
import itertools

import numpy as np
import pytest

from lm.data.sources import documents, synthetic_tasks

EXAMPLES = {
    "copy": ("copy dab=", "dab"),
    "reverse": ("reverse dab=", "bad"),
    "upper": ("upper dab=", "DAB"),
    "sort": ("sort dab=", "abd"),
}


def sample(name, n, seed=0):
    """Return n sampled instances of a task."""
    task, rng = synthetic_tasks.parse_task(name), np.random.default_rng(seed)
    return [synthetic_tasks.sample_instance(task, rng) for _ in range(n)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_skill_answers_are_correct(name):
    for instance in sample(f"{name}?length=3", 20):
        text = instance.prompt.removeprefix(f"{name} ").removesuffix("=")
        assert instance.answer == synthetic_tasks.SKILLS[name](text)
    prompt, answer = EXAMPLES[name]
    assert synthetic_tasks.SKILLS[name](prompt.split()[1][:-1]) == answer


def test_sums_are_correct_and_have_the_requested_digits():
    for instance in sample("addition?digits=2", 200):
        a, b = instance.prompt.removeprefix("add ").removesuffix("=").split("+")
        assert int(instance.answer) == int(a) + int(b) and len(a) <= 2
    for instance in sample("modular?modulus=7&terms=3", 50):
        numbers = instance.prompt.split()[1].removesuffix("=").split("+")
        assert int(instance.answer) == sum(map(int, numbers)) % 7 and len(numbers) == 3


def test_brackets_answer_closes_all_open_brackets():
    for instance in sample("brackets?depth=4", 100):
        text = instance.prompt.removeprefix("close ").removesuffix("=") + instance.answer
        while text:
            shorter = text.replace("()", "").replace("[]", "").replace("{}", "")
            assert shorter != text, instance
            text = shorter
        assert len(instance.answer) == 4


def test_recall_and_follow_answers_match_their_prompts():
    for instance in sample("recall?length=5", 50):
        *pairs, query = instance.prompt.removeprefix("recall ").removesuffix("=").split()
        assert dict(pairs)[query] == instance.answer and instance.chance == 1 / len(pairs)
    for instance in sample("follow?length=5&steps=3", 50):
        *arrows, query = instance.prompt.removeprefix("follow ").removesuffix("=").split()
        letter = query[0]
        for _ in range(int(query[1])):
            letter = dict(arrows)[letter]
        assert letter == instance.answer != query[0] and instance.chance == 1 / 4


def test_translation_has_verb_first_and_adjectives_last():
    words = {kind: dict(zip(*pair, strict=True)) for kind, pair in synthetic_tasks.WORDS.items()}
    word_lists = [word_list for pair in synthetic_tasks.WORDS.values() for word_list in pair]
    assert len({word for word_list in word_lists for word in word_list}) == 6 * 32
    for instance in sample("translate?words=5", 20):
        a, n, v, a2, n2 = instance.prompt.removeprefix("say ").removesuffix("=").split()
        A, N, V = (words[kind] for kind in "ANV")
        assert instance.answer.split() == [V[v], N[n], A[a], N[n2], A[a2]]


@pytest.mark.parametrize(
    "name", ["addition?digits=1", "modular?modulus=5", "brackets?depth=2", "recall?length=2"]
)
def test_chance_equals_accuracy_of_the_best_guess(name):
    instances = sample(name, 4000)
    counts = collections.Counter(instance.answer for instance in instances)
    accuracy = counts.most_common(1)[0][1] / len(instances)
    if name.startswith("recall"):  # the best guess is any shown value, here the first
        accuracy = np.mean([i.prompt.split()[1][1] == i.answer for i in instances])
    chance = instances[0].chance
    assert accuracy == pytest.approx(chance, abs=4 * (chance / len(instances)) ** 0.5)


def test_no_document_contains_a_heldout_instance():
    for kind in synthetic_tasks.TASKS:
        name = f"{kind}?megabytes=0.01"
        text = "\n".join(synthetic_tasks.task_documents(synthetic_tasks.parse_tasks(name)))
        lines = set(text.split("\n"))
        task, rng = synthetic_tasks.parse_task(kind), np.random.default_rng(1)
        heldout = synthetic_tasks.sample_distinct(task, rng, heldout=True, n=50)
        assert len(heldout) > 5
        assert not {instance.prompt + instance.answer for instance in heldout} & lines
        is_heldout = [synthetic_tasks.is_heldout_instance(i) for i in sample(kind, 300)]
        assert 0.05 < np.mean(is_heldout) < 0.4


def test_documents_are_reproducible_and_tasks_alternate():
    name = "tasks:copy?megabytes=0.005+sort?megabytes=0.005"
    texts = [document.text for document in documents.open_source(name)]
    assert texts == [document.text for document in documents.open_source(name)]
    assert [text.split()[0] for text in texts[:4]] == ["copy", "sort", "copy", "sort"]
    assert 0.009e6 < sum(map(len, texts)) < 0.012e6
    assert len(synthetic_tasks.parse_tasks("all")) == len(synthetic_tasks.TASKS) - 2


@pytest.mark.parametrize(
    "name, message",
    [
        ("copyy", "did you mean copy"),
        ("copy?size=3", "size does not exist: use one of the fields length"),
        ("copy?length=x", "length=x must be a whole number, or a range such as 2-3, from 2 to 10"),
        ("copy?length=5-3", "length=5-3 must be a whole number, or a range .*, from 2 to 10"),
        ("copy?megabytes=0", "megabytes=0 must be a number from 1e-06 to 1"),
    ],
)
def test_invalid_task_name_is_rejected_with_a_remedy(name, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        synthetic_tasks.parse_task(name)


def test_apply_combines_an_order_and_a_spelling():
    answers = {}
    for order, spelling in ((0, 0), (1, 1), (2, 2), (3, 3), (4, 0), (5, 0)):
        task = synthetic_tasks.parse_task(f"apply?order={order}&spelling={spelling}")
        instance = synthetic_tasks.sample_instance(task, np.random.default_rng(1))
        answers |= {instance.prompt.rpartition(" ")[0]: instance.answer}
    text = instance.prompt.rpartition(" ")[2].removesuffix("=")
    shifted = {n: "".join(chr((ord(c) - 97 + n) % 26 + 97) for c in text) for n in (1, -1)}
    assert answers == {
        "keep plain": text,
        "back upper": text[::-1].upper(),
        "left next": shifted[1][1:] + shifted[1][0],
        "right before": shifted[-1][2] + shifted[-1][:2],
        "swap plain": text[1] + text[0] + text[2],
        "tail plain": text[0] + text[2] + text[1],
    }


def test_forbidden_tasks_are_rejected_if_ranges_overlap():
    forbidden = "apply?order=2&spelling=1,copy?length=4"
    documents.validate_forbidden_tasks(
        "tasks:apply?order=0-1&spelling=1+apply?order=2&spelling=2", forbidden
    )
    with pytest.raises(ValueError, match="contains apply.order=2&spelling=1: choose other"):
        documents.validate_forbidden_tasks(
            "tasks:copy?length=3+apply?order=1-2&spelling=1-3", forbidden
        )
    with pytest.raises(ValueError, match="contains copy.length=4"):
        documents.validate_forbidden_tasks("tasks:copy?length=2-4", forbidden)


def test_instance_with_a_template_is_a_conversation():
    tasks = synthetic_tasks.parse_tasks("upper?template=chat")
    text = next(iter(synthetic_tasks.task_documents(tasks)))
    prompt, answer = text.removesuffix("\x03").split("\x02")
    assert answer == prompt.removeprefix("\x01upper ").removesuffix("=").upper()
    with pytest.raises(ValueError, match="template=story must be one of .*chat, question"):
        synthetic_tasks.parse_task("upper?template=story")


def test_overlap_of_tasks_equals_an_enumeration():
    """Two tasks overlap if they have a common combination of parameter values."""
    ranges = [(low, high) for low in range(3) for high in range(low, 3)]
    names = [f"apply?order={a}-{b}&spelling={c}-{d}&length=3" for a, b in ranges for c, d in ranges]
    for name in names[::5]:
        combinations = {name: _combinations(name) for name in names}
        for other in names:
            common = combinations[name] & combinations[other]
            conflicts = synthetic_tasks.overlapping_tasks(synthetic_tasks.parse_tasks(name), other)
            assert bool(conflicts) == bool(common), (name, other)
    copies = synthetic_tasks.parse_tasks("copy?length=4+reverse?length=3-5")
    others = "sort?length=4,reverse?length=6,file:x"
    assert synthetic_tasks.overlapping_tasks(copies, others) == []
    forbidden = "sort?length=4,reverse?length=5,copy?length=2-9"
    conflicts = synthetic_tasks.overlapping_tasks(copies, forbidden)
    assert [name.partition("?")[0] for name in conflicts] == ["reverse", "copy"]


def _combinations(name: str) -> set[tuple[int, ...]]:
    ranges = [
        range(low, high + 1) for low, high in synthetic_tasks.parse_task(name).ranges.values()
    ]
    return set(itertools.product(*ranges))


def test_documents_rotate_over_three_tasks():
    """Each task of a rotation has one document per turn, in the order of the names."""
    tasks = synthetic_tasks.parse_tasks("sort?megabytes=0.01+copy+upper")
    texts = itertools.islice(synthetic_tasks.task_documents(tasks), 7)
    assert [text.split()[0] for text in texts] == [*["sort", "copy", "upper"] * 2, "sort"]


@pytest.mark.parametrize(("name", "limits"), synthetic_tasks.PARAMETER_LIMITS.items())
def test_parameters_are_allowed_up_to_their_limits(name, limits):
    expected = {
        "order": (0, 5), "spelling": (0, 3), "length": (2, 10), "steps": (1, 9), "depth": (1, 20),
        "digits": (1, 15), "modulus": (2, 1000), "terms": (2, 10), "words": (1, 5),
        "lexicon": (2, 32),
    }  # fmt: skip
    low, high = expected[name]
    kind = next(k for k, (_, ranges) in synthetic_tasks.TASKS.items() if name in ranges)
    task = synthetic_tasks.parse_task(f"{kind}?{name}={low}-{high}")
    assert task.ranges[name] == (low, high)
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"{name}="):
            synthetic_tasks.parse_task(f"{kind}?{name}={value}")


@pytest.mark.parametrize("name", synthetic_tasks.SKILLS)
def test_chance_of_a_skill_is_that_of_an_order_of_its_letters(name):
    for length in (2, 3, 5):
        (instance,) = sample(f"{name}?length={length}", 1)
        assert instance.chance * len(list(itertools.permutations(range(length)))) == 1
