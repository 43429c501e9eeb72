"""What metrics.jsonl says of an online step beside the terms of its losses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from espalier.algorithms.traits import Traits
from espalier.loop.step import Made, answered, mean_entropy
from espalier.types import Draw


def about(
    traits: Traits,
    draw: Draw,
    made: Made,
    moving: Mapping[str, float],
    times: Sequence[float],
    resident: Callable[[], int],
) -> dict[str, float]:
    """Numbers of the draw, updates, entropy, moving numbers that the algorithm shows, seconds by phase; empty offline.

    times: when draw, annotation and updates began, and the end. Raises ValueError if two of them have one name.
    """
    online = traits.online
    if online is None:
        return {}
    numbers: dict[str, float] = {**draw.numbers, "updates": made.updates}
    if made.of_policy != made.updates:
        numbers["updates_policy"] = made.of_policy
    numbers["resident_bytes"] = resident()
    numbers |= {name: moving[name] for name in online.shows if name in moving}
    drawn = answered([*draw.groups, *draw.silent])
    if drawn:
        # The share of answers that a gradient comes from.
        numbers["trained"] = made.ran / drawn
    entropy = mean_entropy(draw.groups)
    if entropy is not None and "entropy" not in made.numbers:
        numbers["entropy"] = entropy
    twice = sorted(numbers.keys() & made.numbers.keys())
    if twice:
        raise ValueError(f"the draw and the loss both have a number {twice[0]}; expected names of their own")
    phases = ("draw", "annotate", "update")
    for name, begun, ended in zip(phases, times, times[1:], strict=False):
        numbers[f"seconds_{name}"] = ended - begun
    return numbers
