"""PyTorch baseline of generation_speed.py: greedy generation in a plain loop.

    python experiments/benchmarks/torch_generate.py N_ROWS N_TOKENS cached|uncached

The last line of output is the seconds of the fastest generation. Axes: B rows, T positions,
H heads, K dimensions per head.
"""

import sys
import time

import torch
from torch.nn import functional

D_MODEL, N_LAYERS, N_HEADS, D_HEAD, D_FF, VOCAB = 256, 4, 4, 64, 768, 256


def random_weights() -> tuple[list[dict], torch.Tensor, torch.Tensor]:
    """Return random weights of the layers, of the embedding and of the output."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator) * shape[0] ** -0.5

    d, f = D_MODEL, D_FF
    shapes = {"q": (d, d), "k": (d, d), "v": (d, d), "out": (d, d)}
    shapes |= {"gate": (d, f), "up": (d, f), "down": (f, d)}
    layers = [{name: normal(*shape) for name, shape in shapes.items()} for _ in range(N_LAYERS)]
    return layers, normal(VOCAB, d), normal(d, VOCAB)


def apply_rotary(x_BHTK: torch.Tensor, positions_T: torch.Tensor) -> torch.Tensor:
    """Return x [B, H, T, K] with rotary position embeddings (Su et al. 2021, arXiv:2104.09864)."""
    frequencies = 10_000.0 ** (-torch.arange(D_HEAD // 2) / (D_HEAD // 2))
    angles = positions_T[:, None] * frequencies
    first_half, second_half = x_BHTK.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat(
        [first_half * cos - second_half * sin, second_half * cos + first_half * sin], -1
    )


@torch.inference_mode()
def generate(
    layers: list[dict],
    embed: torch.Tensor,
    head: torch.Tensor,
    n_rows: int,
    n_tokens: int,
    is_cached: bool,
) -> torch.Tensor:
    """Generate n_tokens tokens after token 0 in each row. Return all tokens [B, n_tokens + 1].

    With is_cached, each step computes one position and reads older keys and values from a cache.
    Otherwise each step computes all positions.
    """
    tokens_BT = torch.zeros(n_rows, 1, dtype=torch.long)
    key_cache, value_cache = torch.zeros(2, N_LAYERS, n_rows, N_HEADS, n_tokens, D_HEAD)
    for i in range(n_tokens):
        inputs = tokens_BT[:, -1:] if is_cached else tokens_BT
        x, t = embed[inputs], inputs.shape[1]
        positions_T = torch.arange(i + 1 - t, i + 1)
        for layer, w in enumerate(layers):
            y = functional.rms_norm(x, (D_MODEL,))
            q, k, v = ((y @ w[name]).view(n_rows, t, N_HEADS, D_HEAD) for name in "qkv")
            q, k = functional.rms_norm(q, (D_HEAD,)), functional.rms_norm(k, (D_HEAD,))
            q = apply_rotary(q.transpose(1, 2), positions_T)
            k = apply_rotary(k.transpose(1, 2), positions_T)
            v = v.transpose(1, 2)
            if is_cached:
                key_cache[layer, :, :, i : i + 1], value_cache[layer, :, :, i : i + 1] = k, v
                k, v = key_cache[layer, :, :, : i + 1], value_cache[layer, :, :, : i + 1]
            o = functional.scaled_dot_product_attention(q, k, v, is_causal=not is_cached)
            x = x + o.transpose(1, 2).reshape(n_rows, t, D_MODEL) @ w["out"]
            y = functional.rms_norm(x, (D_MODEL,))
            x = x + (functional.silu(y @ w["gate"]) * (y @ w["up"])) @ w["down"]
        next_token = (functional.rms_norm(x[:, -1:], (D_MODEL,)) @ head).argmax(-1)
        tokens_BT = torch.cat([tokens_BT, next_token], 1)
    return tokens_BT


def main(n_rows: int, n_tokens: int, is_cached: bool) -> None:
    """Print the seconds of the fastest of 3 generations, or of 1 without a cache."""
    weights = random_weights()
    generate(*weights, n_rows, 8, is_cached)
    seconds = []
    for _ in range(3 if is_cached else 1):
        start = time.perf_counter()
        generate(*weights, n_rows, n_tokens, is_cached)
        seconds.append(time.perf_counter() - start)
    print(min(seconds))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "cached")
