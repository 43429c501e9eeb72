"""Which rewards grade which task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from espalier.rewards.combine import Component
from espalier.rewards.reward import Reward

if TYPE_CHECKING:
    from espalier.types import Task


@dataclass(frozen=True, slots=True)
class Entry:
    """One reward of a run: its part in the score, its settings, and its entry of the catalogue (None: a user's)."""

    component: Component
    settings: Mapping[str, object] = field(default_factory=dict)
    reward: Reward | None = None

    @property
    def name(self) -> str:
        return self.component.name

    def lacks(self, task: Task) -> tuple[str, ...]:
        """What of a task is missing for it; a user's function says so itself, with None."""
        return () if self.reward is None else self.reward.lacks(task, self.settings)

    def general(self) -> bool:
        """Whether it needs nothing of a task."""
        return self.reward is None or not self.reward.open_needs(self.settings)


@dataclass(frozen=True, slots=True)
class Grading:
    """Who grades what: a task that names a verifier by that one, and by the rewards that need nothing of a task; every
    other task by all rewards that lack nothing of it. `added` are verifiers that the run did not list: they grade the
    tasks that name them and no others. `scored`: reward models score every answer, so that no task is refused; a
    verifier that is missing or lacks something is then left out."""

    entries: tuple[Entry, ...]
    added: frozenset[str] = frozenset()
    scored: bool = False

    def grades(self, task: Task) -> tuple[str, ...]:
        """The names of the rewards that grade a task, in the order of the run's list; empty if none does, or if the
        verifier lacks something."""
        if self.refusal(task):
            return ()
        names = []
        for entry in self._listed(task):
            wanted = entry.name == task.verifier or entry.general() if task.verifier else True
            if wanted and not entry.lacks(task):
                names.append(entry.name)
        return tuple(names)

    def refusal(self, task: Task) -> str:
        """Why nobody grades a task; empty if a reward does."""
        if self.scored:
            return ""
        entries = self._listed(task)
        if task.verifier:
            for entry in entries:
                if entry.name == task.verifier:
                    needs = ", ".join(entry.lacks(task))
                    return f"its verifier {entry.name} needs {needs}, which it does not have" if needs else ""
            return f"its verifier {task.verifier} is not among the rewards ({', '.join(e.name for e in entries)})"
        needs_of = {entry.name: entry.lacks(task) for entry in entries}
        if not needs_of:
            return "it names no verifier, and the run has no reward"
        if all(needs_of.values()):
            return "no reward grades it: " + ", ".join(
                f"{name} needs {' and '.join(n)}" for name, n in needs_of.items()
            )
        return ""

    def components(self, names: Sequence[str]) -> list[Component]:
        """The parts of these rewards in the score, in the order of the run's list."""
        return [entry.component for entry in self.entries if entry.name in names]

    def _listed(self, task: Task) -> list[Entry]:
        return [entry for entry in self.entries if entry.name not in self.added or entry.name == task.verifier]
