"""The order of data: which groups make up optimizer step i, as a function of (seed, i) and nothing else.

All draws of a run form one line. Position n of the line belongs to a pool, and is that pool's k-th draw; the pool's
groups stand in an order shuffled anew for each pass over them. Steps cut the line. So step i is the same on every rank,
after a resume, and whether or not the steps before it were asked for.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from espalier.data.interleave import interleave, weights_of
from espalier.errors import ConfigError

if TYPE_CHECKING:
    from espalier.data.store.store import Store

REPLAY = "replay"
"""The part of samples that are replay."""
SAMPLES_PER_STEP = 32
"""The budget of a step if none is given."""
_VERSION = 1
# Draws looked at in one go.
_CHUNK = 1 << 18
# First draws that enter the fingerprint.
_PROBE = 256
# Proportions of all sources that sum to 1 within this are taken to be rounded, such as 0.333 three times.
_ROUNDED = Fraction(1, 1000)

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlanSource:
    """One source as the plan sees it: `lengths` (tokens) and `samples` of its groups, one entry a group.

    proportion: the share of draws that come from this source, in (0, 1]; None shares what is left with the others.
    part: "replay" for replay; everything else is main data.
    groups: the numbers by which `step` names the groups, if they are a selection; None is 0, 1, 2 ...
    fingerprint: what the source contains.
    """

    lengths: NDArray[Any]
    samples: NDArray[Any]
    proportion: float | None = None
    part: str = "main"
    groups: NDArray[Any] | None = None
    fingerprint: str = ""

    @classmethod
    def of(cls, store: Store, proportion: float | None = None, groups: NDArray[Any] | None = None) -> PlanSource:
        """A store, or the selection `groups` of it (one side of a split)."""
        chosen = slice(None) if groups is None else groups
        lengths, samples = store.lengths[chosen], store.samples_per_group[chosen]
        return cls(lengths, samples, proportion, store.part, groups, store.key)


@dataclass(frozen=True, slots=True)
class _Pool:
    """Sources that are shuffled together, and the share of draws that comes from them. `ends` sums up their sizes."""

    members: tuple[int, ...]
    ends: Numbers
    share: Fraction
    replay: bool

    @property
    def size(self) -> int:
        return int(self.ends[-1])


class Plan:
    """`steps` optimizer steps over `sources`; `step(i)` lists the groups of one.

    Without proportions, all main groups form one permutation per epoch, keyed by (seed, epoch); the line runs on from
    one epoch to the next inside a step, so every group is drawn exactly `epochs` times and only the last step is short.
    A source with a proportion p has its own permutations, keyed by (seed, source, pass), begun anew when it is
    exhausted; among the first n draws of main data, n p come from it, to less than one (see `interleave`). Sources
    without one are shuffled together and take the rest. Proportions are of draws, that is of rows: a row that became
    several samples counts once. Replay takes `replay_fraction` of all draws in the same way.

    An epoch is as many main draws as there are main groups. `epochs` may be a fraction, rounded to whole draws;
    `steps`, if given, decides instead, and no step is short.

    samples_per_step: a step takes whole groups for as long as their samples are at most this many, and at least one
        group. Both 0 is 32.
    tokens_per_step: the same with tokens, as `lengths` count them.

    Memory: the given arrays, 8 bytes a step, and at most two permutations of each pool (4 bytes a group each).
    Raises ConfigError for proportions, budgets or sources that make no plan.
    """

    def __init__(
        self,
        sources: Sequence[PlanSource],
        *,
        seed: int,
        samples_per_step: int = 0,
        tokens_per_step: int = 0,
        replay_fraction: float = 0.0,
        epochs: float = 1.0,
        steps: int = 0,
    ) -> None:
        if samples_per_step < 0 or tokens_per_step < 0 or steps < 0 or (not steps and not epochs > 0):
            raise ConfigError(
                f"got samples_per_step {samples_per_step}, tokens_per_step {tokens_per_step}, steps {steps}, epochs "
                f"{epochs}; expected none below 0, and epochs above 0"
            )
        if samples_per_step and tokens_per_step:
            raise ConfigError(
                f"got samples_per_step {samples_per_step} and tokens_per_step {tokens_per_step}; give one of them",
                key="tokens_per_step",
            )
        _check_sizes(sources)
        self._sources, self._seed = list(sources), seed
        self._budget = tokens_per_step or samples_per_step or SAMPLES_PER_STEP
        self._by_tokens = bool(tokens_per_step)
        self._pools = _pools(self._sources, replay_fraction)
        self._orders: dict[tuple[int, int], NDArray[Any]] = {}
        self._pattern = interleave(weights_of([pool.share for pool in self._pools]))
        self._per_period = np.bincount(self._pattern, minlength=len(self._pools)).astype(np.int64)
        # Draws of the same pool earlier in the period, for each place of it.
        self._seen = np.empty(len(self._pattern), np.int64)
        for pool, count in enumerate(self._per_period):
            self._seen[self._pattern == pool] = np.arange(count)
        main = np.array([not pool.replay for pool in self._pools])
        self._main_before = np.concatenate([[0], np.cumsum(main[self._pattern])])
        self._epoch = sum(pool.size for pool in self._pools if not pool.replay)
        total = 0 if steps else self._draws_for(max(1, int(epochs * self._epoch + 0.5)))
        self._bounds = self._cut(steps, total)
        self.steps = len(self._bounds) - 1
        self.fingerprint = self._fingerprint()
        self._consumed = (0, hashlib.sha256())

    def step(self, i: int) -> list[tuple[int, int]]:
        """The groups of step `i` (0 <= i < steps), as (index of the source, number of the group), in the order drawn.

        Raises IndexError outside that range.
        """
        if not 0 <= i < self.steps:
            raise IndexError(f"step {i} of a plan of {self.steps}")
        sources, groups = self._named(int(self._bounds[i]), int(self._bounds[i + 1]))
        return list(zip(sources.tolist(), groups.tolist(), strict=True))

    def passes(self, i: int) -> list[int]:
        """For each group of step `i`, in the order drawn, which pass over its pool draws it, from 0. A group is drawn
        once in a pass. Raises IndexError as `step` does."""
        if not 0 <= i < self.steps:
            raise IndexError(f"step {i} of a plan of {self.steps}")
        pools, turns = self._turns(int(self._bounds[i]), int(self._bounds[i + 1]))
        sizes = np.array([pool.size for pool in self._pools])
        passes: list[int] = (turns // sizes[pools]).tolist()
        return passes

    def spares(self, i: int) -> Iterator[tuple[int, int]]:
        """Main groups to draw in place of others of step `i`, as `step` names them, in an order of their own: each
        once, in the plan's shares until a source is exhausted."""
        orders: dict[int, list[int]] = {}
        for number, pool in enumerate(self._pools):
            if not pool.replay:
                orders[number] = self._shuffled(pool, (self._seed, pool.members[0], i, 1)).tolist()
        places = dict.fromkeys(orders, 0)
        while any(places[number] < len(order) for number, order in orders.items()):
            for number in self._pattern.tolist():
                if number in orders and places[number] < len(orders[number]):
                    yield self._member(self._pools[number], orders[number][places[number]])
                    places[number] += 1

    def _member(self, pool: _Pool, drawn: int) -> tuple[int, int]:
        """The source and the group that a number of a pool stands for."""
        place = bisect_right(pool.ends.tolist(), drawn)
        source, group = pool.members[place], drawn - int(pool.ends[place - 1] if place else 0)
        groups = self._sources[source].groups
        return source, group if groups is None else int(groups[group])

    def epoch_of(self, i: int) -> float:
        """Epochs of main data drawn before step `i` (0 <= i <= steps); the integer part counts them from 0.

        Raises IndexError outside that range.
        """
        if not 0 <= i <= self.steps:
            raise IndexError(f"step {i} of a plan of {self.steps}")
        periods, place = divmod(int(self._bounds[i]), len(self._pattern))
        return float(periods * self._main_before[-1] + self._main_before[place]) / self._epoch

    def consumed(self, step: int) -> str:
        """sha256 (64 hex digits) of all (source, group) pairs of the steps before `step`, in order.

        Two runs that consumed the same rows agree on it. Raises IndexError for a step outside 0 ... steps.
        """
        if not 0 <= step <= self.steps:
            raise IndexError(f"step {step} of a plan of {self.steps}")
        known, state = self._consumed
        if step < known:
            known, state = 0, hashlib.sha256()
        state = state.copy()
        last = int(self._bounds[step])
        for first in range(int(self._bounds[known]), last, _CHUNK):
            pairs = np.stack(self._named(first, min(last, first + _CHUNK)), axis=1)
            state.update(pairs.astype("<i8").tobytes())
        self._consumed = (step, state)
        return state.hexdigest()

    def _named(self, first: int, last: int) -> tuple[Numbers, Numbers]:
        """Draws first ... last of the line, groups by the numbers that their sources give them."""
        sources, groups = self._draws(first, last)
        for number, source in enumerate(self._sources):
            if source.groups is not None:
                here = sources == number
                groups[here] = source.groups[groups[here]]
        return sources, groups

    def _draws(self, first: int, last: int) -> tuple[Numbers, Numbers]:
        """Source and position in that source of draws first ... last of the line."""
        pools, turns = self._turns(first, last)
        sources, groups = np.empty_like(turns), np.empty_like(turns)
        for number, pool in enumerate(self._pools):
            here = np.flatnonzero(pools == number)
            if not len(here):
                continue
            passes, offsets = np.divmod(turns[here], pool.size)
            for pass_number in range(int(passes[0]), int(passes[-1]) + 1):
                chosen = passes == pass_number
                drawn = self._order(number, pass_number)[offsets[chosen]].astype(np.int64)
                member = np.searchsorted(pool.ends, drawn, side="right")
                sources[here[chosen]] = np.array(pool.members)[member]
                groups[here[chosen]] = drawn - np.concatenate([[0], pool.ends])[member]
        return sources, groups

    def _turns(self, first: int, last: int) -> tuple[NDArray[np.uint16], Numbers]:
        """The pool of draws first ... last of the line, and which of that pool's draws each is."""
        periods, places = np.divmod(np.arange(first, last), len(self._pattern))
        pools = self._pattern[places]
        return pools, periods * self._per_period[pools] + self._seen[places]

    def _order(self, pool: int, number: int) -> NDArray[Any]:
        """The permutation of a pool in its pass `number`; the last two of each pool are kept."""
        if (pool, number) in self._orders:
            return self._orders[pool, number]
        kept = sorted((key for key in self._orders if key[0] == pool), key=lambda key: abs(key[1] - number))
        for key in kept[1:]:
            del self._orders[key]
        # Keyed by a source, not by the place of the pool: a pool more leaves the orders of the others as they are.
        order = self._shuffled(self._pools[pool], (self._seed, self._pools[pool].members[0], number))
        self._orders[pool, number] = order
        return order

    def _shuffled(self, pool: _Pool, entropy: tuple[int, ...]) -> NDArray[Any]:
        """The numbers of a pool in an order that follows from `entropy`."""
        order = np.arange(pool.size, dtype=np.int32 if pool.size < 1 << 31 else np.int64)
        np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).shuffle(order)
        return order

    def _draws_for(self, main: int) -> int:
        """Length of the line up to and with its `main`-th draw (from 1) of main data."""
        periods, rest = divmod(main - 1, int(self._main_before[-1]))
        return periods * len(self._pattern) + int(np.searchsorted(self._main_before, rest + 1))

    def _cut(self, steps: int, total: int) -> Numbers:
        """Where steps begin, and where the last one ends: `steps` of them, or as many as `total` draws make."""
        budget = self._budget
        if not self._by_tokens and all(int(source.samples.max(initial=1)) == 1 for source in self._sources):
            # Every group counts for one, so steps are equally long and nothing has to be looked at.
            count = steps or -(-total // budget)
            bounds = np.arange(count + 1, dtype=np.int64) * budget
            return bounds if steps else np.minimum(bounds, total)
        cuts = array("q", [0])
        # `held` are the sizes of the draws base ... read, which are not in a step yet.
        base, read, held = 0, 0, np.zeros(0, np.int64)
        while len(cuts) <= steps if steps else base < total:
            # A group counts for one or more, so the steps left take at most `left` draws. No more are looked at: small
            # data has many passes, and each has an order to make.
            left = (steps - len(cuts) + 1) * budget + 1
            last = read + min(_CHUNK, left) if steps else min(total, read + _CHUNK)
            held = np.concatenate([held, self._sizes(read, last)])
            read = last
            ends = [0, *np.cumsum(held).tolist()]
            at = 0
            while at < len(held) and not 0 < steps < len(cuts):
                end = max(at + 1, bisect_right(ends, ends[at] + budget, at + 1) - 1)
                if end == len(held) and not (total and read == total):
                    # The next chunk may hold groups that still fit.
                    break
                cuts.append(base + end)
                at = end
            base, held = base + at, held[at:]
        return np.array(cuts, np.int64)

    def _sizes(self, first: int, last: int) -> Numbers:
        """Samples or tokens of the groups drawn."""
        sources, groups = self._draws(first, last)
        sizes = np.empty(len(sources), np.int64)
        for number, source in enumerate(self._sources):
            here = sources == number
            sizes[here] = (source.lengths if self._by_tokens else source.samples)[groups[here]]
        return sizes

    def _fingerprint(self) -> str:
        """sha256 of what decides the line and its cuts, short of where it ends.

        It contains the first draws themselves, so that another version of NumPy's shuffle is noticed. `epochs` and
        `steps` are left out: a longer run begins with the same steps, its predecessor's short last one excepted, which
        `consumed` tells apart.
        """
        described = []
        for source in self._sources:
            columns = [_hash(column) for column in (source.lengths, source.samples, source.groups)]
            described.append([source.fingerprint, source.part, *columns])
        pools = [[pool.members, str(pool.share), pool.replay] for pool in self._pools]
        order = [column.tolist() for column in self._named(0, min(_PROBE, int(self._bounds[-1])))]
        budget = [self._budget, self._by_tokens]
        text = json.dumps([_VERSION, self._seed, budget, described, pools, order])
        return hashlib.sha256(text.encode()).hexdigest()


def _hash(values: NDArray[Any] | None) -> str:
    return "" if values is None else hashlib.sha256(np.ascontiguousarray(values, "<i8").tobytes()).hexdigest()


def _check_sizes(sources: Sequence[PlanSource]) -> None:
    """Raise ValueError for a source whose columns are not of one length."""
    for number, source in enumerate(sources):
        columns = [source.lengths, source.samples]
        if source.groups is not None:
            columns.append(source.groups)
        sizes = sorted({len(column) for column in columns})
        if len(sizes) > 1:
            raise ValueError(f"source {number} has lengths, samples and groups of different sizes: {sizes}")


def _pools(sources: Sequence[PlanSource], replay_fraction: float) -> list[_Pool]:
    """Which sources are shuffled together, and the share of the line that each pool takes."""
    main = [number for number, source in enumerate(sources) if source.part != REPLAY]
    replay = [number for number, source in enumerate(sources) if source.part == REPLAY]
    pools = _shares(sources, main, replay=False)
    if not replay:
        return pools
    if not 0 < replay_fraction < 1:
        raise ConfigError(
            f"replay_fraction got {replay_fraction} with replay data given, expected more than 0 and less than 1",
            key="replay_fraction",
        )
    fraction = Fraction(replay_fraction).limit_denominator(10**6)
    scaled = [replace(pool, share=pool.share * (1 - fraction)) for pool in pools]
    for pool in _shares(sources, replay, replay=True):
        scaled.append(replace(pool, share=pool.share * fraction))
    return scaled


def _shares(sources: Sequence[PlanSource], chosen: Sequence[int], *, replay: bool) -> list[_Pool]:
    """Pools of the sources numbered `chosen`, with shares that sum to 1."""
    what = "replay" if replay else "data"
    shares = _own_shares(sources, chosen, what)
    rest = tuple(number for number in chosen if number not in shares)
    taken = sum(shares.values(), Fraction(0))
    if not rest and shares and abs(taken - 1) <= _ROUNDED:
        shares = {number: share / taken for number, share in shares.items()}
    elif shares and (taken >= 1 or not rest):
        expected = "less than 1, to leave something for sources without one" if rest else "1"
        raise ConfigError(f"proportions of {what} sum to {float(taken):g}, expected {expected}", key=what)
    members: list[tuple[tuple[int, ...], Fraction]] = [((number,), share) for number, share in shares.items()]
    if rest:
        members.append((rest, 1 - taken))
    pools = []
    for group, share in members:
        ends = np.cumsum([len(sources[number].lengths) for number in group], dtype=np.int64)
        pools.append(_Pool(group, ends, share, replay))
    if not pools or not all(pool.size for pool in pools):
        raise ConfigError(f"{what} has no rows to draw from; name a source that has some", key=what)
    return pools


def _own_shares(sources: Sequence[PlanSource], chosen: Sequence[int], what: str) -> dict[int, Fraction]:
    """The proportions that sources have of their own, by their numbers. Raises ConfigError for one outside (0, 1]."""
    shares: dict[int, Fraction] = {}
    for number in chosen:
        proportion, rows = sources[number].proportion, len(sources[number].lengths)
        if proportion is None:
            continue
        if not 0 < proportion <= 1 or not rows:
            raise ConfigError(
                f"{what} source {number + 1} got proportion {proportion} and {rows} rows; expected a proportion above "
                "0 and at most 1, and at least one row",
                key=what,
            )
        shares[number] = Fraction(proportion).limit_denominator(10**6)
    return shares
