"""The tasks of a run: which prompts a step draws, which take their place, and which are held out."""

from __future__ import annotations

from collections.abc import Iterator, Set
from itertools import accumulate

import numpy as np

from espalier.data.dataset import Opened, Selection
from espalier.data.plan import Plan, PlanSource
from espalier.data.store.store import Store
from espalier.errors import DataError
from espalier.types import Prompt


def shared_prompts(opened: Opened) -> int:
    """How many held-out prompts are trained on, too: the same tokens, in whichever source. None are if a share of each
    source is held out."""
    trained = [store.prompts[_numbers(store, chosen)] for store, chosen in zip(opened.main, opened.chosen, strict=True)]
    held = [store.prompts[_numbers(store, kept)] for store, kept in zip(opened.held_out, opened.kept_back, strict=True)]
    if not held:
        return 0
    return int(np.isin(np.concatenate(held), np.concatenate(trained)).sum())


def _numbers(store: Store, chosen: Selection) -> Selection | slice:
    return slice(None) if chosen is None else chosen


class TaskData:
    """Prompts by step: a function of (seed, step), equal on every rank.

    A task's `row` counts the groups of main stores in their order, then those of stores that are held out alone; so
    sources that are added behind the others leave rows as they are.

    prompts_per_step: 0 draws all prompts in each step (an epoch of them). epochs, steps: as in `Plan`.
    Raises DataError for a store of other examples, and what `Plan` raises.
    """

    def __init__(
        self, opened: Opened, *, seed: int, prompts_per_step: int, epochs: float = 1.0, steps: int = 0
    ) -> None:
        self.opened = opened
        for store in opened.all:
            if not store.holds_tasks:
                raise DataError(f"{store.path}: holds no tasks; expected prompts for the policy to answer")
        sources = []
        for store, source, groups in zip(opened.main, opened.sources, opened.chosen, strict=True):
            sources.append(PlanSource.of(store, source.proportion, groups))
        drawn = sum(len(source.lengths) for source in sources)
        self.plan = Plan(sources, seed=seed, samples_per_step=prompts_per_step or drawn, epochs=epochs, steps=steps)
        self.steps = self.plan.steps
        stores = [*opened.main, *(store for store in opened.held_out if store not in opened.main)]
        starts = [0, *accumulate(len(store) for store in stores)]
        self._starts = dict(zip(map(id, stores), starts, strict=False))

    @property
    def fingerprint(self) -> str:
        """sha256 of what decides the order of the tasks."""
        return self.plan.fingerprint

    def prompts(self, step: int) -> list[tuple[Prompt, int]]:
        """The prompts of a step (0 <= step < steps) in the order drawn, each with the pass over the tasks that draws
        it, from 0. A task stands in a step once for each pass. Raises IndexError outside that range."""
        prompts = []
        for (source, group), epoch in zip(self.plan.step(step), self.plan.passes(step), strict=True):
            prompts.append((self._prompt(self.opened.main[source], group), epoch))
        return prompts

    def refill(self, step: int, count: int, taken: Set[int]) -> list[tuple[Prompt, int]]:
        """Up to `count` further prompts for a step, none of the rows in `taken`, each with the epoch -1 - step.

        They stand in an order that follows from (seed, step) alone, so that a later wave, with the rows of the earlier
        ones in `taken`, goes on where those ended. Fewer than `count` if no more are left.
        """
        prompts: list[tuple[Prompt, int]] = []
        for source, group in self.plan.spares(step):
            if len(prompts) == count:
                break
            store = self.opened.main[source]
            if self._starts[id(store)] + group not in taken:
                prompts.append((self._prompt(store, group), -1 - step))
        return prompts

    def all(self) -> Iterator[Prompt]:
        """Every task that is drawn from, once, in the order of rows."""
        for store, chosen in zip(self.opened.main, self.opened.chosen, strict=True):
            numbers = range(len(store)) if chosen is None else chosen.tolist()
            for group in numbers:
                yield self._prompt(store, group)

    def held_out(self) -> list[Prompt]:
        """The held-out prompts, store by store in the order of their rows; none if nothing is held out."""
        prompts = []
        for store, kept in zip(self.opened.held_out, self.opened.kept_back, strict=True):
            numbers = range(len(store)) if kept is None else kept.tolist()
            prompts += [self._prompt(store, i) for i in numbers]
        return prompts

    def epoch_of(self, step: int) -> float:
        """Epochs drawn before `step`, refills aside."""
        return self.plan.epoch_of(step)

    def consumed(self, step: int) -> str:
        """sha256 of what the steps before `step` drew, in order, refills aside."""
        return self.plan.consumed(step)

    def _prompt(self, store: Store, group: int) -> Prompt:
        (sample,) = store.group(group)
        return Prompt(self._starts[id(store)] + group, sample.tokens, store.task(group))
