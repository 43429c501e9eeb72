"""Group relative policy optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from espalier.algorithms import online_combinations
from espalier.algorithms.onpolicy import OnPolicy
from espalier.config.fields import section
from espalier.credit import advantages, rollouts, shaping
from espalier.outcomes import Fate
from espalier.types import Batch, Outputs, Sample, Term


@section
class GRPO(OnPolicy):
    """Compares the answers to one prompt with each other, and makes tokens of the better ones likelier:

        L = 1/S sum_S 1/|y| sum_t [ -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t) + beta KL_t ]

        r_t = pi(y_t) / old(y_t)        A = (score - mean) / (std + 1e-4) over the answers of a prompt, std over G - 1

    Shao et al. (DeepSeekMath), arXiv:2402.03300, eq. 3 (there with beta 0.04 and naive k3). KL_t is `kl_gradient`'s,
    see `losses.kl.penalty`. With process rewards, A_t is the sum of the normalised scores of the steps that end at or
    after t (section 4.1.3), plus A if there is a score of the whole, too.

    |y| counts tokens with weight, S all answers of the minibatch. A cut answer without weight (mask_cut) adds 0 and
    stays in S, in mean and in std; a token without weight leaves |y|; a silent group adds 0 and stays in S.
    """

    scale: Literal["group", "batch", "none"] = "group"
    """Advantages are divided by the std of the group's scores, of all scores of the step, or by nothing."""
    advantage: Literal["normal", "sign", "winners"] = "normal"
    """normal compares with the group's mean; sign keeps its sign alone; winners is +1 for the best and -1 for the rest,
    0 if all are equal."""
    reward_norm: Literal["after", "each"] = "after"
    """Rewards are summed, then normalised; each normalises every reward by group before the sum, and the sum over the
    step (GDPO, arXiv:2601.05242)."""

    def __post_init__(self) -> None:
        online_combinations.check_grpo(self)

    def keep(self, group: list[Sample]) -> Fate:
        if self.reward_norm == "each" and not rollouts.flat(group, each=True):
            return "keep"
        return super().keep(group)

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        drawn = rollouts.drawn(groups)
        rollouts.fill(drawn, self._advantages(drawn), scale_steps=self.scale != "none")
        if self.mask_cut:
            shaping.mask_cut(drawn)
        return state

    def _advantages(self, groups: list[list[Sample]]) -> list[list[float]]:
        scores = self.scores(groups)
        if self.reward_norm == "each":
            rewards = [rollouts.rewards_of(g, x) for g, x in zip(groups, scores, strict=True)]
            return advantages.each_reward(rewards, [len(g) for g in groups])
        if self.advantage != "normal":
            relative = advantages.signs if self.advantage == "sign" else advantages.winners
            return [relative(x) for x in scores]
        if self.scale == "batch":
            return advantages.over_batch(scores)
        return [advantages.normalised(x) if self.scale == "group" else advantages.centred(x) for x in scores]

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`policy` over sequences, `kl_loss` and `entropy_bonus` if they are on, and metrics."""
        from espalier.losses import policy

        log_ratio = policy.to_old(outputs, batch)
        ratio, share = log_ratio.exp(), policy.means(batch, log_ratio.dtype)
        x = policy.clipped(ratio, batch.streams["advantages"], self.clip())
        return {
            "policy": Term(x * share, "sequences"),
            **self.beside(log_ratio, share, "sequences", outputs, batch),
            **policy.metrics(ratio, self.clip(), outputs, batch),
        }
