"""Keys and values that the embedded sampler holds: a row's own for each response, and once for each prompt.

Own keys and values of a layer lie in blocks of a few tokens, each one tensor with a place for every response in flight;
the first rows are in use. Prompts of similar length lie together in a shelf, padded to a common length, so that one
product reads them all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from espalier.models.attention.decode import Blocks, Kept

Shapes = dict[int, tuple[int, int, int]]
"""Key heads, width of keys and width of values, by layer."""

CPU_BLOCK_BYTES = 1 << 20
CPU_BLOCK_LEAST = 16
"""Bytes and tokens of a block on CPU: rows with gaps between them are read at a third of the speed (docs/log.md), so a
block, of which only the last has gaps, is small against all keys and large against a call."""


def padded_length(length: int) -> int:
    """The next multiple of 16 tokens: what a prompt alone takes."""
    return -(-length // 16) * 16


def shelf_of(length: int) -> int:
    """The shelf of a prompt, by the longest that it takes: 128, 256, 512, ... tokens.

    Every shelf costs each layer a fixed time in each step, and every column of padding a little: so there are few, and
    each is as wide as its longest prompt.

    >>> [shelf_of(n) for n in (1, 128, 129, 513)]
    [128, 128, 256, 1024]
    """
    return max(128, 1 << (length - 1).bit_length())


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token in all layers, by a model's config; 0 without attention (Mamba), whose
    state does not grow."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    if not heads:
        return 0
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    return 2 * int(text.num_hidden_layers) * int(shared) * int(width) * dtype.itemsize


@dataclass(slots=True, eq=False)
class Held:
    """A prompt whose keys and values are held. `uses` counts the rows that read it and the samples still to be drawn.
    `hidden` is the last hidden state [1, D], from which first tokens are drawn."""

    tokens: tuple[int, ...]
    hidden: Tensor
    shelf: int
    place: int
    uses: int = 0


@dataclass(slots=True)
class Shelf:
    """Prompts padded to `width` tokens: [P, K, d, L] and [P, K, L, d] by layer, in the order of `prompts`."""

    width: int
    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    prompts: list[Held] = field(default_factory=list)


class Store:
    """Own keys and values of up to `slots` rows, and shelves of prompts."""

    def __init__(self, device: torch.device):
        self.device = device
        self.capacity = 0
        self.slots = 0
        self.block = self.laid = sys.maxsize  # tokens of a block as this rollout wants them, and as they are
        self.keys: Blocks = {}
        self.values: Blocks = {}
        self.shelves: dict[int, Shelf] = {}
        self.shapes: Shapes = {}
        self.dtype = torch.float32

    # ---------------------------------------------------------------------------------------------------------- rows

    def fit(
        self, shapes: Shapes, dtype: torch.dtype, slots: int, capacity: int, used: int, longest: int, expected: int
    ) -> None:
        """Make room for `slots` rows of `capacity` tokens; `used` rows keep their first `longest` tokens.

        expected: how many rows there will be. While none is used it decides the size of blocks, so that this, and with
        it the rounding of every sum over them, depends on the requests alone.
        """
        if not used:
            self.block = self._block_of(shapes, dtype, expected)
        enough = slots <= self.slots and capacity <= self.capacity and dtype == self.dtype
        # Where all tokens lie in one block, its size is nothing that can be seen: a canary moves nothing.
        if enough and (self.laid == self.block or capacity <= min(self.laid, self.block)):
            return
        if not enough:
            self.slots, self.capacity = (max(slots, self.slots), capacity) if used else (slots, capacity)
        self.shapes, self.dtype, self.laid = shapes, dtype, self.block
        for layer, (heads, key_width, value_width) in shapes.items():
            for blocks, width in ((self.keys, key_width), (self.values, value_width)):
                kept = [old[:used] for old in blocks.pop(layer, [])] if used else []
                blocks[layer] = self._blocks(heads, width)
                if kept:
                    _fill(blocks[layer], torch.cat(kept, dim=2)[:, :, :longest])

    def _block_of(self, shapes: Shapes, dtype: torch.dtype, rows: int) -> int:
        """Tokens of a block for so many rows: about `CPU_BLOCK_BYTES` on CPU; elsewhere one block holds all."""
        if self.device.type != "cpu":
            return sys.maxsize
        widest = max(heads * max(widths) for heads, *widths in shapes.values())
        tokens = CPU_BLOCK_BYTES // (rows * widest * dtype.itemsize)
        return max(CPU_BLOCK_LEAST, 1 << (max(1, tokens).bit_length() - 1))

    def _blocks(self, heads: int, width: int) -> list[Tensor]:
        """Empty blocks of one layer, for all rows and tokens."""
        starts = range(0, self.capacity, self.block)
        lengths = [min(self.block, self.capacity - start) for start in starts]
        # Zeros: masked columns are multiplied by weights of 0, which nan and inf would survive.
        return [torch.zeros(self.slots, heads, n, width, dtype=self.dtype, device=self.device) for n in lengths]

    def _own(self) -> Iterator[tuple[int, Tensor]]:
        """All blocks of keys and values, each with the number of its first token."""
        for kind in (self.keys, self.values):
            for blocks in kind.values():
                start = 0
                for block in blocks:
                    yield start, block
                    start += block.shape[2]

    def touch(self) -> int:
        """Write every page of the own keys and values, so that a lack of memory shows now; returns their bytes. Their
        contents are lost."""
        size = 0
        for _, block in self._own():
            block.fill_(0.0)
            size += block.nbytes
        return size

    def move(self, sources: Sequence[int], targets: Sequence[int], longest: int) -> None:
        """Overwrite the first `longest` tokens of rows `targets` with those of rows `sources`."""
        if not sources:
            return
        source = torch.tensor(sources, device=self.device)
        target = torch.tensor(targets, device=self.device)
        for start, block in self._own():
            if start < longest:
                block[target] = block[source]

    # ------------------------------------------------------------------------------------------------------- prompts

    def add(
        self, kept: Kept, places: Sequence[Tensor], prompts: Sequence[tuple[tuple[int, ...], Tensor]]
    ) -> list[Held]:
        """Hold prompts (tokens and last hidden state), whose keys and values are those at `places` of a packed
        forward."""
        chosen: dict[int, list[int]] = {}
        for i, (tokens, _) in enumerate(prompts):
            chosen.setdefault(shelf_of(len(tokens)), []).append(i)
        held: dict[int, Held] = {}
        for name, members in sorted(chosen.items()):
            shelf = self.shelves.setdefault(name, Shelf(0, {}, {}))
            count, width = len(shelf.prompts), shelf.width
            shelf.width = max(width, *(padded_length(len(prompts[i][0])) for i in members))
            for layer, (keys, values) in kept.items():
                size, heads = count + len(members), keys.shape[1]
                more_keys = keys.new_zeros(size, heads, keys.shape[3], shelf.width)
                more_values = values.new_zeros(size, heads, shelf.width, values.shape[3])
                if count:
                    more_keys[:count, ..., :width] = shelf.keys[layer][:count]
                    more_values[:count, :, :width] = shelf.values[layer][:count]
                for place, i in enumerate(members, start=count):
                    packed = places[i]
                    more_keys[place, ..., : len(packed)] = keys[0][:, packed].transpose(1, 2)
                    more_values[place, :, : len(packed)] = values[0][:, packed]
                shelf.keys[layer], shelf.values[layer] = more_keys, more_values
            for i in members:
                tokens, hidden = prompts[i]
                held[i] = Held(tokens, hidden, name, len(shelf.prompts))
                shelf.prompts.append(held[i])
        return [held[i] for i in range(len(prompts))]

    def drop(self, prompt: Held) -> None:
        """Hold a prompt no longer; the last of its shelf takes its place."""
        shelf = self.shelves[prompt.shelf]
        last = shelf.prompts.pop()
        if last is not prompt:
            for layer in shelf.keys:
                shelf.keys[layer][prompt.place] = shelf.keys[layer][last.place]
                shelf.values[layer][prompt.place] = shelf.values[layer][last.place]
            shelf.prompts[prompt.place] = last
            last.place = prompt.place
        if not shelf.prompts:
            del self.shelves[prompt.shelf]

    @property
    def prompt_tokens(self) -> int:
        """Tokens whose keys and values the prompts hold, padding included."""
        return sum(shelf.width * len(shelf.prompts) for shelf in self.shelves.values())

    def widths(self) -> dict[int, tuple[int, int]]:
        """How many prompts each shelf has, and its width."""
        return {name: (len(shelf.prompts), shelf.width) for name, shelf in self.shelves.items()}


def _fill(blocks: Sequence[Tensor], rows: Tensor) -> None:
    """Write rows [B, K, T, d] into the blocks' first B rows and T tokens."""
    start = 0
    for block in blocks:
        part = rows[:, :, start : start + block.shape[2]]
        block[: len(part), :, : part.shape[2]] = part
        start += block.shape[2]
