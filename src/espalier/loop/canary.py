"""A canary: one prompt whose continuation the sampler draws and the learner scores, at the start and after every
hand-over of weights. A sampler that is stale, or that computes something else than the learner, is seen at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from espalier.errors import CheckError

if TYPE_CHECKING:
    from espalier.engines.protocols import Learner, Sampler, SamplingParams
    from espalier.types import Sample

LENGTH = 16
PREFIXES = 32
ROW = 2**40
"""A row that no task has: the canary's draws are its own."""
BOUND = 1e-5
"""Nats a token that sampler and learner may always be apart."""
SLACK = 3
"""How many times the rounding that was seen they may be apart, in half precision."""
SINGLE_SLACK, SINGLE_MOST = 10, 1e-4
"""The same in float32, and the most that comes of it: the learner's own forwards mostly call the same kernels, and so
differ by a third of what they are off (docs/log.md)."""


def allowed(rounding: float) -> float:
    """How far sampler and learner may be apart, in nats a token, where the learner's own forwards differ by `rounding`.

    >>> [round(allowed(x), 6) for x in (0.0, 4e-6, 0.01)]
    [1e-05, 4e-05, 0.03]
    """
    return max(BOUND, SLACK * rounding, min(SINGLE_SLACK * rounding, SINGLE_MOST))


@dataclass(frozen=True, slots=True)
class Apart:
    """How far sampler and learner are apart on the canary, in nats a token, and what another packing of the learner
    changes by itself."""

    difference: float
    rounding: float


class Canary:
    """Draws a continuation of `prompt` of at most 16 tokens, with the run's temperature and filters, and compares the
    sampler's log-probabilities with the learner's.

    bound: the largest difference that passes at the start, in nats a token; 0 until `start` has measured it: 1e-5, or
    more where the learner's own forwards differ (see `allowed`): trained policies in float32, half precision.
    """

    def __init__(self, sampler: Sampler, learner: Learner, prompt: list[int], params: SamplingParams):
        self.sampler, self.learner, self.prompt = sampler, learner, prompt
        self.params = replace(params, max_tokens=min(LENGTH, params.max_tokens))
        self.bound = 0.0
        self._last: tuple[list[int], list[float]] | None = None

    def start(self) -> Apart:
        """Measure sampler and learner before the first step, and set `bound`."""
        measured = self._measure()
        self.bound = allowed(measured.rounding)
        return measured

    def moved(self, step: int, *, updated: bool) -> float:
        """Compare again after the weights of `step` were handed over; returns the difference in nats a token.

        The limit is `bound`, or what `allowed` makes of the difference between the learner's own forwards now.

        updated: the step made an update with a learning rate and a gradient above 0, so that the canary must have
        changed in some bit. Raises CheckError if it has not, or if sampler and learner are apart.
        """
        before = self._last
        drawn = self._draw()
        difference = apart([sampled(drawn)], [self._scored(drawn)])
        limit = self.bound
        if difference > limit:
            # Training makes distributions sharper, and sharper ones are rounded by more: what was measured at the start
            # may be too little by now.
            limit = max(limit, allowed(self._rounding(drawn)))
        if difference > limit:
            raise CheckError(
                f"step {step}: sampler and learner are {difference:.1e} nats a token apart on the canary prompt, "
                f"expected <= {limit:.1e}: the sampler draws from other weights than the learner trains, or "
                "computes something else. Draw with --sampler generate, and report this (--skip-checks handover goes "
                "on all the same)"
            )
        if updated and before == self._last:
            raise CheckError(
                f"step {step}: an update was made, but the sampler says of the canary prompt exactly what it said "
                "before: it draws from old weights, or the update is too small for the dtype. Raise lr, or draw with "
                "--sampler generate (--skip-checks handover goes on all the same)"
            )
        return difference

    def _measure(self) -> Apart:
        drawn = self._draw()
        return Apart(apart([sampled(drawn)], [self._scored(drawn)]), self._rounding(drawn))

    def _rounding(self, drawn: Sample) -> float:
        """What the learner's forwards over the same tokens differ by, in nats a token."""

        def logprobs(groups: Sequence[list[Sample]]) -> list[list[float]]:
            return [outputs.logprobs for outputs in self.learner.say(groups, ["logprobs"])]

        copies = [[replace(drawn, streams={}), replace(drawn, streams={}, group=1)]]
        return max(rounding(logprobs, copies), by_prefix(logprobs, drawn))

    def _draw(self) -> Sample:
        from espalier.engines.protocols import Request

        # As a rollout draws: inside, a sampler may compute in other ways. A stop signal waits for these few tokens, or
        # the step that it came in could not be saved.
        with self.sampler.drawing(), _uninterrupted(self.sampler):
            self.sampler.submit([Request(self.prompt, ROW, ROW, self.params)])
            (drawn,) = self.sampler.finished()
        s = drawn.sample
        self._last = (s.tokens, s.streams["logprobs"])
        return s

    def _scored(self, s: Sample) -> list[float]:
        (outputs,) = self.learner.say([[replace(s, streams={})]], ["logprobs"])
        return outputs.logprobs


@contextmanager
def _uninterrupted(sampler: Sampler) -> Iterator[None]:
    """Inside, the sampler does not ask whether it is to stop."""
    before = sampler.interrupted
    sampler.interrupted = lambda: False
    try:
        yield
    finally:
        sampler.interrupted = before


def sampled(s: Sample) -> list[float]:
    """The sampler's log-probabilities of a sample under the whole distribution: what top-k, top-p and min-p left out is
    put back by adding log(mass)."""
    logprobs, mass = s.streams["logprobs"], s.streams.get("mass")
    if mass is None:
        return logprobs
    pairs = zip(logprobs, mass, s.mask, strict=True)
    return [x + math.log(kept) if trained else x for x, kept, trained in pairs]


def rounding(logprobs: Callable[[Sequence[list[Sample]]], list[list[float]]], groups: Sequence[list[Sample]]) -> float:
    """The largest difference, in nats a token, between log-probabilities of the same policy under two packings: all
    groups together, and every sample alone. What is seen here is rounding, and no reference can do better.

    `logprobs` takes groups and returns a list for every sample, in order.
    """
    alone: list[list[float]] = []
    for group in groups:
        for s in group:
            alone += logprobs([[s]])
    return apart(logprobs(groups), alone)


def by_prefix(logprobs: Callable[[Sequence[list[Sample]]], list[list[float]]], s: Sample) -> float:
    """The largest difference, in nats a token, between log-probabilities of one forward and those of forwards that end
    with the token, as decoding does it; of at most 32 tokens of prompt and answer, spread evenly.

    In half precision products of another number of rows are rounded otherwise, which packings alone may not show.
    """
    count = len(s)

    def head(length: int) -> list[float]:
        tokens, mask = s.tokens[:length], [False] + [True] * (length - 1)
        (of_tokens,) = logprobs([[replace(s, tokens=tokens, mask=mask, weights=[1.0] * length, streams={})]])
        return of_tokens

    whole, largest = head(count), 0.0
    for t in range(1, count - 1, max(1, -(-count // PREFIXES))):
        largest = max(largest, apart([head(t + 1)[t:]], [whole[t : t + 1]]))
    return largest


def apart(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """The largest absolute difference of two lists of streams; infinite if one of them is not finite.

    >>> apart([[0.0, -1.0], [-2.0]], [[0.0, -1.5], [-2.25]])
    0.5
    """
    largest = 0.0
    for ours, theirs in zip(one, other, strict=True):
        for x, y in zip(ours, theirs, strict=True):
            gap = abs(x - y)
            largest = max(largest, gap if math.isfinite(gap) else math.inf)
    return largest
