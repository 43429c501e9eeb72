"""First losses at invented numbers: log-probabilities and scores that no model said.

At the start the policy is the reference, so all log-ratios are 0, and a loss that has its sides exchanged, a strength
squared or a mean in place of a sum costs what the right one costs. So the run's own first groups also go through
streams, mates, credit, packing and loss with log-ratios other than 0, and with scores that follow the judgements. There
is no forward in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from espalier.checks.first_groups import Groups, facts_of_scores, facts_of_tokens, scored
from espalier.checks.firstloss import expected_first_loss, varied
from espalier.checks.plainmath import Facts
from espalier.types import Sample

if TYPE_CHECKING:
    from espalier.algorithms.traits import Algorithm, Traits


class Case(NamedTuple):
    """A loss through the run's own code, and what arithmetic says of it (None: arithmetic does not know)."""

    about: str
    value: float
    expected: float | None


class Said:
    """A stand-in for learner and reference. Both give every scored token a number that follows from its sample and its
    place; the sums of a sample differ by `ratios[id(sample)]`, which `ratio_of` invents when it is first asked."""

    def __init__(self, ratio_of: Any) -> None:
        self.ratio_of = ratio_of
        self.ratios: dict[int, float] = {}
        self.samples: list[Sample] = []  # kept, so that their ids stay theirs

    def say(self, groups: Groups, what: Sequence[str]) -> list[Any]:
        """As `Learner.say`."""
        from espalier.engines.protocols import SampleOutputs

        return [SampleOutputs(logprobs=policy_logprobs(s)) for group in groups for s in group]

    def logprobs(self, groups: Groups) -> list[list[float]]:
        """As `Reference.logprobs`: the policy's, less the ratio, of which later tokens have more."""
        streams = []
        for s in (s for group in groups for s in group):
            if id(s) not in self.ratios:
                self.ratios[id(s)] = self.ratio_of(s)
                self.samples.append(s)
            stream, places = policy_logprobs(s), scored(s)
            parts = [1.0 + n % 3 for n in range(len(places))]
            for place, part in zip(places, parts, strict=True):
                stream[place] -= self.ratios[id(s)] * part / sum(parts)
            streams.append(stream)
        return streams


def policy_logprobs(s: Sample) -> list[float]:
    """Log-probabilities between -1.5 and -0.3, 0 for tokens that are not scored."""
    stream = [0.0] * len(s.tokens)
    for n, t in enumerate(scored(s)):
        stream[t] = -0.3 - 0.3 * ((3 * n + s.key) % 5)
    return stream


def cases(algorithm: Algorithm, groups: Groups, share: bool) -> Iterator[Case]:
    """The first losses of `groups` at invented numbers. share: lay prefixes down once, as the run does."""
    traits = algorithm.traits
    algorithm = varied(algorithm)
    groups = [[replace(s, streams={}) for s in group] for group in groups]
    if traits.says == "reads":
        yield _scores(algorithm, groups, share)
        return
    if traits.wants != "labels":
        yield _tokens(algorithm, _flipped(traits, groups), share)
        return
    yield _answers(algorithm, [_short(groups[0]), *groups[1:]], share, "single answers")
    good = [group for group in groups if group[0].label == 1]
    if good and len(good) < len(groups):
        yield _answers(algorithm, good, share, "good answers alone")
    if traits.mates:
        yield _own_mates(algorithm, groups[0][0])


# --------------------------------------------------------------------------------------------------- log-probabilities


def _tokens(algorithm: Algorithm, groups: Groups, share: bool) -> Case:
    """A loss over comparisons, whose preferred answers have the larger ratios."""
    lead = {}
    for number, group in enumerate(groups):
        for place, s in enumerate(group):
            lead[id(s)] = 3.0 * min(3, len(s.beats)) + 0.5 * ((place + number) % 2)
    said = Said(lambda s: lead[id(s)])
    state = _annotated(algorithm, groups, said)
    facts = facts_of_tokens(algorithm.traits, groups, [policy_logprobs(s) for group in groups for s in group])
    return Case("other ratios", _loss(algorithm, groups, state, share), _expected(algorithm, facts))


def _answers(algorithm: Algorithm, groups: Groups, share: bool, about: str) -> Case:
    """A loss over single answers, with the moving number that follows from their ratios and those of their mates."""

    def ratio(s: Sample) -> float:
        if s.part != groups[0][0].part:  # a mate
            return 2.0 + 0.5 * (s.key % 3)
        return (4.0 if s.label else 1.0) + 0.5 * (s.group % 3)

    said = Said(ratio)
    state = _annotated(algorithm, groups, said)
    moving = _moving(algorithm, groups, said)
    facts = facts_of_tokens(algorithm.traits, groups, [policy_logprobs(s) for group in groups for s in group])
    value = _loss(algorithm, groups, state, share)
    return Case(about, value, _expected(algorithm, replace(facts, moving=moving)))


def _moving(algorithm: Any, groups: Groups, said: Said) -> float:
    """KTO's reference point, the mean ratio of mates; BCO's delta, half the sum of both sides' mean rewards. A side
    without answers counts 0."""
    sides: dict[str, list[float]] = {"mate": [], "good": [], "bad": []}
    own = {id(s) for group in groups for s in group}
    for s in said.samples:
        side = "mate" if id(s) not in own else ("good" if s.label else "bad")
        sides[side].append(said.ratios[id(s)])
    means = {side: math.fsum(ratios) / len(ratios) if ratios else 0.0 for side, ratios in sides.items()}
    if algorithm.traits.mates:
        return max(0.0, means["mate"])
    return float(algorithm.beta) * (means["good"] + means["bad"]) / 2


def _own_mates(algorithm: Algorithm, s: Sample) -> Case:
    """How many mates a step has in which one prompt comes twice: none, since a mate's answer is to another prompt."""
    twice = [[replace(s, group=0)], [replace(s, group=1, tokens=[*s.tokens[:-1], s.tokens[-1] ^ 1])]]
    return Case("mates of one prompt", float(len(algorithm.mates(twice))), 0.0)


def _annotated(algorithm: Algorithm, groups: Groups, said: Said) -> dict[str, float]:
    from espalier.engines.protocols import Roles
    from espalier.loop.annotate import annotate

    model: Any = said
    return annotate(groups, algorithm, Roles(model, reference=model), {})


def _short(group: list[Sample]) -> list[Sample]:
    """A group of one answer, its prompt cut to its last token, so that the second token is scored."""
    (s,) = group
    at = s.mask.index(True) - 1
    if at < 1:
        return group
    return [replace(s, tokens=s.tokens[at:], mask=s.mask[at:], weights=s.weights[at:], reads=[], grades=[])]


def _flipped(traits: Traits, groups: Groups) -> list[list[Sample]]:
    """The groups, the last one as a flip leaves it; whole orders are never flipped."""
    if traits.orders:
        return list(groups)
    return [*groups[:-1], _reversed(groups[-1])]


def _reversed(group: list[Sample]) -> list[Sample]:
    """The group with every comparison the other way round, as a flip leaves it; its labels stay."""
    beats: list[list[int]] = [[] for _ in group]
    for place, s in enumerate(group):
        for other in s.beats:
            beats[other].append(place)
    return [replace(s, beats=of_s) for s, of_s in zip(group, beats, strict=True)]


# -------------------------------------------------------------------------------------------------------------- scores


def _scores(algorithm: Algorithm, groups: Groups, share: bool) -> Case:
    """A loss over what a scalar head says: preferred answers score higher, in every dimension by another amount."""
    traits = algorithm.traits
    width = len(traits.weights)
    copies = [[replace(s, grades=list(s.grades)) for s in group] for group in groups]
    first = copies[0][0]
    if width > 1 and first.grades and sum(not math.isnan(x) for x in first.grades[0]) > 1:
        first.grades[0] = (math.nan, *first.grades[0][1:])  # a dimension that nobody judged
    copies = _flipped(traits, copies)
    scores = []
    for number, group in enumerate(copies):
        for place, s in enumerate(group):
            rows = []
            for read in range(len(s.reads)):
                base = 0.8 * min(3, len(s.beats)) - 0.7 + 0.3 * ((place + 2 * number + 3 * read) % 5)
                rows.append([base * (1 + 0.25 * k) - 0.2 * k for k in range(width)])
            scores.append(rows)
    facts = facts_of_scores(traits, copies, scores)
    return Case("other scores", _loss(algorithm, copies, {}, share, scores), _expected(algorithm, facts))


# ------------------------------------------------------------------------------------------------------------ the loss


def _loss(
    algorithm: Algorithm,
    groups: Groups,
    state: dict[str, float],
    share: bool,
    scores: Sequence[Sequence[Sequence[float]]] | None = None,
) -> float:
    """The loss of one step over `groups` through packing, loss and division."""
    import torch

    from espalier.forest.pack import pack, totals
    from espalier.losses.ops import normalise
    from espalier.types import Outputs

    sums = totals(groups)
    batch = pack(groups, sums, state=state, share=share, says=algorithm.traits.says)
    if scores is not None:
        outputs = Outputs(torch.zeros(0), scores_RK=torch.tensor([row for rows in scores for row in rows]))
    else:
        streams = [(s, policy_logprobs(s)) for group in groups for s in group]
        outputs = Outputs(torch.tensor([stream[t] for s, stream in streams for t in scored(s)]))
    value, _ = normalise(algorithm.loss(outputs, batch), sums)
    return float(value)


def _expected(algorithm: Algorithm, facts: Facts) -> float | None:
    return expected_first_loss(
        algorithm,
        facts.pairs,
        groups=facts.groups,
        orders=facts.orders,
        chosen=facts.chosen,
        reads=facts.reads,
        moving=facts.moving,
    )
