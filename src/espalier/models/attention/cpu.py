"""Attention over a forest on CPU, by keys: no key is gathered and no mask of a path is made.

Segments are cut into pieces of at most `PIECE` tokens. A piece's keys are seen causally by itself, and entirely by all
that comes after it in its segment and below: packed tokens are in preorder, so these are one run of queries, and a
prompt serves all its continuations in one call of torch's flash kernel. A query's outputs a and b over two runs of
keys, whose scores have the log-sum-exp m and n, are merged as

    out = a + (b - a) sigmoid(n - m)          log-sum-exp = log(exp m + exp n)

In the backward pass each call needs the whole output and the whole log-sum-exp, and gradients add. Milakov and
Gimelshein (arXiv:1805.02867) have the merge, Dao et al. (arXiv:2205.14135) the kernel.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from espalier.models.attention.forest import Forest

# Tokens: the kernel computes the half of a piece's square that nobody sees (docs/log.md).
PIECE = 256

# F.scaled_dot_product_attention calls these on CPU and drops the log-sum-exp that merging needs.
_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class CpuForest:
    """What attention by keys needs to know of a batch, for all layers.

    `pieces` holds three positions for each piece: its start, its end, and the end of what sees all of it, which is the
    rest of its segment and everything below.
    """

    def __init__(self, forest: Forest):
        segments = forest.segments
        self.pieces: list[tuple[int, int, int]] = []
        for segment in segments:
            stop, last = segment.start + segment.length, segments[segment.leave - 1]
            end = last.start + last.length
            cuts = [*range(segment.start, stop, PIECE), stop]
            for low, high in pairwise(cuts):
                self.pieces.append((low, high, end))
        self._triangles: dict[tuple[int, torch.dtype], Tensor] = {}

    def triangle(self, group: int, dtype: torch.dtype) -> Tensor:
        """What tokens see of their own piece, to add to scores: [PIECE * group, PIECE], 0 or -inf, `group` rows a
        token. Shorter pieces have its top left corner."""
        if (group, dtype) not in self._triangles:
            mask = torch.full((PIECE, PIECE), float("-inf"), dtype=dtype).triu_(1)
            self._triangles[group, dtype] = mask.repeat_interleave(group, 0)
        return self._triangles[group, dtype]


def attend(query: Tensor, key: Tensor, value: Tensor, forest: Forest, scaling: float) -> Tensor:
    """Attention of one layer over one packed row, every token to its path.

    query [1, heads, N, d], key and value [1, kv heads, N, d], all with the same d; returns [1, N, heads, d].
    """
    apply: Any = _ByKeys.apply
    attended: Tensor = apply(query, key, value, forest.index(CpuForest), scaling)
    return attended


class _ByKeys(torch.autograd.Function):
    """Queries that share a key head stand side by side: row n * group + g is head g of token n."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, forest: CpuForest, scaling: float) -> Tensor:
        _, heads, length, width = query.shape
        group = heads // key.shape[1]
        q, k, v = _rows(query, group), key.contiguous(), value.contiguous()
        seen = forest.triangle(group, q.dtype)
        # Outputs are merged once a piece: in bfloat16 each merge would round them.
        wide = torch.promote_types(q.dtype, torch.float32)
        out, norm = torch.empty_like(q, dtype=wide), torch.empty(q.shape[:3], dtype=wide)
        # Every piece over its own keys first, so that each query has an output to merge into.
        for low, high, _ in forest.pieces:
            own, keys = slice(low * group, high * group), slice(low, high)
            mask = seen[: (high - low) * group, : high - low]
            out[:, :, own], norm[:, :, own] = _flash(
                q[:, :, own], k[:, :, keys], v[:, :, keys], attn_mask=mask, scale=scaling
            )
        for low, high, end in forest.pieces:
            if high < end:
                after, keys = slice(high * group, end * group), slice(low, high)
                more, its_norm = _flash(q[:, :, after], k[:, :, keys], v[:, :, keys], scale=scaling)
                # exp n / (exp m + exp n), without an exponential that overflows.
                weight = torch.sigmoid(its_norm - norm[:, :, after])
                out[:, :, after].lerp_(more.to(wide), weight[..., None])
                norm[:, :, after] = torch.logaddexp(its_norm, norm[:, :, after])
        out = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, out, norm)
        ctx.rest = forest, scaling, group
        return out.view(1, -1, length, group, width).transpose(1, 2).reshape(1, length, heads, width)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, norm = ctx.saved_tensors
        forest, scaling, group = ctx.rest
        grad_out = _rows(grad.transpose(1, 2), group)
        seen = forest.triangle(group, q.dtype)
        # In the wide dtype, because prefixes add up the gradients of all their children.
        dq, dk, dv = (torch.zeros_like(x, dtype=norm.dtype) for x in (q, k, v))
        for low, high, end in forest.pieces:
            keys = slice(low, high)
            for start, stop in ((low, high), (high, end)):
                if start == stop:
                    continue
                rows = slice(start * group, stop * group)
                mask = seen[: (high - low) * group, : high - low] if start == low else None
                # Given a query's whole output and whole log-sum-exp, the kernel's formula gives
                # the share of these keys in the gradient of the merged softmax: the probability of
                # a key is exp(score - log-sum-exp) in any part of the path.
                grads = _flash_backward(
                    grad_out[:, :, rows],
                    q[:, :, rows],
                    k[:, :, keys],
                    v[:, :, keys],
                    out[:, :, rows],
                    norm[:, :, rows],
                    0.0,
                    False,
                    attn_mask=mask,
                    scale=scaling,
                )
                for whole, part, share in zip((dq, dk, dv), (rows, keys, keys), grads, strict=True):
                    whole[:, :, part] += share
        length, width = k.shape[2:]
        dq = dq.view(1, -1, length, group, width).transpose(2, 3).reshape(1, -1, length, width)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None


def _rows(x: Tensor, group: int) -> Tensor:
    """[1, heads, N, d] as [1, kv heads, N * group, d]."""
    _, heads, length, width = x.shape
    by_group = x.reshape(1, heads // group, group, length, width)
    return by_group.transpose(2, 3).reshape(1, heads // group, length * group, width)
