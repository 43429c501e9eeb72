"""What algorithms that learn from scored rollouts share: KL, entropy bonus, updates a step, masking of cut answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Gt, Le, Lt

from espalier.algorithms import online_combinations
from espalier.algorithms.online import Online
from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.fields import Count, CountOrZero, NotNegative, Number, Positive, section
from espalier.credit import rollouts, shaping
from espalier.outcomes import Fate
from espalier.types import Batch, Outputs, Over, Sample, Term

if TYPE_CHECKING:
    from torch import Tensor

    from espalier.losses.policy import Clip


@section
class OnPolicy(Algorithm):
    """The shared fields, and the terms beside the policy's own."""

    beta: NotNegative = 0.0
    """Strength of the KL to the reference; 0 is off, and loads none."""
    kl_in: Literal["loss", "reward"] = "loss"
    """The KL is a term of the loss, or is subtracted from scores before the baseline (k1, summed over the answer)."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL in the loss, and of the metric."""
    kl_gradient: Literal["naive", "token", "sequence"] = "token"
    """The KL in the loss: the estimate; the estimate times the ratio to the old policy; or that ratio times the
    log-ratio to the reference from the token to the end of its sequence, which has no gradient and no estimator."""
    entropy_coef: NotNegative = 0.0
    """Weight of the entropy bonus."""
    clip_low: Annotated[Number, Gt(0), Lt(1)] = 0.2
    """Ratios below 1 minus this have no gradient in tokens that become less likely."""
    clip_high: Positive = 0.2
    """Ratios above 1 plus this have no gradient in tokens that become more likely."""
    clip_dual: NotNegative = 0.0
    """Ratios above this have no gradient in tokens that become less likely (dual clip); 0 is off."""
    mask_cut: bool = False
    """Give no weight to answers that the length limit ended; they stay in baselines."""
    rollout_epochs: Count = 1
    """Passes over the answers of a step."""
    minibatches: Count = 1
    """Updates in each of these passes."""
    old: Literal["learner", "sampler"] = "learner"
    """Source of the old log-probabilities: the learner before the step's first update, or the sampler."""
    sync_every: CountOrZero = 0
    """Steps between moves of the reference to the policy; 0 never."""
    sync_alpha: Annotated[Number, Gt(0), Le(1)] = 0.6
    """Share of the policy in the moved reference; 1 replaces it."""

    def __post_init__(self) -> None:
        online_combinations.check_on_policy(self)

    @property
    def kl_place(self) -> Literal["loss", "reward", ""]:
        """Where the KL acts; empty if there is none."""
        return self.kl_in if self.beta else ""

    @property
    def traits(self) -> Traits:
        several = self.rollout_epochs * self.minibatches > 1
        old = several or self.kl_place == "reward" or self.old == "sampler"
        return Traits(
            "task",
            needs=(*(("ref_logprobs",) if self.beta else ()), *(("old_logprobs",) if old else ())),
            sync_every=self.sync_every,
            sync_alpha=self.sync_alpha if self.sync_every else 0.0,
            online=Online(
                epochs=self.rollout_epochs,
                minibatches=self.minibatches,
                least_group=2,
                entropy=self.entropy_coef > 0,
                old=self.old,
                always=self.kl_place == "loss" or self.entropy_coef > 0,
            ),
        )

    def keep(self, group: list[Sample]) -> Fate:
        """silent if all scores are equal and no KL or entropy bonus has a gradient, else keep."""
        return "silent" if rollouts.flat(group) and not self.kl_place and not self.entropy_coef else "keep"

    def scores(self, groups: Sequence[list[Sample]]) -> list[list[float]]:
        """Each sample's score; with the KL in the reward, less beta times sum_t log old_t - log ref_t."""
        beta = self.beta if self.kl_place == "reward" else 0.0
        return [[rollouts.score(s) - (beta * shaping.ratio(s) if beta else 0.0) for s in g] for g in groups]

    def clip(self) -> Clip:
        from espalier.losses.policy import Clip

        return Clip(self.clip_low, self.clip_high, self.clip_dual)

    def beside(self, log_ratio: Tensor, share: Tensor, over: Over, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """The terms `kl_loss` and `entropy_bonus`, if they are on, each a number a token times `share`; the metrics
        `kl`, beside a reference, and `entropy`, if it is there."""
        from espalier.losses import kl, policy

        terms = {}
        if self.beta:
            ref = batch.streams["ref_logprobs"]
            if self.kl_in == "loss":
                x = kl.penalty(outputs.logprobs, ref, log_ratio, batch, self.kl, self.kl_gradient)
                terms["kl_loss"] = Term(x * share, over, coef=batch.state.get("beta", self.beta))
            k = kl.estimate(policy.log_ratios(outputs.logprobs.detach(), ref, batch.weights), self.kl)
            terms["kl"] = Term(k * batch.weights, "tokens", coef=0.0)
        if outputs.entropy is not None:
            if self.entropy_coef:
                terms["entropy_bonus"] = Term(-outputs.entropy * share, over, coef=self.entropy_coef)
            terms["entropy"] = Term(outputs.entropy.detach() * batch.weights, "tokens", coef=0.0)
        return terms
