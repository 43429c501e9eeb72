"""The start-up gates of preference runs, on the run's own first pairs: each stops it with the cause."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate, islice
from typing import NamedTuple

import torch

from espalier.algorithms.dimensions import total_weights
from espalier.assembly.parts import Parts
from espalier.assembly.runs import RunConfig, reference_of
from espalier.checks import judgements as gates
from espalier.checks.firstloss import PairFacts, expected_first_loss
from espalier.checks.table import Check
from espalier.engines.learner import TorchLearner
from espalier.engines.protocols import Reference
from espalier.loop.annotate import REPLAY, annotate
from espalier.loop.evaluate import loss_of
from espalier.losses.lists import EXACT_TIE
from espalier.types import Sample

GATED_PAIRS = 8
COUNTED_ROWS = 2000  # of a source, evenly spread
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-4, torch.bfloat16: 0.05}

Named = list[tuple[str, Callable[[], Check]]]


class _First(NamedTuple):
    """Some of the first step: a pair a group, preferred sample first, whole orders, or single good and bad answers.
    `facts` hold one pair for every answer that none beats, or one answer with its other side of length 0."""

    groups: list[list[Sample]]
    facts: list[PairFacts]
    state: dict[str, float]


def gated(config: RunConfig, p: Parts, learner: TorchLearner, reference: Reference | None) -> Named:
    """The gates of a run that learns from judgements; none for other runs."""
    traits = config.algorithm.traits
    if traits.consumes != "ranking":
        return []
    compute = p.model.compute

    @cache
    def first() -> _First | None:
        return _first(config, p, learner, reference)

    def counted(most: int) -> gates.PreferenceStats:
        stats = gates.PreferenceStats()
        for store in p.opened.main:
            for name, count in store.stats.dropped.items():
                stats.dropped[name] = stats.dropped.get(name, 0) + count
            for i in range(0, len(store), max(1, len(store) // most)):
                stats.add(store.group(i))
        return stats

    def preferences() -> Check:
        rows = sum(map(len, p.opened.main))
        stats = counted(COUNTED_ROWS)
        check = gates.preferences(stats, traits.wants)
        if check.verdict == "fail" and stats.groups < rows:  # what is rare may be in the others
            stats = counted(rows)
            check = gates.preferences(stats, traits.wants)
        return check if stats.groups == rows else replace(check, value=f"of {rows:,} rows {check.value}")

    def held(reference: Reference, other: str) -> Check:
        found = first()
        groups = found.groups if found else _main(p.dataset.groups(0))[:GATED_PAIRS]
        ours = [outputs.logprobs for outputs in learner.say(groups, ["logprobs"])]
        apart = gates.apart(ours, reference.logprobs(groups))
        if other and math.isfinite(apart):
            return Check(
                "reference", f"{apart:.1e} nats a token from the policy", f"any: it is {other}, as asked", "pass"
            )
        single = [[replace(s, beats=[], ties=[]) for s in g] for g in groups]  # scored one by one
        probe = gates.rounding(lambda g: [outputs.logprobs for outputs in learner.say(g, ["logprobs"])], single)
        return gates.reference_equals_policy(apart, compute, probe)

    def loss() -> Check:
        found = first()
        if found is None:
            return Check(
                "first_loss", f"no {'label' if traits.wants == 'labels' else 'pair'} in the first step", "", "skipped"
            )
        terms = learner.measure(found.groups, loss_of(config.algorithm), found.state).values()
        value = sum(t.coef * t.sum / t.total for t in terms if t.coef and t.total)
        moving = found.state.get("delta", found.state.get("kl", 0.0))
        sizes = [len(g) for g in found.groups] if traits.wants != "labels" else None
        try:
            expected = expected_first_loss(config.algorithm, found.facts, sizes=sizes, moving=moving)
        except (OverflowError, ValueError):  # weights that are not finite: the loss says so
            expected = None
        tolerance = TOLERANCE[compute] * max(1.0, abs(expected or 0.0))
        return gates.first_loss(value, expected, tolerance, type(config.algorithm).__name__)

    named: Named = [("preferences", preferences)]
    asked = reference_of(config)
    if reference is not None and asked is not None:
        named.append(("reference", lambda: held(reference, asked.reference_model)))
    return [*named, ("first_loss", loss)]


def _first(config: RunConfig, p: Parts, learner: TorchLearner, reference: Reference | None) -> _First | None:
    traits = config.algorithm.traits
    labels, main = traits.wants == "labels", _main(p.dataset.groups(0))
    whole = "plackett_luce" in getattr(config.algorithm, "weights", {})
    groups = _labelled(main) if labels else list(islice((_ordered if whole else _paired)(main), GATED_PAIRS))
    if not groups:
        return None
    state = annotate(groups, config.algorithm, learner, reference, {})
    if traits.reads:
        weights = list(total_weights(getattr(config.algorithm, "dimensions", ())).values()) or [1.0]
        raw = [outputs.scores for outputs in learner.forwards.say(groups, ["scores"])]
        said = [sum(w * x for w, x in zip(weights, scores[0], strict=True)) for scores in raw]
    else:
        said = [sum(outputs.logprobs) for outputs in learner.say(groups, ["logprobs"])]
    flat = [s for g in groups for s in g]
    refs = [sum(s.streams.get("ref_logprobs", [])) for s in flat]
    lengths = [float(sum(s.mask[1:])) for s in flat]
    if labels:  # each alone in its group
        numbers = zip(flat, said, refs, lengths, strict=True)
        facts = [PairFacts(x, 0, r, 0, n, 0) if s.label else PairFacts(0, x, 0, r, 0, n) for s, x, r, n in numbers]
        return _First(groups, facts, state)
    facts = []
    for start, group in zip(accumulate(map(len, groups), initial=0), groups, strict=False):
        beaten = {place for s in group for place in s.beats}
        for w, l in ((start + i, start + s.beats[0]) for i, s in enumerate(group) if s.beats and i not in beaten):
            facts.append(PairFacts(said[w], said[l], refs[w], refs[l], lengths[w], lengths[l]))
    return _First(groups, facts, state)


def _main(groups: Sequence[list[Sample]]) -> list[list[Sample]]:
    """Without replay, which is held against nothing."""
    return [group for group in groups if group[0].part != REPLAY]


def _paired(groups: Sequence[list[Sample]]) -> Iterator[list[Sample]]:
    """Of each group with a pair, its first one, as a group of two."""
    for group in groups:
        better = next((s for s in group if s.beats), None)
        if better is not None:
            other = group[better.beats[0]]
            yield [replace(better, beats=[1], ties=[]), replace(other, beats=[], ties=[])]


def _ordered(groups: Sequence[list[Sample]]) -> Iterator[list[Sample]]:
    """The groups whose order costs ln K! at equal strengths: those with a pair, and without a tie of so many answers
    that pairs stand for its orders."""
    for group in groups:
        if any(s.beats for s in group) and max(Counter(s.label for s in group).values()) <= EXACT_TIE:
            yield [replace(s, beats=list(s.beats), ties=list(s.ties)) for s in group]


def _labelled(groups: Sequence[list[Sample]]) -> list[list[Sample]]:
    """The first good and the first bad samples, up to GATED_PAIRS of either, every one a group."""
    flat = [s for g in groups for s in g]
    picked = [s for label in (1.0, 0.0) for s in [s for s in flat if s.label == label][:GATED_PAIRS]]
    return [[replace(s, beats=[], ties=[], group=number)] for number, s in enumerate(picked)]
