"""PyTorch reference of accelerator.py: training of a decoder in bfloat16 on one device.

    python experiments/benchmarks/torch_accelerator.py '{"d_model": 2048, ...}' SECONDS

The model has RMSNorm, rotary positions, PyTorch's fused causal attention and a gated MLP, and is
compiled. Weights are float32, products are bfloat16, and the optimizer is fused AdamW. Attention
crosses documents, which needs no mask. The largest batch that fits is used. The last line of the
output is a JSON object. Axes: B rows, T tokens, H heads, K dimensions per head.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional

SHAPE = json.loads(sys.argv[1])
D, N_HEADS, N_LAYERS = SHAPE["d_model"], SHAPE["n_heads"], SHAPE["n_layers"]
D_HEAD, D_FF, VOCAB, SEQ_LEN = (SHAPE[k] for k in ("d_head", "d_ff", "vocab_size", "seq_len"))
BATCH_SIZES = (32, 16, 8, 4, 2)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def rotate(x_BHTK, cos_TK, sin_TK):
    """Return x with rotary positions."""
    left, right = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TK + torch.cat((-right, left), dim=-1) * sin_TK


class Block(nn.Module):
    """Attention and gated MLP with residual connections and norms before them."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(D) for _ in range(2))
        self.qkv = nn.Linear(D, 3 * N_HEADS * D_HEAD, bias=False)
        self.out = nn.Linear(N_HEADS * D_HEAD, D, bias=False)
        self.up, self.gate = (nn.Linear(D, D_FF, bias=False) for _ in range(2))
        self.down = nn.Linear(D_FF, D, bias=False)

    def forward(self, x, cos_TK, sin_TK):
        """Return the output of the block for x [B, T, D]."""
        qkv = self.qkv(self.norms[0](x)).view(*x.shape[:2], 3, N_HEADS, D_HEAD)
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        q_BHTK, k_BHTK = (rotate(a, cos_TK, sin_TK).to(v_BHTK.dtype) for a in (q_BHTK, k_BHTK))
        o_BHTK = functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        x = x + self.out(o_BHTK.transpose(1, 2).flatten(2))
        hidden = self.norms[1](x)
        return x + self.down(functional.silu(self.gate(hidden)) * self.up(hidden))


class Decoder(nn.Module):
    """Decoder that returns its loss."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, D), nn.Linear(D, VOCAB, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(N_LAYERS))
        self.norm = nn.RMSNorm(D)
        frequency = 10000.0 ** (-torch.arange(0, D_HEAD, 2) / D_HEAD)
        angle = torch.outer(torch.arange(SEQ_LEN), frequency).repeat(1, 2)
        self.register_buffer("cos_TK", angle.cos())
        self.register_buffer("sin_TK", angle.sin())

    def forward(self, tokens):
        """Return the mean cross-entropy of tokens [B, T + 1]."""
        x = self.embed(tokens[:, :-1])
        for block in self.blocks:
            x = block(x, self.cos_TK, self.sin_TK)
        logits = self.head(self.norm(x)).flatten(0, 1)
        return functional.cross_entropy(logits.float(), tokens[:, 1:].flatten())


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure(batch_size: int, max_seconds: float) -> dict:
    """Return the speed of training with a batch size. max_seconds: of the timed steps."""
    torch.manual_seed(0)
    model = Decoder().to(DEVICE)
    loss_function = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4, (0.9, 0.95), fused=True)
    tokens = torch.randint(VOCAB, (batch_size, SEQ_LEN + 1), device=DEVICE)

    def train_step():
        with torch.autocast(DEVICE, torch.bfloat16):
            loss = loss_function(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    began = time.perf_counter()
    train_step()
    synchronize()
    compile_seconds = time.perf_counter() - began
    train_step()
    synchronize()
    seconds: list[float] = []
    while len(seconds) < 2 or 5 * sum(seconds) < max_seconds:
        began = time.perf_counter()
        for _ in range(5):
            train_step()
        synchronize()
        seconds.append((time.perf_counter() - began) / 5)
    step_seconds = sorted(seconds)[len(seconds) // 2]
    return {
        "step_ms": 1000 * step_seconds,
        "tokens_per_second": batch_size * SEQ_LEN / step_seconds,
        "compile_seconds": compile_seconds,
        "batch_size": batch_size,
    }


def main(max_seconds: float) -> None:
    """Print the speed of the largest batch that fits into the memory."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    for batch_size in BATCH_SIZES:
        try:
            result = measure(batch_size, max_seconds)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            continue
        print(json.dumps(result | {"device": name, "versions.torch": torch.__version__}))
        return
    raise SystemExit("no batch fits into the memory")


if __name__ == "__main__":
    main(float(sys.argv[2]))
