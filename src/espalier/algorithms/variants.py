"""Weighted sums of losses, as a config names them."""

from __future__ import annotations

from collections.abc import Iterable

from espalier.errors import ConfigError, nearest


def weighted(given: Iterable[str], known: tuple[str, ...], key: str) -> dict[str, float]:
    """The weight of each named loss, 1 where none is given.

    >>> weighted(["sigmoid", "hinge=0.5"], ("sigmoid", "hinge"), "variant")
    {'sigmoid': 1.0, 'hinge': 0.5}

    Raises ConfigError about field `key` for a name that is not `known`, twice the same name, and a weight that is not
    a number above 0.
    """
    found: dict[str, float] = {}
    for text in given:
        name, equals, number = text.partition("=")
        if name not in known:
            raise ConfigError(
                f"{key}: got {text!r}, expected one of {', '.join(known)}.{nearest(name, known)}", key=key
            )
        try:
            weight = float(number) if equals else 1.0
        except ValueError:
            weight = 0.0
        if name in found or not 0 < weight < float("inf"):
            raise ConfigError(f"{key}: got {text!r}, expected {name} once, as {name} or {name}=WEIGHT above 0", key=key)
        found[name] = weight
    return found
