"""Attention of one packed row on CPU three ways: SDPA on split views, autograd by hand around the flash kernel, one
mask.

usage: python bench/attention.py [--lengths 150 210 180 240 300 120 260 200 190 198] [--runs 9]

Forward and backward, 8 heads of 32 over 4 key heads, float32, interleaved in one process; medians and ratios to the
first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HEADS, KV, WIDTH = 8, 4, 32
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class ByHand(torch.autograd.Function):
    """The flash kernel on slices, gradients written into whole tensors."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        k, v = k.repeat_interleave(HEADS // KV, 1), v.repeat_interleave(HEADS // KV, 1)
        out, norms, start = torch.empty_like(q), [], 0
        for n in lengths:
            part = slice(start, start + n)
            out[:, :, part], norm = flash(q[:, :, part], k[:, :, part], v[:, :, part], 0.0, True)
            norms.append(norm)
            start += n
        ctx.save_for_backward(q, k, v, out)
        ctx.rest = norms, lengths
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        norms, lengths = ctx.rest
        dq, dk, dv, start = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), 0
        for n, norm in zip(lengths, norms, strict=True):
            p = slice(start, start + n)
            dq[:, :, p], dk[:, :, p], dv[:, :, p] = flash_backward(
                grad[:, :, p], q[:, :, p], k[:, :, p], v[:, :, p], out[:, :, p], norm, 0.0, True
            )
            start += n
        size = (1, KV, HEADS // KV, q.shape[2], WIDTH)
        return dq, dk.view(size).sum(2), dv.view(size).sum(2), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [150, 210, 180, 240, 300, 120, 260, 200, 190, 198]
    parser.add_argument("--lengths", type=int, nargs="+", default=default)
    parser.add_argument("--runs", type=int, default=9)
    o = parser.parse_args()
    size = sum(o.lengths)

    def leaf(heads: int) -> Tensor:
        return torch.randn(1, size, heads, WIDTH).transpose(1, 2).detach().requires_grad_()

    q, k, v = leaf(HEADS), leaf(KV), leaf(KV)
    upstream = torch.randn(1, HEADS, size, WIDTH)
    numbers = torch.arange(len(o.lengths)).repeat_interleave(torch.tensor(o.lengths))
    mask = (numbers[:, None] == numbers[None]) & torch.ones(size, size, dtype=torch.bool).tril()

    def split() -> Tensor:
        parts = zip(*(x.split(o.lengths, 2) for x in (q, k, v)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(*part, is_causal=True, enable_gqa=True) for part in parts], 2)

    ways = {
        "SDPA on split views": split,
        "autograd by hand": lambda: ByHand.apply(q, k, v, o.lengths),
        "one block-diagonal mask": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(o.runs + 1):
        for name, way in ways.items():
            q.grad = k.grad = v.grad = None
            start = time.perf_counter()
            way().backward(upstream)
            if i:
                seconds[name].append(time.perf_counter() - start)
    first = seconds["SDPA on split views"]
    for name, times in seconds.items():
        ratio = statistics.median(t / f for t, f in zip(times, first, strict=True))
        print(f"{name:28s} {statistics.median(times) * 1e3:7.1f} ms   x{ratio:.2f}")


if __name__ == "__main__":
    main()
