"""Losses and scores of steps: a scalar head read at the end of each step of a solution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from espalier.types import Aggregate


def cross_entropy(scores_R: Tensor, grades_R: Tensor, bad_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy of the probability that a step is good, [R], nats; 0 if the grade y_r is nan.

        x_r = -y_r log sigma(s_r) - bad_weight (1 - y_r) log(1 - sigma(s_r))
        dx_r / ds_r = sigma(s_r) - y_r                           at bad_weight 1

    Grades are 1 (good), 0 (bad) or between. A score of ln 3 says 3/4: it costs ln 4/3 = 0.288 at a good step and
    ln 4 = 1.386 at a bad one. Summed over reads and divided by the number of those that have a grade it is the loss of
    Lightman et al., arXiv:2305.20050 (as a classifier rather than by tokens) and of Wang et al., arXiv:2312.08935.

    >>> cross_entropy(torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 0.5, float("nan")])).tolist()
    [0.6931471824645996, 0.6931471824645996, 0.0]
    """
    known_R = ~grades_R.isnan()
    y_R = torch.where(known_R, grades_R, 0.0).to(scores_R.dtype)
    s_R = torch.where(known_R, scores_R, 0.0)  # so that no gradient flows from the others, whatever they hold
    return known_R * (y_R * F.softplus(-s_R) + bad_weight * (1 - y_R) * F.softplus(s_R))


def right_side(scores_R: Tensor, grades_R: Tensor) -> Tensor:
    """1 if score and grade say the same, good (s > 0, y > 1/2) or bad, 0 if they differ, [R].

    What has no answer counts half: a score of 0, a neutral grade, no grade (nan).

    >>> right_side(torch.tensor([2.0, 2.0, -1.0, 3.0]), torch.tensor([1.0, 0.0, 0.0, 0.5])).tolist()
    [1.0, 0.0, 1.0, 0.5]
    """
    return (1 + scores_R.sign() * (2 * grades_R.nan_to_num(0.5) - 1).sign()) / 2


def aggregate(scores_R: Tensor, lengths_S: Tensor, kind: Aggregate) -> Tensor:
    """One number for each solution from the probabilities p = sigma(s) of its steps, [S], between 0 and 1.

        product   prod p_i: the chance that every step is good, were they independent; falls with every further step
        min       min p_i: the worst step
        last      p_n: what is said when the solution is there as a whole
        mean      mean p_i: one bad step among many weighs little

    Steps of 0.9, 0.5 and 0.8 give 0.36, 0.5, 0.8 and 0.7333. `scores_R` holds the solutions one after the other,
    `lengths_S` (whole numbers) steps each; a solution without steps has nan.

    Lightman et al., arXiv:2305.20050, take the product; Wang et al. (Math-Shepherd), arXiv:2312.08935, the minimum;
    `last` is what an outcome reward model says (Uesato et al., arXiv:2211.14275).
    """
    n_S = lengths_S.long()
    count = len(n_S)
    rows_R = torch.repeat_interleave(torch.arange(count, device=n_S.device), n_S, output_size=len(scores_R))
    nothing_S = scores_R.new_zeros(count)
    if kind == "product":
        out_S = nothing_S.index_add(0, rows_R, F.logsigmoid(scores_R)).exp()
    elif kind == "mean":
        out_S = nothing_S.index_add(0, rows_R, scores_R.sigmoid()) / n_S
    elif kind == "min":
        out_S = nothing_S.scatter_reduce(0, rows_R, scores_R, "amin", include_self=False).sigmoid()
    else:
        ends_S = n_S.cumsum(0) - 1
        out_S = scores_R[ends_S.clamp(min=0)].sigmoid() if len(scores_R) else nothing_S
    return torch.where(n_S > 0, out_S, float("nan"))
