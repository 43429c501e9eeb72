"""Checks of preference runs on their own first pairs: the reference is the policy, and the first loss is the right one.

If the reference is the policy as it starts, every log-ratio is 0 and the first loss is a known number; if there is
none, the first loss follows from the log-probabilities by arithmetic. `first_loss` compares the loss with
`firstloss.expected_first_loss`, which is written without the losses.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

from espalier.checks.firstloss import PairFacts, expected_first_loss
from espalier.checks.model import LAYOUT_LIMIT
from espalier.checks.table import Outcome, failed, passed, skipped
from espalier.loop.annotate import REPLAY, annotate
from espalier.types import Sample

if TYPE_CHECKING:
    from espalier.assembly.session import Session
    from espalier.checks.evidence import Evidence

CHECKED_PAIRS = 8
REFERENCE_LIMIT = {"float64": 1e-10, "float32": 1e-5}
"""Nats a token by dtype; half precision has no fixed limit."""
TOLERANCE = {"float64": 1e-8, "float32": 2e-4, "bfloat16": 0.05}
"""What rounding explains of the first loss, by dtype, relative above 1."""

Groups = Sequence[list[Sample]]


class FirstPairs(NamedTuple):
    """Some of the first step: a pair a group, preferred sample first, whole orders, or single good and bad answers.

    `facts` hold one pair for every answer that none beats, or one answer with its other side of length 0; `state` is
    the algorithm's after it has seen the groups.
    """

    groups: list[list[Sample]]
    facts: list[PairFacts]
    state: dict[str, float]


# ----------------------------------------------------------------------------------------------------------- reference


def check_reference(evidence: Evidence) -> Outcome:
    """The reference's log-probabilities of the first pairs against the policy's."""
    session, learner = evidence.session, evidence.session.learner
    assert session.reference is not None
    groups = evidence.pairs.groups if evidence.pairs else _without_replay(session.dataset.groups(0))[:CHECKED_PAIRS]

    def logprobs(groups: Groups) -> list[list[float]]:
        return [outputs.logprobs for outputs in learner.say(groups, ["logprobs"])]

    difference = apart(logprobs(groups), session.reference.logprobs(groups))
    other = session.config.reference.reference_model
    if other and math.isfinite(difference):
        return passed(f"{difference:.1e} nats a token from the policy", f"any: it is {other}, as asked")
    single = [[replace(s, beats=[], ties=[]) for s in group] for group in groups]  # scored one by one
    dtype = str(session.model.compute).removeprefix("torch.")
    return reference_equals_policy(difference, dtype, rounding(logprobs, single))


def rounding(logprobs: Callable[[Groups], list[list[float]]], groups: Groups) -> float:
    """The largest difference, in nats a token, between log-probabilities of the same policy under two packings: all
    groups together, and every sample alone. What is seen here is rounding, and no reference can do better.

    `logprobs` takes groups and returns a list for every sample, in order.
    """
    alone: list[list[float]] = []
    for group in groups:
        for s in group:
            alone += logprobs([[s]])
    return apart(logprobs(groups), alone)


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


def reference_equals_policy(difference: float, dtype: str, probe: float = 0.0) -> Outcome:
    """The reference's log-probabilities against those of the policy before its first step, in nats a token.

    The limit is the largest of 1e-5 in float32 (1e-10 in float64; nothing fixed in half precision) and 2 * probe, at
    most `model.LAYOUT_LIMIT`. `probe` is `rounding`, measured on the same model: bfloat16 rounds by 0.01 to 0.1 nats a
    token between two packings, and a long row in float32 by more than 1e-5. A reference that runs in the policy's own
    packing differs by exactly 0.
    """
    cap = LAYOUT_LIMIT.get(dtype, 0.25)
    bound = min(cap, max(REFERENCE_LIMIT.get(dtype, 0.0), 2 * probe))
    why = f"{dtype}; another packing of the policy changes {probe:.1e}" if probe else dtype
    value, limit = f"{difference:.1e} nats a token from the policy", f"<= {bound:.1e} ({why})"
    if difference <= bound:
        return passed(value, limit)
    return failed(
        value,
        limit,
        "The reference is not the policy as it starts: another model, another dtype, dropout that is on, or adapters "
        "that are not switched off. Leave reference_model empty, or name the model that the policy was trained from.",
    )


# ---------------------------------------------------------------------------------------------------------- first loss


def check_first_loss(evidence: Evidence) -> Outcome:
    """The loss of the first pairs against what arithmetic gives."""
    session, pairs = evidence.session, evidence.pairs
    labels = session.traits.wants == "labels"
    if pairs is None:
        return skipped(f"no {'label' if labels else 'pair'} in the first step")
    value = 0.0
    for term in session.learner.measure(pairs.groups, session.config.algorithm.loss, pairs.state).values():
        if term.coef and term.total:
            value += term.coef * term.sum / term.total
    sizes = None if labels else [len(group) for group in pairs.groups]
    moving = pairs.state.get("delta", pairs.state.get("kl", 0.0))
    try:
        expected = expected_first_loss(session.config.algorithm, pairs.facts, sizes=sizes, moving=moving)
    except (OverflowError, ValueError):  # weights that are not finite: the check `loss` says so
        expected = None
    dtype = str(session.model.compute).removeprefix("torch.")
    tolerance = TOLERANCE[dtype] * max(1.0, abs(expected or 0.0))
    return first_loss(value, expected, tolerance, session.config.command)


def first_loss(value: float, expected: float | None, tolerance: float, name: str) -> Outcome:
    """The first step's loss, or another number of it such as its margin, against what it must be.

    expected: from `firstloss.expected_first_loss`; None skips the check: pairs alone do not say it. tolerance: the
    absolute difference that rounding explains.
    """
    shown = f"{name} {value:.6f}"
    if expected is None:
        return skipped(shown, "follows from more than the pairs")
    limit = f"{expected:.6f} ± {tolerance:.0e}"
    if abs(value - expected) <= tolerance:  # false for nan
        return passed(shown, limit)
    return failed(
        shown,
        limit,
        "The loss is not that of these pairs: reference and policy disagree, chosen and rejected are swapped, or "
        "tokens are counted wrongly. Look at the pairs with `espalier inspect`.",
    )


# --------------------------------------------------------------------------------------------------------- first pairs


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
    groups = _without_replay(session.dataset.groups(0))
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


def _without_replay(groups: Groups) -> list[list[Sample]]:
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
