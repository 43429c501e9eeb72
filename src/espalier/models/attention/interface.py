"""Attention over the forest: one function, registered with transformers, that every architecture's layers call.

A token attends to its ancestors in its tree and to nothing else. A segment queries the keys of the segments above it
and its own, causal at the bottom right: ordinary attention over gathered keys. Sliding windows count along the path,
because gathered keys stand in path order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from espalier.models.attention.decode import Decode, Kept
from espalier.models.attention.forest import Forest
from espalier.models.noise import Noise, drop_attention

NAME = "espalier"

# Arguments that change nothing here: there is no cache, and the forest says what is seen.
_INERT = {
    "attention_mask",
    "cache_position",
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "is_causal",
    "layer_idx",
    "max_length_k",
    "max_length_q",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "token_type_ids",
    "use_cache",
}


def register(*, compiled: bool = False) -> None:
    """Make `NAME` an attention implementation of transformers, with a mask function that returns no mask.

    compiled: layers are compiled around it, so keep torch.compile out of it: its lengths differ in every batch.
    """
    function: Any = forest_attention
    if compiled:
        function = torch.compiler.disable(forest_attention)  # type: ignore[no-untyped-call]
    AttentionInterface.register(NAME, function)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The mask of a batch for transformers: none, because the forest has it."""


def use_forest(model: Any) -> None:
    """Let all layers of a transformers model call `forest_attention` from now on; forwards need `forest=`."""
    register()
    model.set_attn_implementation(NAME)


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """Inside, the architecture's own attention function, for plain forwards and for generation, which needs a cache.

    That is SDPA if the architecture supports it, else eager; a model that uses one of the two keeps it. The function
    before comes back at the end, after an error too.
    """
    before = model.config._attn_implementation
    if before in ("sdpa", "eager", None):
        yield
        return
    # Some architectures, such as those with attention sinks, have scores that SDPA cannot compute.
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


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
    decode: Decode | None = None,
    kept: Kept | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer over one packed row.

    query [1, heads, N, d], key and value [1, kv heads, N, d]; returns [1, N, heads, d] as transformers expects. Scores
    are `query . key * scaling`, then `softcap * tanh(scores / softcap)` if given; query i of a path sees keys j with
    0 <= i - j < sliding_window. Weights are dropped with probability `dropout` by masks from the forest's noise keys.
    `kept` receives the layer's keys and values. With `decode` in place of a forest, the rows of a batch are sequences
    of which each gives its next token: query [B, heads, 1, d], result [B, 1, heads, d].
    Raises TypeError for an argument of an architecture that is not implemented here.
    """
    problem = _unfit(module, others)
    if problem:
        raise TypeError(problem)
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if decode is not None:
        return decode.attend(_layer(module), query, key, value, scaling, sliding_window, softcap), None
    if forest is None:
        raise TypeError(
            f"{type(module).__name__} got no forest: its model does not hand keyword arguments "
            "down to attention; set layout: padded"
        )
    if kept is not None:
        kept[_layer(module)] = key, value
    drop = None
    if dropout and forest.noise:
        drop = _Dropout(dropout, forest.noise, f"attention.{module.layer_idx}")
    if query.is_cuda and drop is None:
        from espalier.models.attention.cuda import attend

        return attend(query, key, value, forest, scaling, sliding_window, softcap), None
    # By keys only if segments continue others: short, separate samples are a little faster one by
    # one (docs/log.md). The kernel knows no soft cap, no window and no masks of the caller's, and
    # one width for keys and values.
    plain = drop is None and softcap is None and (not sliding_window or forest.longest <= sliding_window)
    if plain and forest.branching and query.shape[-1] == value.shape[-1]:
        from espalier.models.attention.cpu import attend as attend_cpu

        return attend_cpu(query, key, value, forest, scaling), None
    return _by_segments(query, key, value, forest, scaling, drop, sliding_window, softcap), None


def _layer(module: torch.nn.Module) -> int:
    """The number of an attention module's layer."""
    number: Any = module.layer_idx
    return int(number)


def _unfit(module: torch.nn.Module, others: dict[str, Any]) -> str:
    """Why the arguments that an architecture passes along are not implemented here; empty if they are."""
    unknown = sorted(name for name, value in others.items() if name not in _INERT and value is not None)
    if unknown:
        return (
            f"{type(module).__name__} passes {', '.join(unknown)} to its attention, which the "
            "forest does not implement; set layout: padded, which uses the architecture's own "
            "attention"
        )
    causal = others.get("is_causal")
    if causal is None:
        causal = getattr(module, "is_causal", True)
    if not causal:
        return f"{type(module).__name__} attends to later tokens too; expected a causal language model"
    return ""


@dataclass(frozen=True, slots=True)
class _Dropout:
    """Dropout of one layer's weights; its noise has a segment of its own for every sample."""

    p: float
    noise: Noise
    place: str


def _by_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    forest: Forest,
    scaling: float,
    drop: _Dropout | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Segment by segment: each one's queries over the gathered keys of its path."""
    queries = torch.split(query, forest.lengths, dim=2)
    keys = torch.split(key, forest.lengths, dim=2)
    values = torch.split(value, forest.lengths, dim=2)
    # A prefix collects the gradients of all its children: this cast adds them up in float32.
    wide = torch.promote_types(key.dtype, torch.float32)
    # Keys and values of the paths that segments continue.
    paths: dict[int, tuple[Tensor, Tensor]] = {}
    outs = []
    for i, (q, k, v, segment) in enumerate(zip(queries, keys, values, forest.segments, strict=True)):
        above = paths[segment.parent] if segment.parent >= 0 else (k[:, :, :0], v[:, :, :0])
        if i in forest.parents:
            paths[i] = torch.cat([above[0], k.to(wide)], dim=2), torch.cat([above[1], v.to(wide)], dim=2)
        if segment.parent >= 0:
            k, v = torch.cat([above[0].to(k.dtype), k], dim=2), torch.cat([above[1].to(v.dtype), v], dim=2)
        outs.append(_segment(q, k, v, i, forest, scaling, drop, window, softcap))
    return torch.cat(outs, dim=2).transpose(1, 2)


def _segment(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: int,
    forest: Forest,
    scaling: float,
    drop: _Dropout | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One segment's queries over its path's keys, causal at the bottom right."""
    n, m = q.shape[2], k.shape[2]
    if softcap is None and drop is None:
        # SDPA's own causal mask is aligned at the top left, which is right for roots only.
        if n == m and (not window or m <= window):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        mask = forest.mask(n, m, window, q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True)
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
