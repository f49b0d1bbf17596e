"""Read a model from a folder of Hugging Face transformers.

    model, name, context = read_shape("Qwen3-0.6B")
    weights = read_weights("Qwen3-0.6B", model, name)      # {path: float32 array}

lm/model/hf/architectures.py maps tensors to weights. lm/training/warm_start.py starts a run from
the weights.

The folder may come from a stranger. No file outside it is read. The package safetensors checks that
the tensors of a header fill their file without overlap. Shapes are compared with config.json before
memory is allocated for the weights.
"""

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.config import model_sizes, schema, validation
from lm.data import tokenizers
from lm.data.sources import path_permissions
from lm.data.tokenization import token_bytes
from lm.model import params, transformer
from lm.model.hf import architectures, config_fields, tensor_layout, weight_blocks
from lm.parallel import mesh
from lm.runs import filesystem, json_files

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")  # in order of preference
# Buffers of old versions of transformers, which are not weights.
BUFFER_SUFFIXES = (
    *(".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"),
    *(".attention.bias", ".attention.masked_bias"),
)


def check_files(folder: str | Path, allow_paths: Iterable[str] = ()) -> None:
    """Raise ValueError if a file of a folder is a link to a file outside, or not a regular file.

    The files of a snapshot in the cache of the Hugging Face hub are links to its folder blobs.
    allow_paths: further folders to which links may lead.
    """
    real_folder = Path(os.path.realpath(folder))
    if real_folder.parent.name == "snapshots":
        allow_paths = [*allow_paths, str(real_folder.parents[1] / "blobs")]
    path_permissions.check_links(folder, allow_paths)


def read_shape(folder: str | Path) -> tuple[schema.Model, str, int]:
    """Return (model, architecture, maximum context) from the config.json of a folder.

    Raises ValueError with the key that lm/model/transformer.py cannot reproduce.
    """
    file = Path(folder) / "config.json"
    if not file.exists():
        remedy = "use a folder that transformers wrote"
        if not Path(folder).exists() and str(folder).count("/") == 1:
            remedy = f"download it by hf download {folder} --local-dir=DIR, and name DIR"
        raise ValueError(f"{folder} has no config.json: {remedy}")
    config = json_files.read_object(file)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in architectures.ARCHITECTURES:
        known = ", ".join(architectures.ARCHITECTURES)
        raise ValueError(f"{file}: model_type={name!r} must be one of {known}")
    fields = config_fields.read_fields(file, config, name)
    context = config.get("max_position_embeddings", config.get("n_positions", 1024))
    config_fields.check_positive(file, "max_position_embeddings", context)
    model = schema.Model(**fields)
    # Combinations of fields are checked when the run is complete.
    validation.parse_stored_run({"model": dataclasses.asdict(model)}, file, is_used=False)
    return model, name, context


def find_tokenizer(folder: Path) -> str:
    """Return the field data.tokenizer for the tokenizer file of a folder.

    Raises ValueError if the folder has no tokenizer file.
    """
    for kind, file in zip(("file", "spm"), TOKENIZER_FILES, strict=True):
        if (folder / file).exists():
            return f"{kind}:{folder / file}"
    for file in ("tekken.json", *(path.name for path in sorted(folder.glob("*.tiktoken")))):
        if (folder / file).exists():
            content = filesystem.read_limited_bytes(folder / file, tokenizers.MAX_FILE_BYTES)
            token_bytes.check_vocabulary_format(content, str(folder / file))
    raise ValueError(f"{folder} has no {' or '.join(TOKENIZER_FILES)}: set --tokenizer")


def tokenizer_file_name(tokenizer: tokenizers.Tokenizer) -> str:
    """Return the name of the file that tokenizer.save writes."""
    return TOKENIZER_FILES[isinstance(tokenizer, tokenizers.SentencePieceTokenizer)]


def read_weights(
    folder: str | Path,
    shape: schema.Model,
    name: str,
    shardings: Mapping[str, jax.sharding.NamedSharding] | None = None,
) -> dict[str, Any]:
    """Return {path: float32 array} of all weights of a model of the architecture `name`.

    shardings: of the weights by path. The result then has arrays of JAX, and the host has the
    numbers of one tensor at a time. Without shardings, the result has arrays of NumPy. Raises
    ValueError with the file, the tensor and the expected shape if the folder has other tensors.
    """
    folder = Path(folder)
    with contextlib.ExitStack() as stack:
        stored: dict[str, _StoredTensor] = {}
        for file in _weight_files(folder):
            reader = _open(stack, folder / file)
            for key in reader.keys():
                stored[_full_name(key, name)] = _StoredTensor(folder / file, key, reader)
        _check_number_of_weights(folder, stored, shape)
        expected = {tensor.name: tensor for tensor in tensor_layout.tensor_table(shape, name)}
        _check_names(folder, stored, expected, shape)
        for tensor in expected.values():
            stored[tensor.name].check(tensor.shape)
        leaves = params.flatten_by_path(jax.eval_shape(lambda: transformer.init_params(shape, 0)))
        shapes = {path: leaf.shape for path, leaf in leaves.items()}
        blocks = weight_blocks.WeightBlocks(shapes, shardings)
        for tensor in expected.values():
            matrices = tensor_layout.split_tensor(tensor, stored[tensor.name].read())
            for part, matrix in zip(tensor.parts, matrices, strict=True):
                blocks.write(part.path, part.index, matrix)
    return blocks.arrays()


def mesh_shardings(
    shape: schema.Model, device_mesh: jax.sharding.Mesh, rules: mesh.ShardingRules
) -> dict[str, jax.sharding.NamedSharding]:
    """Return the sharding of each weight by path, for read_weights."""
    leaves = jax.tree_util.tree_leaves_with_path(
        transformer.param_axes(shape), is_leaf=mesh.is_axis_names
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): rules.sharding(device_mesh, *axes)
        for path, axes in leaves
    }


class _StoredTensor(NamedTuple):
    """A tensor in an open safetensors file."""

    path: Path
    key: str
    reader: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the header of the file. No data is read."""
        return tuple(self.reader.get_slice(self.key).get_shape())

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the tensor has another shape."""
        if self.shape != shape:
            raise ValueError(
                f"{self.path}: {self.key} has the shape {list(self.shape)}, config.json requires"
                f" {list(shape)}"
            )

    def read(self) -> np.ndarray:
        """Return the tensor. Raises ValueError if it is not of floats."""
        array = np.asarray(self.reader.get_tensor(self.key))
        # NumPy shows bfloat16 as the kind V.
        if array.dtype.kind not in "fV":
            raise ValueError(
                f"{self.path}: {self.key} has the dtype {array.dtype}: it must be of floats"
            )
        return array


def _weight_files(folder: Path) -> list[str]:
    """Return the names of the safetensors files of a folder. Raises ValueError if one is absent."""
    if (folder / architectures.INDEX_FILE).exists():
        index_file = folder / architectures.INDEX_FILE
        weight_map = json_files.read_object(index_file).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{index_file}: weight_map must be an object that lists the tensors")
        files = sorted(set(map(str, weight_map.values())))
        for file in files:
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise ValueError(
                    f"{index_file} lists {file!r}: it must be the name of a .safetensors file in"
                    " this folder"
                )
            if not (folder / file).exists():
                raise ValueError(f"{index_file} lists {file}, which does not exist")
        return files
    if not (folder / architectures.WEIGHTS_FILE).exists():
        remedy = ""
        if list(folder.glob("pytorch_model*.bin")):
            remedy = ": convert pytorch_model.bin by transformers.AutoModelForCausalLM"
            remedy += ".from_pretrained(FOLDER).save_pretrained(OUT), and name OUT"
        raise ValueError(
            f"{folder} has neither {architectures.WEIGHTS_FILE} nor {architectures.INDEX_FILE}"
            f"{remedy}"
        )
    return [architectures.WEIGHTS_FILE]


def _open(stack: contextlib.ExitStack, path: Path):
    """Return a reader of a safetensors file that `stack` closes."""
    try:
        import safetensors
    except ImportError:
        raise ValueError(f"{path} requires the package safetensors: uv sync --extra hf") from None
    try:
        return stack.enter_context(safetensors.safe_open(path, "numpy"))
    except PermissionError:
        raise ValueError(f"{path}: cannot be read (Permission denied)") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is not a complete safetensors file ({error})") from None


def _full_name(key: str, name: str) -> str:
    """Return the name of a tensor with its prefix, which files of a model without head omit."""
    rows = architectures.ARCHITECTURES[name].tensors
    prefix = next(tensor.split(".")[0] for tensor, _, _ in rows if tensor.count(".") > 1)
    known = (f"{prefix}.", "lm_head.", "embed_out.")
    return key if key.startswith(known) else f"{prefix}.{key}"


def _check_number_of_weights(
    folder: Path, stored: dict[str, _StoredTensor], shape: schema.Model
) -> None:
    """Raise ValueError if config.json describes far more weights than the files contain.

    Missing tensors are named later. The list of the tensors of such a model may not fit in memory.
    """
    n_needed = model_sizes.count_parameters(shape)["total"]
    n_stored = sum(math.prod(tensor.shape) for tensor in stored.values())
    if n_needed > 2 * n_stored:
        raise ValueError(
            f"{folder}: config.json describes {n_needed:,} weights, the files contain"
            f" {n_stored:,}: download the folder again"
        )


def _check_names(
    folder: Path,
    stored: dict[str, _StoredTensor],
    expected: dict[str, tensor_layout.Tensor],
    shape: schema.Model,
) -> None:
    """Raise ValueError if expected tensors are missing or other tensors are stored."""
    missing = [name for name in expected if name not in stored]
    if missing:
        raise ValueError(
            f"{folder}: {missing[0]} {list(expected[missing[0]].shape)} is missing"
            f" ({len(missing)} missing tensors)"
        )
    # A file may contain a tied head, which is a copy of the embedding.
    ignored = ("lm_head.weight",) if shape.tie_embeddings else ()
    extra = [
        name
        for name in stored
        if name not in (*expected, *ignored) and not name.endswith(BUFFER_SUFFIXES)
    ]
    if extra:
        raise ValueError(
            f"{stored[extra[0]].path}: {stored[extra[0]].key} is not a weight of this model"
            f" ({len(extra)} unknown tensors)"
        )
