"""GRPO done right."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.algorithms.onpolicy import OnPolicy
from espalier.config.fields import section
from espalier.credit import advantages, rollouts, shaping
from espalier.types import Batch, Outputs, Sample, Term


@section
class DrGRPO(OnPolicy):
    """GRPO without the two divisions that favour long wrong answers and prompts that are nearly solved, or nearly not:

        L = 1/S sum_S 1/max_tokens sum_t [ -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t) + beta KL_t ]

        r_t = pi(y_t) / old(y_t)        A = score - mean over the answers of a prompt

    Liu et al., arXiv:2503.20783. The mean contains the answer itself, so that the gradient of the expected score is
    (G - 1) / G of what it is, and that of a KL in the loss is not: it counts as beta G / (G - 1) (see
    docs/policy-losses.md). With process rewards, A_t sums the scores of later steps less their mean.

    max_tokens is the limit of an answer's length, and S counts all answers of the minibatch: neither depends on what is
    masked. A token without weight, a cut answer without weight (mask_cut) and a silent group add 0 and change no
    denominator.
    """

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        drawn = rollouts.drawn(groups)
        rollouts.fill(drawn, [advantages.centred(x) for x in self.scores(drawn)], scale_steps=False)
        if self.mask_cut:
            shaping.mask_cut(drawn)
        return state

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`policy` over sequences, `kl_loss` and `entropy_bonus` if they are on, and metrics."""
        from espalier.losses import policy

        log_ratio = policy.to_old(outputs, batch)
        ratio = log_ratio.exp()
        share = batch.weights.to(log_ratio.dtype) / rollouts.longest(batch.state)
        x = policy.clipped(ratio, batch.streams["advantages"], self.clip())
        return {
            "policy": Term(x * share, "sequences"),
            **self.beside(log_ratio, share, "sequences", outputs, batch),
            **policy.metrics(ratio, self.clip(), outputs, batch),
        }
