"""What is taken from a score before the baseline, and which tokens count: plain functions of samples."""

from __future__ import annotations

import math
from collections.abc import Iterable

from espalier.types import Sample


def log_ratios(s: Sample) -> list[float]:
    """old_t - ref_t of the trained tokens of a sample in order, nats: k1 of each, the policy being as it is before the
    step. Raises ValueError if one of both streams is missing."""
    missing = [name for name in ("old_logprobs", "ref_logprobs") if name not in s.streams]
    if missing:
        raise ValueError(
            f"group {s.group}, part {s.part!r}: has no {' and no '.join(missing)}; fill them before credit is called"
        )
    old, ref = s.streams["old_logprobs"], s.streams["ref_logprobs"]
    # The first token is never scored: nothing precedes it.
    return [old[t] - ref[t] for t in range(1, len(s.tokens)) if s.mask[t]]


def ratio(s: Sample) -> float:
    """sum_t old_t - ref_t over the trained tokens of a sample, nats: how far the policy, as it is before the step, is
    from the reference (k1 of the sequence). Raises ValueError if one of both streams is missing."""
    return math.fsum(log_ratios(s))


def response_start(s: Sample) -> int:
    """Index of the first trained token: where the prompt ends. `len(s)` if nothing is trained."""
    return next((t for t, trained in enumerate(s.mask) if trained), len(s))


def overlong(length: int, longest: float, buffer: float) -> float:
    """What an answer of `length` tokens loses for coming near the limit; DAPO, arXiv:2503.14476, eq. 13.

        0                                      up to longest - buffer
        (longest - buffer - length) / buffer   from there on
        -1                                     beyond longest

    >>> [overlong(n, 100, 20) for n in (80, 85, 100, 101)]
    [0.0, -0.25, -1.0, -1.0]
    """
    if buffer <= 0:
        return 0.0
    return max(-1.0, min(0.0, (longest - buffer - length) / buffer))


def mask_cut(groups: Iterable[Iterable[Sample]]) -> int:
    """Set the weights of all tokens of answers that the length limit ended to 0; returns how many answers those are.

    They stay in baselines and in totals over sequences; totals over tokens lose their tokens.
    """
    cut = [s for group in groups for s in group if s.stop == "length"]
    for s in cut:
        s.weights = [0.0] * len(s)
    return len(cut)


def spread(s: Sample, advantage: float, steps: list[float] | None = None) -> list[float]:
    """One advantage for each token of a sample, 0 if it is not trained: that of the answer, plus, with `steps`, that of
    its own place, counted from the first trained token.

    >>> s = Sample(); s.append([5], trained=False); s.append([6, 7], trained=True)
    >>> spread(s, 1.0), spread(s, 1.0, [0.5, 0.25])
    ([0.0, 1.0, 1.0], [0.0, 1.5, 1.25])
    """
    start = response_start(s)
    values = [advantage if trained else 0.0 for trained in s.mask]
    if steps is not None:
        for t in range(start, len(s)):
            values[t] += steps[t - start] if s.mask[t] else 0.0
    return values
