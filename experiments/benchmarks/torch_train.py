"""PyTorch baseline of train_step.py: training of a GPT in the shape of nanoGPT.

    python experiments/benchmarks/torch_train.py '{"d_model": 64, ...}' eager|compiled \\
        float32|bfloat16

The model has LayerNorm, learned positions, one product for q, k and v, PyTorch's fused causal
attention and a GELU MLP 4 times as wide. The optimizer is fused AdamW, and gradients are clipped
at norm 1. The process follows the protocol of interleaved.py. Axes: B rows, T tokens, H heads,
K dimensions per head.
"""

import json
import sys
import time

import interleaved
import torch
from torch import nn
from torch.nn import functional

SHAPE = json.loads(sys.argv[1])
D, N_HEADS, N_LAYERS = SHAPE["d_model"], SHAPE["n_heads"], SHAPE["n_layers"]
VOCAB, SEQ_LEN, BATCH = SHAPE["vocab_size"], SHAPE["seq_len"], SHAPE["batch_size"]


class Block(nn.Module):
    """Attention and MLP with residual connections and norms before them."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(D, bias=False) for _ in range(2))
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        self.up, self.down = nn.Linear(D, 4 * D, bias=False), nn.Linear(4 * D, D, bias=False)

    def forward(self, x):
        """Return the output of the block for x [B, T, D]."""
        qkv = self.qkv(self.norms[0](x)).view(*x.shape[:2], 3, N_HEADS, D // N_HEADS)
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        o_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        x = x + self.out(o_BHTK.transpose(1, 2).reshape(x.shape))
        return x + self.down(functional.gelu(self.up(self.norms[1](x))))


class GPT(nn.Module):
    """Decoder that returns its loss."""

    def __init__(self):
        super().__init__()
        self.embed, self.positions = nn.Embedding(VOCAB, D), nn.Embedding(SEQ_LEN, D)
        self.blocks = nn.ModuleList(Block() for _ in range(N_LAYERS))
        self.norm, self.head = nn.LayerNorm(D, bias=False), nn.Linear(D, VOCAB, bias=False)

    def forward(self, tokens):
        """Return the mean cross-entropy of tokens [B, T + 1]."""
        x = self.embed(tokens[:, :-1]) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x)).flatten(0, 1)
        return functional.cross_entropy(logits.float(), tokens[:, 1:].flatten())


def main(kind: str, dtype: str) -> None:
    """Train on random tokens and answer requests of stdin. kind: eager or compiled."""
    torch.manual_seed(0)
    model = GPT()
    loss_function = torch.compile(model) if kind == "compiled" else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), fused=True)
    tokens = torch.randint(VOCAB, (BATCH, SEQ_LEN + 1))
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")

    def train_step():
        with autocast:
            loss = loss_function(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    train_step()
    print(json.dumps({"now": time.time()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(interleaved.timed(train_step, int(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[2:])
