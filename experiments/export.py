"""Export a checkpoint of a run as a folder for Hugging Face `transformers`.

uv run python -m experiments.export --run=runs/quickstart/250K --out=out/250K
"""

import importlib.util
import os

from absl import flags

from experiments.common import cli, console, next_command
from lm.runs import filesystem

_RUN = flags.DEFINE_string("run", None, "folder of the run")
_ALLOW = cli.allow_path_flag()
_STEP = flags.DEFINE_integer("step", None, "step of the checkpoint; default: the last")
_OUT = flags.DEFINE_string("out", None, "new or empty folder, or gs://BUCKET/FOLDER")
_SHARD = flags.DEFINE_float(
    "shard_gb", 5.0, "largest size of a weight file in GB", lower_bound=1e-6, upper_bound=1e6
)


def main() -> int:
    if not _RUN.value or not _OUT.value:
        raise ValueError(
            "--run=FOLDER and --out=FOLDER are required, such as"
            " --run=runs/quickstart/600K --out=out/600K"
        )
    run = cli.load_run(_RUN.value, _ALLOW.value)  # before JAX is imported
    os.environ["JAX_PLATFORMS"] = "cpu"  # keep a single copy of the weights, in host memory
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    from lm.config import schema
    from lm.data import evaluation_text
    from lm.model.hf import architectures, export
    from lm.runs import records
    from lm.training import loaded_model

    architectures.architecture_of(run.model)  # raises for unsupported models before reading weights
    run.mesh = schema.Mesh()
    tokenizer = evaluation_text.load_run_tokenizer(run)
    options = {
        "shard_bytes": int(_SHARD.value * 1e9),
        "family": records.read_facts(records.run_dir(run)).get("imported.family", ""),
    }
    if run.model.lora_rank:  # adapters must be merged into the weights, which needs all weights
        _, state = loaded_model.restore_model(run, _STEP.value)
        step = int(state["step"])
        weights = state["params"]
        architecture = export.export_model(run, weights, tokenizer, _OUT.value, **options)
    else:
        with loaded_model.open_weights(run, _STEP.value) as (read_weight, step):
            architecture = export.export_model(run, read_weight, tokenizer, _OUT.value, **options)
    console.print_line(f"exported: {architecture} of step {step}")
    if importlib.util.find_spec("safetensors") and not filesystem.is_remote(_OUT.value):
        models = f"--models={_OUT.value}", f"--run={_RUN.value}", "--dir=runs/exported"
        next_command.print_next("evaluate", *models)
    else:
        next_command.print_next("sample", f"--run={_RUN.value}")
    console.print_line(f"model: {_OUT.value}")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
