"""Which layout is right for an architecture.

forest: shared prefixes once, one packed row; needs mixers that see other tokens through the attention interface alone.
chain:  one packed row, a segment for every sample; the same need, without sharing.
padded: one row for every sample, padded on the right with the architecture's own causal mixers; right for every causal
        model, since nothing flows from right to left.
"""

from __future__ import annotations

from typing import Any, Literal

from espalier.errors import ModelError

Layout = Literal["forest", "chain", "padded"]

_PACKABLE = {"full_attention", "sliding_attention", "attention"}


def obstacle(model: Any) -> str | None:
    """Why this architecture cannot be packed into one row, or None if it can."""
    config = model.config.get_text_config()
    name = type(model).__name__
    kinds = set(getattr(config, "layer_types", None) or [])
    other = sorted(kinds - _PACKABLE)
    if other:
        return f"{name} has layers of type {', '.join(other)}, which carry state along a row"
    if getattr(model, "_is_stateful", False):
        return f"{name} carries state along a row"
    if not getattr(model, "_supports_attention_backend", False):
        return f"{name} does not call the attention interface"
    for field in ("attention_chunk_size", "alibi", "use_alibi"):
        if getattr(config, field, None):
            return f"{name} uses {field}, which counts along the packed row"
    if any(_sinks(module) for module in model.modules()):
        return f"{name} has attention sinks, which the forest does not implement"
    return None


def _sinks(module: Any) -> bool:
    """Whether a module has attention sinks: a parameter by which scores are normalised beside those of the keys."""
    return "sinks" in (getattr(module, "_parameters", None) or {})


def choose(model: Any, requested: str) -> tuple[Layout, str]:
    """The layout and the reason to print. Raises ModelError if `requested` is unknown or wrong for the architecture."""
    reason = obstacle(model)
    if requested == "auto":
        if reason:
            return "padded", reason
        return "forest", "every layer calls the attention interface"
    if requested in ("forest", "chain") and reason:
        raise ModelError(f"layout: got {requested}, but {reason}; expected padded. Leave layout at auto")
    if requested not in ("forest", "chain", "padded"):
        raise ModelError(f"layout: got {requested}, expected auto, forest, chain or padded")
    return requested, "as configured"  # type: ignore[return-value]
