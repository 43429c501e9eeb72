"""Some judgements of the first step, and what policy and reference say of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

from espalier.checks.firstloss import PairFacts
from espalier.loop.annotate import REPLAY, annotate
from espalier.types import Sample

if TYPE_CHECKING:
    from espalier.assembly.session import Session

CHECKED_PAIRS = 8

Groups = Sequence[list[Sample]]


class FirstPairs(NamedTuple):
    """Some of the first step: a pair a group, preferred sample first, whole orders, or single good and bad answers.

    `facts` hold one pair for every answer that none beats, or one answer with its other side of length 0; `state` is
    the algorithm's after it has seen the groups.
    """

    groups: list[list[Sample]]
    facts: list[PairFacts]
    state: dict[str, float]


def first_pairs(session: Session) -> FirstPairs | None:
    """Some judgements of the first step and what they say; None if it has none."""
    groups = _pick(session)
    if not groups:
        return None
    state = annotate(groups, session.config.algorithm, session.learner, session.reference, {})
    logprobs = _score(session, groups)
    if session.traits.wants == "labels":
        return FirstPairs(groups, _facts_of_labels(groups, logprobs), state)
    return FirstPairs(groups, _facts_of_pairs(groups, logprobs), state)


def _pick(session: Session) -> list[list[Sample]]:
    """The groups of the first step that are looked at."""
    groups = without_replay(session.dataset.groups(0))
    if session.traits.wants == "labels":
        return _labelled(groups)
    whole = session.traits.orders and session.traits.says == "tokens"
    return list(islice(_ordered(groups) if whole else _paired(groups), CHECKED_PAIRS))


def _score(session: Session, groups: list[list[Sample]]) -> list[float]:
    """The summed log-probability of every sample, or the total of what the scalar head says."""
    learner = session.learner
    if session.traits.says == "tokens":
        return [sum(outputs.logprobs) for outputs in learner.say(groups, ["logprobs"])]
    totals = []
    for outputs in learner.forwards.say(groups, ["scores"]):
        totals.append(sum(w * x for w, x in zip(session.traits.weights, outputs.scores[0], strict=True)))
    return totals


def _facts_of_labels(groups: list[list[Sample]], logprobs: list[float]) -> list[PairFacts]:
    """A pair for each answer, which stands alone in its group; its other side has length 0."""
    facts = []
    for (s,), logp in zip(groups, logprobs, strict=True):
        ref, length = _reference_sum(s), _scored(s)
        facts.append(PairFacts(logp, 0, ref, 0, length, 0) if s.label else PairFacts(0, logp, 0, ref, 0, length))
    return facts


def _facts_of_pairs(groups: list[list[Sample]], logprobs: list[float]) -> list[PairFacts]:
    """A pair for each answer that beats another and that none beats, with the first that it beats."""
    samples = [s for group in groups for s in group]
    starts = accumulate(map(len, groups), initial=0)
    facts = []
    for start, group in zip(starts, groups, strict=False):
        beaten = {place for s in group for place in s.beats}
        for i, s in enumerate(group):
            if not s.beats or i in beaten:
                continue
            w, l = start + i, start + s.beats[0]
            better, other = samples[w], samples[l]
            facts.append(
                PairFacts(
                    logprobs[w],
                    logprobs[l],
                    _reference_sum(better),
                    _reference_sum(other),
                    _scored(better),
                    _scored(other),
                )
            )
    return facts


def _reference_sum(s: Sample) -> float:
    return sum(s.streams.get("ref_logprobs", []))


def _scored(s: Sample) -> float:
    """How many tokens of a sample are scored."""
    return float(sum(s.mask[1:]))


def without_replay(groups: Groups) -> list[list[Sample]]:
    """Replay text has no judgements and no reference."""
    return [group for group in groups if group[0].part != REPLAY]


def _paired(groups: Groups) -> Iterator[list[Sample]]:
    """Of each group with a pair, its first one, as a group of two."""
    for group in groups:
        better = next((s for s in group if s.beats), None)
        if better is not None:
            other = group[better.beats[0]]
            yield [replace(better, beats=[1], ties=[]), replace(other, beats=[], ties=[])]


def _ordered(groups: Groups) -> Iterator[list[Sample]]:
    """The groups whose order costs ln K! at equal strengths: those with a pair, and without a tie of so many answers
    that pairs stand for its orders."""
    from espalier.losses.lists import EXACT_TIE

    for group in groups:
        if any(s.beats for s in group) and max(Counter(s.label for s in group).values()) <= EXACT_TIE:
            yield [replace(s, beats=list(s.beats), ties=list(s.ties)) for s in group]


def _labelled(groups: Groups) -> list[list[Sample]]:
    """The first good and the first bad samples, up to CHECKED_PAIRS of either, every one a group."""
    samples = [s for group in groups for s in group]
    picked: list[Sample] = []
    for label in (1.0, 0.0):
        picked += [s for s in samples if s.label == label][:CHECKED_PAIRS]
    return [[replace(s, beats=[], ties=[], group=number)] for number, s in enumerate(picked)]
