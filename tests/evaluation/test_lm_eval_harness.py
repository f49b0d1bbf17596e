"""Results of lm-evaluation-harness equal those of scoring and generation (extra: harness)."""

import json
import os
import types

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
GENERATION = """output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "x"
generation_kwargs: {until: ["e"], max_gen_toks: 9}
metric_list: [{metric: exact_match}]
"""


def encode(text: str) -> list[int]:
    return BYTES.encode(text).tolist()


@pytest.fixture(scope="module")
def model():
    """Return (run, device mesh, params) of a model with random weights."""
    device_mesh = mesh.make_mesh(schema.Mesh())
    params = jax.jit(
        lambda: transformer.init_params(RUN.model, 0),
        out_shardings=mesh.named_sharding(device_mesh),
    )()
    return RUN, device_mesh, jax.tree.map(lambda w: 2 * w, params)


@pytest.fixture(scope="module")
def results(model, tmp_path_factory):
    """Evaluate one task per kind of request with the harness."""
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    os.environ["HF_HOME"] = str(folder / "cache")
    (folder / "d.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    for name, body in (("choice", CHOICE), ("rolling", ROLLING), ("generation", GENERATION)):
        head = TASK.format(name=name, file=folder / "d.jsonl")
        (folder / f"{name}.yaml").write_text(head + body)
    return lm_eval.simple_evaluate(
        model=lm_eval_harness.make_adapter(*model, BYTES),
        tasks=["choice", "rolling", "generation"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )


def test_choices_equal_those_of_score_answers(model, results):
    pairs = [(item["q"], choice) for item in ITEMS for choice in item["choices"]]
    prompts, answers = ([encode(text) for text in column] for column in zip(*pairs, strict=True))
    scored = scoring.score_answers(*model, prompts, answers)
    nats = [answer.nats.sum() for answer in scored]
    is_correct = [a < b for a, b in zip(nats[::2], nats[1::2], strict=True)]
    is_correct_per_byte = [
        a / len(x) < b / len(y)
        for a, b, x, y in zip(nats[::2], nats[1::2], answers[::2], answers[1::2], strict=True)
    ]
    assert results["results"]["choice"]["acc,none"] == np.mean(is_correct)
    assert results["results"]["choice"]["acc_norm,none"] == np.mean(is_correct_per_byte)
    samples = results["samples"]["choice"]
    log_p = [float(pair[0]) for sample in samples for pair in sample["filtered_resps"]]
    np.testing.assert_allclose(log_p, -np.array(nats), atol=1e-4)


def test_bits_of_a_long_text_are_summed_over_windows(model, results):
    total_nats = 0.0
    for item in ITEMS:
        ids = [BYTES.end, *encode(item["text"])]
        for start in range(1, len(ids), 32):
            (scored,) = scoring.score_answers(*model, [ids[:start]], [ids[start : start + 32]])
            total_nats += scored.nats.sum()
    n_bytes = sum(len(item["text"]) for item in ITEMS)
    assert max(len(item["text"]) for item in ITEMS) > 32
    bits = results["results"]["rolling"]["bits_per_byte,none"]
    assert bits == pytest.approx(total_nats / np.log(2) / n_bytes, rel=1e-5)


def test_answers_equal_those_of_generate(model, results):
    sampling = generation.SamplingParams(max_tokens=9, stop=("e",))
    prompts = [encode(item["q"]) for item in ITEMS]
    answers = generation.generate(*model, prompts, BYTES, sampling)
    samples = sorted(results["samples"]["generation"], key=lambda sample: sample["doc_id"])
    assert [sample["resps"][0][0] for sample in samples] == [answer.text for answer in answers]


def test_generation_kwargs_are_converted_or_rejected():
    greedy = lm_eval_harness._to_sampling_params(
        {"until": "\n", "do_sample": False, "temperature": 0.7}
    )
    assert greedy == generation.SamplingParams(256, stop=("\n",))
    random = lm_eval_harness._to_sampling_params({"temperature": 0.7, "max_gen_toks": 5})
    assert random.temperature == 0.7 and random.max_tokens == 5
    with pytest.raises(ValueError, match="num_beams"):
        lm_eval_harness._to_sampling_params({"num_beams": 4})


def test_truncated_contexts_are_counted_per_task(model):
    """The context has 32 tokens, and the last token of an answer is no input."""
    adapter = lm_eval_harness.make_adapter(*model, BYTES)
    prompts = ["q" * n for n in (30, 31, 32, 33, 40)]

    def requests(task, argument):
        return [
            types.SimpleNamespace(args=(prompt, argument), task_name=task, doc_id=i, idx=0)
            for i, prompt in enumerate(prompts)
        ]

    adapter.loglikelihood(requests("a", "aa") + requests("b", "aa")[:4])
    assert adapter.counts.n_truncated == {"a": 3, "b": 2}
    adapter.generate_until(requests("c", {"max_gen_toks": 2}))
    assert adapter.counts.n_truncated == {"a": 3, "b": 2, "c": 2}
    assert adapter.counts.choices["b"] == {i: {0: False} for i in range(4)}
