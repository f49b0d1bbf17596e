"""Conversations: special tokens, answer weights, refused lines."""

import dataclasses
import gzip
import json
import pathlib

import numpy as np
import pytest

from lm import chat, config, data, files, sources, tasks, tokens

SHARED = pathlib.Path(__file__).parent.parent.parent / "shared" / "tasks" / "instructions"


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(n, task="t", category="c"):
    return {"prompt": f"Say {n}.", "target": f"It is {n}.", "task": task, "category": category}


def texts(rest):
    return [document.text for document in chat.documents(rest, files.stop)]


@pytest.fixture(scope="module")
def bpe():
    lines = [chat.render("chat", [chat.Turn(f"Say {n}.", f"It is {n}.")]) for n in range(300)]
    return tokens.train_bpe(iter(lines), 400)


@pytest.fixture(scope="module")
def pieces():
    sentencepiece = pytest.importorskip("sentencepiece")
    import io

    lines = [f"Say {n}. It is {n}, and so on." for n in range(300)]
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=made,
        vocab_size=320,
        byte_fallback=True,
        minloglevel=2,
    )
    return tokens.SentencePiece(made.getvalue())


def test_special_characters_are_removed_from_turns():
    text = chat.render("chat", [chat.Turn("a\x02b", "c\x03\0d\r\ne")])
    assert text == "\x01ab\x02cd\ne\x03"
    assert text.startswith(chat.asked("chat", "a\x02b"))


@pytest.mark.parametrize("template", chat.TEMPLATES)
def test_a_template_holds_both_sides_and_begins_as_it_is_asked(template):
    turn = chat.Turn("What {is} it?", "A {thing}.")
    text = chat.render(template, [turn])
    assert text.startswith(chat.asked(template, turn.prompt)) and turn.answer in text
    assert text[: len(chat.asked(template, turn.prompt))].count(turn.prompt) == 1


@pytest.mark.parametrize("kind", ["bytes", "bpe", "pieces"])
def test_special_character_is_always_one_token(kind, request):
    tokenizer = tokens.Bytes() if kind == "bytes" else request.getfixturevalue(kind)
    ids = tokenizer.encode(chat.render("chat", [chat.Turn("Say 7.", "It is 7.")] * 2))
    marks = [int(i) for i in ids if i in tokenizer.marks]
    assert [tokenizer.pieces[i] for i in marks] == [b"\x01", b"\x02", b"\x03"] * 2
    alone = [tokenizer.encode(text) for text in ("Say 7.", "It is 7.")]
    assert len(ids) == 6 + 2 * sum(map(len, alone))


def test_special_characters_do_not_change_other_tokens(bpe):
    text = "Say 12. It is 12."
    np.testing.assert_array_equal(bpe.encode(text), bpe._encoded([text])[0])
    assert (
        tokens.train_bpe(iter([text] * 9), 300).hash
        == tokens.train_bpe(iter([text + "\x03"] * 9), 300).hash
    )


@pytest.mark.parametrize("kind", ["bytes", "bpe", "pieces"])
def test_weights_select_answers_and_all_of_plain_text(kind, request):
    tokenizer = tokens.Bytes() if kind == "bytes" else request.getfixturevalue(kind)
    turns = [chat.Turn("Say 7.", "It is 7."), chat.Turn("Say 8.", "It is 8.")]
    end, talk, text = (
        np.array([tokenizer.end]),
        tokenizer.encode(chat.render("chat", turns)),
        tokenizer.encode("Say 12."),
    )
    row_S = np.concatenate([end, talk, end, text, end, end, end])[None].astype(np.int32)
    weights_T = chat.weights(row_S, tokenizer)[0]
    learned = tokenizer.decode(row_S[0, 1:][weights_T == 1])
    assert [part.strip() for part in learned.split("\x03")] == ["It is 7.", "It is 8.", "Say 12."]
    assert row_S[0, 1:][weights_T == 1][-1] == tokenizer.end  # of the text: it learns to stop
    assert weights_T[-2:].sum() == 0 and weights_T.dtype == np.float32


def test_messages_in_turns_and_what_the_system_said(tmp_path):
    said = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": text} for role, text in said]
    last = {"role": "assistant", "content": "d"}
    path = write(tmp_path / "a.jsonl", [{"messages": [*messages, last]}])
    assert texts(str(path)) == ["\x01Be brief.\n\na\x02b\x03\x01c\x02d\x03"]
    write(path, [{"messages": messages}])
    with pytest.raises(ValueError, match="roles are user, assistant, user: .* take turns"):
        texts(str(path))


def test_task_formats_become_conversations_of_correct_answers(tmp_path):
    (tmp_path / "en_fr").mkdir()
    rows = [
        {"src": "a cat", "tgt": "un chat"},
        {"query": "Which?", "choices": ["this", "that"], "answer": 1},
        {"text": "Fine.", "label_name": "good"},
    ]
    path = str(write(tmp_path / "en_fr" / "train.jsonl", rows))
    wanted = [("a cat\n=>", "un chat"), ("Which?", "that"), ("Fine.\nLabel:", "good")]
    assert texts(path) == [chat.render("chat", [chat.Turn(*turn)]) for turn in wanted]
    assert chat.names(path) == {"en_fr"}
    task = tasks.load(f"file:{path}?template=chat")  # it is asked as it was taught
    asked = {e.prompts[e.right] + e.answers[e.right] for e in task.examples}
    assert {texts(path)[1], texts(path)[2]} < asked | {texts(path)[0]}


def test_tasks_are_chosen_by_name_or_category_and_capped(tmp_path):
    rows = [row(n, f"t{n % 3}", "even" if n % 3 else "odd") for n in range(30)]
    path = str(write(tmp_path / "a.jsonl", rows))
    every = texts(path)
    assert len(every) == 30
    assert texts(f"{path}?only=odd") == every[::3] == texts(f"{path}?without=t1,t2")
    two, four = texts(f"{path}?cap=2"), texts(f"{path}?cap=4")
    assert len(two) == 6 and len(four) == 12 and set(two) < set(four)
    assert set(texts(f"{path}?cap=4&only=t2")) == set(four) & set(every[2::3])
    assert chat.names(f"{path}?without=even") == {"t0", "odd"}


def test_shots_are_earlier_examples_of_the_same_task(tmp_path):
    path = str(write(tmp_path / "a.jsonl", [row(n, f"t{n % 2}") for n in range(6)]))
    found = texts(f"{path}?shots=2")
    assert found[0] == chat.render("chat", [chat.Turn("Say 0.", "It is 0.")])
    wanted = [chat.Turn(f"Say {n}.", f"It is {n}.") for n in (1, 3, 5)]
    assert found[5] == chat.render("chat", wanted)


@pytest.mark.parametrize(
    "rest, words",
    [
        ("?templat=chat", "templat does not exist: use one of the fields template, only"),
        ("?template=story", "template=story must be one of chat, question"),
        ("?cap=few", "cap=few must be a whole number"),
    ],
)
def test_a_wrong_option_is_refused_by_name(rest, words):
    with pytest.raises(ValueError, match=words):
        sources.parts(f"chat:x.jsonl{rest}")


@pytest.mark.parametrize(
    "line, words",
    [
        ({"prompt": "a", "target": " "}, "a.jsonl line 1: an empty answer"),
        ({"prompt": "a", "target": 3}, "line 1: answer is int, not text"),
        ({"text": "a"}, "line 1: has fields text; a task has one of: .*prompt, target"),
        ({"messages": [3]}, "line 1: each of messages must have a role and content"),
    ],
)
def test_a_line_that_is_no_conversation_is_named_or_counted(tmp_path, line, words):
    path = write(tmp_path / "a.jsonl", [line, *[row(n) for n in range(40)]])
    wanted = config.Data({f"chat:{path}": 1.0}, str(tmp_path / "cache"), 0.2, rows="whole")
    with pytest.raises(ValueError, match=words):
        data.load(wanted, 0)
    text = data.load(dataclasses.replace(wanted, broken="skip"), 0)
    manifest = text.manifests[f"chat:{path}"]
    assert manifest.dropped == {"broken": 1} and sum(manifest.documents.values()) == 40


def test_a_task_declared_unseen_is_refused_in_what_is_trained_on(tmp_path):
    rows = [row(n, f"t{n % 2}", "odd" if n % 2 else "even") for n in range(60)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    both, asked = f"chat:{path}", f"chat:{path}?only=odd"
    wanted = config.Data({both: 1.0}, str(tmp_path / "cache"), 0.2, rows="whole", unseen="odd,nli")
    with pytest.raises(ValueError, match="data.unseen: .* contains odd: exclude it with"):
        data.load(wanted, 0)
    fine = {f"{both}?without=odd": 1.0, asked: 0.0}  # held-out rows of it may be looked at
    assert len(data.load(dataclasses.replace(wanted, sources=fine), 0).heldout(asked, 9))


def test_real_instructions_are_read_and_unseen_ones_kept_out(tmp_path):
    if not SHARED.exists():
        pytest.skip("no shared instructions here")
    known = f"{SHARED}/train.jsonl.gz?cap=3"
    unseen = chat.names(f"{SHARED}/test_unseen_task.jsonl.gz?without=string_and_word")
    sources.check_unseen(f"chat:{known}", ",".join(sorted(unseen)))
    with pytest.raises(ValueError, match="contains sentiment"):
        sources.check_unseen(f"chat:{known}", "nli,sentiment")
    found = texts(known)
    assert 150 < len(found) and all(text[0] == "\x01" and text[-1] == "\x03" for text in found)
