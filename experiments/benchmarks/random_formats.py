"""Token files of other trainers, and configs of small models of transformers, for comparisons.

    write_megatron(Path("folder/a"), documents)       # a.bin and a.idx
    transformers_configs()["llama"]                   # a config of transformers

The formats are described in lm/data/pretokenized/token_formats.py. A document is an array of token
ids that ends with the end token. The functions return the file of the tokens.
"""

import importlib
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.pretokenized import token_formats

Documents = Sequence[np.ndarray]
V, T = 24, 24  # tokens of a vocabulary and of a context


def write_datatrove(path: Path, documents: Documents, dtype: str = "<u2") -> Path:
    """Write the .ds file and the index of datatrove."""
    path = path.with_suffix(".ds")
    np.concatenate(documents).astype(dtype).tofile(path)
    np.cumsum([len(ids) for ids in documents]).astype("<u8").tofile(f"{path}.index")
    return path


def write_megatron(path: Path, documents: Documents, code: int = 8) -> Path:
    """Write the .bin and the .idx file of Megatron. code: type of the tokens."""
    path = path.with_suffix(".bin")
    dtype = token_formats.MEGATRON_DTYPES[code]
    np.concatenate(documents).astype(dtype).tofile(path)
    lengths = np.array([len(ids) for ids in documents], "<i4")
    pointers = (np.cumsum(lengths) - lengths).astype("<i8") * np.dtype(dtype).itemsize
    limits = np.arange(len(documents) + 1, dtype="<i8")
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, code, len(lengths), len(limits))
    arrays = (lengths, pointers, limits)
    path.with_suffix(".idx").write_bytes(header + b"".join(a.tobytes() for a in arrays))
    return path


def write_llmc(path: Path, documents: Documents, magic: int = 20240520) -> Path:
    """Write the .bin file of llm.c. magic: number that defines the type of the tokens."""
    path, ids = path.with_suffix(".bin"), np.concatenate(documents)
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(ids)
    path.write_bytes(header.tobytes() + ids.astype(token_formats.LLMC_DTYPES[magic]).tobytes())
    return path


def write_raw(path: Path, documents: Documents) -> Path:
    """Write the .bin file of nanoGPT, which has no header."""
    path = path.with_suffix(".bin")
    np.concatenate(documents).astype("<u2").tofile(path)
    return path


def write_arrow(
    folder: Path, documents: Documents, kind: str = "int32", column: str = "input_ids", **options
) -> Path:
    """Write the folder of Dataset.save_to_disk with two files: record batches and state.json.

    options: those of pyarrow.ipc.IpcWriteOptions.
    """
    pyarrow: Any = importlib.import_module("pyarrow")
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{i:05}-of-00002.arrow" for i in range(2)]
    for i, name in enumerate(names):
        ids = [np.asarray(document).tolist() for document in documents[i::2]]
        rows = pyarrow.array(ids, pyarrow.list_(getattr(pyarrow, kind)()))
        table = pyarrow.table({"text": ["x"] * len(rows), column: rows})
        settings = pyarrow.ipc.IpcWriteOptions(**options)
        with pyarrow.ipc.new_stream(str(folder / name), table.schema, options=settings) as stream:
            stream.write_table(table, max_chunksize=100)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "cache-1.arrow").write_bytes(b"not read")
    return folder


# Name of a format -> function that writes it, with its options.
TOKEN_FORMATS: dict[str, tuple[Callable[..., Path], dict]] = {
    "datatrove, uint16": (write_datatrove, {}),
    "datatrove, uint32": (write_datatrove, {"dtype": "<u4"}),
    "Megatron, uint16": (write_megatron, {}),
    "Megatron, int32": (write_megatron, {"code": 4}),
    "llm.c, uint16": (write_llmc, {}),
    "llm.c, uint32": (write_llmc, {"magic": 20240801}),
    "nanoGPT": (write_raw, {}),
    "datasets (arrow)": (write_arrow, {}),
}


def transformers_configs() -> dict[str, Any]:
    """Return the config of a small model of each family that is imported and exported."""
    library: Any = importlib.import_module("transformers")
    shape = {
        "vocab_size": V,
        "hidden_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "intermediate_size": 16,
        "max_position_embeddings": T,
        "eos_token_id": 0,
        "bos_token_id": 0,
    }
    gpt2 = {"vocab_size": V, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": T}
    llama3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0}
    llama3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 12}
    partial = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}
    same_heads = {k: v for k, v in shape.items() if k not in ("num_key_value_heads", "head_dim")}
    windows = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}
    gemma = shape | windows | {"query_pre_attn_scalar": 4}
    gemma |= {"hidden_activation": "gelu_pytorch_tanh"}
    gemma3_rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    }
    experts = {"moe_intermediate_size": 8, "num_experts": 5, "num_experts_per_tok": 2}
    softcaps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}
    neox = same_heads | {"hidden_size": 24}
    neox |= {"rope_parameters": partial | {"partial_rotary_factor": 0.34}}
    phi = same_heads | {"hidden_size": 40, "hidden_act": "gelu_new", "rope_parameters": partial}
    return {
        "llama": library.LlamaConfig(**shape, tie_word_embeddings=True, rms_norm_eps=1e-5),
        "llama3": library.LlamaConfig(**shape, rope_parameters=llama3),
        "mistral": library.MistralConfig(**shape, sliding_window=5),
        "qwen2": library.Qwen2Config(**shape),
        "qwen3": library.Qwen3Config(**shape, rope_parameters={"rope_theta": 1e6}),
        "qwen3_moe": library.Qwen3MoeConfig(**shape, **experts, norm_topk_prob=True),
        "olmo2": library.Olmo2Config(**shape),
        "gpt_neox": library.GPTNeoXConfig(**neox),
        "phi": library.PhiConfig(**phi),
        "phi3": library.Phi3Config(**shape, sliding_window=5, pad_token_id=0),
        "gemma2": library.Gemma2Config(**gemma, **softcaps),
        "gemma3_text": library.Gemma3TextConfig(**gemma, rope_parameters=gemma3_rope),
        "gpt2": library.GPT2Config(**gpt2, n_inner=28, bos_token_id=0, eos_token_id=0),
    }


def random_model(config: Any) -> Any:
    """Return a random model of transformers, whose weights bfloat16 represents exactly.

    No bias is 0 and no scale is 1, unlike their initial values.
    """
    library: Any = importlib.import_module("transformers")
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(0)
    model = library.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
            weight.copy_(weight.to(torch.bfloat16))
    return model.eval()


def compute_torch_logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """Return the logits of a model of transformers, [B, T, V]."""
    torch: Any = importlib.import_module("torch")
    with torch.no_grad():
        return model(torch.tensor(ids)).logits.float().numpy()
