"""Greedy generation as one writes it in PyTorch, to measure ours against: see benchmark_sample.

python experiments/benchmarks/torch_generate.py ROWS TOKENS cached|uncached   # seconds
"""

import sys
import time

import torch
from torch.nn import functional

D_MODEL, N_LAYERS, N_HEADS, D_HEAD, D_FF, VOCAB = 256, 4, 4, 64, 768, 256


def weights() -> tuple[list[dict], torch.Tensor, torch.Tensor]:
    """The layers, the embedding and the head; the numbers do not matter."""
    made = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=made) * shape[0] ** -0.5

    d, f = D_MODEL, D_FF
    shapes = {"q": (d, d), "k": (d, d), "v": (d, d), "out": (d, d)}
    shapes |= {"gate": (d, f), "up": (d, f), "down": (f, d)}
    layers = [{name: normal(*shape) for name, shape in shapes.items()} for _ in range(N_LAYERS)]
    return layers, normal(VOCAB, d), normal(d, VOCAB)


def rotary(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    angle = times[:, None] * 10_000.0 ** (-torch.arange(D_HEAD // 2) / (D_HEAD // 2))
    left, right = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


@torch.inference_mode()
def generate(layers, embed, head, rows: int, n: int, cached: bool) -> torch.Tensor:
    text = torch.zeros(rows, 1, dtype=torch.long)
    keys, values = torch.zeros(2, N_LAYERS, rows, N_HEADS, n, D_HEAD)
    for i in range(n):
        read = text[:, -1:] if cached else text
        x, t = embed[read], read.shape[1]
        times = torch.arange(i + 1 - t, i + 1)
        for layer, w in enumerate(layers):
            y = functional.rms_norm(x, (D_MODEL,))
            q, k, v = ((y @ w[name]).view(rows, t, N_HEADS, D_HEAD) for name in "qkv")
            q, k = functional.rms_norm(q, (D_HEAD,)), functional.rms_norm(k, (D_HEAD,))
            q, k = rotary(q.transpose(1, 2), times), rotary(k.transpose(1, 2), times)
            v = v.transpose(1, 2)
            if cached:
                keys[layer, :, :, i : i + 1], values[layer, :, :, i : i + 1] = k, v
                k, v = keys[layer, :, :, : i + 1], values[layer, :, :, : i + 1]
            o = functional.scaled_dot_product_attention(q, k, v, is_causal=not cached)
            x = x + o.transpose(1, 2).reshape(rows, t, D_MODEL) @ w["out"]
            y = functional.rms_norm(x, (D_MODEL,))
            x = x + (functional.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]
        token = (functional.rms_norm(x[:, -1:], (D_MODEL,)) @ head).argmax(-1)
        text = torch.cat([text, token], 1)
    return text


if __name__ == "__main__":
    rows, n, cached = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "cached"
    made = weights()
    generate(*made, rows, 8, cached)
    seconds = []
    for _ in range(3 if cached else 1):
        start = time.perf_counter()
        generate(*made, rows, n, cached)
        seconds.append(time.perf_counter() - start)
    print(min(seconds))
