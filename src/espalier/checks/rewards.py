"""Checks of graders before the first step: known answers, the data's own answers, and answers that say nothing.

A grader that takes a right answer for a wrong one, or an empty one for a right one, trains exactly that, and the reward
rises all the same. Built-in rewards are held to what they declare; of a user's function nothing is known but that it
must not give full marks, with all others, to an answer without content.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from espalier.checks.table import Outcome, failed, passed, skipped, warned
from espalier.outcomes import Outcome as Grade
from espalier.rewards.build import Plan
from espalier.rewards.combine import best_score
from espalier.rewards.graders import WorkerGraders, answer_of
from espalier.rewards.grading import Entry
from espalier.rewards.pool import Job, Pool, Spec
from espalier.rewards.results import OWN, Result
from espalier.rewards.reward import Answer, Known, Reward
from espalier.types import Task

MOST = 64  # tasks whose golds are graded, for each reward
FEW = 8  # tasks for which all rewards together grade answers without content: a user's reward may be slow
ROUNDING = 1e-9
NO_RULE = "reward models grade alone"

Encode = Callable[[str], Sequence[int]]

FORMS = ("#### ", r"\boxed{}", "The answer is", "<think></think><answer></answer>", "```\n\n```", "{}")
"""Forms of answers without any content."""
CHANCE = 1 / 3
"""Share of tasks up to which a prompt, or the answer to another task, may be right by chance: of three choices, one."""


def check_rewards(
    plan: Plan, graders: WorkerGraders, tasks: Sequence[Task], encode: Encode | None = None
) -> dict[str, Outcome]:
    """All checks of this module by name.

    plan, graders: the run's rewards, and the same started. tasks: the run's tasks. encode: the ids of a text, with the
    stop token behind them, for rewards that count tokens.
    """
    return {
        "known_answers": check_known_answers(plan),
        "golds": check_golds(graders, tasks),
        "empty_answers": check_empty_answers(graders, tasks, encode),
    }


# ------------------------------------------------------------------------------------------------------ known answers


def check_known_answers(plan: Plan) -> Outcome:
    """Every built-in reward of the run gives its own known answers the scores that it declares, in a worker process."""
    rewards = [entry.reward for entry in plan.entries if entry.reward is not None]
    others = [entry.name for entry in plan.entries if entry.reward is None]
    limit = "as declared"
    cases = [(reward, known) for reward in rewards for known in reward.known]
    if not cases:
        return skipped(f"no known answers: {', '.join(others) or NO_RULE}", limit)
    for (reward, known), result in zip(cases, _graded_known(cases, plan), strict=True):
        given = _given(result)
        if not _equal(given, known.score):
            return failed(
                f"{reward.name} gives {given!r} to its known answer {_short(known.response)}, declared {known.score!r}",
                limit,
                f"{reward.name} does not work here; a library that it uses may have changed.",
            )
    value = f"{len(cases)} of {len(cases)}: {', '.join(reward.name for reward in rewards)}"
    return passed(f"{value}; unchecked: {', '.join(others)}" if others else value, limit)


def _graded_known(cases: Sequence[tuple[Reward, Known]], plan: Plan) -> list[Result]:
    """What the rewards give to their known answers, each under the settings that it is known for."""
    specs: dict[tuple[str, str], Spec] = {}
    jobs: list[Job] = []
    for number, (reward, known) in enumerate(cases):
        settings = {key: setting.default for key, setting in reward.settings.items()} | dict(known.settings)
        place = (reward.name, repr(sorted(settings.items())))
        if place not in specs:
            specs[place] = Spec(f"{reward.name} {len(specs)}", settings, of=reward.name)
        answer = Answer(known.prompt, known.response, answer=known.answer, facts=known.facts, stop=known.stop)
        jobs.append(Job(number, specs[place].name, {part.name: getattr(answer, part.name) for part in fields(Answer)}))
    pool = Pool(tuple(specs.values()), timeout=plan.timeout, workers=1, memory=plan.memory)
    pool.start()
    try:
        for job in jobs:
            pool.submit(job)
        results: dict[int, Result] = {}
        while len(results) < len(jobs):
            results.update({ticket: result for ticket, _, result in pool.results(wait=True)})
    finally:
        pool.close()
    return [results[number] for number in range(len(jobs))]


def _given(result: Result) -> float | str | Mapping[str, float] | None:
    """What a reward gave, in the form in which known answers are declared."""
    if result.error:
        return f"error: {result.error}"
    if result.invalid:
        return "invalid"
    if set(result.scores) == {OWN}:
        return result.scores[OWN]
    return dict(result.scores) or None


def _equal(given: object, declared: object) -> bool:
    if isinstance(given, float) and isinstance(declared, (int, float)):
        return abs(given - declared) <= ROUNDING
    return given == declared


# --------------------------------------------------------------------------------------------------- the data's golds


def check_golds(graders: WorkerGraders, tasks: Sequence[Task], most: int = MOST) -> Outcome:
    """Each reward that reads `answer` gives its best score to the data's own answers, of at most 64 tasks spread evenly
    over those that it grades. Rewards without a gold, and gates, are named as unchecked."""
    limit = "the best score"
    values, unchecked = [], []
    for entry in graders.grading.entries:
        gold, best = _gold(entry)
        if gold is None or best is None:
            unchecked.append(f"{entry.name} (gate)" if entry.component.gate else entry.name)
            continue
        chosen = _spread([task for task in tasks if entry.name in graders.grading.grades(task)], most)
        if not chosen:
            unchecked.append(f"{entry.name} (grades no task)")
            continue
        faults = _faults(graders, entry, chosen, gold, best)
        if faults:
            value = f"{faults[0]}; {len(faults)} of {len(chosen)} tasks fail"
            return failed(value, f"the best score, {best:g}, for each", _GOLD_WAY_OUT)
        values.append(f"{entry.name} {len(chosen)} of {len(chosen)}")
    if not values:
        return skipped(f"unchecked: {', '.join(unchecked) or NO_RULE}", limit)
    return passed("; ".join([*values, *([f"unchecked: {', '.join(unchecked)}"] if unchecked else [])]), limit)


_GOLD_WAY_OUT = (
    "Correct these rows, give a reward that reads such answers, or let the rows name another verifier; "
    "`espalier rollout --grade-answers` writes down all that fail."
)


def _faults(
    graders: WorkerGraders, entry: Entry, tasks: Sequence[Task], gold: Callable[[Task], str], best: float
) -> list[str]:
    """A text about each task whose own answer does not get the best score, in the order of the tasks."""
    faults: dict[int, str] = {}
    texts: dict[int, str] = {}
    for number, task in enumerate(tasks):
        try:
            texts[number] = _written(gold, task)
        except _NoGold as error:
            faults[number] = (
                f"{entry.name} has no form for the answer {_short(task.answer)} of {_named(task)} ({error})"
            )
    outcomes = graders.grade([(tasks[number], text) for number, text in texts.items()], [entry.name])
    for (number, text), outcome in zip(texts.items(), outcomes, strict=True):
        score, task = _score(outcome, entry), tasks[number]
        if score is not None and score >= best - ROUNDING:
            continue
        given = f"{score:g}" if score is not None else "no score"
        if outcome.error or outcome.invalid:
            given = f"an error ({outcome.error})" if outcome.error else f"invalid ({outcome.invalid})"
        answer = f"the answer of {_named(task)}"
        if text.strip() != task.answer.strip():
            answer = f"its form of the answer {_short(task.answer)} of {_named(task)}"
        faults[number] = f"{entry.name} gives {given} to {_short(text)}, {answer}"
    return [text for _, text in sorted(faults.items())]


class _NoGold(Exception):
    """A task's answer has no form that a reward reads."""


def _gold(entry: Entry) -> tuple[Callable[[Task], str] | None, float | None]:
    """How a reward writes the right answer, and its best score; None for a gate, whose form others do not write."""
    if entry.reward is None or entry.component.gate:
        return None, None
    return entry.reward.write_gold if entry.reward.gold else None, entry.reward.best


def _written(gold: Callable[[Task], str], task: Task) -> str:
    try:
        return gold(task)
    except (ValueError, KeyError) as error:
        raise _NoGold(str(error)) from None


def _score(outcome: Grade, entry: Entry) -> float | None:
    """The reward's own score, not weighted; None for an error, an invalid answer, or a reward that does not apply."""
    part = outcome.parts.get(entry.name)
    return None if outcome.error or outcome.invalid or part is None else part.score


# ---------------------------------------------------------------------------------------------- answers without content


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of answers that must not get full marks, and the share of tasks up to which they may by chance."""

    name: str
    chance: float


EMPTY, ECHO, FORM, OTHER = (
    _Kind("an empty answer", 0.0),
    _Kind("the prompt itself", CHANCE),
    _Kind("a form without content", 0.0),
    _Kind("another task's answer", CHANCE),
)


def check_empty_answers(graders: WorkerGraders, tasks: Sequence[Task], encode: Encode | None = None) -> Outcome:
    """Answers without content do not get full marks: the empty answer, the prompt, forms without content (`FORMS`), and
    the right answer of another task.

    Each reward that has a gold is asked alone, about 64 tasks. All rewards together (a user's among them) are asked
    about 8: a reward of form or manner may be content with an empty answer, but the sum should not be. A user's
    function, of which no best score is known, should not give them as much as the task's `answer` by itself, for all
    of 8 tasks, and should be able to grade some of these answers. Warns by name.
    """
    limit = "not full marks"
    lines: list[str] = []
    names: list[str] = []
    broken: list[str] = []
    for entry in graders.grading.entries:
        chosen = [task for task in tasks if entry.name in graders.grading.grades(task)]
        if entry.reward is None:
            chosen = _spread([task for task in chosen if task.answer], FEW)
            right = graders.grade([(task, task.answer) for task in chosen], [entry.name])
            if chosen and all(outcome.error for outcome in right):
                broken.append(f"{entry.name} graded none of the data's own answers: {right[0].error}")
            liked: list[str] | None = _as_good(graders, entry.name, chosen, right)
        else:
            chosen = _spread(chosen, MOST)
            liked = _full_marks(graders, entry, chosen)
        if liked is not None and chosen:
            names.append(entry.name)
            lines += [f"{entry.name} {line}" for line in liked]
    scored = graders.grading.scored
    together = _spread([task for task in tasks if graders.grading.grades(task) and not scored], FEW)
    if not together and not scored:
        return skipped("no task that a reward grades", limit)
    for kind, pairs in _impostors(together).items():
        outcomes = graders.grade(pairs, encode=encode)
        full = sum(_is_best(graders, task, outcome) for (task, _), outcome in zip(pairs, outcomes, strict=True))
        if full > kind.chance * len(pairs):
            lines.append(f"all rewards together give full marks to {kind.name} ({full} of {len(pairs)})")
    if broken:
        return warned("; ".join([*broken, *lines]), limit, "Correct the reward, unless it is for other tasks.")
    if lines:
        return warned("; ".join(lines), limit, "A policy learns to answer so. Add a reward that reads the answer.")
    if scored:
        # The sum is not known without the reward models, which are given ids, not text.
        return passed(", ".join(names), limit) if names else skipped(NO_RULE, limit)
    return passed(", ".join([*names, "all together"]), limit)


def _full_marks(graders: WorkerGraders, entry: Entry, tasks: Sequence[Task]) -> list[str] | None:
    """Which answers without content get the reward's best score; None if it has no gold."""
    gold, best = _gold(entry)
    if gold is None or best is None:
        return None
    lines = []
    for kind, pairs in (_impostors(tasks) | _others(tasks, gold)).items():
        scores = [_score(outcome, entry) for outcome in graders.grade(pairs, [entry.name])]
        full = sum(score is not None and score >= best - ROUNDING for score in scores)
        if full > kind.chance * len(scores):
            lines.append(f"gives full marks to {kind.name} ({full} of {len(scores)})")
    return lines


def _as_good(graders: WorkerGraders, name: str, tasks: Sequence[Task], right: Sequence[Grade]) -> list[str]:
    """Which answers without content get as much from a user's function as the data's answers, whose outcomes are
    `right`, for every task."""
    score_of = {id(task): outcome.score for task, outcome in zip(tasks, right, strict=True) if not outcome.error}
    lines = []
    for kind, pairs in _impostors(tasks).items():
        pairs = [(task, text) for task, text in pairs if id(task) in score_of]
        outcomes = graders.grade(pairs, [name])
        as_good = [
            not outcome.error and not outcome.invalid and outcome.score >= score_of[id(task)]
            for (task, _), outcome in zip(pairs, outcomes, strict=True)
        ]
        if as_good and all(as_good):
            lines.append(f"gives {kind.name} as much as the data's answer ({len(as_good)} of {len(as_good)})")
    return lines


def _impostors(tasks: Sequence[Task]) -> dict[_Kind, list[tuple[Task, str]]]:
    """Answers without content by their kind: (task, text)."""
    if not tasks:
        return {}
    return {
        EMPTY: [(task, "") for task in tasks],
        ECHO: [(task, answer_of(task, "").prompt) for task in tasks],
        FORM: [(task, form) for task in tasks for form in FORMS],
    }


def _others(tasks: Sequence[Task], gold: Callable[[Task], str]) -> dict[_Kind, list[tuple[Task, str]]]:
    """For each task the gold of the next one that is written otherwise. A task whose gold cannot be written is left
    out: `check_golds` names it."""
    golds = []
    for task in tasks:
        with contextlib.suppress(_NoGold):
            golds.append((task, _written(gold, task)))
    pairs = []
    for number, (task, text) in enumerate(golds):
        following = [other for _, other in (*golds[number + 1 :], *golds[:number]) if other != text]
        pairs += [(task, other) for other in following[:1]]
    return {OTHER: pairs} if pairs else {}


def _is_best(graders: WorkerGraders, task: Task, outcome: Grade) -> bool:
    """Whether an outcome has the best score of all rewards that grade a task; False if one declares none."""
    best = best_score(graders.grading.components(graders.grading.grades(task)))
    if best is None or outcome.error or outcome.invalid:
        return False
    return outcome.score >= best - ROUNDING


# -------------------------------------------------------------------------------------------------------------- helpers


def _spread(tasks: Sequence[Task], most: int) -> list[Task]:
    """At most so many tasks, evenly spread: of 10 tasks, 4 are numbers 0, 2, 5 and 7."""
    if len(tasks) <= most:
        return list(tasks)
    return [tasks[number * len(tasks) // most] for number in range(most)]


def _named(task: Task) -> str:
    place = str(task.origin)
    question = answer_of(task, "").prompt
    return f"{place} ({_short(question)})" if place else f"the task {_short(question)}"


def _short(text: str) -> str:
    """A text on one line, at most 60 characters of its end, where answers stand."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 60 else f"...{line[-57:]}")
