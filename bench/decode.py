"""What a decode step on CPU is made of, piece by piece: how weights and keys lie in memory, and which exponential.

usage: python bench/decode.py [--rows 64] [--times 25]

Microseconds a layer, medians, one thread, in the shapes of the benchmark model (6 layers, width 256, inner width 704, 4
key heads of 32, 8 query heads, 8,192 tokens). Between two measurements of a piece all weights are read, as in a step,
so that nothing is found in the cache that would not be there.

keys, values   scores of one query a row over T own keys, and the sum of T values, if rows stand behind each other, and
               if each has room for `capacity` tokens, of which T are read
linear         x @ W.T for the weights of a layer: as torch.nn.functional.linear, and with blocks (sampler/packed.py)
head           the same for the head; `parts` is the way of token_head.logits without blocks
exp            exp and exp2 of the scores of a layer
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

LAYERS, WIDTH, INNER, HEADS, GROUP, HEAD_WIDTH, VOCABULARY = 6, 256, 704, 4, 2, 32, 8192


def timed(pieces: dict[str, Callable[[int], Any]], between: Callable[[int], Any], times: int) -> dict[str, float]:
    """Microseconds a layer of each piece, which takes the number of a layer."""
    spent: dict[str, list[float]] = {name: [] for name in pieces}
    for _ in range(times):
        for name, piece in pieces.items():
            total = 0.0
            for layer in range(LAYERS):
                between(layer)
                start = time.perf_counter()
                piece(layer)
                total += time.perf_counter() - start
            spent[name].append(total / LAYERS * 1e6)
    return {name: statistics.median(values) for name, values in spent.items()}


def main() -> None:
    from espalier.engines.sampler.packed import product
    from espalier.models.token_head import TokenHead, logits

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--times", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    rows, linear = options.rows, torch.nn.functional.linear
    shapes = [(WIDTH, WIDTH), (HEADS * HEAD_WIDTH, WIDTH), (INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)]
    weights = [[torch.randn(shape) for shape in shapes] for _ in range(LAYERS)]
    x, inner = torch.randn(rows, WIDTH), torch.randn(rows, INNER)
    head = torch.randn(VOCABULARY, WIDTH)

    def inputs(weight: torch.Tensor) -> torch.Tensor:
        return x if weight.shape[1] == WIDTH else inner

    def step(layer: int) -> None:
        """Everything a step reads beside the piece that is measured."""
        for other in weights:
            for weight in other:
                linear(inputs(weight), weight)
        linear(x, head)

    query = torch.randn(rows * HEADS, GROUP, HEAD_WIDTH)
    print(f"{rows} rows; microseconds a layer")
    for tokens in (32, 64, 128):
        line = f"own keys, T = {tokens:3d}"
        scores = torch.rand(rows * HEADS, GROUP, tokens)
        for capacity in (tokens, tokens + 16, 256):
            own = [torch.randn(rows, HEADS, capacity, HEAD_WIDTH) for _ in range(LAYERS)]
            read = [k[:, :, :tokens].flatten(0, 1) for k in own]
            pieces = {
                "keys": lambda i, read=read: torch.bmm(query, read[i].transpose(1, 2)),
                "values": lambda i, read=read, scores=scores: torch.bmm(scores, read[i]),
            }
            found = timed(pieces, step, options.times)
            line += f"   capacity {capacity:3d}: keys {found['keys']:4.0f}, values {found['values']:4.0f}"
        print(line)
    blocks = [[product(weight, None) for weight in layer] for layer in weights]
    head_blocks = product(head, None)
    pieces = {
        "linear": lambda i: [linear(inputs(w), w) for w in weights[i]],
        "blocks": lambda i: [multiply(inputs(w)) for multiply, w in zip(blocks[i], weights[i], strict=True)],
        "head whole": lambda i: linear(x, head),
        "head parts": lambda i: logits(x, head, None, TokenHead()),
        "head blocks": lambda i: head_blocks(x),
    }
    print(", ".join(f"{name} {value:.0f}" for name, value in timed(pieces, step, options.times).items()))
    z = torch.randn(rows * HEADS * GROUP, 128)
    out = torch.empty_like(z)
    pieces = {"exp": lambda i: torch.exp(z, out=out), "exp2": lambda i: torch.exp2(z, out=out)}
    print(", ".join(f"{name} {value:.0f}" for name, value in timed(pieces, step, options.times).items()))


if __name__ == "__main__":
    main()
