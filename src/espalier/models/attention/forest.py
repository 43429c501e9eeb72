"""What attention needs to know of a batch: who stands above whom in the forest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from espalier.models.noise import Noise
from espalier.types import Segment

Index = TypeVar("Index")


class Forest:
    """What attention needs to know of a batch, worked out once and shared by all layers.

    `lengths[i]` is the number of queries of segment i. `above[i]` are the packed positions of its ancestors' keys, in
    path order, or None for a root, and lie on `device`. `noise` keys the dropout of attention weights; without it there
    is none.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device | str = "cpu", *, noise: Noise | None = None):
        self.segments = segments
        self.noise = noise
        self.lengths = [s.length for s in segments]
        self.above: list[Tensor | None] = []
        paths: list[Tensor | None] = []  # positions of the keys of a segment's path, itself included
        self.parents = {s.parent for s in segments}
        for i, s in enumerate(segments):
            above = paths[s.parent] if s.parent >= 0 else None
            self.above.append(above)
            own = torch.arange(s.start, s.start + s.length, device=device) if i in self.parents else None
            paths.append(own if above is None or own is None else torch.cat([above, own]))
        self.branching = any(a is not None for a in self.above)
        self.longest = max((s.depth + s.length for s in segments), default=0)  # tokens of a path
        self.device = torch.device(device)
        self._indices: dict[Any, Any] = {}
        self._masks: dict[tuple[int, int, int | None, torch.dtype], Tensor] = {}

    def mask(self, n: int, m: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """`path_mask` to add to scores: [n, m], 0 where seen and -inf elsewhere. All layers, and their backward passes,
        hold the same one."""
        key = n, m, window, dtype
        if key not in self._masks:
            hidden = ~path_mask(n, m, window, self.device)
            self._masks[key] = torch.zeros(n, m, dtype=dtype, device=self.device).masked_fill_(hidden, float("-inf"))
        return self._masks[key]

    def index(self, build: Callable[[Forest], Index]) -> Index:
        """What a kernel needs to know of this batch, `build(self)` of its first call: all layers share it."""
        if build not in self._indices:
            self._indices[build] = build(self)
        kept: Index = self._indices[build]
        return kept


def path_mask(n: int, m: int, window: int | None, device: torch.device) -> Tensor:
    """Which of m keys on a path its last n tokens see: bool [n, m], True where seen.

    >>> path_mask(2, 3, None, torch.device("cpu")).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    >>> path_mask(2, 3, 2, torch.device("cpu")).int().tolist()
    [[1, 1, 0], [0, 1, 1]]
    """
    back = torch.arange(m - n, m, device=device)[:, None] - torch.arange(m, device=device)[None]
    seen = back >= 0
    return seen & (back < window) if window else seen
