"""lm-evaluation-harness itself, on tasks from files made here: uv run --extra harness pytest ..."""

import json
import os

import jax
import numpy as np
import pytest

from lm.config import schema
from lm.data import tokenizers
from lm.evaluation import generation, lm_eval_harness, scoring
from lm.model import transformer
from lm.parallel import mesh

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
lm_eval = pytest.importorskip("lm_eval", reason="needs the extra harness")

RUN = schema.Run(
    model=schema.Model(
        vocab_size=256, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, d_head=16, d_ff=48
    )
)
RUN.data.seq_len, RUN.data.batch_size = 32, 4
BYTES = tokenizers.ByteTokenizer()
ITEMS = [
    {
        "q": f"{n} and one are",
        "choices": [f" {n + 1}", f" {n}, surely"],
        "gold": 0,
        "text": "ab " * n,
    }
    for n in range(4, 12)
]
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
"""
CHOICE = """output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
target_delimiter: ""
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""
SAYS = """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "x"
generation_kwargs: {until: ["e"], max_gen_toks: 9}
metric_list: [{metric: exact_match}]
"""


def ids(text: str) -> list[int]:
    return BYTES.encode(text).tolist()


@pytest.fixture(scope="module")
def given():
    device_mesh = mesh.make_mesh(schema.Mesh())
    made = jax.jit(
        lambda: transformer.init_params(RUN.model, 0),
        out_shardings=mesh.named_sharding(device_mesh),
    )()
    return RUN, device_mesh, jax.tree.map(lambda w: 2 * w, made)


@pytest.fixture(scope="module")
def results(given, tmp_path_factory):
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    os.environ["HF_HOME"] = str(folder / "cache")
    (folder / "d.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    for name, body in (("choice", CHOICE), ("rolling", ROLLING), ("says", SAYS)):
        head = TASK.format(name=name, file=folder / "d.jsonl")
        (folder / f"{name}.yaml").write_text(head + body)
    return lm_eval.simple_evaluate(
        model=lm_eval_harness.adapter(*given, BYTES),
        tasks=["choice", "rolling", "says"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )


def test_its_choices_are_those_of_our_score(given, results):
    pairs = [(item["q"], choice) for item in ITEMS for choice in item["choices"]]
    prompts, answers = ([ids(x) for x in column] for column in zip(*pairs, strict=True))
    nats = [one.nats.sum() for one in scoring.score_answers(*given, prompts, answers)]
    right = [a < b for a, b in zip(nats[::2], nats[1::2], strict=True)]
    norm = [
        a / len(x) < b / len(y)
        for a, b, x, y in zip(nats[::2], nats[1::2], answers[::2], answers[1::2], strict=True)
    ]
    assert results["results"]["choice"]["acc,none"] == np.mean(right)
    assert results["results"]["choice"]["acc_norm,none"] == np.mean(norm)
    theirs = [pair[0] for s in results["samples"]["choice"] for pair in s["filtered_resps"]]
    np.testing.assert_allclose([float(x) for x in theirs], -np.array(nats), atol=1e-4)


def test_its_bits_of_a_long_text_are_the_sum_over_its_windows(given, results):
    total = 0.0
    for item in ITEMS:
        text = [BYTES.end, *ids(item["text"])]
        for start in range(1, len(text), 32):
            answer = text[start : start + 32]
            (one,) = scoring.score_answers(*given, [text[:start]], [answer])
            total += one.nats.sum()
    n_bytes = sum(len(item["text"]) for item in ITEMS)
    assert max(len(item["text"]) for item in ITEMS) > 32
    bits = results["results"]["rolling"]["bits_per_byte,none"]
    assert bits == pytest.approx(total / np.log(2) / n_bytes, rel=1e-5)


def test_its_answers_are_what_we_say(given, results):
    sampling = generation.SamplingParams(max_tokens=9, stop=("e",))
    said = generation.generate(*given, [ids(i["q"]) for i in ITEMS], BYTES, sampling)
    theirs = [
        s["resps"][0][0] for s in sorted(results["samples"]["says"], key=lambda s: s["doc_id"])
    ]
    assert theirs == [one.text for one in said]


def test_spaces_between_context_and_answer_belong_to_the_answer():
    bpe = tokenizers.train_bpe(iter(["one two three four"] * 9), 290)
    before, after = scoring.encode_pair(bpe, "one two ", "three")
    assert bpe.decode(before) == "one two" and bpe.decode(after) == " three"
    assert [*before, *after] == bpe.encode("one two three").tolist()


def test_knobs_of_generation_are_read_or_refused():
    assert lm_eval_harness._sampling({"until": "\n", "do_sample": False, "temperature": 0.7}) == (
        generation.SamplingParams(256, stop=("\n",))
    )
    assert lm_eval_harness._sampling({"temperature": 0.7, "max_gen_toks": 5}).temperature == 0.7
    with pytest.raises(ValueError, match="num_beams"):
        lm_eval_harness._sampling({"num_beams": 4})
