"""Results of minimal pairs equal those of the BLiMP task of lm-evaluation-harness (extra)."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest

from lm.config import schema
from lm.data import tokenizers
from lm.evaluation import heldout, lm_eval_harness, task_eval, tasks
from lm.model import transformer
from lm.parallel import mesh

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
lm_eval = pytest.importorskip("lm_eval", reason="needs the extra harness")

SUBJECTS = ("The cats", "Some teachers", "Those old trees", "Many of the doctors")
VERBS = (("run", "runs"), ("sleep", "sleeps"), ("have", "has"), ("go", "goes"))
RUN = schema.Run(
    model=schema.Model(
        vocab_size=256, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, d_head=16, d_ff=48
    )
)
RUN.data.seq_len, RUN.data.batch_size = 128, 4


def write_pairs(file: pathlib.Path) -> None:
    """Write 200 pairs. In a third of them, the first sentence has the wrong verb."""
    lines = []
    for n in range(200):
        good, bad = VERBS[n % 4] if n % 3 else VERBS[n % 4][::-1]
        subject = f"{SUBJECTS[n // 4 % 4]} number {n}"
        row = {"sentence_good": f"{subject} {good} away.", "sentence_bad": f"{subject} {bad} away."}
        lines.append(json.dumps(row | {"UID": "agreement", "linguistics_term": "verbs"}))
    file.write_text("\n".join(lines))


@pytest.mark.slow
def test_accuracy_and_log_probabilities_equal_those_of_blimp(tmp_path):
    from lm_eval.tasks import TaskManager

    write_pairs(tmp_path / "pairs.jsonl")
    blimp = pathlib.Path(lm_eval.__file__).parent / "tasks/blimp/_template_yaml"
    template = blimp.read_text().replace("dataset_path: nyu-mll/blimp", "dataset_path: json")
    source = f"dataset_kwargs: {{data_files: {{train: {tmp_path / 'pairs.jsonl'}}}}}\n"
    (tmp_path / "blimp.yaml").write_text(f"task: blimp_test\n{source}{template}")
    os.environ["HF_HOME"] = str(tmp_path / "cache")
    device_mesh, tokenizer = mesh.make_mesh(RUN.mesh), tokenizers.ByteTokenizer()
    params = jax.jit(
        lambda: transformer.init_params(RUN.model, 0),
        out_shardings=mesh.named_sharding(device_mesh),
    )()
    expected = lm_eval.simple_evaluate(
        model=lm_eval_harness.make_adapter(RUN, device_mesh, params, tokenizer),
        tasks=["blimp_test"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    assert expected is not None
    task = tasks.load_task(f"pair:{tmp_path}/pairs.jsonl?space=1")
    score = heldout.make_scorer(RUN, device_mesh)
    with jax.set_mesh(device_mesh):
        arguments = (RUN, device_mesh, score, params, tokenizer, [task])
        (metrics,) = task_eval.evaluate_tasks(*arguments).values()
    accuracy = expected["results"]["blimp_test"]["acc,none"]
    assert metrics["n"]["value"] == 200 and 0 < accuracy < 1
    assert metrics["accuracy"]["value"] == pytest.approx(accuracy, abs=1e-9)
    samples = expected["samples"]["blimp_test"]
    log_p = np.array([[float(p) for p, _ in sample["filtered_resps"]] for sample in samples])
    margin = (log_p[:, 0] - log_p[:, 1]).mean()
    assert metrics["margin"]["value"] == pytest.approx(margin, abs=1e-4)
