"""The groups of the first step that first losses are computed of, and what they say as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from espalier.checks.plainmath import Facts, Order, PairFacts, ReadFacts
from espalier.loop.annotate import REPLAY
from espalier.types import Sample

if TYPE_CHECKING:
    from espalier.algorithms.traits import Traits
    from espalier.assembly.session import Session

CHECKED_GROUPS = 8
CHECKED_SAMPLES = 32
GOOD, BAD = 8, 5
"""Good and bad single answers that are looked at: of unequal number, so that an exchange of their weights is seen."""

Groups = Sequence[list[Sample]]


def first_groups(session: Session) -> list[list[Sample]]:
    """Some groups of the first step that have what the algorithm learns from, whole, as copies without streams."""
    traits = session.traits
    groups = without_replay(session.rows.groups(0))
    if traits.consumes == "ranking" and traits.wants == "labels":
        return _labelled(groups)
    picked: list[list[Sample]] = []
    count = 0
    for group in groups:
        if not _offers(traits, group):
            continue
        if picked and count + len(group) > CHECKED_SAMPLES:
            break
        picked.append([replace(s, beats=list(s.beats), ties=list(s.ties), streams={}) for s in group])
        count += len(group)
        if len(picked) == CHECKED_GROUPS:
            break
    return picked


def without_replay(groups: Groups) -> list[list[Sample]]:
    """Replay text has no judgements and no reference."""
    return [group for group in groups if group[0].part != REPLAY]


def weighted(groups: Groups) -> list[list[Sample]]:
    """Copies of groups whose trained tokens weigh 1, 1.5 and 2 times what they weighed, in turn: with equal weights, a
    loss that ignores or shifts them would be right."""
    copies = []
    for group in groups:
        weights = [[w * (1 + 0.5 * (t % 3)) for t, w in enumerate(s.weights)] for s in group]
        copies.append([replace(s, weights=of_s, streams={}) for s, of_s in zip(group, weights, strict=True)])
    return copies


def facts_of_parts(groups: Groups, alone: Sequence[float]) -> Facts:
    """The weighted negative log-likelihood and the weights of every part. `alone` has the log-probability of every
    scored token, sample by sample."""
    parts: dict[str, tuple[float, float]] = {}
    left = iter(alone)
    for s in (s for group in groups for s in group):
        cost, weight = parts.get(s.part, (0.0, 0.0))
        for t in scored(s):
            cost -= s.weights[t] * next(left)
            weight += s.weights[t]
        parts[s.part] = (cost, weight)
    return Facts(parts=parts)


def within(groups: Groups, budget: int) -> list[list[Sample]]:
    """The first groups that have at most `budget` tokens together."""
    chosen: list[list[Sample]] = []
    used = 0
    for group in groups:
        used += sum(len(s) for s in group)
        if used > budget:
            break
        chosen.append(group)
    return chosen


def _offers(traits: Traits, group: Sequence[Sample]) -> bool:
    """Whether a group has something to learn from."""
    if traits.consumes == "steps" or traits.wants == "grades":
        return any(not math.isnan(x) for s in group for grade in s.grades for x in grade)
    if traits.wants == "comparisons":
        return any(s.beats or s.ties for s in group)
    return any(s.beats for s in group)


def _labelled(groups: Groups) -> list[list[Sample]]:
    """The first good and the first bad samples, every one a group."""
    samples = [s for group in groups for s in group]
    picked: list[Sample] = []
    for label, most in ((1.0, GOOD), (0.0, BAD)):
        picked += [s for s in samples if s.label == label][:most]
    return [[replace(s, beats=[], ties=[], group=number, streams={})] for number, s in enumerate(picked)]


# --------------------------------------------------------------------------------------------------------------- facts


def facts_of_tokens(traits: Traits, groups: Groups, logprobs: Sequence[Sequence[float]]) -> Facts:
    """What groups say to a loss over log-probabilities. `logprobs` has a stream for every sample, in order; the
    reference's are the samples' own, if they have some."""
    say = {id(s): stream for s, stream in zip((s for g in groups for s in g), logprobs, strict=True)}

    def logp(s: Sample) -> float:
        return _sum(s, say[id(s)])

    if traits.wants == "labels":
        answers = [s for group in groups for s in group]
        return Facts([_one_sided(s, logp(s)) for s in answers])
    pairs: list[PairFacts] = []
    chosen: list[tuple[float, float]] = []
    orders: list[Order] = []
    for group in groups:
        for w, l in _pairs(group):
            shared = min(_length(w), _length(l))
            ratios = [_ratio(s, say[id(s)], shared) for s in (w, l)]
            pair = PairFacts(logp(w), logp(l), _reference(w), _reference(l), _length(w), _length(l))
            pairs.append(pair._replace(shared_w=ratios[0], shared_l=ratios[1]))
        chosen += [(logp(s), _length(s)) for s in _chosen(group)]
        orders.append([(logp(s) - _reference(s), s.label) for s in group])
    return Facts(pairs, orders=orders, chosen=chosen)


def facts_of_scores(traits: Traits, groups: Groups, scores: Sequence[Sequence[Sequence[float]]]) -> Facts:
    """What groups say to a loss over a scalar head. `scores` has, for every sample, in order, what the head says in
    every dimension after each of its reads."""
    say = {id(s): rows for s, rows in zip((s for g in groups for s in g), scores, strict=True)}

    def total(s: Sample) -> float:
        return sum(weight * x for weight, x in zip(traits.weights, say[id(s)][0], strict=True))

    pairs: list[PairFacts] = []
    group_of: list[int] = []
    orders: list[Order] = []
    reads: list[ReadFacts] = []
    for number, group in enumerate(groups):
        for s in group:
            if s.grades:
                reads += [ReadFacts(row, grade) for row, grade in zip(say[id(s)], s.grades, strict=True)]
        if traits.consumes == "steps":
            continue
        for tied, compared in ((False, _pairs(group)), (True, _tied(group))):
            for w, l in compared:
                gap = abs((w.label or 0.0) - (l.label or 0.0))
                pairs.append(PairFacts(total(w), total(l), gap=gap, tied=tied))
                group_of.append(number)
        orders.append([(total(s), s.label) for s in group])
    return Facts(pairs, group_of, orders, reads=reads)


def _pairs(group: Sequence[Sample]) -> Iterator[tuple[Sample, Sample]]:
    for s in group:
        for place in s.beats:
            yield s, group[place]


def _tied(group: Sequence[Sample]) -> Iterator[tuple[Sample, Sample]]:
    for s in group:
        for place in s.ties:
            yield s, group[place]


def _chosen(group: Sequence[Sample]) -> list[Sample]:
    """The samples that beat another and that none beats."""
    beaten = {place for s in group for place in s.beats}
    return [s for place, s in enumerate(group) if s.beats and place not in beaten]


def _one_sided(s: Sample, logp: float) -> PairFacts:
    """A pair of one answer, whose other side has length 0."""
    ref, length = _reference(s), _length(s)
    if s.label:
        return PairFacts(logp, 0.0, ref, 0.0, length, 0.0)
    return PairFacts(0.0, logp, 0.0, ref, 0.0, length)


def scored(s: Sample) -> list[int]:
    """The places of the tokens of a sample that are scored: trained ones, but for the first, which nothing
    precedes."""
    return [t for t in range(1, len(s.tokens)) if s.mask[t]]


def _length(s: Sample) -> float:
    return float(len(scored(s)))


def _sum(s: Sample, stream: Sequence[float]) -> float:
    return math.fsum(stream[t] for t in scored(s))


def _reference(s: Sample) -> float:
    """The sum of the whole stream, which is 0 where nothing is scored: one that is a token off has another sum over
    the scored tokens."""
    return math.fsum(s.streams.get("ref_logprobs", []))


def _ratio(s: Sample, stream: Sequence[float], count: float) -> float:
    """The log-ratio of the first `count` scored tokens."""
    reference = s.streams.get("ref_logprobs") or [0.0] * len(s.tokens)
    return math.fsum(stream[t] - reference[t] for t in scored(s)[: int(count)])
