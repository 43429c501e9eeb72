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
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from espalier.data.interleave import interleave, weights_of
from espalier.errors import ConfigError

if TYPE_CHECKING:
    from espalier.data.store.store import Store

REPLAY = "replay"
SAMPLES_PER_STEP = 32
_VERSION = 1
_CHUNK = 1 << 18
_PROBE = 256
_ROUNDED = Fraction(1, 1000)
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class PlanSource:
    """One source as the plan sees it: `lengths` (tokens) and `samples` of its groups, one entry a group.

    proportion: the share of draws that come from this source, in (0, 1]; None shares what is left with the others.
    part: "replay" for replay; everything else is main data.
    groups: the numbers by which `step` names the groups, where they are a selection; None is 0, 1, 2 ...
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
    ends: NDArray[np.int64]
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
    `steps`, where given, decides instead, and no step is short.

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
        self._sources, self._seed = list(sources), seed
        self._budget = tokens_per_step or samples_per_step or SAMPLES_PER_STEP
        self._by_tokens = bool(tokens_per_step)
        self._pools = _pools(self._sources, replay_fraction)
        self._orders: dict[tuple[int, int], NDArray[Any]] = {}
        self._pattern = interleave(weights_of([pool.share for pool in self._pools]))
        self._per_period = np.bincount(self._pattern, minlength=len(self._pools)).astype(np.int64)
        self._seen = np.empty(len(self._pattern), np.int64)  # draws of the same pool earlier in the period
        for p, count in enumerate(self._per_period):
            self._seen[self._pattern == p] = np.arange(count)
        main = np.array([not pool.replay for pool in self._pools])
        self._main_before = np.concatenate([[0], np.cumsum(main[self._pattern])])
        self._epoch = sum(pool.size for pool in self._pools if not pool.replay)
        self._bounds = self._cut(steps, 0 if steps else self._draws_for(max(1, int(epochs * self._epoch + 0.5))))
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

    def epoch_of(self, i: int) -> float:
        """Epochs of main data drawn before step `i` (0 <= i <= steps); its integer part counts epochs from 0."""
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

    def _named(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draws first ... last of the line, groups by the numbers that their sources give them."""
        sources, groups = self._draws(first, last)
        for s, source in enumerate(self._sources):
            if source.groups is not None:
                here = sources == s
                groups[here] = source.groups[groups[here]]
        return sources, groups

    def _draws(self, first: int, last: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source and position in that source of draws first ... last of the line."""
        periods, places = np.divmod(np.arange(first, last), len(self._pattern))
        pools = self._pattern[places]
        turns = periods * self._per_period[pools] + self._seen[places]
        sources, groups = np.empty_like(turns), np.empty_like(turns)
        for p, pool in enumerate(self._pools):
            here = np.flatnonzero(pools == p)
            passes, offsets = np.divmod(turns[here], pool.size)
            for number in range(int(passes[0]), int(passes[-1]) + 1) if len(here) else ():
                chosen = passes == number
                drawn = self._order(p, number)[offsets[chosen]].astype(np.int64)
                member = np.searchsorted(pool.ends, drawn, side="right")
                sources[here[chosen]] = np.array(pool.members)[member]
                groups[here[chosen]] = drawn - np.concatenate([[0], pool.ends])[member]
        return sources, groups

    def _order(self, p: int, number: int) -> NDArray[Any]:
        """The permutation of pool `p` in its pass `number`; the last two of each pool are kept."""
        if (p, number) not in self._orders:
            mine = sorted((key for key in self._orders if key[0] == p), key=lambda key: abs(key[1] - number))
            for key in mine[1:]:
                del self._orders[key]
            size = self._pools[p].size
            order = np.arange(size, dtype=np.int32 if size < 1 << 31 else np.int64)
            name = self._pools[p].members[0]
            np.random.Generator(np.random.Philox(np.random.SeedSequence((self._seed, name, number)))).shuffle(order)
            self._orders[p, number] = order
        return self._orders[p, number]

    def _draws_for(self, main: int) -> int:
        """Length of the line up to and with its `main`-th draw (from 1) of main data."""
        periods, rest = divmod(main - 1, int(self._main_before[-1]))
        return periods * len(self._pattern) + int(np.searchsorted(self._main_before, rest + 1))

    def _cut(self, steps: int, total: int) -> NDArray[np.int64]:
        """Where steps begin, and where the last one ends: `steps` of them, or as many as `total` draws make."""
        budget = self._budget
        if not self._by_tokens and all(int(s.samples.max(initial=1)) == 1 for s in self._sources):
            count = steps or -(-total // budget)
            bounds = np.arange(count + 1, dtype=np.int64) * budget
            return bounds if steps else np.minimum(bounds, total)
        cuts, base, read, held = array("q", [0]), 0, 0, _NONE
        while len(cuts) <= steps if steps else base < total:
            # A group counts for one or more, so what is left takes at most so many draws: small data has many passes.
            left = (steps - len(cuts) + 1) * budget + 1
            last = read + min(_CHUNK, left) if steps else min(total, read + _CHUNK)
            held = np.concatenate([held, self._sizes(read, last)])
            read = last
            ends = [0, *np.cumsum(held).tolist()]
            a = 0
            while a < len(held) and not 0 < steps < len(cuts):
                b = max(a + 1, bisect_right(ends, ends[a] + budget, a + 1) - 1)
                if b == len(held) and not (total and read == total):
                    break  # the next chunk may hold groups that still fit
                cuts.append(base + b)
                a = b
            base, held = base + a, held[a:]
        return np.array(cuts, np.int64)

    def _sizes(self, first: int, last: int) -> NDArray[np.int64]:
        """Samples or tokens of the groups drawn."""
        sources, groups = self._draws(first, last)
        sizes = np.empty(len(sources), np.int64)
        for s, source in enumerate(self._sources):
            here = sources == s
            sizes[here] = (source.lengths if self._by_tokens else source.samples)[groups[here]]
        return sizes

    def _fingerprint(self) -> str:
        """sha256 of what decides the line and its cuts, short of where it ends.

        It contains the first draws themselves, so that another version of NumPy's shuffle is noticed. `epochs` and
        `steps` are left out: a longer run begins with the same steps, its predecessor's short last one excepted, which
        `consumed` tells apart.
        """
        described = [
            [s.fingerprint, s.part, *(_hash(x) for x in (s.lengths, s.samples, s.groups))] for s in self._sources
        ]
        pools = [[pool.members, str(pool.share), pool.replay] for pool in self._pools]
        order = [a.tolist() for a in self._named(0, min(_PROBE, int(self._bounds[-1])))]
        budget = [self._budget, self._by_tokens]
        text = json.dumps([_VERSION, self._seed, budget, described, pools, order])
        return hashlib.sha256(text.encode()).hexdigest()


def _hash(values: NDArray[Any] | None) -> str:
    return "" if values is None else hashlib.sha256(np.ascontiguousarray(values, "<i8").tobytes()).hexdigest()


def _pools(sources: Sequence[PlanSource], replay_fraction: float) -> list[_Pool]:
    """Who is shuffled with whom, and the share of the line that each pool takes."""
    for s, source in enumerate(sources):
        sizes = {
            len(source.lengths),
            len(source.samples),
            len(source.samples if source.groups is None else source.groups),
        }
        if len(sizes) > 1:
            raise ValueError(f"source {s} has lengths, samples and groups of different sizes: {sorted(sizes)}")
    main = _shares(sources, [s for s, source in enumerate(sources) if source.part != REPLAY], replay=False)
    chosen = [s for s, source in enumerate(sources) if source.part == REPLAY]
    if not chosen:
        return main
    if not 0 < replay_fraction < 1:
        raise ConfigError(
            f"replay_fraction got {replay_fraction} with replay data given, expected more than 0 and less than 1",
            key="replay_fraction",
        )
    fraction = Fraction(replay_fraction).limit_denominator(10**6)
    scaled = [(pool, 1 - fraction) for pool in main]
    scaled += [(pool, fraction) for pool in _shares(sources, chosen, replay=True)]
    return [_Pool(pool.members, pool.ends, pool.share * scale, pool.replay) for pool, scale in scaled]


def _shares(sources: Sequence[PlanSource], chosen: Sequence[int], *, replay: bool) -> list[_Pool]:
    """Pools of the sources numbered `chosen`, with shares that sum to 1."""
    what = "replay" if replay else "data"
    given: dict[int, Fraction] = {}
    for s in chosen:
        p = sources[s].proportion
        if p is not None:
            if not 0 < p <= 1 or not len(sources[s].lengths):
                size = len(sources[s].lengths)
                raise ConfigError(
                    f"{what} source {s + 1} got proportion {p} and {size} rows; expected a proportion above 0 and at "
                    "most 1, and at least one row",
                    key=what,
                )
            given[s] = Fraction(p).limit_denominator(10**6)
    rest = tuple(s for s in chosen if s not in given)
    taken = sum(given.values(), Fraction(0))
    if not rest and given and abs(taken - 1) <= _ROUNDED:
        given = {s: share / taken for s, share in given.items()}
    elif given and (taken >= 1 or not rest):
        expected = "less than 1, to leave something for sources without one" if rest else "1"
        raise ConfigError(f"proportions of {what} sum to {float(taken):g}, expected {expected}", key=what)
    members = [((s,), share) for s, share in given.items()] + ([(rest, 1 - taken)] if rest else [])
    pools = [
        _Pool(group, np.cumsum([len(sources[s].lengths) for s in group], dtype=np.int64), share, replay)
        for group, share in members
    ]
    if not pools or not all(pool.size for pool in pools):
        raise ConfigError(f"{what} has no rows to draw from; name a source that has some", key=what)
    return pools
