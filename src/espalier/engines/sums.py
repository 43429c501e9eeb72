"""What the micro-batches of an update add up to, over all ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from espalier.engines.processes import Distributed, OneProcess
from espalier.engines.protocols import SampleOutputs, StepResult, from_first
from espalier.types import Batch


class Sums:
    """Loss, terms and counts of an update, as its micro-batches bring them. `zero` is a float64 0 on their device."""

    def __init__(self, zero: Tensor):
        self._zero = zero
        self._loss = torch.zeros_like(zero)
        self._terms: dict[str, Tensor] = {}
        self._peaks: dict[str, Tensor] = {}
        self._packed = self._scored = 0

    def add(self, loss: Tensor, shares: Mapping[str, Tensor], peaks: Mapping[str, Tensor], batch: Batch) -> None:
        """Add a micro-batch: its loss, each term's share, the largest entries of terms over `max`."""
        self._loss += loss.detach()
        for name, share in shares.items():
            self._terms[name] = self._terms.get(name, torch.zeros_like(self._zero)) + share
        for name, peak in peaks.items():
            self._peaks[name] = torch.maximum(self._peaks.get(name, peak), peak)
        self._packed += batch.inputs_N.numel()
        self._scored += batch.score.numel()

    def result(
        self, world: OneProcess | Distributed, *, some_idle: bool, tokens: int, outputs: list[SampleOutputs]
    ) -> StepResult:
        """The sums over all ranks. some_idle: a rank ran dummies alone, so that it knows no term by name."""
        names: list[str] = sorted(self._terms)
        if some_idle:
            names = from_first(names, world)
        values = [self._terms.get(name, self._zero).item() for name in names]
        numbers = world.sum([self._loss.item(), *values, len(self._peaks), self._packed, self._scored])
        largest = self._largest(world) if numbers[-3] else {}
        return StepResult(
            loss=numbers[0],
            terms={**dict(zip(names, numbers[1:-3], strict=True)), **largest},
            tokens=tokens,
            packed=int(numbers[-2]),
            scored=int(numbers[-1]),
            peaks=tuple(largest),
            outputs=outputs,
        )

    def _largest(self, world: OneProcess | Distributed) -> dict[str, float]:
        largest: dict[str, float] = {}
        own = json.dumps({name: peak.item() for name, peak in self._peaks.items()})
        for data in world.gather(own.encode()):
            for name, peak in json.loads(data).items():
                largest[name] = max(peak, largest.get(name, peak))
        return dict(sorted(largest.items()))
