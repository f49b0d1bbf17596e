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
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from lm.config import model_sizes, schema
from lm.data import tokenizers
from lm.data.tokenization import token_bytes
from lm.model import lora, parametrization, params
from lm.model.hf import architectures
from lm.runs import filesystem

WRITE_BYTES = 1 << 24  # bytes per write
SHARD_BYTES = 5 * 10**9  # maximum bytes per file; a larger model has several files and an index


def export_model(
    run: schema.Run,
    parameters: dict | Callable[[str], jax.Array],
    tokenizer: tokenizers.Tokenizer,
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Write a model in float32 to a new folder, and return the name of its transformers class.

    parameters: the tree of weights, or a function from path to weight (loaded_model.open_weights).
    LoRA adapters are merged into their weights. The factors of a parametrization for branches and
    logits are multiplied into the preceding weights.

    Raises ValueError if transformers has no architecture for the model, or if the folder is not
    empty.
    """
    shape = dataclasses.replace(run.model, lora_rank=0)
    name, folder = architectures.architecture_of(shape), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--out={folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not callable(parameters):
        parameters = params.flatten_by_path(lora.merge_lora(run.model, parameters)).__getitem__
    # The tensors of one weight are consecutive, so that each weight is read once.
    tensors = sorted(
        architectures.tensor_table(shape, name), key=lambda tensor: tensor.parts[0].path
    )
    _write_weights(folder, tensors, parameters, _weight_factors(shape), shard_bytes)
    _write_json(folder / "config.json", _hf_config(shape, name, run.data.seq_len, tokenizer))
    _write_json(folder / "generation_config.json", _special_token_ids(tokenizer))
    _write_tokenizer(folder, tokenizer, run.data.seq_len)
    return architectures.CLASSES[name]


def _weight_factors(shape: schema.Model) -> Callable[[str], float]:
    """Return a function from the path of a weight to the factor that replaces a parametrization."""
    branch, logits = parametrization.residual_scale(shape), parametrization.logit_scale(shape)

    def factor(path: str) -> float:
        if path.startswith("blocks/") and path.endswith(
            ("/out", "/down", "/out_bias", "/down_bias")
        ):
            return branch
        return logits if path in ("norm/scale", "norm/bias") else 1.0

    return factor


def _write_weights(
    folder, tensors: list[architectures.Tensor], read_weight, factor, shard_bytes: int
) -> None:
    """Write all tensors to one or more files, and the index if there are several."""
    shards: list[list[architectures.Tensor]] = [[]]
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
        _write_json(folder / architectures.INDEX_FILE, index)


def _n_bytes(tensor: architectures.Tensor) -> int:
    """Return the size of a tensor in float32."""
    return 4 * math.prod(tensor.shape)


def _write_shard(path: Path, tensors: list[architectures.Tensor], read_weight, factor) -> None:
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
            arrays = architectures.tensor_parts(tensor, weights)
            scale, n_rows = factor(tensor.parts[0].path), len(arrays[0])
            step = max(1, WRITE_BYTES * n_rows // _n_bytes(tensor))
            step = step if len(tensor.shape) > 1 else n_rows
            for start in range(0, n_rows, step):
                slices = [array[start : start + step] for array in arrays]
                rows = np.concatenate(slices, axis=-1) if len(slices) > 1 else slices[0]
                rows = rows * np.float32(scale) if scale != 1 else rows
                file.write(np.ascontiguousarray(rows, "<f4").data)


def _hf_config(
    shape: schema.Model, name: str, seq_len: int, tokenizer: tokenizers.Tokenizer
) -> dict:
    """Return the content of config.json."""
    fields = {key: getattr(shape, field) for field, key in architectures.FIELD_NAMES[name].items()}
    if name == "qwen3_moe":
        fields["moe_intermediate_size"] = model_sizes.expert_width(shape)
    if name != "gpt2":
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": shape.rope_theta}
        fields["max_position_embeddings"] = seq_len
    kind = {"architectures": [architectures.CLASSES[name]], "model_type": name, "dtype": "float32"}
    return kind | fields | architectures.REQUIRED_HF_CONFIG[name] | _special_token_ids(tokenizer)


def _special_token_ids(tokenizer: tokenizers.Tokenizer) -> dict[str, int | list[int]]:
    """Return the ids of the special tokens: the start of a text, ends of an answer, padding.

    A tokenizer without a start token has the end of a document in its place.
    """
    start = tokenizer.end if tokenizer.start is None else tokenizer.start
    ends = [tokenizer.end, *tokenizer.stops]
    return {
        "bos_token_id": start,
        "eos_token_id": ends if tokenizer.stops else tokenizer.end,
        "pad_token_id": tokenizer.end,
    }


def _write_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer, seq_len: int) -> None:
    """Write the tokenizer file and tokenizer_config.json."""
    if isinstance(tokenizer, tokenizers.ByteTokenizer):
        _write_json(folder / "tokenizer.json", _byte_tokenizer())
        start, end = None, "\0"
    else:
        tokenizer.save(folder)
        names = {i: token for token, i in getattr(tokenizer, "ids", {}).items()}
        end = names.get(tokenizer.end)
        start = None if tokenizer.start is None else names.get(tokenizer.start)
    kind = "PreTrainedTokenizerFast" if (folder / "tokenizer.json").exists() else "LlamaTokenizer"
    config: dict = {"tokenizer_class": kind, "model_max_length": seq_len}
    config |= {"clean_up_tokenization_spaces": False}
    config |= {} if end is None else {"eos_token": end, "pad_token": end}
    config |= {} if start is None else {"bos_token": start, "add_bos_token": True}
    _write_json(folder / "tokenizer_config.json", config)


def _byte_tokenizer() -> dict:
    """Return the content of a tokenizer.json with the ids of tokenizers.ByteTokenizer.

    The character NUL is the end of a document.
    """
    letters = {byte[0]: letter for letter, byte in token_bytes.LETTERS.items()} | {
        tokenizers.END: "\0"
    }
    end = {"id": tokenizers.END, "content": "\0", "special": True, "normalized": False}
    end |= {"single_word": False, "lstrip": False, "rstrip": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    return {
        "version": "1.0",
        "added_tokens": [end],
        "pre_tokenizer": level | {"use_regex": False},
        "decoder": level | {"use_regex": False},
        "model": {"type": "BPE", "vocab": {letters[i]: i for i in range(256)}, "merges": []},
    }


def _write_json(path: Path, value: dict) -> None:
    """Write a dict as indented ASCII JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")
