"""Models as Hugging Face `transformers` keeps them, made into runs.

    run = imported("Qwen3-0.6B", "runs/pretrained/qwen")  a run to evaluate, sample, start from

Which tensor is which weight says lm/model/hf/architectures.py.
"""

import contextlib
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm.config import schema
from lm.data import tokenizers
from lm.model import params, transformer
from lm.model.hf import architectures
from lm.runs import records

TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # files, the first that is there counts


def read_shape(folder: str | Path) -> tuple[schema.Model, str, int]:
    """(the model that a folder's config.json describes, its family, its longest context).

    ValueError naming what lm/model/transformer.py cannot compute.
    """
    file = Path(folder) / "config.json"
    if not file.exists():
        raise ValueError(f"{folder} has no config.json: name a folder that transformers wrote")
    said = records.read_json(file)
    name = said.get("model_type")
    if name not in architectures.TENSORS:
        raise ValueError(
            f"{file}: model_type={name!r} must be one of {', '.join(architectures.TENSORS)}"
        )
    for key, needed in architectures.REQUIRED_HF_CONFIG[name].items():
        if said.get(key, needed) not in (needed, None):
            raise ValueError(f"{file}: {key}={said[key]!r} must be {needed!r}")
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(f"{file}: rope_parameters={rope} must be of rope_type 'default'")
    said = {key: rope[key] for key in ("rope_theta",) if key in rope} | {
        key: value for key, value in said.items() if value is not None
    }
    defaults = architectures.GPT2_DEFAULTS if name == "gpt2" else architectures.DEFAULTS
    knobs: dict[str, Any] = {
        ours: said.get(theirs, defaults.get(ours))
        for ours, theirs in architectures.FIELD_NAMES[name].items()
    }
    needs = {k: v for k, v in architectures.REQUIRED_FIELDS[name].items() if k not in knobs}
    for ours in ("vocab_size", "d_model", "n_layers", "n_heads"):
        if not isinstance(knobs[ours], int) or knobs[ours] < 1:
            raise ValueError(
                f"{file}: {architectures.FIELD_NAMES[name][ours]}={knobs[ours]!r} must be a whole"
                f" number"
            )
    knobs["d_head"] = knobs.get("d_head") or knobs["d_model"] // knobs["n_heads"]
    knobs["n_kv_heads"] = knobs.get("n_kv_heads") or knobs["n_heads"]
    knobs["d_ff"] = knobs["d_ff"] or 4 * knobs["d_model"]
    context = said.get("max_position_embeddings", said.get("n_positions", 1024))
    return schema.Model(**knobs | needs), name, context


def _tokenizer_in(folder: Path) -> str:
    for kind, file in zip(("file", "spm"), TOKENIZERS, strict=True):
        if (folder / file).exists():
            return f"{kind}:{folder / file}"
    raise ValueError(f"{folder} has no {' or '.join(TOKENIZERS)}: name one by --tokenizer")


def _saved_as(tokenizer: tokenizers.Tokenizer) -> str:
    return TOKENIZERS[isinstance(tokenizer, tokenizers.SentencePieceTokenizer)]


def read_weights(folder: str | Path, shape: schema.Model, name: str) -> dict[str, np.ndarray]:
    """{path: float32 array} of all weights; ValueError naming file, tensor and shape expected."""
    folder = Path(folder)
    whole = params.flatten_by_path(jax.eval_shape(lambda: transformer.init_params(shape, 0)))
    weights = {path: np.empty(leaf.shape, np.float32) for path, leaf in whole.items()}
    files = _files(folder)
    with contextlib.ExitStack() as stack:
        there: dict[str, tuple[str, Any]] = {}
        for file in files:
            opened = _open(stack, folder / file)
            there |= {_full(key, name): (file, (key, opened)) for key in opened.keys()}
        wanted = {tensor.name: tensor for tensor in architectures.tensor_table(shape, name)}
        _check_names(folder, there, wanted, shape)
        for tensor in wanted.values():
            file, (key, opened) = there[tensor.name]
            found = tuple(opened.get_slice(key).get_shape())
            if found != tensor.shape:
                raise ValueError(
                    f"{folder / file}: {key} is {list(found)}, config.json needs"
                    f" {list(tensor.shape)}"
                )
            theirs = np.asarray(opened.get_tensor(key))
            if theirs.dtype.kind not in "fV":
                raise ValueError(f"{folder / file}: {key} is {theirs.dtype}, not of floats")
            cuts = np.cumsum([math.prod(sizes) for *_, sizes in tensor.parts])
            last = math.prod(tensor.shape[:-1])
            pieces = np.split(theirs, cuts[:-1] // last, axis=-1)
            for (path, place, order, lengths), piece in zip(tensor.parts, pieces, strict=True):
                back = np.argsort(order)
                weights[path][place] = piece.reshape(lengths).transpose(back)
    return weights


def _files(folder: Path) -> list[str]:
    if (folder / architectures.INDEX).exists():
        index = records.read_json(folder / architectures.INDEX)
        files = sorted(set(index.get("weight_map", {}).values()))
        for file in files:
            if not (folder / file).exists():
                raise ValueError(f"{folder / architectures.INDEX} names {file}, which is not there")
        return files
    if not (folder / architectures.ONE).exists():
        raise ValueError(f"{folder} has neither {architectures.ONE} nor {architectures.INDEX}")
    return [architectures.ONE]


def _open(stack: contextlib.ExitStack, path: Path):
    try:
        import safetensors
    except ImportError:
        raise ValueError(f"{path} needs: pip install 'lm-scaling[hf]'") from None
    try:
        return stack.enter_context(safetensors.safe_open(path, "numpy"))
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: is no whole file of safetensors ({error})") from None


def _full(key: str, name: str) -> str:
    """A tensor's name with its prefix, which files of a bare GPT-2 leave out."""
    is_bare = name == "gpt2" and not key.startswith(("transformer.", "lm_head."))
    return f"transformer.{key}" if is_bare else key


def _check_names(folder: Path, there: dict, wanted: dict, shape: schema.Model) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(
            f"{folder}: {missing[0]} {list(wanted[missing[0]].shape)} is missing"
            f" ({len(missing)} tensors are)"
        )
    # A tied head may be written out; buffers of old versions are no weights.
    ignored = ("lm_head.weight",) if shape.tie_embeddings else ()
    buffers = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
    extra = [n for n in there if n not in (*wanted, *ignored) and not n.endswith(buffers)]
    if extra:
        file = there[extra[0]][0]
        raise ValueError(
            f"{folder / file}: {extra[0]} is no weight of this model ({len(extra)} tensors are not)"
        )
