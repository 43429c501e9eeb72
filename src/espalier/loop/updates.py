"""From the draw of a step to its updates: which samples are in which minibatch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from espalier.algorithms.online import Online
from espalier.engines.protocols import Group
from espalier.types import Sample


@dataclass(frozen=True, slots=True)
class Update:
    """The share of a draw that one optimizer step is made from. `groups` are run and counted, `silent` ones counted;
    `number` is its place among the updates of the step, `epoch` the pass that it belongs to, both from 0."""

    groups: list[Group]
    silent: list[Group]
    number: int = 0
    epoch: int = 0


def updates(
    groups: Sequence[Group], silent: Sequence[Group], online: Online | None, *, seed: int, step: int
) -> Iterator[Update]:
    """The updates of a step: one of everything offline, `epochs` x `minibatches` online.

    Minibatches are a function of (seed, step, epoch). If the loss needs siblings, whole groups are dealt out, else
    samples: their numbers differ by at most 1 between minibatches, among those that run and altogether. Siblings stay
    together where there is room for them. Silent groups are dealt out likewise, and each part by itself, so that every
    minibatch has its share of given texts.

    A sample without a weight above 0 adds nothing to any gradient, so it counts as silent, too (if the loss needs
    siblings, groups without any do). A minibatch in which nothing runs is for the caller to leave out.

    >>> groups = [[Sample([5, 6], [False, True], [0, 1], key=10 * g + k) for k in range(2)] for g in range(3)]
    >>> cut = updates(groups, [], Online(minibatches=2), seed=0, step=0)
    >>> [[[s.key for s in group] for group in update.groups] for update in cut]
    [[[0, 1], [20]], [[10, 11], [21]]]
    """
    if online is None:
        yield Update(list(groups), list(silent))
        return
    running, still = _weighted(groups, online.siblings)
    still = [*still, *silent]
    for epoch in range(online.epochs):
        parts = _cut(running, still, online, f"{seed}/{step}/{epoch}")
        for place, (mine, quiet) in enumerate(parts):
            yield Update(mine, quiet, epoch * online.minibatches + place, epoch)


def _weighted(groups: Sequence[Group], siblings: bool) -> tuple[list[Group], list[Group]]:
    """What has a weight above 0, and what has none: groups if siblings stay together, else samples."""
    running: list[Group] = []
    still: list[Group] = []
    for group in groups:
        parts = [group] if siblings else [[s] for s in group]
        heavy = [s for part in parts if any(map(_weighs, part)) for s in part]
        light = [s for part in parts if not any(map(_weighs, part)) for s in part]
        if heavy:
            running.append(heavy)
        if light:
            still.append(light)
    return running, still


def _weighs(s: Sample) -> bool:
    streams = [values for name, values in s.streams.items() if name.startswith("weights:")]
    # The first token is never scored: nothing precedes it.
    scored = [t for t in range(1, len(s.tokens)) if s.mask[t]]
    return any(s.weights[t] for t in scored) or any(values[t] for values in streams for t in scored)


def _cut(
    running: Sequence[Group], silent: Sequence[Group], online: Online, key: str
) -> list[tuple[list[Group], list[Group]]]:
    """Minibatches of one epoch, each with its silent groups."""
    count = online.minibatches
    if count == 1:
        return [(list(running), list(silent))]
    draw = random.Random(key)
    parts: list[tuple[list[Group], list[Group]]] = [([], []) for _ in range(count)]
    for name in dict.fromkeys(g[0].part for g in (*running, *silent)):
        run, quiet = ([g for g in groups if g[0].part == name] for groups in (running, silent))
        for mine, more in zip(parts, _dealt(run, quiet, online, draw), strict=True):
            mine[0].extend(more[0])
            mine[1].extend(more[1])
    return parts


def _dealt(
    running: Sequence[Group], silent: Sequence[Group], online: Online, draw: random.Random
) -> list[tuple[list[Group], list[Group]]]:
    """The groups of one part in minibatches."""
    size = _one if online.siblings else len
    run, quiet = sum(map(size, running)), sum(map(size, silent))
    room = _shares(run, online.minibatches)
    whole = _shares(run + quiet, online.minibatches)
    mine = _deal(running, room, draw, cut=not online.siblings)
    theirs = _deal(silent, [a - b for a, b in zip(whole, room, strict=True)], draw, cut=not online.siblings)
    return list(zip(mine, theirs, strict=True))


def _one(group: Group) -> int:
    return 1


def _shares(total: int, count: int) -> list[int]:
    """`total` in `count` parts that differ by at most 1, the larger ones first."""
    return [total // count + (place < total % count) for place in range(count)]


def _deal(groups: Sequence[Group], room: list[int], draw: random.Random, *, cut: bool) -> list[list[Group]]:
    """Groups in parts with `room` for so many samples each (or groups, unless they may be `cut`), in random order;
    inside a part they stand as they were drawn."""
    left = list(room)
    parts: list[list[tuple[int, Group]]] = [[] for _ in room]
    order = list(enumerate(groups))
    draw.shuffle(order)
    waiting = []
    for place, group in order:
        size = len(group) if cut else 1
        home = next((i for i, space in enumerate(left) if space >= size), None)
        if home is None:
            waiting.append((place, group))
            continue
        parts[home].append((place, group))
        left[home] -= size
    for place, group in waiting:
        rest = list(group)
        while rest:
            home = next(i for i, space in enumerate(left) if space)
            parts[home].append((place, rest[: left[home]]))
            rest, left[home] = rest[left[home] :], max(0, left[home] - len(rest))
    return [[group for _, group in sorted(part, key=lambda entry: entry[0])] for part in parts]
