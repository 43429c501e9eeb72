"""`espalier rollout`: what a model answers to tasks, and what the rewards say of it, before anybody trains."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier import __version__
from espalier.assembly.rollout_run import RolloutRun
from espalier.commands import rollout_text as text
from espalier.commands.rollout_folder import RolloutFolder
from espalier.config.options import flat
from espalier.config.rollout_sections import RolloutConfig, SurveyConfig
from espalier.engines.protocols import SamplingParams, Scorers, World, from_first, together
from espalier.errors import ConfigError
from espalier.loop.answers import Answers, Posed, Seconds
from espalier.loop.progress import Progress
from espalier.loop.rolled import Rolled
from espalier.loop.rollout_records import records
from espalier.loop.signals import Interrupted, Stopper
from espalier.types import Prompt
from espalier.workbench.bootstrap import Resampling
from espalier.workbench.rollouts import answer_of, summary

FREE = ("out", "overwrite", "show", "right", "tasks", "cache", "reward_workers", "grade_answers", "regrade")
"""Keys that change no answer and no grade, or are pinned by their effect."""
STOPS = "answers in flight are given up, those in samples.jsonl stay, and the same command goes on"
"""What a stop signal leads to."""


def run(config: RolloutRun) -> int:
    """Answer and grade, or only grade; 1 if some of the data's own answers do not get full marks."""
    if config.survey.grade_answers:
        from espalier.commands.grade_text import grade_answers

        return grade_answers(config)
    if config.survey.regrade:
        from espalier.commands.regrade import regrade

        regrade(config)
        return 0
    _sample(config)
    return 0


def _sample(config: RolloutRun) -> None:
    from espalier.assembly.describe import describe_data
    from espalier.assembly.pins import pins
    from espalier.assembly.rollouts import decoder
    from espalier.assembly.session import open_session
    from espalier.data.store.report import write_rejected

    with open_session(config) as session, Stopper(STOPS) as stopper:
        rollouts, console = session.rollouts, session.console
        if rollouts is None:
            raise ValueError("got a session without rollouts; expected one that answers tasks")
        describe_data(session)
        graded = Counter[str]()
        for store in session.opened.all:
            graded.update(store.stats.graded_by)
        for line in (
            *(f"graded by {names}: {count:,} tasks" for names, count in sorted(graded.items())),
            *rollouts.plan.lines(rollouts.graders.pool.notes),
            *(rollouts.scorers.lines() if rollouts.scorers is not None else ()),
            *session.model.notes,
            rollouts.sampling.note,
        ):
            console.note(line)
        settings = {name: value for name, value in flat(config).items() if name not in FREE}
        follows = {**pins(session), "settings": settings, "tasks": config.survey.tasks, "version": __version__}
        world = session.processes

        def report(what: str, graded: int, total: int) -> None:
            console.answers("tasks", graded, total)

        answers = Answers(rollouts.sampler, rollouts.graders, world, None, lambda: stopper.requested, report)
        rollouts.sampler.interrupted = answers.interrupted
        survey = Survey(
            config.survey, config.rollout, answers, rollouts.params, decoder(session), world, console, rollouts.scorers
        )
        survey.run(chosen(list(session.tasks.all()), config.survey.tasks, config.survey.seed), follows)
        if session.main and any(store.stats.rejected for store in session.opened.all):
            write_rejected(session.opened.all, Path(config.survey.out) / "rejected.jsonl")


def chosen(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` of the prompts (all if 0), in their order."""
    if not count or count >= len(prompts):
        return list(prompts)
    return [prompts[i] for i in sorted(random.Random(seed).sample(range(len(prompts)), count))]


@dataclass(slots=True)
class Survey:
    """Answers to tasks, some tasks at a time, and the figures of all."""

    config: SurveyConfig
    rollout: RolloutConfig
    answers: Answers
    params: SamplingParams
    decode: Callable[[list[int]], str]
    world: World
    console: Progress
    scorers: Scorers | None = None

    def run(self, prompts: Sequence[Prompt], follows: dict[str, Any]) -> dict[str, Any]:
        """Answer all prompts, print the figures and write them; returns them.

        Raises KeyboardInterrupt, once what was drawn is safe, if a stop was requested.
        """
        config, rollout = self.config, self.rollout
        folder = RolloutFolder(Path(config.out))
        # Greedy answers to a prompt are all the same.
        count = rollout.group_size if rollout.temperature else 1
        chunks = _chunks(prompts, rollout.prompts_per_step)
        sizes = [len(chunk) * count for chunk in chunks]
        opened = together(
            lambda: 0 if self.world.rank else folder.open(follows, sizes, overwrite=config.overwrite),
            f"{config.out} was not opened",
            self.world,
            ConfigError,
        )
        done = from_first(opened, self.world)
        if done:
            self.console.note(f"goes on with {folder.samples}: {sum(map(len, chunks[:done])):,} tasks are answered")
        for prompt in prompts:
            # What the best score is depends on who grades which tasks.
            self.answers.graders.grades(prompt.task)
        seconds, tokens = self._answer(chunks, done, count, folder)
        best = from_first(self.answers.graders.best, self.world)
        if self.world.rank != 0:
            return {}
        figures = summary((answer_of(line) for line in folder.lines()), config.right or best, Resampling(config.seed))
        if seconds:
            figures["tokens_per_second"] = tokens / seconds
        folder.finish(figures)
        text.show_answers(self.console, folder.lines(), config.show)
        text.show(self.console, figures)
        self.console.note(f"{folder.samples} has all answers, {folder.summary} the figures")
        return figures

    def _answer(
        self, chunks: Sequence[Sequence[Prompt]], done: int, count: int, folder: RolloutFolder
    ) -> tuple[float, int]:
        """Answer the chunks after the first `done`; returns the seconds of sampling and the tokens drawn."""
        shown = self.console.reading("tasks answered")
        spent, tokens = Seconds(), 0
        tasks = sum(map(len, chunks[:done]))
        for chunk in chunks[done:]:
            posed: list[Posed] = [(prompt, 0) for prompt in chunk]
            try:
                groups, seconds = self.answers.answer(0, posed, self.params, count)
            except Interrupted:
                raise KeyboardInterrupt(
                    f"{tasks:,} tasks are answered in {folder.samples}; the same command goes on"
                ) from None
            if self.scorers is not None:
                self.scorers.add(groups)
            spent.add(seconds)
            tasks += len(chunk)
            rolled = [Rolled(prompt, 0, group) for prompt, group in zip(chunk, groups, strict=True)]
            lines = list(records(0, rolled, self.decode, frozenset(self.params.stop)))
            tokens += sum(line["length"] for line in lines)
            if self.world.rank == 0:
                folder.add(lines)
            shown("rollout", tasks)
        return spent.sample, tokens


def _chunks(prompts: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    size = size or max(1, len(prompts))
    return [prompts[i : i + size] for i in range(0, len(prompts), size)]
