"""From graded rollouts to their `advantages` streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from espalier.credit import advantages, shaping
from espalier.types import Sample

Group = list[Sample]


def drawn(groups: Sequence[Group]) -> list[Group]:
    """The groups that the policy drew itself (part `main`); given data stands in other parts."""
    kept = [[s for s in group if s.part == "main"] for group in groups]
    return [group for group in kept if group]


def score(s: Sample) -> float:
    """What the rewards say of a sample in all. Raises ValueError for one that is not graded."""
    if s.reward is None:
        raise ValueError(f"group {s.group}: a sample has no reward; grade it, or take it out before credit")
    return s.reward


def steps_of(group: Group) -> list[advantages.Steps]:
    """The scored steps of each sample; none if its rewards give no process rewards."""
    return [s.outcome.steps if s.outcome is not None else () for s in group]


def rewards_of(group: Group, scores: Sequence[float]) -> dict[str, tuple[float, list[float]]]:
    """Each reward's weight and what it gives every sample; see `advantages.part_scores`. Without named rewards, the
    scores themselves."""
    parts = [s.outcome.parts if s.outcome is not None else {} for s in group]
    return advantages.part_scores(parts, scores) or {"score": (1.0, list(scores))}


def flat(group: Group, *, each: bool = False) -> bool:
    """Whether nothing tells the samples of a group apart: all scores, and those of all steps, are exactly equal; with
    `each`, those of every reward instead of their sum."""
    scores = [score(s) for s in group]
    values = [x for _, x in rewards_of(group, scores).values()] if each else [scores]
    steps = [x for of_sample in steps_of(group) for _, x in of_sample]
    return advantages.equal(steps) and all(advantages.equal(x) for x in values)


def fill(groups: Sequence[Group], values: Sequence[Sequence[float]], *, scale_steps: bool = True) -> None:
    """Write the stream `advantages`: at each trained token its sample's value, plus the process advantage of its place
    in groups with scored steps (`advantages.of_steps`, divided by the std if `scale_steps`); 0 at other tokens."""
    for group, of_group in zip(groups, values, strict=True):
        steps = steps_of(group)
        scored = any(steps)
        lengths = [len(s) - shaping.response_start(s) for s in group]
        at = advantages.of_steps(steps, lengths, scale=scale_steps) if scored else [None] * len(group)
        for s, value, of_tokens in zip(group, of_group, at, strict=True):
            s.streams["advantages"] = shaping.spread(s, value, of_tokens)


def longest(state: Mapping[str, float]) -> float:
    """The most tokens that an answer may have, which the loop hands over as `max_tokens`. Raises ValueError if it does
    not."""
    if "max_tokens" not in state:
        raise ValueError("state has no max_tokens, the most tokens of an answer; give it to credit and to batches")
    return state["max_tokens"]
