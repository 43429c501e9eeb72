"""Contrastive preference optimisation."""

from __future__ import annotations

from typing import ClassVar

from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.fields import NotNegative, Positive, section
from espalier.types import Batch, Outputs, Term


@section
class CPO(Algorithm):
    """DPO against a uniform reference, beside the likelihood of preferred answers:

        L = sum_pairs -log sigma(beta (log pi(y_w|x) - log pi(y_l|x))) / pairs
            + sft_coef * sum_chosen -log pi(y_t | y_<t) / |chosen tokens|

    Xu et al., arXiv:2401.08417, eq. 4 to 6. There the likelihood is a sequence's, a sum over its tokens; here it is a
    mean over the step's chosen tokens, so that sft_coef 1 weighs less than the paper's by the length of an answer.
    Log-probabilities in pairs are sums over tokens: the loss starts far from ln 2 if lengths differ, and shorter
    answers are favoured. beta 0.1; the paper's rate is 1e-4, with LoRA on models of 7 and 13 billion weights.
    """

    beta: Positive = 0.1
    """Scale of the log-probabilities."""
    sft_coef: NotNegative = 1.0
    """Weight of the mean negative log-likelihood of preferred answers."""

    traits: ClassVar[Traits] = Traits("ranking", whole=True)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """The term `cpo`, `nll` if it is on, and metrics, whose rewards are beta log pi."""
        from espalier.losses import pairs

        rewards_P2 = self.beta * pairs.sums(outputs.logprobs, batch.rows, batch.lengths_S, batch.wins_P2)
        x_P = pairs.sigmoid(rewards_P2[:, 0] - rewards_P2[:, 1])
        terms = {"cpo": Term(x_P, "pairs"), **pairs.metrics(rewards_P2, outputs.logprobs, batch)}
        if self.sft_coef:
            terms["nll"] = pairs.chosen_nll(outputs.logprobs, batch, self.sft_coef)
        return terms
