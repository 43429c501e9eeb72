"""The canary by hand: a sampler and a learner that say what a test tells them to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest

from espalier.engines.protocols import Drawn, Request, SampleOutputs, SamplingParams
from espalier.errors import CheckError
from espalier.loop.canary import Canary, sampled
from espalier.types import Sample


class Pair:
    """Sampler and learner in one. `drawn` and `learned` are what they say of each of two tokens; the learner says
    `uneven` more of forwards that end with the token."""

    def __init__(self) -> None:
        self.drawn, self.learned, self.uneven = -1.0, -1.0, 0.0
        self.interrupted = lambda: False

    def drawing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def submit(self, requests: Sequence[Request]) -> None:
        (self.request,) = requests

    def finished(self) -> list[Drawn]:
        if self.interrupted():
            return []
        s = Sample()
        s.append([5, 6, 7], trained=False)
        s.append([8, 9], trained=True, logprobs=[self.drawn] * 2)
        return [Drawn(self.request, 0, s)]

    def say(self, groups: Sequence[list[Sample]], what: Sequence[str]) -> list[SampleOutputs]:
        outputs = []
        for s in (s for group in groups for s in group):
            more = self.uneven if len(s) < 5 else 0.0
            outputs.append(SampleOutputs(logprobs=[(self.learned + more) * trained for trained in s.mask]))
        return outputs


def started(pair: Any) -> Canary:
    canary = Canary(pair, pair, [5, 6, 7], SamplingParams(max_tokens=2, temperature=1.0))
    assert canary.start().difference == 0 and canary.bound == 1e-5
    return canary


def test_weights_that_are_handed_over_pass() -> None:
    pair = Pair()
    canary = started(pair)
    pair.drawn = pair.learned = -2.0
    assert canary.moved(1, updated=True) == 0
    assert canary.moved(2, updated=False) == 0


def test_a_sampler_that_is_apart_stops_the_run() -> None:
    pair = Pair()
    canary = started(pair)
    pair.drawn, pair.learned = -2.0, -2.001
    with pytest.raises(CheckError, match=r"step 7: sampler and learner are 1.0e-03 nats.*<= 1.0e-05"):
        canary.moved(7, updated=True)


def test_a_sampler_that_keeps_old_weights_stops_the_run() -> None:
    canary = started(Pair())
    with pytest.raises(CheckError, match="step 3: an update was made, but the sampler says"):
        canary.moved(3, updated=True)


def test_rounding_that_grew_in_training_passes() -> None:
    pair = Pair()
    canary = started(pair)
    pair.drawn, pair.learned, pair.uneven = -2.0, -2.00005, 2e-5
    assert canary.moved(9, updated=True) == pytest.approx(5e-5, rel=1e-6)


@pytest.mark.parametrize(("uneven", "apart"), [(5e-6, 6e-5), (1e-4, 4e-4)])
def test_what_is_more_than_rounding_stops_the_run(uneven: float, apart: float) -> None:
    """Float32: ten times the rounding, up to 1e-4 nats; beyond, three times."""
    pair = Pair()
    canary = started(pair)
    pair.drawn, pair.learned, pair.uneven = -2.0, -2.0 - apart, uneven
    with pytest.raises(CheckError, match="sampler and learner are"):
        canary.moved(9, updated=True)


def test_a_stop_signal_waits_for_the_canary() -> None:
    """It came in an update: the step is finished and saved, and the sampler is asked first."""
    pair = Pair()
    canary = started(pair)
    stop = pair.interrupted = lambda: True
    pair.drawn = pair.learned = -2.0
    assert canary.moved(1, updated=True) == 0 and pair.interrupted is stop


def test_what_filters_left_out_is_put_back() -> None:
    s = Sample()
    s.append([5], trained=False)
    s.append([6], trained=True, logprobs=[-0.5])
    s.streams["mass"] = [0.0, 0.5]
    assert sampled(s) == [0.0, pytest.approx(-1.1931471805599454)]
