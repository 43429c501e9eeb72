"""Losses over pairs: a preferred answer w and another l of one prompt.

Every loss returns x_P, one number a pair, to be summed; all are exact in the dtype of what they get. Terms:

    ratio     log pi(y|x) - log ref(y|x), a sum over the tokens of an answer
    score     what stands for the ratio under an f-divergence (the ratio itself under the reverse KL)
    margin    beta * (score_w - score_l)

Columns of a [P, 2] tensor are w and l.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from espalier.losses.ops import by_prefix, by_sample
from espalier.losses.tokens import nll
from espalier.losses.variants import VARIANTS
from espalier.types import Batch, Term

Divergence = Literal["reverse_kl", "js", "alpha"]
_LARGEST = 80.0  # exp of it is finite in float32 and bfloat16
_LN2 = math.log(2)

# ------------------------------------------------------------------------------------------------ from tokens to pairs


def sums(x: Tensor, rows: Tensor, lengths_S: Tensor, wins_P2: Tensor, ld_alpha: float = 1.0) -> Tensor:
    """Sums of `x` [T] over the answers of each pair, [P, 2]; tokens beyond the shorter answer's length weigh ld_alpha.

        sum_P2 = sum_{t <= m} x_t + ld_alpha * sum_{t > m} x_t        m = min(|y_w|, |y_l|)

    LD-DPO, Liu et al., arXiv:2409.06411, there of log-probabilities of policy and reference alike. An answer that
    stands in several pairs is cut anew in each.

    >>> x, rows, lengths = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 1, 1, 1]), torch.tensor([1.0, 3.0])
    >>> sums(x, rows, lengths, torch.tensor([[0, 1]]), ld_alpha=0.5)
    tensor([[1., 8.]])
    """
    whole_P2 = by_sample(x, rows, len(lengths_S))[wins_P2]
    if ld_alpha == 1:
        return whole_P2
    common_P = lengths_S[wins_P2].min(1).values
    shared_P2 = torch.stack([by_prefix(x, lengths_S, side_P, common_P) for side_P in wins_P2.unbind(1)], 1)
    return ld_alpha * whole_P2 + (1 - ld_alpha) * shared_P2


def means(logprobs: Tensor, batch: Batch) -> Tensor:
    """Mean log-probability of a token of both answers of each pair, [P, 2]."""
    sums_P2 = sums(logprobs, batch.rows, batch.lengths_S, batch.wins_P2)
    return sums_P2 / batch.lengths_S[batch.wins_P2].clamp(min=1)


def divergence(ratios: Tensor, kind: Divergence, alpha: float = 0.5) -> Tensor:
    """Scores f'(u) at u = exp(ratio), up to a constant that cancels between the sides of a pair:

        reverse_kl   log u
        js           log(2u / (1 + u))
        alpha        (1 - u^-alpha) / alpha        alpha -> 0 is the reverse KL, 1 the forward KL

    Wang et al., arXiv:2309.16240, table 1. Beyond u^-alpha = exp(80) the score of `alpha` is flat, so that neither it
    nor its gradient overflows.
    """
    if kind == "js":
        return logsigmoid(ratios) + _LN2
    if kind == "alpha":
        return -torch.expm1((-alpha * ratios).clamp(max=_LARGEST)) / alpha
    return ratios


def metrics(rewards_P2: Tensor, logprobs: Tensor, batch: Batch) -> dict[str, Term]:
    """Metrics, over pairs and without gradient: accuracy (1 if the preferred reward is strictly larger),
    margin, and rewards, summed log-probabilities and lengths (tokens) of both sides."""
    rewards_P2, logprobs = rewards_P2.detach(), logprobs.detach()
    margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
    values = {"accuracy": (margin_P > 0).to(margin_P.dtype), "margin": margin_P}
    logprobs_P2 = sums(logprobs, batch.rows, batch.lengths_S, batch.wins_P2)
    lengths_P2 = batch.lengths_S[batch.wins_P2].to(logprobs.dtype)
    for name, x_P2 in (("rewards", rewards_P2), ("logprobs", logprobs_P2), ("length", lengths_P2)):
        values[f"{name}_chosen"], values[f"{name}_rejected"] = x_P2.unbind(1)
    return {name: Term(x_P, "pairs", coef=0.0) for name, x_P in values.items()}


def chosen_nll(logprobs: Tensor, batch: Batch, coef: float) -> Term:
    """coef * sum_chosen -log pi(y_t | y_<t) / |chosen tokens|, over answers that beat a sibling and that none beats."""
    return Term(nll(logprobs, batch.weights) * batch.part("chosen"), "tokens", "chosen", coef)


# --------------------------------------------------------------------------------------------------------------- losses


@dataclass(frozen=True, slots=True)
class PairScores:
    """What the losses of `VARIANTS` take: scores summed over `lengths_P2` tokens, and the settings of DPO."""

    scores_P2: Tensor
    lengths_P2: Tensor
    beta: float
    smoothing: float = 0.0
    ipo_average: bool = False

    @property
    def rewards_P2(self) -> Tensor:
        """beta * score, of both sides."""
        return self.beta * self.scores_P2

    @property
    def margin_P(self) -> Tensor:
        """beta * (score_w - score_l)."""
        rewards_P2 = self.rewards_P2
        return rewards_P2[:, 0] - rewards_P2[:, 1]

    @property
    def mean_difference_P(self) -> Tensor:
        """score_w / |w| - score_l / |l|."""
        means_P2 = self.scores_P2 / self.lengths_P2.clamp(min=1)
        return means_P2[:, 0] - means_P2[:, 1]

    @property
    def mean_margin_P(self) -> Tensor:
        """beta * (score_w / |w| - score_l / |l|)."""
        return self.beta * self.mean_difference_P

    @property
    def difference_P(self) -> Tensor:
        """score_w - score_l, averaged over tokens with `ipo_average`."""
        if self.ipo_average:
            return self.mean_difference_P
        return self.scores_P2[:, 0] - self.scores_P2[:, 1]


def loss(
    variant: str, scores_P2: Tensor, lengths_P2: Tensor, beta: float, smoothing: float = 0.0, ipo_average: bool = False
) -> Tensor:
    """The loss of a variant of DPO, [P], of scores summed over `lengths_P2` tokens; see `VARIANTS`.

    Raises ValueError for a variant that is not a loss over pairs.
    """
    entry = VARIANTS.get(variant)
    if entry is None or entry.over != "pairs":
        raise ValueError(f"got variant {variant!r}; expected a loss over pairs, such as sigmoid")
    scores = PairScores(scores_P2, lengths_P2, beta, smoothing, ipo_average)
    return LOSSES[entry.loss](*(getattr(scores, name) for name in entry.takes))


def sigmoid(margin_P: Tensor, smoothing: float = 0.0) -> Tensor:
    """x = -(1 - e) log sigma(margin) - e log sigma(-margin), e the share of labels taken to be wrong.

    e = 0: DPO, Rafailov et al., arXiv:2305.18290, eq. 7; e > 0: conservative DPO, whose optimum is sigma(margin) =
    1 - e. ln 2 at margin 0. d x / d margin = sigma(margin) - (1 - e).
    """
    loss_P = -(1 - smoothing) * logsigmoid(margin_P)
    if not smoothing:
        return loss_P
    return loss_P - smoothing * logsigmoid(-margin_P)


def robust(margin_P: Tensor, flipped: float) -> Tensor:
    """x = [-(1 - e) log sigma(margin) + e log sigma(-margin)] / (1 - 2 e), e < 1/2 the share of flipped labels.

    Its mean over the flips is the DPO loss of the clean labels. Chowdhury et al. (rDPO), arXiv:2403.00409. ln 2 at
    margin 0; not bounded below. d x / d margin = sigma(margin) - (1 - e) / (1 - 2 e).
    """
    return (-(1 - flipped) * logsigmoid(margin_P) + flipped * logsigmoid(-margin_P)) / (1 - 2 * flipped)


def ipo(difference_P: Tensor, tau: float) -> Tensor:
    """x = (score_w - score_l - 1 / (2 tau))^2, scores averaged or summed over tokens.

    Azar et al., arXiv:2310.12036, eq. 17. d x / d difference = 2 (difference - 1 / (2 tau)).
    """
    return (difference_P - 1 / (2 * tau)) ** 2


def hinge(margin_P: Tensor) -> Tensor:
    """x = max(0, 1 - margin): SLiC-HF, Zhao et al., arXiv:2305.10425, on ratios as Liu et al., arXiv:2309.06657, do.

    d x / d margin = -1 below margin 1, 0 from there on.
    """
    return torch.relu(1 - margin_P)


def apo_zero(rewards_P2: Tensor) -> Tensor:
    """x = 1 - sigma(reward_w) + sigma(reward_l): w is raised and l lowered, each on its own.

    D'Oosterlinck et al., arXiv:2408.06266, eq. 7, plus 1. rewards = beta * ratio. 1 at rewards 0.
    """
    return torch.sigmoid(-rewards_P2[:, 0]) + torch.sigmoid(rewards_P2[:, 1])


def apo_down(rewards_P2: Tensor) -> Tensor:
    """x = sigma(reward_w) + 1 - sigma(reward_w - reward_l): w is lowered, and l more.

    D'Oosterlinck et al., arXiv:2408.06266, eq. 8, plus 1. rewards = beta * ratio. 1 at rewards 0.
    """
    chosen_P, rejected_P = rewards_P2.unbind(1)
    return torch.sigmoid(chosen_P) + torch.sigmoid(rejected_P - chosen_P)


LOSSES: dict[str, Callable[..., Tensor]] = {
    function.__name__: function for function in (sigmoid, robust, ipo, hinge, apo_zero, apo_down)
}
"""The functions that `VARIANTS` names."""


def odds_ratio(means_P2: Tensor) -> Tensor:
    """x = -log sigma(log odds_w - log odds_l), odds = p / (1 - p) and log p the mean log-probability of a token.

    Hong et al. (ORPO), arXiv:2403.07691, eq. 7. ln 2 if both means are equal. A mean of 0 (p = 1) counts as the
    largest number below it, so that the odds are finite.
    """
    chosen_P, rejected_P = log_odds(means_P2).unbind(1)
    return -logsigmoid(chosen_P - rejected_P)


def log_odds(means: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(means), without cancellation at either end.

    >>> log_odds(torch.tensor([0.25, 0.5, 0.8]).log()).exp()
    tensor([0.3333, 1.0000, 4.0000])
    """
    means = means.clamp(max=-torch.finfo(means.dtype).tiny)
    near_P = means > -_LN2
    # Each branch gets arguments that are its own: `where` passes 0 * inf = nan to the other one's gradient.
    near = torch.log(-torch.expm1(torch.where(near_P, means, -_LN2)))
    far = torch.log1p(-torch.exp(torch.where(near_P, -_LN2, means)))
    return means - torch.where(near_P, near, far)
