"""Noise that belongs to a sample, not to its neighbours: NEFTune and dropout keyed by (seed, step, sample, place).

Every draw is a function of its key, so it is the same in every packing, on every rank, after a resume and when a
checkpointed layer runs again.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espalier.errors import ModelError


class Noise:
    """The keys of one batch, in which each sample is one segment.

    keys, lengths: the key and the number of tokens of each sample. segments: the tokens of each that are laid down.
    """

    def __init__(self, seed: int, step: int, keys: Sequence[int], lengths: Sequence[int], segments: Sequence[int]):
        self.seed, self.step = seed, step
        self.keys, self.lengths, self.segments = keys, lengths, segments

    def uniform(self, place: str, segment: int, shape: Sequence[int]) -> Tensor:
        """Uniform numbers in [0, 1) for one place in the model and one sample, on CPU; row r is position r's."""
        # Rows are drawn in order of position, so that a sample's first rows do not depend on its
        # length. Always on the CPU: generators of other devices give other numbers.
        packed = struct.pack("<qqq", self.seed, self.step, self.keys[segment]) + place.encode()
        digest = hashlib.blake2b(packed, digest_size=8).digest()
        generator = torch.Generator()
        # 63 bits, because a seed is a signed number of 64.
        generator.manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.rand(*shape, generator=generator)

    def rows(self, place: str, width: int) -> Tensor:
        """Uniform numbers [N, width] for all packed positions."""
        draws = [self.uniform(place, i, (length, width)) for i, length in enumerate(self.segments)]
        return torch.cat(draws)


def neftune(embeddings_ND: Tensor, noise: Noise, alpha: float) -> Tensor:
    """Add uniform noise in [-1, 1] x alpha / sqrt(L D), L the sample's own length (Jain et al., arXiv:2310.05914)."""
    width = embeddings_ND.shape[-1]
    draws = noise.rows("neftune", width).to(embeddings_ND) * 2 - 1
    # All tokens of a sample count, laid down or not: the scale must not depend on packing.
    scales = [alpha / (length * width) ** 0.5 for length in noise.lengths]
    scale = torch.tensor(scales).repeat_interleave(torch.tensor(noise.segments))
    return embeddings_ND + draws * scale.to(embeddings_ND)[:, None]


class KeyedDropout(nn.Module):
    """nn.Dropout whose mask is a function of the noise keys. `current` is set by the policy before each forward."""

    def __init__(self, p: float, place: str):
        super().__init__()
        self.p, self.place = p, place
        self.current: Noise | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Zero entries of x [1, N, width], or [S, longest, width] padded, with probability p; divide the rest by 1 - p.

        Raises ModelError if the rows of x are not the batch's tokens.
        """
        noise = self.current
        if not self.training or self.p == 0 or noise is None:
            return x
        keep = noise.rows(self.place, x.shape[-1]) >= self.p
        # In the layout padded, x has a row for each sample.
        if keep.numel() != x.numel():
            keep = pad_sequence(list(torch.split(keep, list(noise.segments))), batch_first=True)
        if keep.numel() != x.numel():
            raise ModelError(
                f"dropout {self.place} got {tuple(x.shape)}, whose rows are not the batch's "
                f"{sum(noise.segments)} tokens, so its mask cannot belong to samples; set dropout: "
                "false"
            )
        return x * keep.to(x.device).view(x.shape) / (1 - self.p)


def replace_dropouts(model: nn.Module) -> list[KeyedDropout]:
    """Put a KeyedDropout in place of every nn.Dropout that is on; returns all of them."""
    dropouts: list[KeyedDropout] = []
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            if isinstance(child, nn.Dropout) and child.p > 0:
                keyed = KeyedDropout(child.p, f"{name}.{child_name}")
                keyed.train(child.training)
                setattr(module, child_name, keyed)
                dropouts.append(keyed)
    return dropouts


def drop_attention(weights: Tensor, p: float, noise: Noise, place: str, segment: int) -> Tensor:
    """Zero one segment's attention weights [1, heads, n, n] with probability p; divide the rest by 1 - p."""
    keep = noise.uniform(place, segment, weights.shape).to(weights.device) >= p
    return weights * keep / (1 - p)
