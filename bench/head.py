"""The head four ways: full logits, F.linear_cross_entropy, this library's chunked score with and without a cotangent.

usage: python bench/head.py [--scored 1200] [--width 256] [--vocabulary 8192] [--runs 7]

Forward and backward of the weighted sum of log-probabilities, float32, interleaved in one process; medians, and
ratios to full logits. `largest` is the largest tensor that a call allocates.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from espalier.models.token_head import score_tokens


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor any operator returns while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, torch.Tensor):
                self.bytes = max(self.bytes, t.numel() * t.element_size())
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scored", type=int, default=1200)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=7)
    o = parser.parse_args()
    torch.manual_seed(0)
    hidden = torch.randn(o.scored, o.width, requires_grad=True)
    weight = (torch.randn(o.vocabulary, o.width) * 0.05).requires_grad_()
    targets = torch.randint(0, o.vocabulary, (o.scored,))
    slope = -torch.rand(o.scored) / o.scored

    def full() -> None:
        said = F.log_softmax(hidden @ weight.t(), -1).gather(1, targets[:, None])[:, 0]
        (said * slope).sum().backward()

    def linear_cross_entropy() -> None:
        options = torch.nn.LinearCrossEntropyOptions()
        loss = F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options)
        (loss * -slope).sum().backward()

    def ours(cotangent: torch.Tensor | None = None, entropy: bool = False, chunk: int = 0) -> Callable[[], None]:
        def call() -> None:
            said = score_tokens(hidden, weight, None, targets, cotangent_U=cotangent, entropy=entropy, chunk=chunk)
            loss = (said["logprobs"] * slope).sum()
            (loss + said["entropy"].sum() * 1e-4 if entropy else loss).backward()

        return call

    ways: dict[str, Callable[[], None]] = {
        "full logits": full,
        "F.linear_cross_entropy": linear_cross_entropy,
        "score": ours(),
        "score, entropy": ours(entropy=True),
        "score, cotangent": ours(slope),
        **{f"score, cotangent, {n} at a time": ours(slope, chunk=n) for n in (64, 128, 256, 512, 1024)},
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    largest: dict[str, int] = {}
    for i in range(o.runs + 1):  # the first round warms up, and measures memory
        for name, way in ways.items():
            hidden.grad = weight.grad = None
            if i == 0:
                with Largest() as mode:
                    way()
                largest[name] = mode.bytes
                continue
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    print(f"{o.scored} scored, width {o.width}, vocabulary {o.vocabulary}; medians of {o.runs}")
    for name, times in seconds.items():
        ratio = statistics.median(t / f for t, f in zip(times, seconds["full logits"], strict=True))
        mib = largest[name] / 2**20
        print(f"{name:36s} {statistics.median(times) * 1e3:8.1f} ms   x{ratio:.2f}   largest {mib:6.1f} MiB")


if __name__ == "__main__":
    main()
