"""Attention over the forest: one function, registered with transformers, that every architecture's layers call.

A token attends to its ancestors in its tree and to nothing else. A segment queries the keys of the segments above it
and its own, causal at the bottom right: ordinary attention over gathered keys. Sliding windows count along the path,
because gathered keys stand in path order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from espalier.models.attention.forest import Forest
from espalier.models.noise import Noise, drop_attention

NAME = "espalier"

# What architectures pass along that changes nothing here: masks and caches are off, the forest says what is seen.
_INERT = {
    "position_ids", "position_embeddings", "use_cache", "past_key_values", "cache_position", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "is_causal", "attention_mask", "layer_idx",
    "token_type_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
}  # fmt: skip


def forest_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    forest: Forest | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over one packed row.

    query [1, heads, N, d], key and value [1, kv heads, N, d]; returns [1, N, heads, d] as transformers expects. Scores
    are `query . key * scaling`, then `softcap * tanh(scores / softcap)` where given; query i of a path sees keys j with
    0 <= i - j < sliding_window. Weights are dropped with probability `dropout` by masks from the forest's noise keys.
    Raises TypeError for an argument of an architecture that is not implemented here.
    """
    unknown = sorted(k for k, v in others.items() if k not in _INERT and v is not None)
    if unknown:
        raise TypeError(
            f"{type(module).__name__} passes {', '.join(unknown)} to its attention, which the forest does not "
            "implement; set layout: padded, which uses the architecture's own attention"
        )
    causal = others.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise TypeError(f"{type(module).__name__} attends to later tokens too; expected a causal language model")
    if forest is None:
        raise TypeError(
            f"{type(module).__name__} got no forest: its model does not hand keyword arguments down to attention; "
            "set layout: padded"
        )
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    drop = _Dropout(dropout, forest.noise, f"attention.{module.layer_idx}") if dropout and forest.noise else None
    if query.is_cuda and drop is None:
        from espalier.models.attention.cuda import attend

        return attend(query, key, value, forest, scaling, sliding_window, softcap), None
    plain = drop is None and softcap is None and (not sliding_window or forest.longest <= sliding_window)
    if plain and forest.branching and query.shape[-1] == value.shape[-1]:
        from espalier.models.attention.cpu import attend as attend_cpu

        return attend_cpu(query, key, value, forest, scaling), None
    return _by_segments(query, key, value, forest, scaling, drop, sliding_window, softcap), None


@dataclass(frozen=True, slots=True)
class _Dropout:
    """Dropout of one layer's weights; its noise has a segment of its own for every sample."""

    p: float
    noise: Noise
    place: str


def _by_segments(
    query: Tensor, key: Tensor, value: Tensor, forest: Forest, scaling: float, drop: _Dropout | None,
    window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    queries = torch.split(query, forest.lengths, dim=2)
    keys, values = torch.split(key, forest.lengths, dim=2), torch.split(value, forest.lengths, dim=2)
    # A prefix collects the gradients of all its children: through the cast to `wide` they are added up in float32.
    wide = torch.promote_types(key.dtype, torch.float32)
    paths: dict[int, tuple[Tensor, Tensor]] = {}  # keys and values of the paths that segments continue
    outs = []
    for i, (q, k, v, s) in enumerate(zip(queries, keys, values, forest.segments, strict=True)):
        above = paths[s.parent] if s.parent >= 0 else (k[:, :, :0], v[:, :, :0])
        if i in forest.parents:
            paths[i] = torch.cat([above[0], k.to(wide)], dim=2), torch.cat([above[1], v.to(wide)], dim=2)
        if s.parent >= 0:
            k, v = torch.cat([above[0].to(k.dtype), k], dim=2), torch.cat([above[1].to(v.dtype), v], dim=2)
        outs.append(_segment(q, k, v, i, forest, scaling, drop, window, softcap))
    return torch.cat(outs, dim=2).transpose(1, 2)


def _segment(
    q: Tensor, k: Tensor, v: Tensor, index: int, forest: Forest, scaling: float, drop: _Dropout | None,
    window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    """One segment's queries over its path's keys, causal at the bottom right."""
    n, m = q.shape[2], k.shape[2]
    plain = n == m and (not window or m <= window)
    if softcap is None and drop is None:
        mask = None if plain else forest.mask(n, m, window, q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=plain, scale=scaling, enable_gqa=True)
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = (q @ k.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores + forest.mask(n, m, window, q.dtype)
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    if drop is not None:
        weights = drop_attention(weights, drop.p, drop.noise, drop.place, index)
    return weights @ v


def register(*, compiled: bool = False) -> None:
    """Make `NAME` an attention implementation of transformers, with a mask function that returns no mask.

    compiled: keep torch.compile out of it, where layers are compiled around it: its lengths differ in every batch.
    """
    function = torch.compiler.disable(forest_attention) if compiled else forest_attention  # type: ignore[no-untyped-call]
    AttentionInterface.register(NAME, function)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
