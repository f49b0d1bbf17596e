"""Writes a checkpoint of a run as a folder that Hugging Face `transformers` opens.

uv run python -m experiments.export --run=runs/quickstart/600K --to=hf --out=out/600K
"""

import os

from absl import flags

from experiments.common import cli, console

_RUN = flags.DEFINE_string("run", None, "folder of the run")
_STEP = flags.DEFINE_integer("step", None, "checkpoint; the newest if not given")
_TO = flags.DEFINE_enum("to", "hf", ["hf"], "format")
_OUT = flags.DEFINE_string("out", None, "folder to write; must be new or empty")
_SHARD = flags.DEFINE_float("shard_gb", 5.0, "gigabytes of a file", lower_bound=1e-6)


def main() -> int:
    os.environ["JAX_PLATFORMS"] = "cpu"  # one copy of the weights, in the host's memory
    os.environ["JAX_NUM_CPU_DEVICES"] = "1"
    from lm.config import schema
    from lm.data import tokenizers
    from lm.model.hf import architectures, export
    from lm.runs import records
    from lm.training import loaded_model

    if not _RUN.value or not _OUT.value:
        raise ValueError(
            "--run=FOLDER and --out=FOLDER are needed: see python -m experiments.export"
        )
    run = records.read_config(_RUN.value)
    architectures.architecture_of(run.model)  # refused before anything is read
    run.mesh = schema.Mesh()
    tokenizer = tokenizers.load_tokenizer(_RUN.value)
    limit = int(_SHARD.value * 1e9)
    if run.model.lora_rank:  # an addition is added to its weight
        _, state = loaded_model.restore_model(run, _STEP.value)
        step = int(state["step"])
        kind = export.export_model(run, state["params"], tokenizer, _OUT.value, limit)
    else:
        with loaded_model.open_weights(run, _STEP.value) as (weight, step):
            kind = export.export_model(run, weight, tokenizer, _OUT.value, limit)
    console.print_line(f"{_OUT.value}: {kind} of step {step}")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
