"""Binary classifier optimisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from espalier.algorithms.labelled import is_good
from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.fields import Positive, Share, section
from espalier.credit.shaping import ratio
from espalier.types import Batch, Outputs, Sample, Term


@section
class BCO(Algorithm):
    """Trains the policy as a classifier of good and bad answers, whose logit is the reward less a shift:

        L = 1/S sum_S x      good   x = -log sigma(beta r - delta)      bad   x = -log sigma(-(beta r - delta))

        r = log pi(y|x) - log ref(y|x), a sum over tokens      delta = (moving mean of beta r of good + of bad) / 2

    Jung et al., arXiv:2404.04656. At the start policy and reference agree, and x = ln 2. Answers may be labelled
    one by one or stand in pairs, whose better side is then good. The mean is over all answers: with as many good as bad
    ones it is half of the paper's sum of both sides' means; with others, the larger side weighs more.

    Left out: the paper's density-ratio weights for good and bad answers to prompts of different kinds (UDM), which need
    a second model that embeds prompts. Rates as for DPO, beta 0.1 (0.01 in the paper's unpaired runs).
    """

    beta: Positive = 0.1
    """Strength of the KL to the reference."""
    delta_decay: Share = 0.9
    """Decay of the moving means of rewards; 0 takes each step's own means."""

    traits: ClassVar[Traits] = Traits("ranking", "labels", needs=("ref_logprobs", "old_logprobs"))

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        """The moving means "reward_good" and "reward_bad", each once such an answer was seen; "delta", half their sum.

            m <- delta_decay m + (1 - delta_decay) mean of the step        a side's first mean is taken as it is

        A side that a step lacks keeps its mean; one that no step had counts as 0, its value at the start. Raises
        ValueError for a label other than 1 and 0, and for a sample that lacks one of both streams.
        """
        sides: dict[str, list[float]] = {"reward_good": [], "reward_bad": []}
        for group in groups:
            for s in group:
                sides["reward_good" if is_good(s) else "reward_bad"].append(self.beta * ratio(s))
        moved = {name: state[name] for name in sides if name in state}
        for name, rewards in sides.items():
            if rewards:
                mean = math.fsum(rewards) / len(rewards)
                moved[name] = self.delta_decay * moved.get(name, mean) + (1 - self.delta_decay) * mean
        return {**moved, "delta": sum(moved.values()) / 2}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`bco` over sequences; the metrics of `losses.unpaired.metrics`, rewards being beta r - delta, and `delta`.

        Raises ValueError for a label other than 1 and 0, and KeyError if `credit` has not filled `state`.
        """
        import torch

        from espalier.losses import unpaired
        from espalier.losses.ops import by_sample

        ratios_S = by_sample(outputs.logprobs - batch.streams["ref_logprobs"], batch.rows, len(batch.samples))
        logprobs_S = by_sample(outputs.logprobs, batch.rows, len(batch.samples))
        good_S = torch.tensor([is_good(s) for s in batch.samples], device=ratios_S.device)
        delta = batch.state["delta"]
        metrics = unpaired.metrics(self.beta * ratios_S - delta, logprobs_S, good_S)
        metrics["delta"] = Term(torch.full_like(ratios_S, delta).detach(), "sequences", coef=0.0)
        x_S = unpaired.bco(ratios_S, good_S, delta, beta=self.beta)
        return {"bco": Term(x_S, "sequences"), **metrics}
