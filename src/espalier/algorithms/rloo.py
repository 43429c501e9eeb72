"""REINFORCE with a leave-one-out baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from espalier.algorithms.onpolicy import OnPolicy
from espalier.config.fields import section
from espalier.credit import advantages, rollouts, shaping
from espalier.types import Batch, Outputs, Sample, Term


@section
class RLOO(OnPolicy):
    """Each answer is one action, compared with the mean of its siblings, which is an unbiased baseline:

        L = 1/S sum_S [ -min(R A, clip(R, 1 - clip_low, 1 + clip_high) A) + beta sum_t KL_t ]

        R = prod_t pi(y_t) / old(y_t)        A = score - mean of the other answers to the prompt

    Ahmadian et al., arXiv:2402.14740, section 3.4; the clipped ratio is TRL's, and changes nothing in the first update
    of a step. Beside a reference the KL is subtracted from the scores (kl_in reward), as in the paper; in the loss it
    is a sum over tokens, as the policy's term is. With process rewards an answer's advantage is the mean of those of
    its tokens, which do not divide by a std.

    S counts all answers of the minibatch. A token without weight leaves the product, a cut answer without weight
    (mask_cut) and a silent group add 0; S stays.
    """

    kl_in: Literal["loss", "reward"] = "reward"

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        drawn = rollouts.drawn(groups)
        rollouts.fill(drawn, [advantages.leave_one_out(x) for x in self.scores(drawn)], scale_steps=False)
        if self.mask_cut:
            shaping.mask_cut(drawn)
        return state

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`policy` over sequences, `kl_loss` and `entropy_bonus` if they are on, and metrics."""
        from espalier.losses import policy

        log_ratio = policy.to_old(outputs, batch)
        # At every token, its sequence's ratio; the shares of a sequence's tokens sum to 1.
        ratio = policy.sequence_ratios(log_ratio, batch, length_normalised=False)[batch.rows]
        x = policy.clipped(ratio, batch.streams["advantages"], self.clip())
        return {
            "policy": Term(x * policy.means(batch, log_ratio.dtype), "sequences"),
            **self.beside(log_ratio, batch.weights, "sequences", outputs, batch),
            **policy.metrics(ratio, self.clip(), outputs, batch),
        }
