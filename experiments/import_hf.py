"""Import a model of Hugging Face `transformers` as a run; see lm/model/hf/architectures.py.

uv run python -m experiments.import_hf --source=out/600K --run=runs/pretrained/imported
uv run python -m experiments.sample    --run=runs/pretrained/imported --prompt="Once"
uv run python -m experiments.train     --config=configs/finetune.py:runs/pretrained/imported

The first line reads a folder of experiments.export. `hf download Qwen/Qwen3-0.6B` downloads a model
of the Hugging Face Hub, which --source=Qwen/Qwen3-0.6B then imports. The weights are divided over
the devices of this machine while they are read. configs/finetune.py chooses a learning rate that
fits the size of an imported model.
"""

from absl import flags

from experiments.common import cli, console, next_command
from lm.runs import filesystem

_SOURCE = flags.DEFINE_string(
    "source", None, "folder of transformers, or OWNER/NAME[@REVISION] in the cache of the Hub"
)
_RUN = flags.DEFINE_string("run", None, "folder of the new run, or gs://BUCKET/FOLDER")
_ALLOW = cli.allow_path_flag()
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "as data.tokenizer; default: that of the folder")
_SEQ_LEN = flags.DEFINE_integer("seq_len", 0, "context in tokens; 0: as the model, up to 1024")


def main() -> int:
    if not _SOURCE.value or not _RUN.value:
        raise ValueError(
            "--source=FOLDER and --run=FOLDER are required, such as"
            " --source=Qwen3-0.6B --run=runs/pretrained/qwen3-0.6B"
        )
    filesystem.check_not_nested(filesystem.open_path(_RUN.value))  # before JAX is imported
    from lm.parallel import mesh
    from lm.runs import records
    from lm.training import warm_start

    mesh.initialize_devices()
    run = warm_start.run_from_huggingface(
        _SOURCE.value, _RUN.value, _TOKENIZER.value, _SEQ_LEN.value, _ALLOW.value
    )
    facts = records.read_facts(records.run_dir(run))
    architecture, n_params = facts["imported.family"], facts["params.total"]
    console.print_line("training data: unknown")
    console.print_line(f"imported: {architecture} with {n_params:,} parameters")
    next_command.print_next("sample", f"--run={_RUN.value}", "--prompt=Once")
    console.print_line(f"run directory: {_RUN.value}")
    return 0


if __name__ == "__main__":
    cli.run_main(main)
