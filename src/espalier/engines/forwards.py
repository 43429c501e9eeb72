"""Forwards without gradients: what a model says about groups, global in, global out; and how a step is cut for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from espalier.engines import fsdp
from espalier.engines.processes import Distributed, OneProcess
from espalier.engines.protocols import Group, Quantity, SampleOutputs, samples_of
from espalier.forest.microbatches import Packing, microbatches
from espalier.forest.pack import Totals, pack, totals
from espalier.models.heads import calibration_of
from espalier.models.policy import Policy
from espalier.types import Batch, Sample, Says

GIVEN: dict[Says, tuple[Quantity, ...]] = {
    "tokens": ("logprobs", "entropy", "correct"),
    "reads": ("scores",),
    "values": ("values",),
}
"""The quantities that each kind of head gives."""
OUTPUT: dict[Says, str] = {"tokens": "logprobs", "reads": "scores_RK", "values": "values"}
"""What a policy's forward always returns, by the kind of its head."""


class Forwards:
    """A policy, trained or frozen, over the groups of a step.

    budget: packed tokens in a forward. compute: the dtype it computes in. whole: groups stay in one piece. long_from:
    see `microbatches.Packing`. count_uses: batches say how many samples pass through each token, for the router loss.
    """

    def __init__(
        self,
        policy: Policy,
        world: OneProcess | Distributed,
        *,
        budget: int = 2048,
        compute: torch.dtype = torch.float32,
        whole: bool = False,
        long_from: int = 0,
        count_uses: bool = False,
    ):
        self.policy, self.world, self.budget, self.compute = policy, world, budget, compute
        self.count_uses = count_uses
        self.packing = Packing(policy.shares, policy.layout == "padded", whole, long_from)
        self.device = next(policy.parameters()).device

    def plan(self, groups: Sequence[Group]) -> list[list[Sequence[Sample]]]:
        """The forwards of all ranks; rank r runs those numbered r, r + ranks, ...; empty ones come last."""
        return microbatches(groups, self.budget, self.packing, ranks=self.world.size)

    def batches(
        self, plan: list[list[Sequence[Sample]]], groups: Sequence[Group], sums: Totals, state: dict[str, float]
    ) -> Iterator[tuple[Batch, bool]]:
        """This rank's micro-batches, as many as every rank's. False beside a dummy in place of an empty one."""
        for mine in plan[self.world.rank :: self.world.size]:
            batch = pack(
                mine or [[_dummy(groups, self.policy.says)]],
                sums,
                state=state,
                share=self.policy.shares,
                count_uses=self.count_uses,
                says=self.policy.says,
                device=self.device,
            )
            yield batch, bool(mine)

    @torch.no_grad()
    def say(
        self, groups: Sequence[Group], what: Sequence[Quantity], *, calibrated: bool = False
    ) -> list[SampleOutputs]:
        """What the model says about every sample, in order, as `protocols.Learner.say`. Scores are raw, as a loss sees
        them, unless `calibrated`: then they have the stored bias and scale applied. Computed in the policy's dtype,
        returned from float64.

        Raises ValueError for a quantity that the policy's head does not give.
        """
        given = GIVEN[self.policy.says]
        if self.policy.value_head is not None:
            given = (*given, "values")
        for quantity in what:
            if quantity not in given:
                raise ValueError(f"a model that says {self.policy.says} gives {', '.join(given)}, not {quantity}")
        if self.policy.says == "reads":
            return self._scores(groups, calibrated)
        return self._of_tokens(groups, what)

    def _of_tokens(self, groups: Sequence[Group], what: Sequence[Quantity]) -> list[SampleOutputs]:
        placed = Placed(samples_of(groups), what)
        for batch, real in self.batches(self.plan(groups), groups, totals(groups), {}):
            scores = self.policy(batch, entropy="entropy" in what, correct="correct" in what)
            if real:
                placed.put(batch, scores)
        fsdp.reshard(self.policy)
        return self.gathered(placed)

    def gathered(self, placed: Placed) -> list[SampleOutputs]:
        """What all ranks placed, sample by sample."""
        return placed.outputs({name: self._over_ranks(numbers) for name, numbers in placed.flat.items()})

    def _scores(self, groups: Sequence[Group], calibrated: bool) -> list[SampleOutputs]:
        samples = samples_of(groups)
        starts = _starts([len(s.reads) for s in samples])
        first = {id(s): start for s, start in zip(samples, starts[:-1], strict=True)}
        calibration = calibration_of(self.policy.model)
        flat_RK = torch.zeros(starts[-1], len(calibration.bias), dtype=torch.float64)
        for batch, real in self.batches(self.plan(groups), groups, totals(groups), {}):
            scores_RK = self.policy(batch)["scores_RK"].double().cpu()
            if real:
                flat_RK[[first[id(s)] + i for s in batch.samples for i in range(len(s.reads))]] = scores_RK
        fsdp.reshard(self.policy)
        flat_RK = self._over_ranks(flat_RK)
        if calibrated:
            flat_RK = calibration.apply(flat_RK)
        rows = [tuple(row) for row in flat_RK.tolist()]
        return [SampleOutputs(scores=rows[low:high]) for low, high in pairwise(starts)]

    def _over_ranks(self, tensor: Tensor) -> Tensor:
        """What each rank filled in, and zeros elsewhere, joined; on the CPU."""
        return self.world.sum(tensor.to(self.device)).cpu()


class Placed:
    """Quantities of scored tokens, placed at the tokens of `samples` as batches bring them; float64 on the CPU."""

    def __init__(self, samples: Sequence[Sample], names: Sequence[Quantity]):
        self.samples = samples
        self._starts = _starts([len(s.tokens) for s in samples])
        self._first = {id(s): start for s, start in zip(samples, self._starts[:-1], strict=True)}
        self.flat = {name: torch.zeros(self._starts[-1], dtype=torch.float64) for name in names}

    def put(self, batch: Batch, scores: dict[str, Tensor]) -> None:
        """Place what a forward says of a batch."""
        if not self.flat:
            return
        # A batch has its scored tokens in this order: sample by sample, each from its second token on.
        scored = [self._first[id(s)] + t for s in batch.samples for t in range(1, len(s.tokens)) if s.mask[t]]
        places = torch.tensor(scored, dtype=torch.int64)
        for name, numbers in self.flat.items():
            numbers[places] = scores[name].detach()[batch.score].double().cpu()

    def outputs(self, flat: Mapping[Quantity, Tensor]) -> list[SampleOutputs]:
        """The numbers of `flat`, sample by sample."""
        outputs = [SampleOutputs() for _ in self.samples]
        for name, numbers in flat.items():
            rows = numbers.tolist()
            for of_sample, (low, high) in zip(outputs, pairwise(self._starts), strict=True):
                setattr(of_sample, name, rows[low:high])
        return outputs


def _starts(lengths: Sequence[int]) -> list[int]:
    """Where each of several runs begins when they stand one after the other, and where the last one ends."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts


def _dummy(groups: Sequence[Group], says: Says) -> Sample:
    """A sample that costs one token and weighs nothing, so that a rank without data joins every collective."""
    first = groups[0][0]
    sample = Sample(part=first.part, streams={name: [0.0, 0.0] for name in first.streams})
    sample.tokens, sample.mask, sample.weights = [first.tokens[0]] * 2, [False, True], [0.0, 0.0]
    if says == "reads":
        sample.reads = [0]
    return sample
