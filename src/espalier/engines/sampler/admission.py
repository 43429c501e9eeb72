"""Which waiting requests are admitted next: a function of requests and lengths."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from espalier.engines.protocols import Request
from espalier.engines.sampler.rows import Row, Waiting
from espalier.engines.sampler.store import padded_length, shelf_of


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most rows, and the most tokens whose keys and values are held (0 for no bound). `original_limit` is where a
    model switches its RoPE, None if it does not."""

    rows: int
    tokens: int
    original_limit: int | None


def plan(
    waiting: Iterable[Waiting],
    rows: Sequence[Row],
    held: Collection[tuple[int, ...]],
    shelves: Mapping[int, tuple[int, int]],
    bounds: Bounds,
) -> list[tuple[Waiting, int]]:
    """The requests to admit now beside `rows`, each with how many of its responses: the first ones that fit.

    held: prompts whose keys are there already, `shelves` how many each shelf has and its width. Every row is counted
    with the own tokens of the longest. Empty if there are rows and no more than an eighth of all would be admitted
    although more wait, because a forward for each prompt costs more than rows that stay empty for a while.
    """
    planned: list[tuple[Waiting, int]] = []
    count, left = len(rows), 0
    capacity = max((row.request.params.max_tokens for row in rows), default=0)
    shelves = dict(shelves)
    side = _side(rows[0].request, bounds) if rows else None
    new: set[tuple[int, ...]] = set()
    full = False
    for entry in waiting:
        left += len(entry.ks)
        if full:
            continue
        request, prompt = entry.request, tuple(entry.request.prompt)
        side = _side(request, bounds) if side is None else side
        more = dict(shelves)
        if prompt not in held and prompt not in new:
            name = shelf_of(len(prompt))
            prompts, width = shelves.get(name, (0, 0))
            more[name] = prompts + 1, max(width, padded_length(len(prompt)))
        wide = max(capacity, request.params.max_tokens)
        number = min(len(entry.ks), bounds.rows - count)
        if bounds.tokens:
            taken = sum(prompts * width for prompts, width in more.values())
            number = min(number, (bounds.tokens - taken) // wide - count)
        full = number < len(entry.ks) or _side(request, bounds) != side
        if number <= 0 or _side(request, bounds) != side:
            continue
        planned.append((entry, number))
        new.add(prompt)
        capacity = wide
        count += number
        shelves = more
    if rows and count - len(rows) < min(left, max(1, bounds.rows // 8)):
        return []
    return planned


def _side(request: Request, bounds: Bounds) -> bool:
    """On which side of a switch of its RoPE a request lies: one forward cannot have both."""
    return bool(bounds.original_limit) and len(request.prompt) > (bounds.original_limit or 0)
