"""Reward-ranked fine-tuning: rejection sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from annotated_types import Gt, Le

from espalier.algorithms import online_combinations
from espalier.algorithms.online import GIVEN, Online
from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.fields import Count, NotNegative, Number, Positive, section
from espalier.credit import rollouts, selection
from espalier.types import Batch, Outputs, Sample, Term


@section
class RAFT(Algorithm):
    """Fine-tunes on the best of the policy's own answers:

        L = sum_kept -log pi(y_t) / |tokens kept|  +  sft_coef * sum_given nll_t / |tokens given|

    Dong et al. (RAFT), arXiv:2304.06767; Touvron et al. (Llama 2), arXiv:2307.09288, section 3.2.2, for the best of
    each prompt. A step is a round: answers to all its prompts under fixed weights, then rollout_epochs passes over what
    was kept. Several rounds are expert iteration (arXiv:2312.06585).

    An answer that does not qualify is never kept, nor one that scores no more than the worst of the step: with scores
    of 0 and 1, no wrong one.

    The tokens of answers that are not kept have no weight, and leave the denominator; so do cut ones (mask_cut), which
    are passed over before the best are chosen. Given conversations have their own denominator, so that sft_coef weighs
    means, whatever the shares of both.
    """

    select: Literal["best", "top", "batch"] = "best"
    """Answers to train on: the best to each prompt; the top_share of those to each prompt; the top_share of the whole
    step that lead its mean score by margin."""
    top_share: Annotated[Number, Gt(0), Le(1)] = 0.2
    """Share of answers that top and batch keep, at least one."""
    margin: NotNegative = 0.0
    """Lead over the mean score of the step that batch asks of an answer."""
    sft_coef: Positive = 1.0
    """Weight of the given conversations' own mean loss."""
    mask_cut: bool = False
    """Never train on answers that the length limit ended."""
    rollout_epochs: Count = 1
    """Passes over the answers that are kept."""
    minibatches: Count = 1
    """Updates in each of these passes."""

    def __post_init__(self) -> None:
        online_combinations.check_raft(self)

    @property
    def traits(self) -> Traits:
        online = Online(self.rollout_epochs, self.minibatches, least_group=1 if self.select == "batch" else 2)
        return Traits("task", linear=True, online=online)

    def credit(self, groups: Sequence[list[Sample]], state: dict[str, float]) -> dict[str, float]:
        """Take the weights of the answers that are not kept."""
        drawn = rollouts.drawn(groups)
        scores = [[rollouts.score(s) if self._may_stay(s) else None for s in group] for group in drawn]
        if self.select == "batch":
            kept = selection.lead(scores, self.top_share, self.margin)
        else:
            kept = selection.top(scores, self.top_share if self.select == "top" else 0.0)
        for group, of_group in zip(drawn, kept, strict=True):
            for s, stays in zip(group, of_group, strict=True):
                if not stays:
                    s.weights = [0.0] * len(s)
        return state

    def _may_stay(self, s: Sample) -> bool:
        cut = self.mask_cut and s.stop == "length"
        return not cut and not (s.outcome and s.outcome.invalid)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """`nll` of kept answers and, if there are some, `nll_sft` of given conversations, each over its own tokens."""
        from espalier.losses.tokens import nll

        x = nll(outputs.logprobs, batch.weights)
        terms = {"nll": Term(x * batch.part("main"), "tokens")}
        if ("tokens", GIVEN) in batch.totals:
            terms["nll_sft"] = Term(x * batch.part(GIVEN), "tokens", GIVEN, self.sft_coef)
        return terms
