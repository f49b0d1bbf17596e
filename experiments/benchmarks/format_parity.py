"""Compare token files of other trainers and models of transformers with ours: a table in Markdown.

    uv run --extra transformers python -m experiments.benchmarks.format_parity

A token file is read from the local disk and from a bucket in memory, and the tokens of both splits
are compared with those that were written. A model has two layers and random weights. Its logits in
float32 are compared with those of transformers, after its import and after its export again.
Without the packages torch and transformers, only token files are compared.
"""

import dataclasses
import importlib
import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.benchmarks import random_formats
from experiments.common import cli, console

_FAMILIES = flags.DEFINE_list("families", [], "families to compare, separated by commas; all")

V = random_formats.V
# Each id once, and a text of repeated ids.
TOKENS_BT = np.stack([np.arange(V)[::-1], np.tile([V - 1, 0, 0], V // 3)])


def main() -> int:
    """Print the table."""
    console.print_line("| format or family | read, imported | from a bucket, exported |")
    console.print_line("| --- | --- | --- |")
    for name in random_formats.TOKEN_FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            local, remote = compare_tokens(name, Path(folder))
        console.print_line(f"| {name} | {_describe(local)} | {_describe(remote)} |")
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        console.print_line("models are not compared: run uv sync --extra transformers")
        return 0
    configs = random_formats.transformers_configs()
    for family in _FAMILIES.value or configs:
        with tempfile.TemporaryDirectory() as folder:
            imported, exported = compare_logits(configs[family], Path(folder))
        console.print_line(f"| {family} | {imported:.1e} | {exported:.1e} |")
    return 0


def _describe(n_different: int) -> str:
    return f"{n_different:,} tokens differ" if n_different else "equal"


def compare_tokens(name: str, folder: Path) -> tuple[int, int]:
    """Return the numbers of different tokens and documents of a format, locally and in a bucket."""
    import fsspec

    from lm.data import tokenizers

    end, rng = tokenizers.ByteTokenizer().end, np.random.default_rng(0)
    documents = [np.r_[rng.integers(1, 256, n), end] for n in rng.integers(0, 60, 500)]
    write, options = random_formats.TOKEN_FORMATS[name]
    tokens = folder / "tokens"
    tokens.mkdir()
    write(tokens / "a", documents, **options)
    if write is random_formats.write_arrow:  # the rows alternate between two files
        documents = documents[0::2] + documents[1::2]
    files = fsspec.filesystem("memory")
    for path in [path for path in tokens.rglob("*") if path.is_file()]:
        files.put_file(str(path), f"/parity/{path.relative_to(tokens)}")
    results = [
        _count_differences(f"tokens:{address}", documents, f"{folder}/{cache}")
        for cache, address in (("local", tokens), ("bucket", "memory://parity"))
    ]
    files.rm("/parity", recursive=True)
    return results[0], results[1]


def _count_differences(source: str, documents: list[np.ndarray], cache: str) -> int:
    """Return the number of tokens and documents of both splits that differ from `documents`."""
    from lm.config import schema
    from lm.data import corpus
    from lm.data.prepared import corpus_manifest, token_file

    data = schema.Data({source: 1.0}, cache, heldout_fraction=0.1)
    manifest = corpus.prepare_corpus(data)[source]
    parts = {}  # file and byte -> token ids
    for split in corpus_manifest.SPLITS:
        file = token_file.TokenFile(manifest, split)
        segments = corpus_manifest.split_segments(manifest, split)
        for segment, start in zip(segments, file.starts, strict=False):
            ids = file[int(start) : int(start) + segment.n_tokens]
            parts[str(segment.path), segment.first_byte] = ids
    actual = np.concatenate([parts[key] for key in sorted(parts)])
    expected = np.concatenate(documents)
    n_common = min(len(actual), len(expected))
    return (
        int((actual[:n_common] != expected[:n_common]).sum())
        + abs(len(actual) - len(expected))
        + abs(sum(manifest.documents.values()) - len(documents))
    )


def compare_logits(config: Any, folder: Path) -> tuple[float, float]:
    """Return the largest difference of a logit after the import and after the export of a model."""
    import jax

    from lm.config import schema
    from lm.data import tokenizers
    from lm.model import params, transformer
    from lm.model.hf import export, load

    model = random_formats.random_model(config)
    published = random_formats.compute_torch_logits(model, TOKENS_BT)
    model.save_pretrained(folder / "published")
    shape, family, context = load.read_shape(folder / "published")
    weights = _unflatten(shape, load.read_weights(folder / "published", shape, family))
    computed = dataclasses.replace(shape, attention_query_blocks=1)
    ids_BT = jax.numpy.asarray(TOKENS_BT)
    actual = jax.jit(lambda tree: transformer.compute_logits(computed, tree, ids_BT))(weights)
    run = schema.Run(model=shape)
    run.data.seq_len = context
    read_weight, tokenizer = params.flatten_by_path(weights).__getitem__, tokenizers.ByteTokenizer()
    export.export_model(run, read_weight, tokenizer, folder / "exported", family=family)
    library: Any = importlib.import_module("transformers")
    reread_model = library.AutoModelForCausalLM.from_pretrained(
        folder / "exported", attn_implementation="eager"
    )
    exported = random_formats.compute_torch_logits(reread_model.eval(), TOKENS_BT)
    differences = [float(np.abs(np.asarray(actual) - x).max()) for x in (published, exported)]
    return differences[0], differences[1]


def _unflatten(shape: Any, arrays: dict[str, np.ndarray]) -> dict:
    """Return {path: array} as the tree of weights of a model."""
    import jax

    from lm.model import params, transformer

    tree = jax.eval_shape(lambda: transformer.init_params(shape, 0))
    leaves = [jax.numpy.asarray(arrays[path]) for path in params.flatten_by_path(tree)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


if __name__ == "__main__":
    cli.run_main(main)
