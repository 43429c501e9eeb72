"""Simple preference optimisation."""

from __future__ import annotations

from typing import ClassVar

from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.fields import NotNegative, Positive, section
from espalier.types import Batch, Outputs, Term


@section
class SimPO(Algorithm):
    """Learns from pairs with the mean log-probability of a token as the reward, and no reference:

        L = sum_pairs -log sigma(beta (a_w - a_l) - gamma) / pairs  +  sft_coef * sum_chosen nll_t / |chosen tokens|

        a = log pi(y|x) / |y|

    Meng et al., arXiv:2405.14734, eq. 6. Both sides equal, the loss is -log sigma(-gamma) (1.3133 at gamma 1). What
    decides is gamma / beta, the margin a token: the paper takes 0.1 to 0.8 of it, beta 2 to 2.5 (10 for models that are
    aligned already), and rates of 3e-7 to 1e-6 for whole models of 7 and 8 billion weights; above that answers repeat.
    """

    beta: Positive = 2.0
    """Scale of the reward."""
    gamma: NotNegative = 1.0
    """Margin by which the preferred reward should lead."""
    sft_coef: NotNegative = 0.0
    """Weight of the mean negative log-likelihood of preferred answers (CPO-SimPO)."""

    traits: ClassVar[Traits] = Traits("ranking", whole=True)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """The term `simpo`, `nll` if it is on, and metrics, whose rewards are beta a."""
        from espalier.losses import pairs

        rewards_P2 = self.beta * pairs.means(outputs.logprobs, batch)
        x_P = pairs.sigmoid(rewards_P2[:, 0] - rewards_P2[:, 1] - self.gamma)
        terms = {"simpo": Term(x_P, "pairs"), **pairs.metrics(rewards_P2, outputs.logprobs, batch)}
        if self.sft_coef:
            terms["nll"] = pairs.chosen_nll(outputs.logprobs, batch, self.sft_coef)
        return terms
