"""Kahneman-Tversky optimisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from espalier.algorithms.labelled import is_good, mismatched
from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.fields import Positive, section
from espalier.credit.shaping import ratio
from espalier.types import Batch, Outputs, Sample, Term

MATES = "kl"


@section
class KTO(Algorithm):
    """Learns from single answers labelled good or bad; no two answers of one prompt are needed:

        L = 1/S sum_S x    good   x = lambda_D (1 - sigma(beta (r - z)))    bad   x = lambda_U (1 - sigma(beta (z - r)))

        r = log pi(y|x) - log ref(y|x), a sum over tokens      z = max(0, mean over mates (x, y') of log pi - log ref)

    Ethayarajh et al., arXiv:2402.01306. At the start policy and reference agree, and x = lambda / 2. A mate is a
    prompt x with a response y' to another prompt of the step; z, the reference point, estimates the KL from policy to
    reference. It is the mean over all mates of the step on all ranks, where the paper takes a micro-batch's, and has no
    gradient.

    Balance: with n_D good and n_U bad answers, let lambda_D n_D / (lambda_U n_U) stand between 1 and 4/3, as the paper
    advises; for one good answer to nine bad ones that is desirable_weight 9 to 12. The metric `imbalance` is then 0 or
    slightly above. Steps of 32 samples and more keep z steady. Rates of 5e-7 to 5e-6 with beta 0.1 for whole models of
    billions of weights; more for LoRA and small models.
    """

    beta: Positive = 0.1
    """Strength of the KL to the reference."""
    desirable_weight: Positive = 1.0
    """Weight of good answers (lambda_D)."""
    undesirable_weight: Positive = 1.0
    """Weight of bad answers (lambda_U)."""

    traits: ClassVar[Traits] = Traits("ranking", "labels", needs=("ref_logprobs",), mates=True)

    def mates(self, groups: Sequence[list[Sample]]) -> list[list[Sample]]:
        """Every prompt with a response to another one, part "kl"; see `labelled.mismatched`. A step with a single
        prompt has none."""
        return mismatched(groups, MATES)

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        """{"kl": z} of the step's mates; a step without mates keeps the last z, 0 before the first.

        Raises ValueError for a mate that lacks `old_logprobs` or `ref_logprobs`.
        """
        ratios = [ratio(s) for group in groups for s in group if s.part == MATES]
        if not ratios:
            return {"kl": state.get("kl", 0.0)}
        return {"kl": max(0.0, math.fsum(ratios) / len(ratios))}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`kto` over sequences; the metrics of `losses.unpaired.metrics`, whose rewards are beta r, and `kl`.

        Raises ValueError for a label other than 1 and 0, and KeyError if `credit` has not filled `state`.
        """
        import torch

        from espalier.losses import unpaired
        from espalier.losses.ops import by_sample

        ratios_S = by_sample(outputs.logprobs - batch.streams["ref_logprobs"], batch.rows, len(batch.samples))
        logprobs_S = by_sample(outputs.logprobs, batch.rows, len(batch.samples))
        good_S = torch.tensor([is_good(s) for s in batch.samples], device=ratios_S.device)
        kl, weights = batch.state["kl"], (self.desirable_weight, self.undesirable_weight)
        x_S = unpaired.kto(ratios_S, good_S, kl, beta=self.beta, desirable=weights[0], undesirable=weights[1])
        metrics = unpaired.metrics(self.beta * ratios_S, logprobs_S, good_S, *weights)
        metrics["kl"] = Term(torch.full_like(ratios_S, kl).detach(), "sequences", coef=0.0)
        return {"kto": Term(x_S, "sequences"), **metrics}
