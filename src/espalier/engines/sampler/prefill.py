"""Prompts through the model: laid down as one forest, as in training, their keys and values kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from espalier.forest.trie import build
from espalier.models.attention.decode import Kept
from espalier.models.attention.forest import Forest
from espalier.types import Sample, Segment


def prefill(backbone: Any, prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Kept, list[Tensor]]:
    """The last hidden state of each prompt [P, D], all keys and values, and the packed positions of each prompt.

    What several prompts have in common is computed once.
    """
    samples = []
    for prompt in prompts:
        sample = Sample()
        sample.append(list(prompt), trained=False)
        # All of the prompt is laid down, because what follows it is predicted.
        sample.append([0], trained=True)
        samples.append(sample)
    trie = build(samples)
    tokens: list[int] = []
    positions: list[int] = []
    segments = []
    for node in trie.nodes:
        segments.append(Segment(node.start, len(node.tokens), node.parent, node.depth, node.leave))
        tokens += node.tokens
        positions += range(node.depth, node.depth + len(node.tokens))
    places = []
    for i, prompt in enumerate(prompts):
        places.append(torch.tensor(trie.where(i, len(prompt)), device=device))
    kept: Kept = {}
    out = backbone(
        input_ids=torch.tensor([tokens], device=device),
        position_ids=torch.tensor([positions], device=device),
        use_cache=False,
        forest=Forest(segments, device),
        kept=kept,
    )
    last = torch.stack([place[-1] for place in places])
    return out.last_hidden_state[0, last], kept, places
