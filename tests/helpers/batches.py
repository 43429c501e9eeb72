"""Batches of answers without a model: what a loss reads, and nothing of the forest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from espalier.types import Batch, Sample

NONE = torch.zeros(0, dtype=torch.int64)


def batch_of(
    lengths: Sequence[int],
    *,
    weights: Tensor | None = None,
    streams: Mapping[str, Tensor] | None = None,
    groups: Sequence[int] | None = None,
    state: Mapping[str, float] | None = None,
) -> Batch:
    """Answers of these lengths, one after the other, in float64; totals are those of the weights (1 if not given)."""
    tokens, count = sum(lengths), len(lengths)
    weights = torch.ones(tokens, dtype=torch.float64) if weights is None else weights
    numbers = list(groups if groups is not None else [0] * count)
    rows = [row for row, n in enumerate(lengths) for _ in range(n)]
    totals = {
        ("tokens", "main"): float(weights.sum()),
        ("sequences", "main"): float(count),
        ("groups", "main"): float(len(set(numbers))),
    }
    return Batch(
        inputs_N=NONE,
        positions_N=NONE,
        segments=[],
        sources_U=torch.arange(tokens),
        targets_U=torch.zeros(tokens, dtype=torch.int64),
        temperatures_U=torch.ones(tokens),
        score=torch.arange(tokens),
        rows=torch.tensor(rows),
        weights=weights,
        streams=dict(streams or {}),
        parts=["main"] * count,
        samples=[Sample(group=number) for number in numbers],
        group_S=torch.tensor(numbers),
        labels_S=torch.full((count,), float("nan")),
        lengths_S=torch.tensor(lengths, dtype=torch.float32),
        wins_P2=NONE.view(0, 2),
        ties_Q2=NONE.view(0, 2),
        reads_R=NONE,
        read_rows_R=NONE,
        grades_RK=torch.zeros(0, 1),
        totals=totals,
        state=dict(state or {}),
    )
