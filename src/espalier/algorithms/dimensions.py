"""Dimensions of a score: their weights in the total, as a config names them, and the grades people gave in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from espalier.config.fields import named_weights
from espalier.errors import ConfigError, DataError
from espalier.types import NAMELESS, Sample


def total_weights(given: Sequence[str], key: str = "dimensions") -> dict[str, float]:
    """The share of each named dimension in the total: w_k / sum_k |w_k|, with w_k = 1 if none is given.

    >>> total_weights(["helpful=3", "brief=-1"]), total_weights(["helpful", "honest"])
    ({'helpful': 0.75, 'brief': -0.25}, {'helpful': 0.5, 'honest': 0.5})

    Raises ConfigError about field `key` for a name that is empty or there twice, a weight that is not a finite number,
    and weights that are all 0.
    """
    weights = named_weights(given, key)
    whole = sum(map(abs, weights.values()))
    if weights and not whole:
        raise ConfigError(f"{key}: all weigh 0 in the total; give one a weight", key=key)
    return {name: weight / whole for name, weight in weights.items()}


def check_dimensions(names: Sequence[str], present: Sequence[str], *, learned: bool) -> None:
    """Whether the dimensions that a config names are those that the data's grades are about, in the same order.

    `names` are without weights; `present` is empty if the data has no grades. A nameless score, `score`, fits any
    single dimension. learned: the run learns from grades, so that it needs some, and a head for each dimension. Raises
    ConfigError that lists both.
    """
    if learned and not present:
        raise ConfigError("pointwise_coef is given, but no response of the data has a score; drop it")
    if not present or (len(names) < 2 and present == (NAMELESS,)):
        return
    if names and tuple(names) != tuple(present):
        raise ConfigError(
            f"dimensions: got {', '.join(names)}, but the data's scores are about {', '.join(present)}; give these, in "
            "this order (each may have a weight in the total, as NAME=WEIGHT)",
            key="dimensions",
        )
    if learned and not names and len(present) > 1:
        raise ConfigError(
            f"dimensions: the data's scores are about {', '.join(present)}, and this run has a single score; pass "
            f"--dimensions {' '.join(present)}, each with its weight in the total unless all weigh the same",
            key="dimensions",
        )


def check_grades(samples: Iterable[Sample], count: int, low: float, high: float) -> None:
    """Raise DataError for a sample whose grades have other than `count` dimensions, or lie outside [low, high]; nan,
    for an unknown grade, is fine."""
    for s in samples:
        for grade in s.grades:
            if len(grade) != count:
                raise DataError(
                    f"a response of row {s.group} has {len(grade)} grades, expected {count}; name all of the data's "
                    "score dimensions, in their order, in dimensions"
                )
            if not all(math.isnan(x) or low <= x <= high for x in grade):
                raise DataError(
                    f"a response of row {s.group} has the grades {', '.join(f'{x:g}' for x in grade)}, expected "
                    f"{low:g} to {high:g}; set grade_low and grade_high to the ends of the scale, or leave the row out"
                )
