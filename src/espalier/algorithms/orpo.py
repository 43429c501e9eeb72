"""Odds ratio preference optimisation."""

from __future__ import annotations

from typing import ClassVar

from espalier.algorithms.traits import Algorithm, Traits
from espalier.config.fields import Positive, section
from espalier.types import Batch, Outputs, Term


@section
class ORPO(Algorithm):
    """Fine-tunes on preferred answers and, in the same step, raises their odds over the others'; no reference:

        L = sum_chosen nll_t / |chosen tokens|  +  odds_coef * sum_pairs -log sigma(log odds_w - log odds_l) / pairs

        odds = p / (1 - p)      log p = log pi(y|x) / |y|      nll_t = -log pi(y_t | y_<t)

    Hong et al., arXiv:2403.07691, eq. 6 and 7. If both sides are equal the second term is odds_coef * ln 2. It takes
    the place of fine-tuning, so it starts from the base model, at rates between the two: 5e-6 to 8e-6 in the paper.
    Both terms are about answers only; the authors' code also trains the prompt's tokens.
    """

    odds_coef: Positive = 0.1
    """Weight of the odds ratio (lambda; the paper takes 0.1 to 0.25)."""

    traits: ClassVar[Traits] = Traits("ranking", whole=True)

    def loss(self, outputs: Outputs, batch: Batch) -> dict[str, Term]:
        """The terms `nll` and `odds_ratio`, and metrics, whose rewards are odds_coef times log odds."""
        from espalier.losses import pairs

        means_P2 = pairs.means(outputs.logprobs, batch)
        return {
            "nll": pairs.chosen_nll(outputs.logprobs, batch, 1.0),
            "odds_ratio": Term(pairs.odds_ratio(means_P2), "pairs", coef=self.odds_coef),
            **pairs.metrics(self.odds_coef * pairs.log_odds(means_P2), outputs.logprobs, batch),
        }
