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

    share: prefixes are laid down once.
    padded: a forward costs samples x longest.
    whole: a loss needs groups in one piece.
    long_from: samples longer than this many tokens never share a forward with shorter ones (long-context RoPE variants
        choose their frequencies from the longest position present); 0 for no such boundary.
    """

    share: bool = True
    padded: bool = False
    whole: bool = False
    long_from: int = 0


@dataclass(slots=True)
class _Piece:
    """What is never cut: `size` packed tokens, or `rows` samples padded to the `longest`. `order` is its place in the
    step."""

    group: Group
    size: int
    longest: int
    rows: int
    order: int


def microbatches(groups: Sequence[Group], budget: int, packing: Packing, *, ranks: int = 1) -> list[list[Group]]:
    """Split a step into forwards of at most `budget` packed tokens; a piece above the budget runs alone.

    The number of forwards is a multiple of `ranks`, rank r runs those numbered r, r + ranks, ...; some may be empty.
    First-fit decreasing; if ranks must be evened out, the pieces are dealt largest first to the emptiest forward.
    """
    short, long = _pieces(groups, budget, packing)
    forwards = _first_fit(short, budget, packing) + _first_fit(long, budget, packing)
    missing = -len(forwards) % ranks
    # Dealing knows neither the width of a padded forward nor the boundary between short and long
    # samples; there, empty forwards make up the number.
    if missing and not packing.padded and not long:
        dealt = _deal(short, len(forwards) + missing)
        if all(len(forward) <= 1 or _total(forward) <= budget for forward in dealt):
            forwards, missing = dealt, 0
    forwards += [[] for _ in range(missing)]
    # Sums of floats depend on their order, so within a forward the groups stand as they do in the
    # step.
    return [[piece.group for piece in sorted(forward, key=lambda piece: piece.order)] for forward in forwards]


def forward_size(groups: Sequence[Group], packing: Packing) -> int:
    """Tokens that one forward over `groups` lays down; padded, its samples times the longest of them."""
    if packing.padded:
        return _size([s for group in groups for s in group], packing)
    return sum(_size(group, packing) for group in groups)


def _pieces(groups: Sequence[Group], budget: int, packing: Packing) -> tuple[list[_Piece], list[_Piece]]:
    """What is never cut, in the order of the step: pieces of short samples and pieces of long ones, which never share a
    forward. Without those that lay no token down: nothing of them is scored or read."""
    short: list[_Piece] = []
    long: list[_Piece] = []
    order = 0
    for group in groups:
        for part in _cut(group, budget, packing):
            lengths = [length for length in map(laid_length, part) if length]
            longest = max(lengths, default=0)
            piece = _Piece(part, _size(part, packing), longest, len(lengths), order)
            order += 1
            if not piece.size:
                continue
            if packing.long_from and longest > packing.long_from:
                long.append(piece)
            else:
                short.append(piece)
    return short, long


def _size(group: Group, packing: Packing) -> int:
    if packing.padded:
        lengths = [length for length in map(laid_length, group) if length]
        return len(lengths) * max(lengths, default=0)
    return build(group, share=packing.share).size


def _total(pieces: Sequence[_Piece]) -> int:
    return sum(piece.size for piece in pieces)


def _cut(group: Group, budget: int, packing: Packing) -> list[Group]:
    """Sub-groups of neighbouring samples that fit the budget; each repeats the prefix it shares with the others.

    Raises ValueError for a group that must stay whole and has samples on both sides of `long_from`.
    """
    if packing.long_from:
        short = [s for s in group if laid_length(s) <= packing.long_from]
        long = [s for s in group if laid_length(s) > packing.long_from]
        if short and long and packing.whole:
            raise ValueError(
                f"group {group[0].group} has samples on both sides of {packing.long_from} tokens, where this model "
                "changes its RoPE frequencies, and the loss needs the group in one forward; expected all on one side. "
                f"Set max_length to {packing.long_from}"
            )
        if short and long:
            return [*_cut(short, budget, packing), *_cut(long, budget, packing)]
    if packing.whole or len(group) == 1 or _size(group, packing) <= budget:
        return [group]
    parts: list[Group] = []
    current: list[Sample] = []
    # Sorted by tokens, siblings that share most stand side by side, so that few prefixes are laid
    # down twice.
    for s in sorted(group, key=lambda s: s.tokens):
        if current and _size([*current, s], packing) > budget:
            parts.append(current)
            current = []
        current.append(s)
    return [*parts, current]


def _first_fit(pieces: Sequence[_Piece], budget: int, packing: Packing) -> list[list[_Piece]]:
    """Largest first, each piece into the first forward with room for it, or into a new one."""
    forwards: list[list[_Piece]] = []
    used: list[int] = []
    for piece in sorted(pieces, key=lambda piece: (-piece.longest if packing.padded else -piece.size, piece.order)):
        for i, forward in enumerate(forwards):
            # The first piece of a padded forward is the longest: it decides the width of every row.
            size = forward[0].longest * piece.rows if packing.padded else piece.size
            if used[i] + size <= budget:
                forward.append(piece)
                used[i] += size
                break
        else:
            forwards.append([piece])
            used.append(piece.size)
    return forwards


def _deal(pieces: Sequence[_Piece], count: int) -> list[list[_Piece]]:
    """Largest first, each piece to the emptiest of `count` forwards. It may overfill one; the caller looks."""
    forwards: list[list[_Piece]] = [[] for _ in range(count)]
    used = [0] * count
    for piece in sorted(pieces, key=lambda piece: (-piece.size, piece.order)):
        emptiest = min(range(count), key=used.__getitem__)
        forwards[emptiest].append(piece)
        used[emptiest] += piece.size
    return forwards
