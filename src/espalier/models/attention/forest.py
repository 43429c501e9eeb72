"""What attention needs to know of a batch: which segments continue which in the forest."""

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
    path order, or None for a root, and lie on `device`. `parents` are the segments that others continue (and -1, which
    roots continue), `branching` says whether there are any. `longest` is the number of tokens of the longest path.
    `noise` keys the dropout of attention weights; without it there is none.
    """

    def __init__(self, segments: Sequence[Segment], device: torch.device | str = "cpu", *, noise: Noise | None = None):
        self.segments = segments
        self.noise = noise
        self.lengths = [segment.length for segment in segments]
        self.above: list[Tensor | None] = []
        # Packed positions of the keys of a segment's path, itself included; made only for those
        # that others continue.
        paths: list[Tensor | None] = []
        self.parents = {segment.parent for segment in segments}
        for i, segment in enumerate(segments):
            above = paths[segment.parent] if segment.parent >= 0 else None
            self.above.append(above)
            path = None
            if i in self.parents:
                path = torch.arange(segment.start, segment.start + segment.length, device=device)
                if above is not None:
                    path = torch.cat([above, path])
            paths.append(path)
        self.branching = any(above is not None for above in self.above)
        self.longest = max((segment.depth + segment.length for segment in segments), default=0)
        self.device = torch.device(device)
        self._indices: dict[Any, Any] = {}
        self._masks: dict[tuple[int, int, int | None, torch.dtype], Tensor] = {}

    def mask(self, n: int, m: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """`path_mask` to add to scores: [n, m], 0 where seen and -inf elsewhere.

        One tensor for all layers: their backward passes hold it too, and one for each would outgrow the activations.
        """
        key = n, m, window, dtype
        if key not in self._masks:
            hidden = ~path_mask(n, m, window, self.device)
            self._masks[key] = torch.zeros(n, m, dtype=dtype, device=self.device).masked_fill_(hidden, float("-inf"))
        return self._masks[key]

    def index(self, build: Callable[[Forest], Index]) -> Index:
        """What a kernel needs to know of this batch: `build(self)`, called once and shared by all layers."""
        if build not in self._indices:
            self._indices[build] = build(self)
        shared: Index = self._indices[build]
        return shared


def path_mask(n: int, m: int, window: int | None, device: torch.device) -> Tensor:
    """Which of m keys on a path its last n tokens see: bool [n, m], True where seen.

    >>> path_mask(2, 3, None, torch.device("cpu")).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    >>> path_mask(2, 3, 2, torch.device("cpu")).int().tolist()
    [[1, 1, 0], [0, 1, 1]]
    """
    back = torch.arange(m - n, m, device=device)[:, None] - torch.arange(m, device=device)[None]
    seen = back >= 0
    if window:
        return seen & (back < window)
    return seen
