"""Attention over the forest on CUDA: variable-length flash attention over gathered keys, or FlexAttention.

Flash attention serves bfloat16 and float16 without a soft cap; its causal mask is aligned at the bottom right, which is
what a segment over its path needs. FlexAttention serves the rest, with an ancestor mask: in preorder, key k lies on the
path of query q iff enter[k] <= enter[q] < leave[k], and inside a path positions say what comes before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

if TYPE_CHECKING:
    from espalier.models.attention.forest import Forest

FLASH_DTYPES = (torch.bfloat16, torch.float16)
FLASH_HEAD_DIM = 256


class CudaForest:
    """Index tensors of a forest.

    cu_queries, cu_keys: the starts of each segment's queries and of its path's keys, int32 [segments + 1]. gather:
    packed positions of all paths' keys one after the other, None if no segment has ancestors (then keys are the packed
    ones). enter, leave, positions: for every packed token its segment, one past the segment's last descendant, its
    depth.
    """

    def __init__(self, forest: Forest):
        device = forest.device
        self.size = sum(forest.lengths)
        keys = []
        for length, above in zip(forest.lengths, forest.above, strict=True):
            keys.append(length if above is None else length + len(above))
        self.cu_queries = _starts(forest.lengths, device)
        self.cu_keys = _starts(keys, device)
        self.max_queries, self.max_keys = max(forest.lengths), max(keys)
        self.gather: Tensor | None = None
        if forest.branching:
            self.gather = _path_keys(forest)
        # Only lists of segments, which are short, are copied to the device; tokens are counted there.
        lengths = torch.tensor(forest.lengths, device=device)
        numbers = torch.arange(len(forest.lengths), device=device)
        self.enter = numbers.repeat_interleave(lengths)
        self.leave = torch.tensor([s.leave for s in forest.segments], device=device).repeat_interleave(lengths)
        # A token's depth is its packed position, shifted as its segment's depth is from its start.
        shifts = torch.tensor([s.depth - s.start for s in forest.segments], device=device)
        self.positions = shifts.repeat_interleave(lengths) + torch.arange(self.size, device=device)
        self._blocks: dict[int, BlockMask] = {}

    def sees(self, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The ancestor mask as FlexAttention takes it: does query q see key k?"""
        enter, leave, positions = self.enter, self.leave, self.positions

        def mask(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            back = positions[q] - positions[k]
            seen = (enter[k] <= enter[q]) & (enter[q] < leave[k]) & (back >= 0)
            return seen & (back < window) if window else seen

        return mask

    def blocks(self, window: int | None) -> BlockMask:
        """The block mask of a window (None for none), made once a batch."""
        key = window or 0
        if key not in self._blocks:
            self._blocks[key] = create_block_mask(
                self.sees(window),
                None,
                None,
                self.size,
                self.size,
                device=str(self.enter.device),
                # Uncompiled, it holds whole [N, N] index tensors.
                _compile=self.enter.is_cuda,
            )
        return self._blocks[key]


def _path_keys(forest: Forest) -> Tensor:
    """Packed positions of the keys of every segment's path, one path after the other."""
    pieces = []
    for segment, above in zip(forest.segments, forest.above, strict=True):
        if above is not None:
            pieces.append(above.to(forest.device))
        pieces.append(torch.arange(segment.start, segment.start + segment.length, device=forest.device))
    return torch.cat(pieces)


def _starts(lengths: list[int], device: torch.device) -> Tensor:
    """Where each of consecutive runs starts, and the end of the last: int32, as the kernel takes it."""
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)


def attend(
    query: Tensor, key: Tensor, value: Tensor, forest: Forest, scaling: float, window: int | None, softcap: float | None
) -> Tensor:
    """As `interface.forest_attention`: [1, heads, N, d] and [1, kv heads, N, d] to [1, N, heads, d]."""
    indices: CudaForest = forest.index(CudaForest)
    if _flash_serves(query, value, softcap):
        return by_varlen(query, key, value, indices, scaling, window)
    return by_flex(query, key, value, indices, scaling, window, softcap, _compiled())


def _flash_serves(query: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether the flash kernel takes these dtypes and widths; it knows no soft cap."""
    if query.dtype not in FLASH_DTYPES or softcap is not None:
        return False
    width = query.shape[-1]
    return width <= FLASH_HEAD_DIM and width % 8 == 0 and value.shape[-1] == width


def by_varlen(
    query: Tensor, key: Tensor, value: Tensor, indices: CudaForest, scaling: float, window: int | None
) -> Tensor:
    """Flash attention, every segment a sequence whose keys are those of its path."""
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, heads, d]
    if indices.gather is not None:
        # A prefix collects the gradients of all its children: this cast adds them up in float32.
        k, v = (x.float().index_select(0, indices.gather).to(x.dtype) for x in (k, v))
    # The kernel counts the keys before a query's own; -1 is no bound, and 0 lets no query see what
    # comes after it.
    back = window - 1 if window else -1
    out: Any = varlen_attn(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        indices.cu_queries,
        indices.cu_keys,
        indices.max_queries,
        indices.max_keys,
        scale=scaling,
        window_size=(back, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return cast(Tensor, out)[None]


def by_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    indices: CudaForest,
    scaling: float,
    window: int | None,
    softcap: float | None,
    flex: Any,
) -> Tensor:
    """FlexAttention with the ancestor mask; `flex` is the kernel, compiled on CUDA."""

    def capped(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        assert softcap is not None
        return softcap * torch.tanh(score / softcap)

    out: Tensor = flex(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=indices.blocks(window),
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


@cache
def _compiled() -> Any:
    # Dynamic, because lengths differ in every batch: one compilation serves all.
    return torch.compile(flex_attention, dynamic=True)
