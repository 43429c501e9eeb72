"""Before the loss: the loop fills the streams that an algorithm needs on a step's samples."""

from __future__ import annotations

from collections.abc import Sequence

from espalier.algorithms.traits import Algorithm
from espalier.engines.protocols import Group, Learner, Reference, samples_of

REPLAY = "replay"
"""The part that is not compared with a reference."""


def annotate(
    groups: Sequence[Group],
    algorithm: Algorithm,
    learner: Learner,
    reference: Reference | None,
    state: dict[str, float],
) -> dict[str, float]:
    """Fill in place the streams that `algorithm.traits.needs` lists, then let it credit; returns its state for the loss
    and the next step.

    Mates, if the algorithm builds them, are built first and belong to no loss. `ref_logprobs` come from the reference,
    on mates too: a mate goes through the model beside the group whose number it has, so their prompt is computed once.
    `old_logprobs` come from the policy as it is, on mates in any case. Both have one entry per token, on all samples
    but those of the part `replay`. `credit` sees the groups, mates behind them; `state` is not changed.

    Raises ValueError if a reference is needed and there is none.
    """
    needs = algorithm.traits.needs
    mates: Sequence[Group] = algorithm.mates(groups) if algorithm.traits.mates else []
    if "ref_logprobs" in needs:
        if reference is None:
            raise ValueError("the algorithm needs ref_logprobs, and there is no reference; give the loop one")
        compared = _without_replay(_joined(groups, mates))
        if compared:
            for s, logprobs in zip(samples_of(compared), reference.logprobs(compared), strict=True):
                s.streams["ref_logprobs"] = logprobs
    # An algorithm that builds mates credits from what the policy says about them.
    scored = _without_replay(_joined(groups, mates) if "old_logprobs" in needs else mates)
    if scored:
        for s, outputs in zip(samples_of(scored), learner.say(scored, ["logprobs"]), strict=True):
            s.streams["old_logprobs"] = outputs.logprobs
    return {name: float(x) for name, x in algorithm.credit([*groups, *mates], dict(state)).items()}


def _joined(groups: Sequence[Group], mates: Sequence[Group]) -> list[Group]:
    """The groups, each with the mates that have its number; mates of no group, or of several, stay by themselves."""
    numbers = [{s.group for s in g} for g in groups]
    places: dict[int, list[int]] = {}
    for place, of_group in enumerate(numbers):
        for number in of_group:
            places.setdefault(number, []).append(place)
    joined = [list(g) for g in groups]
    for mate in mates:
        homes = {tuple(places.get(s.group, ())) for s in mate}
        home = homes.pop() if len(homes) == 1 else ()
        if len(home) == 1:
            joined[home[0]].extend(mate)
        else:
            joined.append(list(mate))
    return joined


def _without_replay(groups: Sequence[Group]) -> list[Group]:
    """The groups without replay samples, and without those that this leaves empty."""
    kept = [[s for s in g if s.part != REPLAY] for g in groups]
    return [g for g in kept if g]
