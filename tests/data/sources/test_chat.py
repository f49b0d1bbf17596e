"""Conversations: special tokens, answer weights, rejected lines, rated responses."""

import dataclasses
import gzip
import json
import pathlib

import numpy as np
import pytest

from lm.config import schema, validation
from lm.data import dataset, splits, tokenizers
from lm.data.sources import chat, documents, readers
from lm.data.tokenization import bpe_training
from lm.evaluation import tasks

SHARED = (
    pathlib.Path(__file__).parent.parent.parent.parent.parent / "shared" / "tasks" / "instructions"
)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(n, task="t", category="c"):
    return {"prompt": f"Say {n}.", "target": f"It is {n}.", "task": task, "category": category}


def texts(rest):
    return [document.text for document in chat.chat_documents(rest, readers.raise_error)]


def messages(*roles_and_contents):
    pairs = zip(roles_and_contents[::2], roles_and_contents[1::2], strict=True)
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.fixture(scope="module")
def bpe():
    lines = [
        chat.render_conversation("chat", [chat.Turn(f"Say {n}.", f"It is {n}.")])
        for n in range(300)
    ]
    return bpe_training.train_bpe(iter(lines), 400)


@pytest.fixture(scope="module")
def pieces():
    sentencepiece = pytest.importorskip("sentencepiece")
    import io

    lines = [f"Say {n}. It is {n}, and so on." for n in range(300)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=320,
        byte_fallback=True,
        minloglevel=2,
    )
    return tokenizers.SentencePieceTokenizer(model.getvalue())


def test_special_characters_are_removed_from_turns():
    text = chat.render_conversation("chat", [chat.Turn("a\x02b", "c\x03\0d\r\ne")])
    assert text == "\x01ab\x02cd\ne\x03"
    assert text.startswith(chat.render_prompt("chat", "a\x02b"))


@pytest.mark.parametrize("template", chat.TEMPLATES)
def test_conversation_starts_with_its_rendered_prompt(template):
    turn = chat.Turn("What {is} it?", "A {thing}.")
    text = chat.render_conversation(template, [turn])
    assert text.startswith(chat.render_prompt(template, turn.prompt)) and turn.answer in text
    assert text[: len(chat.render_prompt(template, turn.prompt))].count(turn.prompt) == 1


@pytest.mark.parametrize("kind", ["bytes", "bpe", "pieces"])
def test_special_character_is_one_token(kind, request):
    tokenizer = tokenizers.ByteTokenizer() if kind == "bytes" else request.getfixturevalue(kind)
    ids = tokenizer.encode(chat.render_conversation("chat", [chat.Turn("Say 7.", "It is 7.")] * 2))
    special_ids = [int(i) for i in ids if i in tokenizer.marks]
    assert [tokenizer.pieces[i] for i in special_ids] == [b"\x01", b"\x02", b"\x03"] * 2
    encoded_texts = [tokenizer.encode(text) for text in ("Say 7.", "It is 7.")]
    assert len(ids) == 6 + 2 * sum(map(len, encoded_texts))


def test_special_characters_do_not_change_other_tokens(bpe):
    text = "Say 12. It is 12."
    np.testing.assert_array_equal(bpe.encode(text), bpe._encode_text([text])[0])
    assert (
        bpe_training.train_bpe(iter([text] * 9), 300).hash
        == bpe_training.train_bpe(iter([text + "\x03"] * 9), 300).hash
    )


@pytest.mark.parametrize("kind", ["bytes", "bpe", "pieces"])
def test_weights_select_answers_and_plain_text(kind, request):
    tokenizer = tokenizers.ByteTokenizer() if kind == "bytes" else request.getfixturevalue(kind)
    turns = [chat.Turn("Say 7.", "It is 7."), chat.Turn("Say 8.", "It is 8.")]
    end = np.array([tokenizer.end])
    conversation = tokenizer.encode(chat.render_conversation("chat", turns))
    text = tokenizer.encode("Say 12.")
    row_BS = np.concatenate([end, conversation, end, text, end, end, end])[None].astype(np.int32)
    weights_T = chat.answer_weights(row_BS, tokenizer)[0]
    targets = row_BS[0, 1:][weights_T == 1]
    parts = tokenizer.decode(targets).split("\x03")
    assert [part.strip() for part in parts] == ["It is 7.", "It is 8.", "Say 12."]
    assert targets[-1] == tokenizer.end  # plain text must learn to stop
    assert weights_T[-2:].sum() == 0 and weights_T.dtype == np.float32


def test_messages_become_turns_after_the_system_message(tmp_path):
    contents = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": text} for role, text in contents]
    last = {"role": "assistant", "content": "d"}
    path = write(tmp_path / "a.jsonl", [{"messages": [*messages, last]}])
    assert texts(str(path)) == ["\x01Be brief.\n\na\x02b\x03\x01c\x02d\x03"]
    write(path, [{"messages": messages}])
    with pytest.raises(
        ValueError, match="roles are system, user, assistant, user: .* must alternate"
    ):
        texts(str(path))


def test_content_may_be_a_list_of_text_parts(tmp_path):
    parts = [{"type": "text", "text": "Say "}, {"text": "it."}, " Now."]
    path = write(tmp_path / "a.jsonl", [messages("system", None, "user", parts, "assistant", "b")])
    assert texts(str(path)) == ["\x01Say it. Now.\x02b\x03"]


def test_system_message_begins_the_prompt_after_it(tmp_path):
    turns = ("user", "a", "assistant", "b", "system", "Be brief.", "user", "c", "assistant", "d")
    path = write(tmp_path / "a.jsonl", [messages(*turns)])
    assert texts(str(path)) == ["\x01a\x02b\x03\x01Be brief.\n\nc\x02d\x03"]


def test_passage_of_a_question_is_part_of_the_prompt(tmp_path):
    line = {"question": "Who?", "context": "Ann met Bob.", "answer": "Ann"}
    path = write(tmp_path / "a.jsonl", [line])
    assert texts(str(path)) == ["\x01Ann met Bob.\nQuestion: Who?\nAnswer:\x02Ann\x03"]


def test_task_lines_become_conversations_of_correct_answers(tmp_path):
    (tmp_path / "en_fr").mkdir()
    rows = [
        {"src": "a cat", "tgt": "un chat"},
        {"query": "Which?", "choices": ["this", "that"], "answer": 1},
        {"text": "Fine.", "label_name": "good"},
        {"text": "No.", "label_name": "bad"},
    ]
    path = str(write(tmp_path / "en_fr" / "train.jsonl", rows))
    turns = [("a cat\n=>", "un chat"), ("Which?", "that"), ("Fine.\nLabel:", "good")]
    turns.append(("No.\nLabel:", "bad"))
    assert texts(path) == [chat.render_conversation("chat", [chat.Turn(*turn)]) for turn in turns]
    assert chat.chat_task_names(path) == {"en_fr"}
    task = tasks.load_task(f"file:{path}?template=chat")  # evaluation has the format of training
    task_texts = {e.prompts[e.right] + e.answers[e.right] for e in task.examples}
    assert {texts(path)[1], texts(path)[2]} < task_texts | {texts(path)[0]}


def test_instruction_precedes_the_first_prompt_in_training_and_evaluation(tmp_path):
    rows = [{"src": "a cat", "tgt": "un chat"}, {"src": "two", "tgt": "deux"}]
    path = str(write(tmp_path / "train.jsonl", rows))
    written = "instruction=To+French,+%26+short%3a"
    assert texts(f"{path}?{written}")[0] == "\x01To French, & short:\na cat\n=>\x02un chat\x03"
    task = tasks.load_task(f"file:{path}?template=chat&{written}")
    task_texts = {e.prompts[e.right] + e.answers[e.right] for e in task.examples}
    assert task_texts == set(texts(f"{path}?{written}"))
    contents = [("user", "Hi"), ("assistant", "Hi."), ("user", "Bye"), ("assistant", "Bye.")]
    turns = [{"role": role, "content": content} for role, content in contents]
    path = str(write(tmp_path / "chat.jsonl", [{"messages": turns}]))
    assert texts(f"{path}?instruction=Answer.") == ["\x01Answer.\nHi\x02Hi.\x03\x01Bye\x02Bye.\x03"]


def test_instruction_changes_no_split_and_no_selection(tmp_path):
    """An example that one instruction holds out is no training text under another."""
    path = write(tmp_path / "a.jsonl", [row(n) for n in range(60)])
    heldout = {}
    for options in ("", "?instruction=Answer.", "?instruction=Reply.&shots=2"):
        sides = [splits.is_heldout(d, 0.3) for d in documents.open_source(f"chat:{path}{options}")]
        heldout[options] = [number for number, is_heldout in enumerate(sides) if is_heldout]
    assert 5 < len(heldout[""]) < 30 and len(set(map(tuple, heldout.values()))) == 1
    capped = [texts(f"{path}?cap=9&instruction={line}") for line in ("One.", "Two.")]
    assert [text.partition("\n")[2] for text in capped[0]] == [
        text.partition("\n")[2] for text in capped[1]
    ]
    shots = texts(f"{path}?instruction=Reply.&shots=2")[0]
    assert shots.startswith("\x01Reply.\nSay ") and shots.count("Reply.") == 1


def test_tasks_are_selected_by_name_or_category_and_capped(tmp_path):
    rows = [row(n, f"t{n % 3}", "even" if n % 3 else "odd") for n in range(30)]
    path = str(write(tmp_path / "a.jsonl", rows))
    all_texts = texts(path)
    assert len(all_texts) == 30
    assert texts(f"{path}?only=odd") == all_texts[::3] == texts(f"{path}?without=t1,t2")
    two, four = texts(f"{path}?cap=2"), texts(f"{path}?cap=4")
    assert len(two) == 6 and len(four) == 12 and set(two) < set(four)
    assert set(texts(f"{path}?cap=4&only=t2")) == set(four) & set(all_texts[2::3])
    assert chat.chat_task_names(f"{path}?without=even") == {"t0", "odd"}


def test_shots_are_training_examples_of_the_same_task(tmp_path):
    path = str(write(tmp_path / "a.jsonl", [row(n, f"t{n % 2}") for n in range(40)]))
    for n, conversation in enumerate(texts(f"{path}?shots=2")):
        *shots, last = conversation.split("\x03")[:-1]
        assert last == f"\x01Say {n}.\x02It is {n}." and len(set(shots)) == 2
        for shot in shots:
            number = int(shot.split(".")[0].removeprefix("\x01Say "))
            assert number % 2 == n % 2 and number != n


def test_no_heldout_answer_is_in_the_training_text_of_shots(tmp_path):
    names = [f"{n:03}" for n in range(400)]  # each answer occurs in one line
    rows = [{"prompt": f"Say {name}.", "target": f"[{name}]", "task": "t"} for name in names]
    path = write(tmp_path / "a.jsonl", rows)
    for fraction in (0.1, 0.5):
        sides = {True: "", False: ""}
        heldout_answers = []
        for document in documents.open_source(f"chat:{path}?shots=2"):
            is_heldout = splits.is_heldout(document, fraction)
            sides[is_heldout] += document.text
            heldout_answers += [document.text[-6:-1]] if is_heldout else []
        assert 0.5 * fraction < len(heldout_answers) / 400 < 1.5 * fraction
        assert not any(answer in sides[False] for answer in heldout_answers)
        assert "".join(sides.values()).count("\x03") == 1200


def test_shots_need_half_of_the_examples_for_training():
    run = schema.Run(name="x")
    run.data.sources, run.data.heldout_fraction = {"chat:a.jsonl?cap=3&shots=2": 1.0}, 0.6
    with pytest.raises(schema.ConfigError, match="heldout_fraction=0.6 must be at most 0.5 for"):
        validation.validate_run(run)
    run.data.sources = {"chat:a.jsonl?shots=0": 1.0}
    validation.validate_run(run)


def test_example_is_on_the_same_side_with_and_without_shots(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(n) for n in range(60)])
    sides = [
        [splits.is_heldout(document, 0.3) for document in documents.open_source(source)]
        for source in (f"chat:{path}", f"chat:{path}?shots=3")
    ]
    assert sides[0] == sides[1] and 5 < sum(sides[0]) < 30


def test_task_with_too_few_shots_is_rejected_or_left_out(tmp_path):
    rows = [row(0, "rare"), *[row(n, "common") for n in range(1, 30)]]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match="line 1: shots=2 needs 2 .* task 'rare', but there are 0"):
        texts(f"{path}?shots=2")
    errors = []
    assert len(list(chat.chat_documents(f"{path}?shots=2", errors.append))) == 29
    assert len(errors) == 1


@pytest.mark.parametrize(
    "fields, message",
    [
        ("?templat=chat", "templat does not exist: did you mean template.* template, instr"),
        ("?template=story", "template=story must be one of chat, question"),
        ("?cap=few", "cap=few must be a whole number"),
        ("?instruction=+", r"instruction=\+ must be a text with \+ for each space"),
    ],
)
def test_invalid_field_error_names_the_field(fields, message):
    with pytest.raises(ValueError, match=message):
        documents.list_shards(f"chat:x.jsonl{fields}")


@pytest.mark.parametrize(
    "line, message",
    [
        ({"prompt": "a", "target": " "}, "a.jsonl line 1: an empty answer"),
        ({"prompt": "a", "target": 3}, "line 1: answer is int, not text"),
        ({"text": "a"}, "line 1: has fields text; a task has one of: .*prompt, target"),
        ({"messages": [3]}, "line 1: each of messages must have a role and content"),
        ({"messages": "hello"}, "line 1: each of messages must have a role and content"),
        (
            messages("user", "a", "assistant", None),
            r"message 2 \(assistant\): .* NoneType, not text",
        ),
        (
            messages("user", [{"type": "image_url"}], "assistant", "b"),
            "content is image_url, not te",
        ),
        (messages("user", [{"type": "text"}], "assistant", "b"), "its content is text, not text"),
        (messages(None, "a", "assistant", "b"), "roles are None, assistant"),
        (messages("user", "a", "system", "s", "assistant", "b"), "user must follow system"),
        (messages("user", "a", "assistant", "b", "system", "s"), "user must follow system"),
        ({"question": "q", "answer": "a", "context": 3}, "context is int, not text"),
        (
            {"prompt": "q", "target": "a", "passage": "p"},
            "passage is not used by the format prompt",
        ),
    ],
)
def test_invalid_line_is_reported_or_counted(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", [line, *[row(n) for n in range(40)]])
    data = schema.Data({f"chat:{path}": 1.0}, str(tmp_path / "cache"), 0.2, packing="documents")
    with pytest.raises(ValueError, match=message):
        dataset.open_dataset(data, 0)
    text = dataset.open_dataset(dataclasses.replace(data, on_error="skip"), 0)
    manifest = text.manifests[f"chat:{path}"]
    assert manifest.dropped == {"broken": 1} and sum(manifest.documents.values()) == 40


def test_forbidden_task_is_rejected_in_trained_sources(tmp_path):
    rows = [row(n, f"t{n % 2}", "odd" if n % 2 else "even") for n in range(60)]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    all_tasks, odd_tasks = f"chat:{path}", f"chat:{path}?only=odd"
    data = schema.Data(
        {all_tasks: 1.0},
        str(tmp_path / "cache"),
        0.2,
        packing="documents",
        forbidden_tasks="odd,nli",
    )
    with pytest.raises(ValueError, match="data.forbidden_tasks: .* contains odd: exclude it with"):
        dataset.open_dataset(data, 0)
    # A forbidden task may be in a source that is evaluated but not trained on.
    sources = {f"{all_tasks}?without=odd": 1.0, odd_tasks: 0.0}
    tokens = dataset.open_dataset(dataclasses.replace(data, sources=sources), 0)
    assert len(tokens.heldout(odd_tasks, 9))


@pytest.mark.slow
def test_real_instructions_do_not_contain_forbidden_tasks(tmp_path):
    if not SHARED.exists():
        pytest.skip("the shared instructions are missing")
    train = f"{SHARED}/train.jsonl.gz?cap=3"
    forbidden = chat.chat_task_names(f"{SHARED}/test_unseen_task.jsonl.gz?without=string_and_word")
    documents.validate_forbidden_tasks(f"chat:{train}", ",".join(sorted(forbidden)))
    with pytest.raises(ValueError, match="contains sentiment"):
        documents.validate_forbidden_tasks(f"chat:{train}", "nli,sentiment")
    conversations = texts(train)
    assert 150 < len(conversations)
    assert all(text[0] == "\x01" and text[-1] == "\x03" for text in conversations)


def test_only_answers_rated_good_are_in_the_tuning_set(tmp_path):
    path, out = tmp_path / "prompts.jsonl", tmp_path / "tuning.jsonl"
    good, bad, corrected, unrated = (
        chat.log_response(path, f"Say {n}.", f"It is {n}…", "s/run") for n in range(4)
    )
    chat.rate_response(path, good, good=True)
    chat.rate_response(path, bad)
    chat.rate_response(path, corrected, better="Two.")
    rows = chat.read_prompt_log(path)
    assert rows[bad]["rating"] == "bad" and not rows[unrated]["rating"]
    assert chat.write_tuning_set(path, out) == 2
    assert texts(str(out)) == ["\x01Say 0.\x02It is 0…\x03", "\x01Say 2.\x02Two.\x03"]
    chat.rate_response(path, good)  # the last rating counts
    assert chat.write_tuning_set(path, out) == 1


def test_missing_ratings_and_other_files_are_rejected(tmp_path):
    path = tmp_path / "prompts.jsonl"
    chat.log_response(path, "a", "b", "s/run")
    with pytest.raises(ValueError, match="none of 1 prompts is rated good"):
        chat.write_tuning_set(path, tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="contains no prompt of id x"):
        chat.rate_response(path, "x", good=True)
    path.write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match="line 1: is not a logged prompt: it has prompt"):
        chat.read_prompt_log(path)
