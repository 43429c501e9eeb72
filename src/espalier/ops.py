"""Arithmetic on tensors that algorithms share. Needs torch and nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from espalier.types import Term


def normalise(terms: Mapping[str, Term], totals: Mapping[tuple[str, str], float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one micro-batch and each term's share of the step.

    share_k = sum(x_k) / totals[over_k, part_k];   loss = sum_k coef_k share_k

    Summed over all micro-batches and ranks, shares are the terms of the whole step. A term whose total is 0 (a part
    without weight in this step) is 0. Raises KeyError for a part that the totals do not know.
    """
    shares: dict[str, Tensor] = {}
    loss: Tensor | None = None
    for name, term in terms.items():
        if (term.over, term.part) not in totals:
            known = ", ".join(sorted(f"{over}/{part}" for over, part in totals))
            raise KeyError(f"term {name!r} is over {term.over}/{term.part}; expected one of {known}")
        total = totals[term.over, term.part]
        share = term.x.sum() / total if total else term.x.sum() * 0.0
        shares[name] = share.detach()
        if term.coef:
            loss = term.coef * share + (loss if loss is not None else 0.0)
    if loss is None:  # nothing but metrics in this step
        loss = sum((term.x.sum() * 0.0 for term in terms.values()), start=torch.zeros(()))
    return loss, shares
