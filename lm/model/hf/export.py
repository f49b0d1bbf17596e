"""Models written as Hugging Face `transformers` keeps them.

    export(run, params, tokenizer, "out")                 a folder that AutoModelForCausalLM opens

Weights are files of safetensors: the length of a header, the header (JSON: name -> type, shape,
place), the numbers. They are written a few rows at a time, so that beside the weight at hand
next to nothing is held. Which tensor is which weight says lm/model/hf/architectures.py.
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
from lm.model import lora, parametrization, params
from lm.model.hf import architectures

PIECE_BYTES = 1 << 24  # written at once
SHARD_BYTES = 5 * 10**9  # of a file; more go into several, and an index says which is where


def export_model(
    run: schema.Run,
    parameters: dict | Callable[[str], jax.Array],
    tokenizer: tokenizers.Tokenizer,
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
) -> str:
    """Writes a folder that `transformers` opens, float32; returns the name of its class.

    params: the tree, or what gives a weight by its path (loaded_model.open_weights). Low-rank
    additions are added up; what a parametrization multiplies branches and logits with goes into the
    weights before them. ValueError for a model of no family, or a folder that is not empty.
    """
    shape = dataclasses.replace(run.model, lora_rank=0)
    name, folder = architectures.architecture_of(shape), Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--out={folder} is not empty: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    if not callable(parameters):
        parameters = params.flatten_by_path(lora.merge_lora(run.model, parameters)).__getitem__
    # All tensors of a weight after one another: it is read once.
    these = sorted(architectures.tensor_table(shape, name), key=lambda tensor: tensor.parts[0][0])
    _write_weights(folder, these, parameters, _factors(shape), shard_bytes)
    _write_json(folder / "config.json", _their_config(shape, name, run.data.seq_len, tokenizer.end))
    ends = {f"{word}_token_id": tokenizer.end for word in ("bos", "eos", "pad")}
    _write_json(folder / "generation_config.json", ends)
    _write_tokenizer(folder, tokenizer, run.data.seq_len)
    return architectures.CLASSES[name]


def _factors(shape: schema.Model) -> Callable[[str], float]:
    """What a weight is multiplied with, so that nothing else has to be."""
    branch, logits = parametrization.residual_scale(shape), parametrization.logit_scale(shape)

    def factor(path: str) -> float:
        if path.startswith("blocks/") and path.endswith(
            ("/out", "/down", "/out_bias", "/down_bias")
        ):
            return branch
        return logits if path in ("norm/scale", "norm/bias") else 1.0

    return factor


def _write_weights(
    folder, these: list[architectures.Tensor], weight, factor, shard_bytes: int
) -> None:
    shards: list[list[architectures.Tensor]] = [[]]
    room = shard_bytes
    for tensor in these:
        size = 4 * math.prod(tensor.shape)
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(tensor)
        room -= size
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    names = [architectures.ONE] if len(shards) == 1 else names
    for file, shard in zip(names, shards, strict=True):
        _write_shard(folder / file, shard, weight, factor)
    if len(shards) > 1:
        where = {t.name: file for file, shard in zip(names, shards, strict=True) for t in shard}
        total = sum(4 * math.prod(tensor.shape) for tensor in these)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        _write_json(folder / architectures.INDEX, index)


def _write_shard(path: Path, these: list[architectures.Tensor], weight, factor) -> None:
    """One file of safetensors, a few rows of a tensor at a time."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in these:
        end = at + 4 * math.prod(tensor.shape)
        header[tensor.name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        held: dict[str, np.ndarray] = {}
        for tensor in these:
            missing = {path for path, *_ in tensor.parts} - held.keys()
            if missing:
                held, parts = {}, []  # first, so that two are never there
                held = {path: np.asarray(weight(path)) for path, *_ in tensor.parts}
            parts, scale = architectures.tensor_parts(tensor, held), factor(tensor.parts[0][0])
            rows = max(1, PIECE_BYTES * len(parts[0]) // (4 * math.prod(tensor.shape)))
            rows = rows if len(tensor.shape) > 1 else len(parts[0])
            for start in range(0, len(parts[0]), rows):
                piece = [part[start : start + rows] for part in parts]
                whole = np.concatenate(piece, axis=-1) if len(piece) > 1 else piece[0]
                whole = whole * np.float32(scale) if scale != 1 else whole
                file.write(np.ascontiguousarray(whole, "<f4").data)


def _their_config(shape: schema.Model, name: str, seq_len: int, end: int) -> dict:
    said = {
        theirs: getattr(shape, ours) for ours, theirs in architectures.FIELD_NAMES[name].items()
    }
    if name == "qwen3_moe":
        said["moe_intermediate_size"] = model_sizes.expert_width(shape)
    if name != "gpt2":
        said["rope_parameters"] = {"rope_type": "default", "rope_theta": shape.rope_theta}
        said["max_position_embeddings"] = seq_len
    ends = {f"{word}_token_id": end for word in ("bos", "eos", "pad")}
    kind = {"architectures": [architectures.CLASSES[name]], "model_type": name, "dtype": "float32"}
    return kind | said | architectures.REQUIRED_HF_CONFIG[name] | ends


def _write_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer, seq_len: int) -> None:
    if isinstance(tokenizer, tokenizers.ByteTokenizer):
        _write_json(folder / "tokenizer.json", _byte_tokenizer())
        end = "\0"
    else:
        tokenizer.save(folder)
        names = getattr(tokenizer, "ids", {})
        end = next((piece for piece, i in names.items() if i == tokenizer.end), None)
    kind = "PreTrainedTokenizerFast" if (folder / "tokenizer.json").exists() else "LlamaTokenizer"
    said: dict = {"tokenizer_class": kind, "model_max_length": seq_len}
    said |= {"clean_up_tokenization_spaces": False}
    said |= {} if end is None else {"eos_token": end, "pad_token": end}
    _write_json(folder / "tokenizer_config.json", said)


def _byte_tokenizer() -> dict:
    """tokenizers.ByteTokenizer as a tokenizer.json: the same ids, and NUL ends a document."""
    letters = {byte[0]: letter for letter, byte in tokenizers.LETTERS.items()} | {
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
    path.write_text(json.dumps(value, indent=2, ensure_ascii=True) + "\n", encoding="utf-8")
