"""The online source: a step's groups are the policy's own answers to tasks, graded by rewards."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

from espalier.algorithms.traits import Algorithm
from espalier.config.rollout_sections import RolloutConfig
from espalier.engines.protocols import Graders, Group, Sampler, SamplingParams, Scorers, World, from_first, samples_of
from espalier.errors import EspalierError
from espalier.loop.answers import Answers, Posed, Report, Seconds
from espalier.loop.given import Given
from espalier.loop.journal import Journal
from espalier.loop.rolled import (
    Rolled,
    answers_of,
    causes,
    error_of,
    groups_of,
    length_of,
    numbers_of,
    scores_of,
    share_cut,
)
from espalier.loop.rollout_records import records
from espalier.loop.rules import Rules
from espalier.loop.signals import announcing
from espalier.outcomes import Fate
from espalier.types import Draw, Prompt

_SAVES = "saving the last finished step, then stopping"


class Tasks(Protocol):
    """The tasks of a run: functions of the step alone, the same on every rank."""

    @property
    def steps(self) -> int: ...

    def prompts(self, step: int) -> list[Posed]:
        """The tasks of a step, each with the epoch that keys its draws."""
        ...

    def refill(self, step: int, count: int, taken: set[int]) -> list[Posed]:
        """Up to `count` further tasks for a step, none with a row of `taken`; their epoch is -1 - step."""
        ...

    def held_out(self) -> list[Prompt]: ...

    def epoch_of(self, step: int) -> float: ...

    def consumed(self, step: int) -> str:
        """A digest of all rows of the steps before `step`, refills aside."""
        ...


class RolloutSource:
    """Draws answers to a step's tasks, has them graded, and decides the fate of each group.

    decode: ids to text, for samples.jsonl. interrupted: whether a stop was requested (`heed` replaces it). skip_checks:
    rules (`rules.CHECKS`) that are noted only. max_error_share: see `RewardsConfig`; None leaves errors uncounted.
    given: groups of other parts that a step trains on beside its answers. scorers: reward models, which score answers
    once these are graded.
    report: see `Answers`.

    The source is a function of (seed, step, weights) and of `state`, which a checkpoint holds.
    """

    def __init__(
        self,
        tasks: Tasks,
        sampler: Sampler,
        graders: Graders,
        algorithm: Algorithm,
        config: RolloutConfig,
        params: SamplingParams,
        world: World,
        journal: Journal | None,
        decode: Callable[[list[int]], str],
        interrupted: Callable[[], bool] = lambda: False,
        *,
        skip_checks: Collection[str] = (),
        max_error_share: float | None = None,
        given: Given | None = None,
        scorers: Scorers | None = None,
        report: Report = lambda what, graded, total: None,
    ):
        self.tasks, self.sampler, self.algorithm = tasks, sampler, algorithm
        self.config, self.params, self.decode = config, params, decode
        if algorithm.traits.online is None:
            raise ValueError("the algorithm does not learn from the policy's own answers; give it an offline source")
        self.online = algorithm.traits.online
        self.answers = Answers(sampler, graders, world, journal, interrupted, report)
        self.rules = Rules(
            refills=self.online.refills,
            across=self.online.least_group == 1,
            skip=skip_checks,
            max_error_share=max_error_share,
        )
        self.given, self.scorers = given, scorers
        self._step = -1
        self._rolled: list[Rolled] = []

    @property
    def steps(self) -> int:
        return self.tasks.steps

    # --------------------------------------------------------------------------------------------------------- draws

    def draw(self, step: int) -> Draw:
        """The answers to a step's tasks: groups that are kept, those that are silent, and the numbers of all.

        A group is complete when all its answers are graded. Answers that could not be graded leave it; one with fewer
        left than the algorithm needs is dropped whole, and of the others the algorithm decides. If it refills, dropped
        groups are replaced in waves: each draws as many tasks as are missing, none of this step again, and only when
        all of it is graded is the next decided. After `max_waves`, the step trains on what it has.

        Groups that are kept or silent are numbered from 0 in the order of their requests; a sample's key is the number
        of its line among the step's `records`. Raises Interrupted, on all ranks, if a stop is requested of one, and
        what `Rules.judge` raises.
        """
        rolled: list[Rolled] = []
        seconds = Seconds()
        scored: dict[str, float] = {}
        notes: list[str] = []
        posed, waves = self.tasks.prompts(step), 0
        while posed:
            rolled += self._wave(step, posed, seconds, scored)
            dropped = [group for group in rolled if group.fate == "drop"]
            if not self.online.refills or not dropped:
                break
            if waves == self.config.max_waves:
                notes.append(f"after {waves} waves of refills {_trains_on(rolled, len(dropped))}")
                break
            posed = self.tasks.refill(step, len(dropped), {group.prompt.row for group in rolled})
            if len(posed) < len(dropped):
                notes.append(f"the data has no further tasks to refill with: {_trains_on(rolled, len(dropped))}")
            waves += bool(posed)
            for group in dropped[: len(posed)]:
                group.fate = "refilled"
        self._step, self._rolled = step, rolled
        notes += self._losses()
        # Ranks have met other tasks, and must come to one verdict.
        notes += self.rules.judge(rolled, from_first(self.answers.graders.best, self.answers.world))
        kept, silent = list(groups_of(rolled, "keep")), list(groups_of(rolled, "silent"))
        given = self.given.take(step, kept) if self.given else []
        self._number(given)
        numbers = {**numbers_of(rolled, seconds, waves), **scored}
        return Draw([*kept, *given], silent, numbers, notes)

    def _wave(self, step: int, posed: list[Posed], seconds: Seconds, scored: dict[str, float]) -> list[Rolled]:
        with announcing(f"step {step + 1} is left out if answers are missing; {_SAVES}"):
            groups, spent = self.answers.answer(step, posed, self.params, self.config.group_size)
        seconds.add(spent)
        for name, number in self._score(groups).items():
            scored[name] = scored.get(name, 0) + number
        rolled = [Rolled(prompt, epoch, group) for (prompt, epoch), group in zip(posed, groups, strict=True)]
        for group in rolled:
            group.fate = self._fate(group)
        return rolled

    def _score(self, groups: list[Group]) -> dict[str, float]:
        """Let the reward models add their scores.

        seconds_reward_model: that took. reward_cut: answers that were scored without an end.
        """
        if self.scorers is None:
            return {}
        began = time.perf_counter()
        cut = self.scorers.add(groups)
        return {"reward_cut": cut, "seconds_reward_model": time.perf_counter() - began}

    def _fate(self, group: Rolled) -> Fate:
        graded = group.graded
        return self.algorithm.keep(graded) if len(graded) >= max(1, self.online.least_group) else "drop"

    def _number(self, given: list[Group]) -> None:
        """Give groups and samples the numbers by which they are told apart."""
        number = key = 0
        for rolled in self._rolled:
            for s in rolled.answers:
                s.group, s.key, key = number, key, key + 1
            number += rolled.fate in ("keep", "silent")
        for group in given:
            for s in group:
                s.group, s.key, key = number, key, key + 1
            number += 1

    def _losses(self) -> list[str]:
        """Lines about answers without an outcome."""
        answers = answers_of(self._rolled)
        errors = sum(bool(error_of(s)) for s in answers)
        if not errors:
            return []
        line = f"{errors} of {len(answers)} answers could not be graded and left their groups: {causes(answers)}"
        least = max(1, self.online.least_group)
        small = sum(len(group.graded) < least for group in self._rolled)
        if small:
            line += f"; {small} groups had fewer than {least} left, and were dropped"
        return [line]

    # --------------------------------------------------------------------------------------------------- held-out tasks

    def evaluate(self, roles: Any, algorithm: Algorithm, state: dict[str, float]) -> dict[str, float]:
        """Numbers of answers to held-out tasks, empty without any: the greedy one of each, or `eval_samples` drawn at
        the run's temperature from random numbers of their own, the same at every evaluation.

        eval_score: mean score of the graded answers. eval_reward_NAME, eval_invalid, eval_errors, eval_length,
        eval_cut: as in a step; see `numbers_of`. Raises EspalierError if no answer could be graded.
        """
        prompts = self.tasks.held_out()
        if not prompts:
            return {}
        count = self.config.eval_samples
        params = replace(self.params, temperature=0.0) if not count else replace(self.params, seed=self._other_seed())
        posed = [(prompt, 0) for prompt in prompts]
        with announcing(f"this evaluation is left out if answers are missing; {_SAVES}"):
            groups, _ = self.answers.answer(self.rules.rollouts, posed, params, count or 1, held_out=True)
        self._score(groups)
        answers = samples_of(groups)
        errors = sum(bool(error_of(s)) for s in answers)
        if errors == len(answers):
            raise EspalierError(
                f"none of {errors} answers to held-out tasks could be graded: {causes(answers)}. Repair the reward, "
                "then continue with --resume"
            )
        scores = {f"eval_{name}": value for name, value in scores_of(answers).items()}
        lengths = [length_of(s) for s in answers]
        return {
            "eval_score": scores.pop("eval_reward"),
            **scores,
            "eval_errors": errors,
            "eval_length": sum(lengths) / len(lengths),
            "eval_cut": share_cut(answers),
        }

    def _other_seed(self) -> int:
        """A seed of its own for evaluations, a function of the run's."""
        return int.from_bytes(hashlib.sha256(f"held-out {self.params.seed}".encode()).digest()[:7], "big")

    # ------------------------------------------------------------------------------------------------------- the loop

    def moved(self, version: int) -> None:
        """The policy has new weights; answers drawn from now on carry `version`."""
        self.sampler.load(None, version)

    def heed(self, requested: Callable[[], bool]) -> None:
        """Ask `requested` whether a stop was requested."""
        self.answers.interrupted = requested
        self.sampler.interrupted = requested

    def records(self, step: int) -> list[dict[str, Any]]:
        """The lines of samples.jsonl about the last draw, with what its update put into the streams.

        Raises ValueError for another step."""
        if step != self._step:
            raise ValueError(f"got records of step {step}, but the last draw was step {self._step}")
        return list(records(step + 1, self._rolled, self.decode, frozenset(self.params.stop)))

    def state(self) -> dict[str, int]:
        """Counts that a checkpoint must hold, as after the last draw."""
        return {**self.rules.counts(), **(self.given.state() if self.given else {})}

    def restore(self, counts: Mapping[str, int]) -> None:
        """Take what `state` returned."""
        if self.given is not None:
            self.given.restore(counts)
        self.rules.restore(counts)

    def epoch_of(self, step: int) -> float:
        return self.tasks.epoch_of(step)

    def consumed(self, step: int) -> str:
        return self.tasks.consumed(step)


def _trains_on(rolled: list[Rolled], missing: int) -> str:
    left = sum(group.fate in ("keep", "silent") for group in rolled)
    return f"{missing} groups are missing, and the step trains on {left}"
