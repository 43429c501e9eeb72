"""Proximal policy optimisation with a critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from annotated_types import Ge, Le

from espalier.algorithms import online_combinations
from espalier.algorithms.controlled_kl import PATIENCE
from espalier.algorithms.online import PTX
from espalier.algorithms.token_rewarded import TokenRewarded
from espalier.algorithms.traits import Stream, Traits
from espalier.config.fields import Count, NotNegative, Number, Positive, section
from espalier.credit import actor_critic, rollouts, shaping
from espalier.outcomes import Fate
from espalier.types import Batch, Outputs, Sample, Term


@section
class PPO(TokenRewarded):
    """Makes each token likelier by how much better it was than a critic expected:

        L = sum_t -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)  /  tokens
        L_critic = sum_t 1/2 max( (V_t - R_t)^2, (V_old + clamp(V_t - V_old, -c, c) - R_t)^2 )  /  tokens

        r_t = pi(y_t) / old(y_t)        c = value_clip
        A_t = sum_{k >= t} (gamma lam)^(k - t) d_k        d_k = r_k + gamma V_{k + 1} - V_k        (GAE)
        R_t = A_t + V_t, or the discounted rewards to go (returns monte_carlo)
        r_k = -beta log(old_k / ref_k), and the clipped score at the last token

    Schulman et al., arXiv:1707.06347, 1506.02438; Ouyang et al. (InstructGPT), arXiv:2203.02155; rewards as DeepSpeed-
    Chat, arXiv:2308.01320. V is read before each token and is 0 behind the last one, also of an answer that the length
    limit ended, unless bootstrap_cut. A is whitened over the step (population variance).

    tokens is the weight of all tokens of the minibatch, over all answers. The tokens of a cut answer without weight
    (mask_cut) leave it. No group is silent. Given texts (ptx_data) have their own denominator: beside L stands
    ptx_coef times their mean loss a token. With a shared backbone value_coef L_critic is added to L.
    """

    gamma: Annotated[Number, Ge(0), Le(1)] = 1.0
    """Discount of rewards, a token."""
    lam: Annotated[Number, Ge(0), Le(1)] = 0.95
    """Decay of GAE: 1 trusts rewards alone, 0 the critic."""
    returns: Literal["gae", "monte_carlo"] = "gae"
    """What the critic learns: advantage plus value, or the rewards to go."""
    bootstrap_cut: bool = False
    """Behind an answer that the length limit ended stands the critic's value, not 0."""
    whiten_advantages: bool = True
    """Advantages of a step have mean 0 and deviation 1."""
    value_clip: NotNegative = 0.2
    """How far a value moves from that before the step; 0 is no limit."""
    value_coef: Positive = 0.1
    """Weight of the critic's loss if it shares the policy's backbone."""
    minibatches: Count = 4
    """Updates in each of these passes."""
    stop_kl: NotNegative = 0.0
    """Nats a token from old to new policy: a minibatch beyond 1.5 times it ends the policy updates of its step; 0 is
    off."""
    ptx_coef: Positive = 1.0
    """Weight of the mean loss of given texts (27.8 in InstructGPT)."""

    def __post_init__(self) -> None:
        online_combinations.check_ppo(self)

    @property
    def traits(self) -> Traits:
        traits = super().traits
        assert traits.online is not None
        # Control is by the KL that a rollout has, which is read from the policy as it was.
        old: tuple[Stream, ...] = ("old_logprobs",) if self.controls and "old_logprobs" not in traits.needs else ()
        online = replace(traits.online, least_group=1, bootstraps=self.bootstrap_cut, shows=actor_critic.SHOWN)
        return replace(traits, needs=(*traits.needs, "values", *old), online=online)

    def keep(self, group: list[Sample]) -> Fate:
        """Always keep."""
        return "keep"

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        drawn = rollouts.drawn(groups)
        numbers = actor_critic.fill(self, [s for g in drawn for s in g], self.strength(state))
        if self.mask_cut:
            shaping.mask_cut(drawn)
        return {**state, **self.control(state, drawn), **actor_critic.moved(state, numbers)}

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`policy` over tokens, `kl_loss`, `entropy_bonus`, `ptx` and, with a shared backbone, `value` if they are on,
        and metrics."""
        from espalier.losses import policy, tokens, values

        answers = policy.of_answers(batch)
        terms = policy.terms(outputs, answers, self.clip())
        terms |= self.beside(policy.to_old(outputs, answers), answers.weights, "tokens", outputs, answers)
        if outputs.values is not None:
            terms |= values.value_terms(outputs, answers, clip=self.value_clip, coef=self.value_coef)
        if ("tokens", PTX) in batch.totals:
            x = tokens.nll(outputs.logprobs, batch.weights * batch.part(PTX))
            terms["ptx"] = Term(x, "tokens", PTX, self.ptx_coef)
        return terms

    def value_loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`value` over tokens, and metrics; see `losses.values`."""
        from espalier.losses.values import value_terms

        return value_terms(outputs, batch, clip=self.value_clip)

    def stop(self, terms: Mapping[str, float]) -> bool:
        """Whether the minibatch is further than 1.5 stop_kl from the old policy."""
        return bool(self.stop_kl) and terms.get("approx_kl", 0.0) > 1.5 * self.stop_kl

    def remarks(self, state: Mapping[str, float]) -> list[str]:
        lines = super().remarks(state)
        if state.get("unexplained") == PATIENCE:
            lines.append(actor_critic.UNEXPLAINED)
        return lines
