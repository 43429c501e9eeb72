"""Attention of one decode step: each row's new token over the prompt's keys and over the row's own.

Scores of a row over two runs of keys have the maxima m and m', the sums n and n' of exp(score - maximum), and the
weighted sums o and o' of values; with M = max(m, m') the attention over both is

    (o exp(m - M) + o' exp(m' - M)) / (n exp(m - M) + n' exp(m' - M))

so rows of one prompt read its keys together, and no key of a prompt is copied. Scores are kept times log2(e), and every
exp is a power of two, which a CPU computes three times as fast (docs/log.md). Shapes: B rows, H heads, K key heads, d
width of a head, T own keys, C those of a block, P prompts, G rows of a prompt, L keys of a prompt. Keys of prompts lie
transposed, [d, L], which products of several queries read fastest; own keys do not, for products of one query.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)
Kept = dict[int, tuple[Tensor, Tensor]]
"""Keys and values [1, K, N, d] of a packed forward by layer, before any is repeated for its heads."""
Blocks = dict[int, list[Tensor]]
"""Own keys or values by layer: [rows, K, C, d] for each run of C tokens, the first rows in use."""
Part = tuple[Tensor, Tensor, Tensor]
"""Maximum [.., 1], sum [.., 1] and weighted values [.., d] of the scores over a run of keys."""


@dataclass(slots=True)
class Prompts:
    """Keys of prompts of similar length, and the rows that read them.

    keys: [P, K, d, L] by layer, values [P, K, L, d], or more than P, of which the first are in use; `lengths` [P] of
    the prompts, up to L. rows: numbers of the rows, None for all. cells: place of each row in a grid [P, width].
    """

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    lengths: list[int]
    width: int
    cells: list[int]
    rows: list[int] | None = None


@dataclass(slots=True)
class Decode:
    """One decode step of B rows.

    lengths: own keys of each row, the new token's excluded. bases: the position of each row's first own key.
    """

    keys: Blocks
    values: Blocks
    lengths: list[int]
    bases: list[int]
    prompts: Sequence[Prompts]
    device: torch.device
    longest: int = field(init=False)
    _equal: bool = field(init=False)
    _columns: Tensor = field(init=False)
    _positions: Tensor = field(init=False)
    _tensors: dict[Any, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.longest = max(self.lengths) + 1
        self._equal = min(self.lengths) + 1 == self.longest
        self._columns = torch.tensor(self.lengths, device=self.device)
        self._positions = self._columns + torch.tensor(self.bases, device=self.device)

    @property
    def positions(self) -> Tensor:
        """Positions [B] of the new tokens."""
        return self._positions

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attention of one layer: query [B, H, 1, d], key and value [B, K, 1, d]; returns [B, 1, H, d]."""
        size, heads, _, width = query.shape
        shared = key.shape[1]
        keys, values = self._blocks(self.keys[layer], key), self._blocks(self.values[layer], value)
        # A key that nobody's window ends before is seen by all.
        if window and max(n + base for n, base in zip(self.lengths, self.bases, strict=True)) < window:
            window = None
        # Queries take log2(e) unless scores are capped first, or it would round queries of half precision once more.
        early = softcap is None and query.dtype in (torch.float32, torch.float64)
        finish = partial(_finished, softcap=softcap, unit=1.0 if early else LOG2_E)
        q = query.reshape(size, shared, heads // shared, width) * (scaling * LOG2_E if early else scaling)
        flat = q.flatten(0, 1)
        scores = finish(_joined([_product(flat, block.transpose(1, 2)) for block in keys]))
        mask = self._own_mask(window)
        if mask is not None:
            # A row's heads stand side by side in the batch.
            scores.view(size, -1, scores.shape[-1]).add_(mask)
        part = _weigh(scores, values)
        part = tuple(x.view(size, heads, -1) for x in part)  # type: ignore[assignment]
        for number, prompts in enumerate(self.prompts):
            part = self._with_prompts(number, prompts, layer, q, part, window, finish)
        _, total, out = part
        return (out / total).to(query.dtype).view(size, 1, heads, -1)

    def _blocks(self, blocks: Sequence[Tensor], new: Tensor) -> list[Tensor]:
        """The blocks of one layer's keys or values up to the longest row's, [B K, C, d], after the new tokens' `new`
        [B, K, 1, d] are put behind each row's own."""
        size, start, read = len(new), 0, []
        for block in blocks:
            rows, count = block[:size], block.shape[2]
            if self._equal:
                if self.longest <= start + count:
                    rows[:, :, self.longest - 1 - start] = new[:, :, 0]
            else:
                self._put(rows, start, new)
            # Of the last block what is there; a block as a whole has no gaps between its rows.
            read.append(rows[:, :, : self.longest - start].flatten(0, 1))
            start += count
            if start >= self.longest:
                break
        return read

    def _put(self, rows: Tensor, start: int, new: Tensor) -> None:
        """Write the new tokens that belong into a block whose first token is number `start`."""
        key = "put", start, rows.shape[2]
        if key not in self._tensors:
            chosen = [i for i, n in enumerate(self.lengths) if start <= n < start + rows.shape[2]]
            columns = [self.lengths[i] - start for i in chosen]
            self._tensors[key] = (
                torch.tensor(chosen, device=self.device, dtype=torch.long),
                torch.tensor(columns, device=self.device, dtype=torch.long),
            )
        chosen, columns = self._tensors[key]
        if len(chosen):
            rows[chosen, :, columns] = new[chosen, :, 0]

    def _own_mask(self, window: int | None) -> Tensor | None:
        """What to add to scores over own keys: [B, 1, T], 0 if seen, else a number below all scores; None for 0."""
        if self._equal and not window:
            return None
        key = "own", window
        if key not in self._tensors:
            columns = torch.arange(self.longest, device=self.device)[None]
            back = self._columns[:, None] - columns
            self._tensors[key] = _mask(back, window)[:, None]
        return self._tensors[key]  # type: ignore[no-any-return]

    def _with_prompts(
        self,
        number: int,
        prompts: Prompts,
        layer: int,
        q: Tensor,
        own: Part,
        window: int | None,
        finish: Callable[[Tensor], Tensor],
    ) -> Part:
        """Attention over the prompts' keys, merged into that over own keys: [B, H, ..]."""
        count = len(prompts.lengths)
        keys, values = prompts.keys[layer][:count], prompts.values[layer][:count]
        _, shared, width, length = keys.shape
        group = q.shape[2]
        cells, rows = self._places(number, prompts)
        # [P, G, K, g, d] as [P, K, G g, d].
        if cells is None:
            grid = q
        else:
            grid = q.new_zeros(count * prompts.width, *q.shape[1:])
            grid[cells] = q if rows is None else q[rows]
        grid = grid.view(count, prompts.width, shared, group, width).transpose(1, 2)
        scores = finish(_product(grid.reshape(count * shared, prompts.width * group, width), keys.flatten(0, 1)))
        mask = self._prompt_mask(number, prompts, window)
        if mask is not None:
            scores.view(count, shared, prompts.width, group, length).add_(mask)
        part = _weigh(scores, [values.flatten(0, 1)])
        parts = []
        for x in part:
            x = x.view(count, shared, prompts.width, group, -1).transpose(1, 2)
            x = x.reshape(count * prompts.width, shared * group, -1)
            parts.append(x if cells is None else x[cells])
        if rows is None:
            return _merge(own, (parts[0], parts[1], parts[2]))
        mine = own[0][rows], own[1][rows], own[2][rows]
        for x, y in zip(own, _merge(mine, (parts[0], parts[1], parts[2])), strict=True):
            x[rows] = y
        return own

    def _places(self, number: int, prompts: Prompts) -> tuple[Tensor | None, Tensor | None]:
        """`cells` and `rows` of prompts as tensors; None for cells that are all, in order."""
        key = "places", number
        if key not in self._tensors:
            whole = len(prompts.lengths) * prompts.width
            cells = rows = None
            if prompts.rows is not None or prompts.cells != list(range(whole)):
                cells = torch.tensor(prompts.cells, device=self.device)
            if prompts.rows is not None:
                rows = torch.tensor(prompts.rows, device=self.device)
            self._tensors[key] = cells, rows
        return self._tensors[key]  # type: ignore[no-any-return]

    def _prompt_mask(self, number: int, prompts: Prompts, window: int | None) -> Tensor | None:
        """What to add to scores over the prompts' keys: [P, 1, G or 1, 1, L]; None if all see all."""
        length = next(iter(prompts.keys.values())).shape[3]
        if not window and min(prompts.lengths) == length:
            return None
        key = "prompts", number, window
        if key not in self._tensors:
            columns = torch.arange(length, device=self.device)
            ends = torch.tensor(prompts.lengths, device=self.device)[:, None, None]
            hidden = (columns >= ends).expand(len(prompts.lengths), 1, length)
            if window:
                cells, rows = self._places(number, prompts)
                positions = self._positions if rows is None else self._positions[rows]
                grid = positions
                if cells is not None:
                    grid = positions.new_zeros(len(prompts.lengths) * prompts.width)
                    grid[cells] = positions
                grid = grid.view(len(prompts.lengths), prompts.width, 1)
                hidden = hidden | (grid - columns >= window)
            self._tensors[key] = _additive(hidden)[:, None, :, None]
        return self._tensors[key]  # type: ignore[no-any-return]


def _mask(back: Tensor, window: int | None) -> Tensor:
    """An additive mask of keys that stand `back` tokens before the query: those after it are hidden."""
    hidden = back < 0
    if window:
        hidden |= back >= window
    return _additive(hidden)


def _additive(hidden: Tensor) -> Tensor:
    # Finite: a run of keys that is hidden as a whole would give nan, where this gives it weight 0.
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -1e30)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right of two batches of matrices with a float32 result (float64 stays), also for bfloat16 factors."""
    if left.dtype in (torch.float32, torch.float64):
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out += left @ right, as `_product`."""
    if left.dtype == out.dtype:
        out.baddbmm_(left, right)
    else:
        out += _product(left, right)


def _finished(scores: Tensor, softcap: float | None, unit: float) -> Tensor:
    """Scores as they leave the cap, times `unit`, in place."""
    if softcap is not None:
        return scores.div_(softcap).tanh_().mul_(softcap * unit)
    return scores if unit == 1 else scores.mul_(unit)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _weigh(scores: Tensor, values: Sequence[Tensor]) -> Part:
    """Maximum, sum and weighted values of scores [batch, queries, keys], which are overwritten; values [batch, C, d] of
    runs of keys."""
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp2_()
    total = weights.sum(-1, keepdim=True)
    weights = weights.to(values[0].dtype)
    start = values[0].shape[1]
    out = _product(weights[..., :start], values[0])
    for block in values[1:]:
        end = start + block.shape[1]
        _add_product(out, weights[..., start:end], block)
        start = end
    return top, total, out


def _merge(one: Part, other: Part) -> Part:
    """The two runs of keys as one."""
    top = torch.maximum(one[0], other[0])
    a, b = (one[0] - top).exp2_(), (other[0] - top).exp2_()
    return top, one[1] * a + other[1] * b, one[2] * a + other[2] * b
