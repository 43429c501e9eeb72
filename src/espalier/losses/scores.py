"""Losses of scalar scores: comparisons, their ties, grades and the origin of the scale.

A comparison c has the gap d = s_w - s_l of its two scores; in a tie, which of the two stands first changes nothing.
Every function returns what is to be summed.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from espalier.types import Batch, Outputs, Term

Ties = Literal["rao_kupper", "davidson"]


def bradley_terry(gap_C: Tensor, margin_C: Tensor | float = 0.0, smoothing: float = 0.0) -> Tensor:
    """x = -(1 - e) log sigma(d - m) - e log sigma(m - d), [C], nats.

    m: the gap that a preference asks for beyond 0; Touvron et al., arXiv:2307.09288, eq. 2. e: the share of labels
    taken to be wrong. Bradley and Terry 1952; as a reward model's loss Ouyang et al., arXiv:2203.02155, eq. 1. With
    e = m = 0 and an answer preferred with frequency f, the optimum is d = logit(f). d x / d d = sigma(d - m) - (1 - e).

    >>> bradley_terry(torch.tensor([0.0, 3.0]), margin_C=torch.tensor([0.0, 3.0]))
    tensor([0.6931, 0.6931])
    """
    lead_C = gap_C - margin_C
    loss_C = -(1 - smoothing) * logsigmoid(lead_C)
    return loss_C - smoothing * logsigmoid(-lead_C) if smoothing else loss_C


def with_ties(gap_C: Tensor, tied_C: Tensor, kind: Ties, tie_share: float) -> Tensor:
    """Negative log-likelihood of wins, and of ties if `tied_C` is true, [C], nats.

        rao_kupper   P(win) = sigma(d - log theta)              P(tie) = (theta^2 - 1) sigma(d - log theta)
                                                                                       sigma(-d - log theta)
        davidson     P(win) = e^(d/2) / (e^(d/2) + e^(-d/2) + nu)    P(tie) = nu / (e^(d/2) + e^(-d/2) + nu)

    Rao and Kupper 1967; Davidson 1970. `tie_share` in (0, 1) is P(tie) at d = 0, in both:

        theta = (1 + tie_share) / (1 - tie_share)          nu = 2 tie_share / (1 - tie_share)

    A third each at d = 0:

    >>> with_ties(torch.zeros(2), torch.tensor([False, True]), "davidson", 1 / 3).exp()
    tensor([3., 3.])
    """
    if kind == "rao_kupper":
        theta = (1 + tie_share) / (1 - tie_share)
        win_C, loss_C = logsigmoid(gap_C - math.log(theta)), logsigmoid(-gap_C - math.log(theta))
        return -torch.where(tied_C, math.log(theta**2 - 1) + win_C + loss_C, win_C)
    tie_C = torch.full_like(gap_C, math.log(2 * tie_share / (1 - tie_share)))
    all_C = torch.stack([gap_C / 2, -gap_C / 2, tie_C]).logsumexp(0)
    return all_C - torch.where(tied_C, tie_C, gap_C / 2)


def centering(scores_C2: Tensor) -> Tensor:
    """x = (s_w + s_l)^2, [C]: pulls the mean of both scores to 0, which comparisons leave open.

    Eisenstein et al., arXiv:2312.09244.
    """
    return scores_C2.sum(1) ** 2


def standard(grades: Tensor, low: float, high: float) -> Tensor:
    """Grades from a human scale [low, high] on [-1, 1]: 2 (g - low) / (high - low) - 1; nan stays nan.

    >>> standard(torch.tensor([1.0, 5.5, 10.0]), 1.0, 10.0).tolist()
    [-1.0, 0.0, 1.0]
    """
    return 2 * (grades - low) / (high - low) - 1


def pointwise(scores_RK: Tensor, grades_RK: Tensor) -> Tensor:
    """x_r = 1/|known| sum_{k known} (s_rk - g_rk)^2, [R]: squared error over the dimensions whose grade is not nan.

    0, with a gradient of 0, for a read without any grade.

    >>> pointwise(torch.tensor([[1.0, 5.0], [2.0, 2.0]]), torch.tensor([[3.0, math.nan], [1.0, 0.0]])).tolist()
    [4.0, 2.5]
    """
    known_RK = ~grades_RK.isnan()
    error_RK = scores_RK - grades_RK.nan_to_num(0.0)
    return (error_RK**2 * known_RK).sum(1) / known_RK.sum(1).clamp(min=1)


def shares(group_C: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """1 over the number of comparisons of a comparison's own group, [C]: each group's add up to 1.

    All comparisons of a prompt weigh together what one prompt weighs; Ouyang et al., arXiv:2203.02155, eq. 1, where
    the factor is 1 / (K choose 2).

    >>> shares(torch.tensor([0, 0, 2])).tolist()
    [0.5, 0.5, 1.0]
    """
    return torch.bincount(group_C)[group_C].to(dtype).reciprocal()


# ---------------------------------------------------------------------------------------------- from batches to scores


def of_samples(outputs: Outputs, batch: Batch, dimensions: int) -> Tensor:
    """Each sample's scores, [S, K].

    Raises ValueError if a sample has other than one read, or K is not `dimensions`.
    """
    for s in batch.samples:
        if len(s.reads) != 1:
            raise ValueError(f"group {s.group}: got {len(s.reads)} reads of a sample, expected 1, at its last token")
    scores_RK = outputs.scores_RK  # reads stand in the order of samples, so R is S
    if scores_RK is None or scores_RK.shape != (len(batch.samples), dimensions):
        got = "none" if scores_RK is None else str(tuple(scores_RK.shape))
        raise ValueError(f"got scores of shape {got}, expected ({len(batch.samples)}, {dimensions}), one row a sample")
    return scores_RK


def comparisons(batch: Batch, *, ties: bool) -> tuple[Tensor, Tensor]:
    """The rows of both samples of each comparison, [C, 2], strict pairs first, and which are ties, [C]."""
    if not ties:
        return batch.wins_P2, torch.zeros_like(batch.wins_P2[:, 0], dtype=torch.bool)
    both_C2 = torch.cat([batch.wins_P2, batch.ties_Q2])
    return both_C2, torch.arange(len(both_C2), device=both_C2.device) >= len(batch.wins_P2)


def label_gaps(batch: Batch) -> Tensor:
    """|label_w - label_l| of each strict pair, [P]; absolute, so that a pair turned around asks for the same lead.

    Raises ValueError if one of the two has no label.
    """
    for s in batch.samples:
        if s.label is None:
            raise ValueError(f"group {s.group}: a sample has no label, and margins need one; set margin to 0")
    label_P2 = batch.labels_S[batch.wins_P2]
    return (label_P2[:, 0] - label_P2[:, 1]).abs()


def metrics(scores_S: Tensor, batch: Batch) -> dict[str, Term]:
    """Metrics, over strict pairs and without gradient: accuracy (1 if the preferred score is strictly
    larger), margin, and the scores of both sides."""
    chosen_P, rejected_P = scores_S.detach()[batch.wins_P2].unbind(1)
    margin_P = chosen_P - rejected_P
    values = {"accuracy": (margin_P > 0).to(margin_P.dtype), "margin": margin_P}
    values |= {"rewards_chosen": chosen_P, "rewards_rejected": rejected_P}
    return {name: Term(x_P, "pairs", coef=0.0) for name, x_P in values.items()}
