"""The start-up gates of preference runs, on the run's own first pairs: each stops it with the cause."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any, NamedTuple

import torch

from espalier import gates
from espalier.algorithms.dimensions import total_weights
from espalier.annotate import REPLAY, annotate
from espalier.before import Parts
from espalier.engines.learner import TorchLearner
from espalier.engines.protocols import Reference
from espalier.firstloss import PairFacts, expected_first_loss
from espalier.preflight import Check
from espalier.runs import RunConfig, reference_of
from espalier.train import loss_of
from espalier.types import Sample

GATED_PAIRS = 8
COUNTED_ROWS = 2000  # of a source, evenly spread
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-4, torch.bfloat16: 0.05}

Named = list[tuple[str, Callable[[], Check]]]


class _First(NamedTuple):
    """Some pairs of the first step: one pair a group, preferred sample first (or a good and a bad one)."""

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

    def preferences() -> Check:
        stats = gates.PreferenceStats()
        for store in p.opened.main:
            for name, count in store.stats.dropped.items():
                stats.dropped[name] = stats.dropped.get(name, 0) + count
            for i in range(0, len(store), max(1, len(store) // COUNTED_ROWS)):
                stats.add(store.group(i))
        check = gates.preferences(stats, traits.wants)
        rows = sum(map(len, p.opened.main))
        return check if stats.groups == rows else replace(check, value=f"of {rows:,} rows {check.value}")

    def held(reference: Reference, other: str) -> Check:
        found = first()
        groups = found.groups if found else _main(p.dataset.groups(0))[:GATED_PAIRS]
        ours = [said["logprobs"] for said in learner.forward(groups)]
        apart = gates.apart(ours, reference.logprobs(groups))
        if other and math.isfinite(apart):
            return Check(
                "reference", f"{apart:.1e} nats a token from the policy", f"any: it is {other}, as asked", "pass"
            )
        single = [[replace(s, beats=[], ties=[]) for s in g] for g in groups]  # scored one by one
        probe = gates.rounding(lambda g: [said["logprobs"] for said in learner.forward(g)], single)
        return gates.reference_equals_policy(apart, compute, probe)

    def loss() -> Check:
        found = first()
        if found is None:
            return Check("first_loss", "no pair in the first step", "", "skipped")
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
    pick = _labelled if traits.wants == "labels" else _paired
    groups = list(islice(pick(_main(p.dataset.groups(0))), GATED_PAIRS))
    if not groups:
        return None
    state = annotate(groups, config.algorithm, learner, reference, {})
    if traits.reads:
        weights = list(total_weights(getattr(config.algorithm, "dimensions", ())).values()) or [1.0]
        raw = learner.forwards.scores(groups)
        said = [sum(w * x for w, x in zip(weights, scores[0].tolist(), strict=True)) for scores in raw]
    else:
        said = [sum(found["logprobs"]) for found in learner.forward(groups)]
    flat = [s for g in groups for s in g]
    refs = [sum(s.streams.get("ref_logprobs", [])) for s in flat]
    lengths = [float(sum(s.mask[1:])) for s in flat]
    if traits.wants == "labels":  # good ones and bad ones, each alone in its group
        order = sorted(range(len(flat)), key=lambda i: -(flat[i].label or 0.0))
        half = len(flat) // 2
        places = list(zip(order[:half], order[half:], strict=True))
    else:
        places = [(i, i + 1) for i in range(0, len(flat), 2)]
    facts = [PairFacts(said[w], said[l], refs[w], refs[l], lengths[w], lengths[l]) for w, l in places]
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


def _labelled(groups: Sequence[list[Sample]]) -> Iterator[list[Sample]]:
    """Good and bad samples by turns, as many of each, every one a group."""
    flat: list[Any] = [s for g in groups for s in g]
    good, bad = ([s for s in flat if s.label == label] for label in (1.0, 0.0))
    for number, pair in enumerate(zip(good, bad, strict=False)):
        for side, s in enumerate(pair):
            yield [replace(s, beats=[], ties=[], group=2 * number + side)]
