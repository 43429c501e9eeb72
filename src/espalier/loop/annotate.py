"""What an algorithm asks to be known before its loss: the loop fills the streams of a step's samples."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.algorithms.traits import Algorithm
from espalier.engines.protocols import Group, Learner, Reference
from espalier.types import Sample

REPLAY = "replay"  # the part that is held against nothing


def annotate(
    groups: Sequence[Group],
    algorithm: Algorithm,
    learner: Learner,
    reference: Reference | None,
    state: dict[str, float],
) -> dict[str, float]:
    """Fill in place what `algorithm.traits.needs`, then let it credit; returns its state for the loss and the next
    step.

    Mates, where the algorithm builds them, are built first and belong to no loss. `ref_logprobs` come from the
    reference, on mates too: a mate goes through the model beside the group whose number it has, so their prompt is
    computed once. `old_logprobs` come from the policy as it is, on mates in any case. Both have one entry a token, on
    all samples but those of the part `replay`. `credit` sees the groups, mates behind them; `state` is not changed.

    Raises ValueError where a reference is needed and there is none.
    """
    needs = algorithm.traits.needs
    mates: Sequence[Group] = algorithm.mates(groups) if algorithm.traits.mates else []
    if "ref_logprobs" in needs:
        if reference is None:
            raise ValueError("the algorithm needs ref_logprobs, and there is no reference; give the loop one")
        if wanted := _held(_joined(groups, mates)):
            for s, said in zip(_flat(wanted), reference.logprobs(wanted), strict=True):
                s.streams["ref_logprobs"] = said
    wanted = _held(_joined(groups, mates) if "old_logprobs" in needs else mates)
    if wanted:
        for s, outputs in zip(_flat(wanted), learner.say(wanted, ["logprobs"]), strict=True):
            s.streams["old_logprobs"] = outputs.logprobs
    return {name: float(x) for name, x in algorithm.credit([*groups, *mates], dict(state)).items()}


def _joined(groups: Sequence[Group], mates: Sequence[Group]) -> list[Group]:
    """The groups, each with the mates that have its number; mates of no group, or of several, stay by themselves."""
    numbers = [{s.group for s in g} for g in groups]
    places: dict[int, list[int]] = {}
    for place, found in enumerate(numbers):
        for number in found:
            places.setdefault(number, []).append(place)
    out = [list(g) for g in groups]
    for mate in mates:
        home = {tuple(places.get(s.group, ())) for s in mate}
        if len(home) == 1 and len(only := home.pop()) == 1:
            out[only[0]].extend(mate)
        else:
            out.append(list(mate))
    return out


def _held(groups: Sequence[Group]) -> list[Group]:
    """Without replay, and without groups that are empty then."""
    kept = [[s for s in g if s.part != REPLAY] for g in groups]
    return [g for g in kept if g]


def _flat(groups: Sequence[Group]) -> list[Sample]:
    return [s for g in groups for s in g]
