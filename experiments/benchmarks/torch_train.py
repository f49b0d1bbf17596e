"""Training a GPT as one writes it in PyTorch, to measure ours against: see benchmark.

python experiments/benchmarks/torch_train.py '{"d_model": 64, ...}' eager|compiled float32|bfloat16

The shape of nanoGPT: LayerNorm, learned positions, one product for q, k and v, the fused causal
attention of PyTorch, a GELU MLP 4 times as wide, AdamW in its fused form, gradients clipped at 1.
Then it answers as lm's side does: each line of stdin is a number of steps, each line of stdout
JSON of the seconds they took.
"""

import json
import sys
import time

import torch
import turns
from torch import nn
from torch.nn import functional

SHAPE = json.loads(sys.argv[1])
D, HEADS, LAYERS = SHAPE["d_model"], SHAPE["n_heads"], SHAPE["n_layers"]
VOCAB, T, B = SHAPE["vocab_size"], SHAPE["seq_len"], SHAPE["batch_size"]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(D, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x):
        cut = self.qkv(self.norms[0](x)).view(*x.shape[:2], 3, HEADS, D // HEADS)
        q, k, v = cut.permute(2, 0, 3, 1, 4)
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(o.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Embedding(VOCAB, D), nn.Embedding(T, D)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(D, bias=False), nn.Linear(D, VOCAB, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens[:, :-1]) + self.places.weight
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x)).flatten(0, 1)
        return functional.cross_entropy(logits.float(), tokens[:, 1:].flatten())


def main(kind: str, dtype: str) -> None:
    torch.manual_seed(0)
    made = GPT()
    called = torch.compile(made) if kind == "compiled" else made
    optimizer = torch.optim.AdamW(made.parameters(), 1e-3, (0.9, 0.95), fused=True)
    tokens = torch.randint(VOCAB, (B, T + 1))
    half = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def step():
        with half:
            loss = called(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    step()
    print(json.dumps({"now": time.time()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(turns.timed(step, int(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[2:])
