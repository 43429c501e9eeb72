"""Forwards without gradients: what a model says about groups, global in, global out; and how a step is cut for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from espalier.engines import fsdp
from espalier.engines.processes import Distributed, OneProcess
from espalier.engines.protocols import Group
from espalier.forest.microbatches import Layout, microbatches
from espalier.forest.pack import Totals, pack, totals
from espalier.models.policy import Policy
from espalier.types import Batch, Sample


class Forwards:
    """A policy, trained or frozen, over the groups of a step.

    budget: packed tokens in a forward. compute: the dtype it computes in. whole: groups stay in one piece. long_from:
    see `microbatches.Layout`. count_uses: batches say how many samples pass through each token, for the router loss.
    Of a policy with a scalar head, batches score no tokens.
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
        self.layout = Layout(policy.shares, policy.layout == "padded", whole, long_from)
        self.device = next(policy.parameters()).device

    def plan(self, groups: Sequence[Group]) -> list[list[Sequence[Sample]]]:
        """The forwards of all ranks; rank r runs those numbered r, r + ranks, ...; empty ones come last."""
        return microbatches(groups, self.budget, self.layout, ranks=self.world.size)

    def batches(
        self, plan: list[list[Sequence[Sample]]], groups: Sequence[Group], sums: Totals, state: dict[str, float]
    ) -> Iterator[tuple[Batch, bool]]:
        """This rank's micro-batches, as many as every rank's; False stands with a dummy in place of an empty one."""
        for mine in plan[self.world.rank :: self.world.size]:
            batch = pack(
                mine or [[_dummy(groups, self.policy.reads)]], sums, state=state, share=self.policy.shares,
                count_uses=self.count_uses, targets=not self.policy.reads, device=self.device,
            )  # fmt: skip
            yield batch, bool(mine)

    @torch.no_grad()
    def tokens(
        self, groups: Sequence[Group], *, entropy: bool = False, correct: bool = False
    ) -> list[dict[str, list[float]]]:
        """Log-probabilities (entropies, and whether the target is the most probable token) of every sample's targets,
        as `protocols.Learner.forward` has them."""
        samples = [s for g in groups for s in g]
        starts = _starts([len(s.tokens) for s in samples])
        place = {id(s): start for s, start in zip(samples, starts, strict=False)}
        names = ["logprobs", *(["entropy"] if entropy else []), *(["correct"] if correct else [])]
        flat = {name: torch.zeros(starts[-1], dtype=torch.float64) for name in names}
        for batch, real in self.batches(self.plan(groups), groups, totals(groups), {}):
            scores = self.policy(batch, entropy=entropy, correct=correct)
            if real:
                scored = [place[id(s)] + t for s in batch.samples for t in range(1, len(s.tokens)) if s.mask[t]]
                at = torch.tensor(scored, dtype=torch.int64)
                for name in names:
                    flat[name][at] = scores[name][batch.score].double().cpu()
        fsdp.reshard(self.policy)
        for name in names:
            flat[name] = self._over_ranks(flat[name])
        return [{name: flat[name][low:high].tolist() for name in names} for low, high in pairwise(starts)]

    def logprobs(self, groups: Sequence[Group]) -> list[list[float]]:
        """Of every sample, in order, one entry a token and 0 where not scored."""
        return [said["logprobs"] for said in self.tokens(groups)]

    @torch.no_grad()
    def scores(self, groups: Sequence[Group]) -> list[Tensor]:
        """What the scalar head says after each of a sample's reads, for every sample in order: [reads, K], float64 on
        the CPU."""
        samples = [s for g in groups for s in g]
        starts = _starts([len(s.reads) for s in samples])
        place = {id(s): start for s, start in zip(samples, starts, strict=False)}
        flat_RK = torch.zeros(starts[-1], 1, dtype=torch.float64)
        for batch, real in self.batches(self.plan(groups), groups, totals(groups), {}):
            scores_RK = self.policy(batch)["scores_RK"].double().cpu()
            if flat_RK.shape[1] != scores_RK.shape[1]:  # the first says how many dimensions there are
                flat_RK = flat_RK.new_zeros(len(flat_RK), scores_RK.shape[1])
            if real:
                flat_RK[[place[id(s)] + i for s in batch.samples for i in range(len(s.reads))]] = scores_RK
        fsdp.reshard(self.policy)
        flat_RK = self._over_ranks(flat_RK)
        return [flat_RK[low:high] for low, high in pairwise(starts)]

    def _over_ranks(self, tensor: Tensor) -> Tensor:
        return self.world.sum_tensor(tensor.to(self.device)).cpu()


def _starts(lengths: Sequence[int]) -> list[int]:
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return starts


def _dummy(groups: Sequence[Group], reads: bool) -> Sample:
    """A sample that costs one token and weighs nothing, so that a rank without data joins every collective."""
    like = groups[0][0]
    sample = Sample(part=like.part, streams={name: [0.0, 0.0] for name in like.streams})
    sample.tokens, sample.mask, sample.weights = [like.tokens[0]] * 2, [False, True], [0.0, 0.0]
    if reads:
        sample.reads = [0]
    return sample
