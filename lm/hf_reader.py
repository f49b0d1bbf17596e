"""Models as Hugging Face `transformers` keeps them, made into runs.

    run = imported("Qwen3-0.6B", "runs/pretrained/qwen")  a run to evaluate, sample, start from

Which tensor is which weight says lm/stock.py.
"""

import contextlib
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lm import checkpoint, checks, config, model, proof, records, sizes, stock, tokens

TOKENIZERS = ("tokenizer.json", "tokenizer.model")  # files, the first that is there counts


def read_shape(folder: str | Path) -> tuple[config.Model, str, int]:
    """(the model that a folder's config.json describes, its family, its longest context).

    ValueError naming what lm/model.py cannot compute.
    """
    file = Path(folder) / "config.json"
    if not file.exists():
        raise ValueError(f"{folder} has no config.json: name a folder that transformers wrote")
    said = records.read_json(file)
    name = said.get("model_type")
    if name not in stock.TENSORS:
        raise ValueError(f"{file}: model_type={name!r} must be one of {', '.join(stock.TENSORS)}")
    for key, needed in stock.FIXED[name].items():
        if said.get(key, needed) not in (needed, None):
            raise ValueError(f"{file}: {key}={said[key]!r} must be {needed!r}")
    rope = said.get("rope_parameters") or said.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ValueError(f"{file}: rope_parameters={rope} must be of rope_type 'default'")
    said = {key: rope[key] for key in ("rope_theta",) if key in rope} | {
        key: value for key, value in said.items() if value is not None
    }
    defaults = stock.GPT2_DEFAULTS if name == "gpt2" else stock.DEFAULTS
    knobs: dict[str, Any] = {
        ours: said.get(theirs, defaults.get(ours)) for ours, theirs in stock.KNOBS[name].items()
    }
    needs = {k: v for k, v in stock.NEEDS[name].items() if k not in knobs}
    for ours in ("vocab_size", "d_model", "n_layers", "n_heads"):
        if not isinstance(knobs[ours], int) or knobs[ours] < 1:
            raise ValueError(
                f"{file}: {stock.KNOBS[name][ours]}={knobs[ours]!r} must be a whole number"
            )
    knobs["d_head"] = knobs.get("d_head") or knobs["d_model"] // knobs["n_heads"]
    knobs["n_kv_heads"] = knobs.get("n_kv_heads") or knobs["n_heads"]
    knobs["d_ff"] = knobs["d_ff"] or 4 * knobs["d_model"]
    context = said.get("max_position_embeddings", said.get("n_positions", 1024))
    return config.Model(**knobs | needs), name, context


def imported(
    folder: str | Path, place: str | Path, tokenizer: str = "", seq_len: int = 0
) -> config.Run:
    """Makes a run, with one checkpoint at step 1, of a folder that `transformers` wrote.

    tokenizer: as data.tokenizer says it; "": the folder's. seq_len: the run's context; 0: the
    model's, but no more than 1024. ValueError for a file that is damaged, or not of this model.
    """
    folder, place = Path(folder), Path(place)
    shape, name, context = read_shape(folder)
    run = config.Run(name=place.name, dir=str(place.parent), steps=1, model=shape)
    run.data.seq_len = seq_len or min(context, 1024)
    if place.exists() and any(place.iterdir()):
        raise ValueError(f"--run={place} is not empty: name a new folder")
    run.data.tokenizer = tokenizer or _tokenizer_in(folder)
    known = tokens.read(run.data.tokenizer)
    if known.vocab_size > shape.vocab_size:
        raise ValueError(
            f"{folder}: vocab_size={shape.vocab_size} is less than the {known.vocab_size} of"
            f" {run.data.tokenizer}: name the model's own by --tokenizer"
        )
    checks.check(run)
    weights = read_weights(folder, shape, name)
    place.mkdir(parents=True, exist_ok=True)
    known.save(place)
    kind, _, path = run.data.tokenizer.partition(":")
    if path:
        run.data.tokenizer = f"{kind}:{place / Path(_saved_as(known))}"
    about = sizes.facts(run)
    unknown = ("tokens", "flops")  # of its training
    facts = {key: value for key, value in about.items() if key not in unknown}
    records.start(run, facts | {"imported.family": name, "imported.from": folder.name})
    tree = jax.eval_shape(lambda: model.init(shape, 0))
    params = jax.tree.unflatten(
        jax.tree.structure(tree),
        [jax.numpy.asarray(weights.pop(path)) for path in proof.by_path(tree)],
    )
    state = {"step": jax.numpy.ones((), jax.numpy.int32), "params": params}
    with checkpoint.Checkpoints(run) as checkpoints:
        checkpoints.save(1, state, "", [], 0.0)
    records.write_facts(place, status="done", ends_at=1, seconds=0.0)
    return run


def _tokenizer_in(folder: Path) -> str:
    for kind, file in zip(("file", "spm"), TOKENIZERS, strict=True):
        if (folder / file).exists():
            return f"{kind}:{folder / file}"
    raise ValueError(f"{folder} has no {' or '.join(TOKENIZERS)}: name one by --tokenizer")


def _saved_as(tokenizer: tokens.Tokenizer) -> str:
    return TOKENIZERS[isinstance(tokenizer, tokens.SentencePiece)]


def read_weights(folder: str | Path, shape: config.Model, name: str) -> dict[str, np.ndarray]:
    """{path: float32 array} of all weights; ValueError naming file, tensor and shape expected."""
    folder = Path(folder)
    whole = proof.by_path(jax.eval_shape(lambda: model.init(shape, 0)))
    weights = {path: np.empty(leaf.shape, np.float32) for path, leaf in whole.items()}
    files = _files(folder)
    with contextlib.ExitStack() as stack:
        there: dict[str, tuple[str, Any]] = {}
        for file in files:
            opened = _open(stack, folder / file)
            there |= {_full(key, name): (file, (key, opened)) for key in opened.keys()}
        wanted = {tensor.name: tensor for tensor in stock.tensors(shape, name)}
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
    if (folder / stock.INDEX).exists():
        index = records.read_json(folder / stock.INDEX)
        files = sorted(set(index.get("weight_map", {}).values()))
        for file in files:
            if not (folder / file).exists():
                raise ValueError(f"{folder / stock.INDEX} names {file}, which is not there")
        return files
    if not (folder / stock.ONE).exists():
        raise ValueError(f"{folder} has neither {stock.ONE} nor {stock.INDEX}")
    return [stock.ONE]


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


def _check_names(folder: Path, there: dict, wanted: dict, shape: config.Model) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ValueError(
            f"{folder}: {missing[0]} {list(wanted[missing[0]].shape)} is missing"
            f" ({len(missing)} tensors are)"
        )
    # A tied head may be written out; buffers of old versions are no weights.
    ignored = ("lm_head.weight",) if shape.tied else ()
    buffers = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
    extra = [n for n in there if n not in (*wanted, *ignored) and not n.endswith(buffers)]
    if extra:
        file = there[extra[0]][0]
        raise ValueError(
            f"{folder / file}: {extra[0]} is no weight of this model ({len(extra)} tensors are not)"
        )
