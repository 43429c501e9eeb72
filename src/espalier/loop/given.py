"""Given data that an online step trains on beside its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from espalier.engines.protocols import Group, samples_of


class Given(Protocol):
    """Groups of other parts than `main`: a function of the step, the answers and `state`."""

    def take(self, step: int, answers: Sequence[Group]) -> list[Group]:
        """The groups that stand beside these answers."""
        ...

    def state(self) -> dict[str, int]:
        """Counts that a checkpoint must hold."""
        ...

    def restore(self, counts: Mapping[str, int]) -> None:
        """Take what `state` returned."""
        ...


class GivenSteps:
    """As many groups in each step, whatever its answers: `groups(step)`."""

    def __init__(self, groups: Callable[[int], list[Group]]):
        self.groups = groups

    def take(self, step: int, answers: Sequence[Group]) -> list[Group]:
        return self.groups(step)

    def state(self) -> dict[str, int]:
        return {}

    def restore(self, counts: Mapping[str, int]) -> None:
        pass


class Ptx:
    """Groups in a fixed order, `groups(n)` being the n-th, of which each step takes as many as it takes for `share` of
    its trained tokens to be theirs, and at least one for each of its minibatches."""

    def __init__(self, groups: Callable[[int], list[Group]], share: float, minibatches: int):
        self.groups, self.share, self.minibatches = groups, share, minibatches
        self.taken = 0

    def take(self, step: int, answers: Sequence[Group]) -> list[Group]:
        """None beside no answers."""
        wanted = trained(answers) * self.share / (1 - self.share)
        groups: list[Group] = []
        while answers and (len(groups) < self.minibatches or trained(groups) < wanted):
            groups += self.groups(self.taken)
            self.taken += 1
        return groups

    def state(self) -> dict[str, int]:
        return {"given": self.taken}

    def restore(self, counts: Mapping[str, int]) -> None:
        self.taken = counts.get("given", 0)


def trained(groups: Sequence[Group]) -> int:
    """Tokens that may be trained on."""
    return sum(sum(s.mask[1:]) for s in samples_of(groups))
