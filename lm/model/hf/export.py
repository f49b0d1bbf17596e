"""Export of a model to a folder of Hugging Face transformers.

    export_model(run, params, tokenizer, "out")
    transformers.AutoModelForCausalLM.from_pretrained("out")

A safetensors file is the length of a header, the header (JSON: name -> dtype, shape, byte offsets),
and the numbers. The numbers are written a few rows at a time, so the export needs little more
memory than one weight. lm/model/hf/architectures.py maps weights to tensors.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from lm.config import schema
from lm.data import tokenizers
from lm.model import lora, parametrization, params
from lm.model.hf import architectures, config_fields, tensor_layout, tokenizer_files
from lm.runs import filesystem

WRITE_BYTES = 1 << 24  # bytes per write
SHARD_BYTES = 5 * 10**9  # maximum bytes per file; a larger model has several files and an index


def export_model(
    run: schema.Run,
    parameters: dict | Callable[[str], jax.Array],
    tokenizer: tokenizers.Tokenizer,
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
    family: str = "",
) -> str:
    """Write a model in float32 to a new folder, and return the name of its transformers class.

    parameters: the tree of weights, or a function from path to weight (loaded_model.open_weights).
    LoRA adapters are merged into their weights. The factors of a parametrization for branches and
    logits are multiplied into the preceding weights. family: see architectures.architecture_of.

    Raises ValueError if transformers has no architecture for the model, or if the folder is not
    empty.
    """
    shape = dataclasses.replace(run.model, lora_rank=0)
    name, folder = architectures.architecture_of(shape, family), filesystem.open_path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--out={folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not callable(parameters):
        parameters = params.flatten_by_path(lora.merge_lora(run.model, parameters)).__getitem__
    # The tensors of one weight are consecutive, so that each weight is read once.
    tensors = sorted(
        tensor_layout.tensor_table(shape, name), key=lambda tensor: tensor.parts[0].path
    )
    tokenizer_files.write_tokenizer_files(folder, run, tokenizer)  # may refuse the tokenizer
    _write_weights(folder, tensors, parameters, _weight_factors(shape), shard_bytes)
    config = _hf_config(shape, name, run.data.seq_len)
    config |= tokenizer_files.special_token_ids(run, tokenizer)
    tokenizer_files.write_json(folder / "config.json", config)
    return architectures.ARCHITECTURES[name].class_name


def _weight_factors(shape: schema.Model) -> Callable[[str], float]:
    """Return a function from the path of a weight to the factor that replaces a parametrization."""
    branch, logits = parametrization.residual_scale(shape), parametrization.logit_scale(shape)
    last_weights = {
        "pre": ("/out", "/down", "/out_bias", "/down_bias"),
        "post": ("_norm/scale", "_norm/bias"),
        "both": ("_output_norm/scale", "_output_norm/bias"),
    }[shape.norm_position]
    head_norms = ("query_norm/scale", "key_norm/scale", "query_norm/bias", "key_norm/bias")

    def factor(path: str) -> float:
        is_last = path.endswith(last_weights) and not path.endswith(head_norms)
        if path.startswith("blocks/") and is_last:
            return branch
        return logits if path in ("norm/scale", "norm/bias") else 1.0

    return factor


def _write_weights(
    folder, tensors: list[tensor_layout.Tensor], read_weight, factor, shard_bytes: int
) -> None:
    """Write all tensors to one or more files, and the index if there are several."""
    shards: list[list[tensor_layout.Tensor]] = [[]]
    free_bytes = shard_bytes
    for tensor in tensors:
        n_bytes = _n_bytes(tensor)
        if n_bytes > free_bytes and shards[-1]:
            shards.append([])
            free_bytes = shard_bytes
        shards[-1].append(tensor)
        free_bytes -= n_bytes
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = [architectures.WEIGHTS_FILE] if len(shards) == 1 else names
    for file, shard in zip(names, shards, strict=True):
        _write_shard(folder / file, shard, read_weight, factor)
    if len(shards) > 1:
        file_of = {t.name: file for file, shard in zip(names, shards, strict=True) for t in shard}
        total_bytes = sum(_n_bytes(tensor) for tensor in tensors)
        index = {"metadata": {"total_size": total_bytes}, "weight_map": file_of}
        tokenizer_files.write_json(folder / architectures.INDEX_FILE, index)


def _n_bytes(tensor: tensor_layout.Tensor) -> int:
    """Return the size of a tensor in float32."""
    return 4 * math.prod(tensor.shape)


def _write_shard(path: Path, tensors: list[tensor_layout.Tensor], read_weight, factor) -> None:
    """Write one safetensors file, a few rows of a tensor at a time."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + _n_bytes(tensor)
        header[tensor.name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with filesystem.name_errors(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        weights: dict[str, np.ndarray] = {}
        for tensor in tensors:
            if {part.path for part in tensor.parts} - weights.keys():
                # The old weights are freed before new ones are read, to halve the peak memory.
                weights, arrays = {}, []
                weights = {part.path: np.asarray(read_weight(part.path)) for part in tensor.parts}
            arrays = tensor_layout.tensor_matrices(tensor, weights)
            scale = factor(tensor.parts[0].path)
            offset = tensor.parts[0].scale_offset
            for rows in _row_blocks(tensor, arrays):
                rows = rows * np.float32(scale) if scale != 1 else rows
                rows = rows - np.float32(offset) if offset else rows
                file.write(np.ascontiguousarray(rows, "<f4").data)


def _row_blocks(tensor: tensor_layout.Tensor, matrices: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield the numbers of a tensor in its order, in blocks of about WRITE_BYTES."""
    n_rows = tensor.parts[0].n_rows
    if n_rows == 1:  # the parts follow one another, so none of them is copied
        for matrix in matrices:
            numbers = matrix.reshape(-1)
            for start in range(0, len(numbers), WRITE_BYTES):
                yield numbers[start : start + WRITE_BYTES]
        return
    step = max(1, WRITE_BYTES * n_rows // _n_bytes(tensor))
    for start in range(0, n_rows, step):
        slices = [matrix[start : start + step] for matrix in matrices]
        yield np.concatenate(slices, axis=-1) if len(slices) > 1 else slices[0]


def _hf_config(shape: schema.Model, name: str, seq_len: int) -> dict:
    """Return the content of config.json without special tokens."""
    class_name = architectures.ARCHITECTURES[name].class_name
    kind = {"architectures": [class_name], "model_type": name, "dtype": "float32"}
    return kind | config_fields.write_fields(shape, name, seq_len)
