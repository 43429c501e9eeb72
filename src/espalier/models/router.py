"""The load-balancing loss of mixture-of-experts routers, counted with sample multiplicity."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def balance_loss(router_logits: Sequence[Tensor], top_k: int, uses_N: Tensor) -> Tensor:
    """E x sum_e f_e P_e over all layers' tokens (Switch Transformer, arXiv:2101.03961, eq. 4 to 6, top-k form).

    router_logits: [N, E] of each layer. f_e is the share of expert slots that go to expert e (times top_k), P_e its
    mean probability. A packed token counts `uses_N` times: as often as samples pass through it, which makes the loss
    that of the separate sequences. It is not linear in the tokens, so it depends on the split into micro-batches.
    """
    # [layers, N, E]
    logits = torch.stack([layer.reshape(-1, layer.shape[-1]) for layer in router_logits])
    experts = logits.shape[-1]
    probs = logits.float().softmax(-1)
    # Only P has a gradient: which experts are chosen is piecewise constant.
    chosen = torch.zeros_like(probs).scatter_(-1, probs.topk(top_k, -1).indices, 1.0)
    weights = uses_N.to(probs).view(1, -1, 1) / (uses_N.sum() * len(router_logits))
    return experts * ((chosen * weights).sum((0, 1)) * (probs * weights).sum((0, 1))).sum()
