"""Losses of whole orders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, permutations

import torch
from torch import Tensor

from espalier.ties import settled

EXACT_TIE = 4  # the orders of a tie are enumerated up to this many tied samples: 24 orders


def plackett_luce(scores_S: Tensor, labels_S: Tensor, group_S: Tensor) -> Tensor:
    """Negative log-likelihood of each group's order under Plackett-Luce, [G], nats; Luce 1959, Plackett 1975.

        P(y_1 > y_2 > ... > y_K) = prod_k exp(s_k) / sum_{j >= k} exp(s_j)

    scores_S: strengths s, [S], of any float dtype. labels_S: [S], higher is better, equal labels (`ties.settled`) are
    a tie, nan leaves the sample out. group_S: numbers 0 .. G - 1, [S]. A group with fewer than two ranked samples is 0.

    Ties: with O the orders that agree with the labels (every order inside a tie, none across ties),

        x = -log( 1/|O| sum_{o in O} P(o) )

    the mean of the likelihoods, not of their logarithms, so that a group that is one tie costs log K! and has no
    gradient. P(o) is a product over ties, and so is the mean. For a tie A of n above the lower samples B its factor is
    enumerated for n <= 4, and is 1/n! if B is empty. For larger n above a lower sample, pairs take its place:

        factor = 1/n! prod_{i in A} ( prod_{j in B} sigmoid(s_i - s_j) )^(1/|B|)

    A group of two is Bradley-Terry, -log sigmoid(s_a - s_b). Strengths 3, 2, 1 in this order have the probability
    3/6 * 2/3 * 1 = 1/3:

    >>> x_G = plackett_luce(torch.tensor([3.0, 2.0, 1.0]).log(), torch.tensor([9.0, 5.0, 4.0]), torch.tensor([0, 0, 0]))
    >>> [round(x, 4) for x in x_G.exp().tolist()]
    [3.0]
    """
    groups = int(group_S.max()) + 1 if group_S.numel() else 0
    plan = _plan(labels_S.tolist(), group_S.tolist())
    device = scores_S.device

    def index(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    x_G = scores_S.new_zeros(groups) + scores_S.sum() * 0.0  # a batch without any order still has a gradient, of 0
    x_G = x_G.index_add(0, index(plan.constant_groups), scores_S.new_tensor(plan.constants))
    if plan.rows:
        log_X = _log_orders(scores_S, plan)
        log_F = scores_S.new_full((len(plan.factor_groups), max(plan.orders) + 1), -math.inf)
        log_F = log_F.index_put((index(plan.factors), index(plan.orders)), log_X)
        x_G = x_G.index_add(0, index(plan.factor_groups), -log_F.logsumexp(1))
    if plan.pair_groups:
        gap_P = scores_S[index(plan.winners)] - scores_S[index(plan.losers)]
        x_P = -torch.nn.functional.logsigmoid(gap_P) * scores_S.new_tensor(plan.pair_weights)
        x_G = x_G.index_add(0, index(plan.pair_groups), x_P)
    return x_G


@dataclass(slots=True)
class _Plan:
    """What to compute: plain indices, so that the arithmetic is a few operations whatever the number of groups.

    A row is one order of one tie: its samples, then the lower ones. `taken` says how many of a row are the tie's,
    `factors` to which factor the row belongs and `orders` its place there.
    """

    rows: list[list[int]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    factors: list[int] = field(default_factory=list)
    orders: list[int] = field(default_factory=list)
    factor_groups: list[int] = field(default_factory=list)
    constant_groups: list[int] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)
    winners: list[int] = field(default_factory=list)
    losers: list[int] = field(default_factory=list)
    pair_groups: list[int] = field(default_factory=list)
    pair_weights: list[float] = field(default_factory=list)

    def add(self, group: int, tie: list[int], lower: list[int]) -> None:
        self.constant_groups.append(group)
        self.constants.append(math.lgamma(len(tie) + 1))
        if not lower:
            return
        if len(tie) > EXACT_TIE:
            for winner in tie:
                self.winners += [winner] * len(lower)
                self.losers += lower
                self.pair_groups += [group] * len(lower)
                self.pair_weights += [1 / len(lower)] * len(lower)
            return
        for number, order in enumerate(permutations(tie)):
            self.rows.append([*order, *lower])
            self.taken.append(len(tie))
            self.factors.append(len(self.factor_groups))
            self.orders.append(number)
        self.factor_groups.append(group)


def _plan(labels: list[float], groups: list[int]) -> _Plan:
    plan = _Plan()
    ranked = [i for i, label in enumerate(labels) if not math.isnan(label)]
    ranked.sort(key=lambda i: (groups[i], labels[i]))
    for group, members in groupby(ranked, key=lambda i: groups[i]):
        lower: list[int] = []
        for tie in _ties(members, labels):
            plan.add(group, tie, lower)
            lower = [*lower, *tie]
    return plan


def _ties(members: Iterable[int], labels: Sequence[float]) -> Iterator[list[int]]:
    """Members of equal labels, worst first, of `members` in ascending order."""
    members = list(members)
    settled_labels = settled([labels[i] for i in members])
    for _, tie in groupby(zip(settled_labels, members, strict=True), key=lambda pair: pair[0]):
        yield [i for _, i in tie]


def _log_orders(scores_S: Tensor, plan: _Plan) -> Tensor:
    """The log-likelihood of each row's own part, [X]: sum_k s_k - logsumexp_{j >= k} s_j over its first `taken`."""
    width = max(len(row) for row in plan.rows)
    table = torch.tensor([row + [-1] * (width - len(row)) for row in plan.rows], device=scores_S.device)
    s_XW = scores_S[table.clamp(min=0)]
    place = torch.arange(width, device=scores_S.device)
    later_XWW = (place[None, :] >= place[:, None]) & (table >= 0)[:, None, :]
    # The lowest finite number rather than -inf: places beyond a row's end would have 0 * inf in their gradient.
    rest_XW = s_XW[:, None, :].masked_fill(~later_XWW, torch.finfo(s_XW.dtype).min).logsumexp(2)
    taken = place < torch.tensor(plan.taken, device=scores_S.device)[:, None]
    return (s_XW - rest_XW).masked_fill(~taken, 0.0).sum(1)
