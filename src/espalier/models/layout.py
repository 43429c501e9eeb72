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
    """Why this architecture cannot be packed into one row, or None where it can."""
    config = model.config.get_text_config()
    name = type(model).__name__
    kinds = set(getattr(config, "layer_types", None) or [])
    if other := sorted(kinds - _PACKABLE):
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
    return isinstance(getattr(module, "_parameters", None), dict) and "sinks" in module._parameters


def choose(model: Any, asked: str) -> tuple[Layout, str]:
    """The layout and the reason to print. Raises ModelError when `asked` is wrong for the architecture."""
    reason = obstacle(model)
    if asked == "auto":
        return ("padded", reason) if reason else ("forest", "every layer calls the attention interface")
    if asked in ("forest", "chain") and reason:
        raise ModelError(f"layout: got {asked}, but {reason}; expected padded. Leave layout at auto")
    if asked not in ("forest", "chain", "padded"):
        raise ModelError(f"layout: got {asked}, expected auto, forest, chain or padded")
    return asked, "as asked"  # type: ignore[return-value]
