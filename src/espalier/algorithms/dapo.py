"""Decoupled clip and dynamic sampling policy optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from annotated_types import Ge, Lt

from espalier.algorithms.onpolicy import OnPolicy
from espalier.algorithms.traits import Traits
from espalier.config.fields import NotNegative, Number, Positive, section
from espalier.credit import advantages, rollouts, shaping
from espalier.outcomes import Fate
from espalier.types import Batch, Outputs, Sample, Term


@section
class DAPO(OnPolicy):
    """GRPO in which every token weighs the same, ratios may rise further than fall, answers near the length limit lose
    score, and groups that teach nothing are drawn again:

        L = sum_t [ -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t) + beta KL_t ]  /  tokens

        r_t = pi(y_t) / old(y_t)        A = (score - mean) / (std + 1e-4) over the answers of a prompt, std over G - 1
        score = reward + overlong_penalty * overlong(|y|)                  (`credit.shaping.overlong`)

    Yu et al., arXiv:2503.14476, eq. 8 to 13. A group is dead if the rewards of its answers, before KL and shaping, are
    exactly equal: it leaves every denominator, and other prompts take its place.

    tokens is the weight of all tokens of the minibatch, over all answers. The tokens of a cut answer without weight
    (mask_cut, on as in the paper) leave it; the answer stays in mean and std.
    """

    clip_high: Positive = 0.28
    mask_cut: bool = True
    overlong_share: Annotated[Number, Ge(0), Lt(1)] = 0.2
    """Share of max_tokens, before its end, over which answers lose more and more score; 0 is off."""
    overlong_penalty: NotNegative = 1.0
    """Score that an answer loses at max_tokens."""

    @property
    def traits(self) -> Traits:
        traits = super().traits
        assert traits.online is not None
        return replace(traits, online=replace(traits.online, refills=True))

    def keep(self, group: list[Sample]) -> Fate:
        """drop if all rewards are equal, else keep."""
        return "drop" if rollouts.flat(group) else "keep"

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        drawn = rollouts.drawn(groups)
        limit = rollouts.longest(state) if self.overlong_share else 0.0
        relative = []
        for group, scores in zip(drawn, self.scores(drawn), strict=True):
            shaped = [
                score + self.overlong_penalty * shaping.overlong(sum(s.mask), limit, self.overlong_share * limit)
                for s, score in zip(group, scores, strict=True)
            ]
            relative.append(advantages.normalised(shaped))
        rollouts.fill(drawn, relative)
        if self.mask_cut:
            shaping.mask_cut(drawn)
        return state

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`policy` over tokens, `kl_loss` and `entropy_bonus` if they are on, and metrics."""
        from espalier.losses import policy

        log_ratio = policy.to_old(outputs, batch)
        ratio = log_ratio.exp()
        x = policy.clipped(ratio, batch.streams["advantages"], self.clip())
        return {
            "policy": Term(x * batch.weights, "tokens"),
            **self.beside(log_ratio, batch.weights, "tokens", outputs, batch),
            **policy.metrics(ratio, self.clip(), outputs, batch),
        }
