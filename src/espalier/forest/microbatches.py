"""Which groups share a forward: a function of the step's samples alone, so every rank computes the same answer.

Only rounding depends on it: losses are sums divided by totals of the whole step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from espalier.forest.pack import Group
from espalier.forest.trie import build, laid_length
from espalier.types import Sample


@dataclass(frozen=True, slots=True)
class Packing:
    """How tokens are counted against the budget.

    share: prefixes are laid down once. padded: a forward costs samples x longest. whole: a loss needs groups in one
    piece. long_from: samples longer than this many tokens never share a forward with shorter ones (long-context RoPE
    variants choose their frequencies from the longest position present); 0 for no such boundary.
    """

    share: bool = True
    padded: bool = False
    whole: bool = False
    long_from: int = 0


@dataclass(slots=True)
class _Piece:
    """What is never cut: `size` packed tokens, or `rows` samples padded to the `longest`."""

    group: Group
    size: int
    longest: int
    rows: int
    order: int


def microbatches(groups: Sequence[Group], budget: int, packing: Packing, *, ranks: int = 1) -> list[list[Group]]:
    """Split a step into forwards of at most `budget` packed tokens; a piece above the budget runs alone.

    The number of forwards is a multiple of `ranks`, rank r runs those numbered r, r + ranks, ...; some may be empty.
    First-fit decreasing; where ranks must be evened out, the pieces are dealt largest first to the emptiest forward.
    """
    pieces: list[_Piece] = []
    for group in groups:
        for piece in _cut(group, budget, packing):
            laid = [n for n in map(laid_length, piece) if n]
            pieces.append(_Piece(piece, _size(piece, packing), max(laid, default=0), len(laid), len(pieces)))
    pieces = [p for p in pieces if p.size]
    sides = [[p for p in pieces if not _is_long(p, packing)], [p for p in pieces if _is_long(p, packing)]]
    bins = [b for side in sides for b in _first_fit(side, budget, packing)]
    short = -len(bins) % ranks
    if short and not packing.padded and not sides[1]:
        even = _deal(pieces, len(bins) + short)
        if all(len(b) <= 1 or sum(p.size for p in b) <= budget for b in even):
            bins, short = even, 0
    bins += [[] for _ in range(short)]
    return [[p.group for p in sorted(b, key=lambda p: p.order)] for b in bins]


def forward_size(groups: Sequence[Group], packing: Packing) -> int:
    """Tokens that one forward over `groups` lays down; padded, its samples times the longest of them."""
    if packing.padded:
        return _size([s for group in groups for s in group], packing)
    return sum(_size(group, packing) for group in groups)


def _is_long(piece: _Piece, packing: Packing) -> bool:
    return bool(packing.long_from) and piece.longest > packing.long_from


def _size(group: Group, packing: Packing) -> int:
    if packing.padded:
        laid = [n for n in map(laid_length, group) if n]
        return len(laid) * max(laid, default=0)
    return build(group, share=packing.share).size


def _cut(group: Group, budget: int, packing: Packing) -> list[Group]:
    """Sub-groups of neighbouring samples that fit the budget; each repeats the prefix it shares with the others."""
    crosses = len({laid_length(s) > packing.long_from for s in group}) > 1 if packing.long_from else False
    if crosses and packing.whole:
        raise ValueError(
            f"group {group[0].group} has samples on both sides of {packing.long_from} tokens, where this model changes "
            "its RoPE frequencies, and the loss needs the group in one forward; expected all on one side. "
            f"Set max_length to {packing.long_from}"
        )
    if crosses:
        short = [s for s in group if laid_length(s) <= packing.long_from]
        long = [s for s in group if laid_length(s) > packing.long_from]
        return [piece for side in (short, long) for piece in _cut(side, budget, packing)]
    if packing.whole or len(group) == 1 or _size(group, packing) <= budget:
        return [group]
    out: list[Group] = []
    current: list[Sample] = []
    for s in sorted(group, key=lambda s: s.tokens):  # siblings that share most stand side by side
        if current and _size([*current, s], packing) > budget:
            out.append(current)
            current = []
        current.append(s)
    return [*out, current]


def _first_fit(pieces: Sequence[_Piece], budget: int, packing: Packing) -> list[list[_Piece]]:
    bins: list[list[_Piece]] = []
    used: list[int] = []
    for p in sorted(pieces, key=lambda p: (-p.longest if packing.padded else -p.size, p.order)):
        for i, b in enumerate(bins):
            # The first piece of a padded forward is the longest: it decides the width.
            cost = used[i] + (b[0].longest * p.rows if packing.padded else p.size)
            if cost <= budget:
                b.append(p)
                used[i] = cost
                break
        else:
            bins.append([p])
            used.append(p.size)
    return bins


def _deal(pieces: Sequence[_Piece], count: int) -> list[list[_Piece]]:
    bins: list[list[_Piece]] = [[] for _ in range(count)]
    used = [0] * count
    for p in sorted(pieces, key=lambda p: (-p.size, p.order)):
        i = min(range(count), key=used.__getitem__)
        bins[i].append(p)
        used[i] += p.size
    return bins
