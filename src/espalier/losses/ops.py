"""Arithmetic on tensors that algorithms share. Needs torch and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from espalier.types import Term


def normalise(
    terms: Mapping[str, Term],
    totals: Mapping[tuple[str, str], float],
    ran: Mapping[tuple[str, str], float] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one micro-batch and each term's share of the update.

    share_k = sum(x_k) / totals[over_k, part_k];   loss = sum_k coef_k share_k

    Summed over all micro-batches and ranks, shares are the terms of the whole update. `ran` are the totals of the
    groups that ran, which metrics are divided by; None: all of them ran. A term whose total is 0 (a part without weight
    in this update) is 0; a metric over nothing, such as the accuracy of a step without a pair, is left out of the
    shares, and so are terms over `max`, which are no sums (see `peaks`).

    Raises KeyError for a part that the totals do not know, ValueError for a trained term over `max`.
    """
    shares: dict[str, Tensor] = {}
    loss: Tensor | None = None
    for name, term in terms.items():
        if term.over == "max":
            if term.coef:
                raise ValueError(f"term {name!r} is over max and has coef {term.coef:g}; expected 0: it is no sum")
            continue
        if (term.over, term.part) not in totals:
            known = ", ".join(sorted(f"{over}/{part}" for over, part in totals))
            raise KeyError(f"term {name!r} is over {term.over}/{term.part}; expected one of {known}")
        total = totals[term.over, term.part]
        if ran is not None and not term.coef:
            total = ran.get((term.over, term.part), 0.0)
        share = term.x.sum() / total if total else term.x.sum() * 0.0
        if total or term.coef:
            shares[name] = share.detach()
        if term.coef:
            loss = term.coef * share + (loss if loss is not None else 0.0)
    if loss is None:  # nothing but metrics in this step
        loss = sum((term.x.sum() * 0.0 for term in terms.values()), start=torch.zeros(()))
    return loss, shares


def peaks(terms: Mapping[str, Term]) -> dict[str, Tensor]:
    """The largest entry of each term over `max`; those without entries are left out.

    >>> peaks({"ratio_max": Term(torch.tensor([0.5, 3.0, 1.0]), "max", coef=0)})
    {'ratio_max': tensor(3.)}
    """
    return {name: term.x.detach().max() for name, term in terms.items() if term.over == "max" and term.x.numel()}


def by_sample(x: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sums of what belongs to each sample, [S]: y_s = sum of x_t over rows_t = s. `count` is S; dtype of `x`.

    >>> by_sample(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 0]), 3).tolist()
    [5.0, 0.0, 2.0]
    """
    return x.new_zeros(count).index_add_(0, rows, x)


def by_prefix(x: Tensor, lengths_S: Tensor, rows_P: Tensor, prefix_P: Tensor) -> Tensor:
    """Sums over the first `prefix_P` entries of the samples `rows_P`, [P], in the dtype of `x`.

    `x` [T] holds the samples one after the other, `lengths_S` entries each, as batches do.

    >>> by_prefix(torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([1, 3]), torch.tensor([1, 0]), torch.tensor([2, 1]))
    tensor([6., 1.])
    """
    lengths, prefix = lengths_S.long(), prefix_P.long()
    start_P = (lengths.cumsum(0) - lengths)[rows_P]
    pair = torch.repeat_interleave(torch.arange(len(prefix), device=x.device), prefix)
    within = torch.arange(len(pair), device=x.device) - (prefix.cumsum(0) - prefix)[pair]
    return by_sample(x[start_P[pair] + within], pair, len(prefix))
