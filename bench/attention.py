"""Attention of one packed row on CPU: SDPA by segments, by keys, autograd by hand around the flash kernel, one mask.

usage: python bench/attention.py [--lengths 150 210 180 240 300 120 260 200 190 198] [--prompt 0] [--runs 9]

With --prompt N the lengths are answers to one prompt of N tokens, and two ways are compared: by segments and by keys.

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

from espalier.models.attention.cpu import attend
from espalier.models.attention.forest import Forest
from espalier.models.attention.interface import _by_segments
from espalier.types import Segment

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
    parser.add_argument("--prompt", type=int, default=0)
    parser.add_argument("--runs", type=int, default=9)
    o = parser.parse_args()
    size = o.prompt + sum(o.lengths)
    segments, at = [], o.prompt
    if o.prompt:
        segments.append(Segment(0, o.prompt, -1, 0, 1 + len(o.lengths)))
    for n in o.lengths:
        i = len(segments)
        segments.append(Segment(at, n, 0 if o.prompt else -1, o.prompt, i + 1))
        at += n

    def leaf(heads: int) -> Tensor:
        return torch.randn(1, size, heads, WIDTH).transpose(1, 2).detach().requires_grad_()

    q, k, v = leaf(HEADS), leaf(KV), leaf(KV)
    upstream = torch.randn(1, size, HEADS, WIDTH)
    ways = {
        "SDPA by segments": lambda: _by_segments(q, k, v, Forest(segments), WIDTH**-0.5, None, None, None),
        "by keys": lambda: attend(q, k, v, Forest(segments), WIDTH**-0.5),
    }
    if not o.prompt:
        numbers = torch.arange(len(o.lengths)).repeat_interleave(torch.tensor(o.lengths))
        mask = (numbers[:, None] == numbers[None]) & torch.ones(size, size, dtype=torch.bool).tril()
        ways["autograd by hand"] = lambda: ByHand.apply(q, k, v, o.lengths).transpose(1, 2)
        ways["one block-diagonal mask"] = lambda: F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=True
        ).transpose(1, 2)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(o.runs + 1):
        for name, way in ways.items():
            q.grad = k.grad = v.grad = None
            start = time.perf_counter()
            way().backward(upstream)
            if i:
                seconds[name].append(time.perf_counter() - start)
    first = seconds["SDPA by segments"]
    for name, times in seconds.items():
        ratio = statistics.median(t / f for t, f in zip(times, first, strict=True))
        print(f"{name:28s} {statistics.median(times) * 1e3:7.1f} ms   x{ratio:.2f}")


if __name__ == "__main__":
    main()
