"""Keys and values that the embedded sampler holds: a row's own for each response, and once for each prompt.

Own keys and values lie in one tensor per layer, a row of `capacity` tokens for every response in flight; the first rows
are in use. Prompts of similar length lie together in a shelf, padded to a common length, so that one product reads them
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from espalier.models.attention.decode import Kept

Shapes = dict[int, tuple[int, int, int]]
"""Key heads, width of keys and width of values, by layer."""


def shelf_length(length: int) -> int:
    """The padded length of a prompt's keys: four steps in every doubling from 64, else multiples of 16.

    >>> [shelf_length(n) for n in (1, 64, 65, 100, 513)]
    [16, 64, 80, 112, 640]
    """
    step = max(16, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def token_bytes(config: Any, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token in all layers, by a model's config."""
    text = config.get_text_config()
    heads = text.num_attention_heads
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
    """Prompts of one padded length: [P, K, d, L] and [P, K, L, d] by layer, in the order of `prompts`."""

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    prompts: list[Held] = field(default_factory=list)


class Store:
    """Own keys and values of up to `rows` rows, and shelves of prompts."""

    def __init__(self, device: torch.device):
        self.device = device
        self.capacity = 0
        self.slots = 0
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.shelves: dict[int, Shelf] = {}
        self.shapes: Shapes = {}
        self.dtype = torch.float32

    # ---------------------------------------------------------------------------------------------------------- rows

    def fit(self, shapes: Shapes, dtype: torch.dtype, slots: int, capacity: int, used: int, longest: int) -> None:
        """Make room for `slots` rows of `capacity` tokens; `used` rows keep their first `longest` tokens."""
        if slots <= self.slots and capacity <= self.capacity and dtype == self.dtype:
            return
        self.shapes, self.dtype = shapes, dtype
        self.slots, self.capacity = (max(slots, self.slots), capacity) if used else (slots, capacity)
        for layer, (heads, key_width, value_width) in shapes.items():
            # Zeros: masked columns are multiplied by weights of 0, which nan and inf would survive.
            keys = torch.zeros(self.slots, heads, key_width, self.capacity, dtype=dtype, device=self.device)
            values = torch.zeros(self.slots, heads, self.capacity, value_width, dtype=dtype, device=self.device)
            if used:
                keys[:used, ..., :longest] = self.keys[layer][:used, ..., :longest]
                values[:used, :, :longest] = self.values[layer][:used, :, :longest]
            self.keys[layer], self.values[layer] = keys, values

    def touch(self) -> int:
        """Write every page of the own keys and values, so that a lack of memory shows now; returns their bytes. Their
        contents are lost."""
        size = 0
        for tensor in (*self.keys.values(), *self.values.values()):
            tensor.fill_(0.0)
            size += tensor.numel() * tensor.itemsize
        return size

    def move(self, sources: Sequence[int], targets: Sequence[int], longest: int) -> None:
        """Overwrite the first `longest` tokens of rows `targets` with those of rows `sources`."""
        if not sources:
            return
        source = torch.tensor(sources, device=self.device)
        target = torch.tensor(targets, device=self.device)
        for layer in self.keys:
            keys, values = self.keys[layer][..., :longest], self.values[layer][:, :, :longest]
            keys[target] = keys[source]
            values[target] = values[source]

    def copy_prompt(self, kept: Kept, place: Tensor, rows: slice) -> None:
        """Put the keys and values of packed tokens `place` at the front of `rows`."""
        for layer, (keys, values) in kept.items():
            self.keys[layer][rows, ..., : len(place)] = keys[0][:, place].transpose(1, 2)
            self.values[layer][rows, :, : len(place)] = values[0][:, place]

    # ------------------------------------------------------------------------------------------------------- prompts

    def add(
        self, kept: Kept, places: Sequence[Tensor], prompts: Sequence[tuple[tuple[int, ...], Tensor]]
    ) -> list[Held]:
        """Hold prompts (tokens and last hidden state), whose keys and values are those at `places` of a packed
        forward."""
        lengths: dict[int, list[int]] = {}
        for i, (tokens, _) in enumerate(prompts):
            lengths.setdefault(shelf_length(len(tokens)), []).append(i)
        held: dict[int, Held] = {}
        for length, chosen in sorted(lengths.items()):
            shelf = self.shelves.get(length) or Shelf({}, {})
            count = len(shelf.prompts)
            for layer, (keys, values) in kept.items():
                heads, key_width, value_width = keys.shape[1], keys.shape[3], values.shape[3]
                more_keys = keys.new_zeros(len(chosen), heads, key_width, length)
                more_values = values.new_zeros(len(chosen), heads, length, value_width)
                for j, i in enumerate(chosen):
                    place = places[i]
                    more_keys[j, ..., : len(place)] = keys[0][:, place].transpose(1, 2)
                    more_values[j, :, : len(place)] = values[0][:, place]
                if count:
                    more_keys = torch.cat([shelf.keys[layer][:count], more_keys])
                    more_values = torch.cat([shelf.values[layer][:count], more_values])
                shelf.keys[layer], shelf.values[layer] = more_keys, more_values
            for j, i in enumerate(chosen):
                tokens, hidden = prompts[i]
                held[i] = Held(tokens, hidden, length, count + j)
                shelf.prompts.append(held[i])
            self.shelves[length] = shelf
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
        return sum(length * len(shelf.prompts) for length, shelf in self.shelves.items())
