"""Before the loss: the loop fills the streams that an algorithm needs on a step's samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from espalier.algorithms.online import PTX
from espalier.algorithms.traits import Algorithm, Traits
from espalier.engines.protocols import Group, Quantity, Roles, samples_of
from espalier.types import Sample

REPLAY = "replay"
"""Texts beside rows. Like those beside answers they are compared with nothing."""
ANSWERS = "main"
"""The part that a critic judges: given texts are none of the policy's answers."""


def annotate(
    groups: Sequence[Group],
    algorithm: Algorithm,
    roles: Roles,
    state: dict[str, float],
    *,
    silent: Sequence[Group] = (),
) -> dict[str, float]:
    """Fill in place the streams that an algorithm needs, then let it credit; returns its state for the loss and the
    next step.

    Mates, if the algorithm builds them, are built first and belong to no loss. `ref_logprobs` come from the reference,
    on mates too: a mate goes through the model beside the group whose number it has, so their prompt is computed once.
    `old_logprobs` come from the policy as it is, on mates in any case; `values` from the critic. All have one entry per
    token, on all samples but those of the parts `replay` and `ptx`; values on those of the part `main` alone. `credit`
    sees the groups, silent ones, then mates; `state` is not changed.

    Of an algorithm that is online, `old_logprobs` come with the stream `entropy`, from the same forward. If its `old`
    is the sampler they are what it drew with, as log-probabilities of the whole distribution: logprobs + log(mass). If
    `traits.needs` does not name them, the loss of a step's only update takes them from its own outputs.

    If the algorithm bootstraps, answers also get the stream `bootstrap`: 0, and at the last token of one that the
    length limit ended the critic's value behind it.

    Silent groups get no streams, since nothing runs them.

    Raises ValueError if a reference or critic is needed and there is none.
    """
    traits = algorithm.traits
    mates: Sequence[Group] = algorithm.mates(groups) if traits.mates else []
    if "ref_logprobs" in traits.needs:
        if roles.reference is None:
            raise ValueError("the algorithm needs ref_logprobs, and there is no reference; give the loop one")
        compared = _without_texts(_joined(groups, mates))
        if compared:
            for s, logprobs in zip(samples_of(compared), roles.reference.logprobs(compared), strict=True):
                s.streams["ref_logprobs"] = logprobs
    if "values" in traits.needs:
        _take_values([g for g in _of_part(groups, ANSWERS) if g], traits, roles)
    if traits.online is not None and "old_logprobs" in traits.needs and not says_old(traits):
        _take_the_samplers(_without_texts(groups))
    elif says_old(traits):
        scored = _without_texts(groups)
        if scored and not _says_all(traits, roles):
            for s, outputs in zip(samples_of(scored), roles.policy.say(scored, ["logprobs", "entropy"]), strict=True):
                s.streams["old_logprobs"], s.streams["entropy"] = outputs.logprobs, outputs.entropy
    else:
        # An algorithm that builds mates credits from what the policy says about them.
        scored = _without_texts(_joined(groups, mates) if "old_logprobs" in traits.needs else mates)
        if scored:
            for s, outputs in zip(samples_of(scored), roles.policy.say(scored, ["logprobs"]), strict=True):
                s.streams["old_logprobs"] = outputs.logprobs
    return {name: float(x) for name, x in algorithm.credit([*groups, *silent, *mates], dict(state)).items()}


def says_old(traits: Traits) -> bool:
    """Whether the learner says the old log-probabilities, and the entropy, before the first update of an online
    step."""
    return traits.online is not None and traits.online.old == "learner" and "old_logprobs" in traits.needs


def _says_all(traits: Traits, roles: Roles) -> bool:
    """Whether one forward says old log-probabilities, entropy and values: the critic shares the policy's backbone."""
    return says_old(traits) and "values" in traits.needs and roles.critic is roles.policy


def _take_values(groups: Sequence[Group], traits: Traits, roles: Roles) -> None:
    """Fill `values` and, if the algorithm bootstraps, `bootstrap`; with a shared backbone also what the policy says."""
    if roles.critic is None:
        raise ValueError("the algorithm needs values, and there is no critic; give the loop one")
    if not groups:
        return
    bootstraps = traits.online is not None and traits.online.bootstraps
    asked = [[_for_bootstrap(s) for s in g] for g in groups] if bootstraps else groups
    what: list[Quantity] = ["values"]
    if _says_all(traits, roles):
        what += ["logprobs", "entropy"]
    for s, outputs in zip(samples_of(groups), roles.critic.say(asked, what), strict=True):
        size = len(s.tokens)
        s.streams["values"] = outputs.values[:size]
        if bootstraps:
            # Behind its last token an answer that ended by itself is worth nothing.
            s.streams["bootstrap"] = [0.0] * (size - 1) + [*outputs.values[size:], 0.0][:1]
        if "logprobs" in what:
            s.streams["old_logprobs"], s.streams["entropy"] = outputs.logprobs[:size], outputs.entropy[:size]


def _for_bootstrap(s: Sample) -> Sample:
    """The sample without streams; a cut one with one more trained token, whichever: a value is read before it, which is
    behind the last one."""
    bare = replace(s, tokens=list(s.tokens), mask=list(s.mask), weights=list(s.weights), streams={})
    if s.stop == "length":
        bare.append(s.tokens[-1:], trained=True)
    return bare


def _of_part(groups: Sequence[Group], part: str) -> list[Group]:
    return [[s for s in g if s.part == part] for g in groups]


def _take_the_samplers(groups: Sequence[Group]) -> None:
    """Make the sampler's log-probabilities the old ones.

    It drew from what its filters kept of the distribution, `mass` of it, and divided by that; the policy's ratio is
    about the whole distribution.
    """
    for s in samples_of(groups):
        logprobs, mass = s.streams.get("logprobs"), s.streams.get("mass")
        if logprobs is None:
            raise ValueError(f"group {s.group}: old is the sampler, and a sample has no stream logprobs; expected one")
        if mass is not None:
            logprobs = [x + math.log(m) if t else x for x, m, t in zip(logprobs, mass, s.mask, strict=True)]
        s.streams["old_logprobs"] = list(logprobs)


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


def _without_texts(groups: Sequence[Group]) -> list[Group]:
    """The groups without given texts, and without those that this leaves empty."""
    kept = [[s for s in g if s.part not in (REPLAY, PTX)] for g in groups]
    return [g for g in kept if g]
