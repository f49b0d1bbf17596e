"""Tiny random models as transformers writes them, and the logits that it gives: see test_hf.py.

python tests/data/hf/make.py        # torch 2.13.0, transformers 5.24.0; writes beside itself
"""

import pathlib

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
V, T = 24, 24
SHAPE = {
    **{"vocab_size": V, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 16},
    **{"max_position_embeddings": T, "eos_token_id": 0, "bos_token_id": 0},
}
GPT2 = {"vocab_size": V, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": T}
MODELS = {
    "llama": transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True, rms_norm_eps=1e-5),
    "qwen3": transformers.Qwen3Config(**SHAPE, rope_parameters={"rope_theta": 1e6}),
    "gpt2": transformers.GPT2Config(**GPT2, n_inner=28, bos_token_id=0, eos_token_id=0),
}
TOKENS = {
    "every": np.arange(V)[None, ::-1].copy(),  # each id once
    "repeated": np.repeat(np.array([[V - 1, 0]]), 5, axis=1),
    "one": np.array([[V - 1]]),
}

for name, config in MODELS.items():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for weight in model.parameters():  # none at 0 or 1, each a bfloat16
            weight.add_(0.2 * torch.randn_like(weight))
            weight.copy_(weight.to(torch.bfloat16))
        found = {what: model.eval()(torch.tensor(ids)).logits for what, ids in TOKENS.items()}
    folder = HERE / name
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    logits = {f"{what}.logits": value.numpy() for what, value in found.items()}
    np.savez_compressed(folder / "expected.npz", **logits, **TOKENS)
