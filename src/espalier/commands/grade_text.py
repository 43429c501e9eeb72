"""Grading texts without a model: the data's tasks, the graders, and `espalier rollout --grade-answers`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from espalier import __version__
from espalier.assembly.rollout_run import RolloutRun
from espalier.assembly.runs import RunConfig
from espalier.commands import rollout_text as text
from espalier.commands.rollout_folder import RolloutFolder
from espalier.config.data_source import DataSource
from espalier.config.options import flat
from espalier.data.columns.ledger import Ledger
from espalier.data.dataset import sources_of
from espalier.data.read import read
from espalier.errors import DataError, RowError
from espalier.loop.progress import Progress
from espalier.outcomes import Outcome
from espalier.rewards import build
from espalier.rewards.graders import WorkerGraders
from espalier.rewards.grading import Entry
from espalier.types import Task

CHUNK = 256
"""Answers that are graded and written at a time."""
ROUNDING = 1e-9
Record = dict[str, Any]


def tasks_of(config: RunConfig, console: Progress) -> list[Task]:
    """The tasks of the data, in order. Raises DataError for a row that is none, unless the config skips such rows."""
    tasks: list[Task] = []
    skipped = 0
    for source in sources_of(config.data, "task").main:
        ledger = Ledger()
        for example in read(source, ledger):
            if isinstance(example, Task):
                tasks.append(example)
            elif isinstance(example, RowError) and config.data.on_bad_row == "stop":
                raise DataError(f"{example} (--on-bad-row skip leaves such rows out)")
            else:
                skipped += 1
        ledger.refuse(source.path)
        for line in ledger.lines():
            console.note(f"{source.name}: {line}")
    if skipped:
        console.note(f"{skipped:,} rows are no tasks, and are left out")
    if not tasks:
        raise DataError(f"no tasks in {', '.join(map(str, config.data.data))}; expected at least one")
    return tasks


def start(config: RolloutRun, tasks: Sequence[Task], console: Progress) -> tuple[build.Plan, WorkerGraders]:
    """The graders of these tasks, for text alone."""
    plan = build.plan(config.rewards, verifiers=sorted({task.verifier for task in tasks if task.verifier}))
    graders = plan.start(_no_ids)
    for task in tasks:
        # What the best score is depends on who grades which tasks.
        graders.grades(task)
    for line in plan.lines(graders.pool.notes):
        console.note(line)
    return plan, graders


def _no_ids(ids: Sequence[int]) -> str:
    raise ValueError("there is no tokenizer here; expected text alone")


def settings_of(config: RolloutRun) -> Record:
    """What decides the tasks, and which of their answers are graded."""
    keys = flat(config)
    data = [entry.written() if isinstance(entry, DataSource) else entry for entry in config.data.data]
    names = ("format", "columns", "ignore_columns", "on_bad_row", "grade_answers")
    return {"version": __version__, "data": data, **{name: keys[name] for name in names}}


def verdict(outcome: Outcome) -> Record:
    """What the rewards say of an answer, as samples.jsonl has it."""
    return {
        "score": None if outcome.error else outcome.score,
        "parts": {name: graded.score for name, graded in outcome.parts.items()},
        "invalid": outcome.invalid,
        "error": outcome.error,
    }


# ----------------------------------------------------------------------------------------------- the data's own answers


def grade_answers(config: RolloutRun) -> int:
    """Grade each task's own answer, in the form that each reward reads; 1 if one of them does not get full marks, or a
    task has nobody who grades it."""
    console = Progress(0)
    tasks = tasks_of(config, console)
    plan, graders = start(config, tasks, console)
    folder = RolloutFolder(Path(config.survey.out))
    counts: list[tuple[str, int, int]] = []
    unchecked: list[str] = []
    shown = 0
    try:
        follows = {"settings": settings_of(config), "rewards": plan.pins()}
        folder.open(follows, [], overwrite=config.survey.overwrite)
        for entry in graders.grading.entries:
            gold = _gold_of(entry)
            if gold is None:
                unchecked.append(entry.name)
                continue
            right = count = 0
            for lines in _golds(graders, entry, gold, tasks):
                folder.add(lines)
                wrong = [line for line in lines if not _full(line, entry)]
                count, right = count + len(lines), right + len(lines) - len(wrong)
                for line in wrong[: max(0, config.survey.show - shown)]:
                    console.note(_complaint(line, entry))
                    shown += 1
            counts.append((entry.name, right, count))
    finally:
        graders.close()
    refusals = [f"{task.origin}: {graders.refusal(task)}" for task in tasks if not graders.grades(task)]
    if refusals:
        console.note(f"{len(refusals):,} of {len(tasks):,} tasks are graded by no reward; the first: {refusals[0]}")
    text.show_golds(console, counts, unchecked)
    folder.finish({"golds": {name: {"right": right, "tasks": count} for name, right, count in counts}})
    return 1 if refusals or any(right < count for _, right, count in counts) else 0


def _gold_of(entry: Entry) -> Callable[[Task], str] | None:
    """How a reward writes a task's answer; None for gates, and rewards of which no answer is known to be the best."""
    if entry.reward is None or entry.reward.best is None or entry.component.gate:
        return None
    return entry.reward.write_gold if entry.reward.gold else None


def _golds(
    graders: WorkerGraders, entry: Entry, gold: Callable[[Task], str], tasks: Sequence[Task]
) -> Iterator[list[Record]]:
    """Lines about the tasks that a reward grades and their own answers, some at a time."""
    own = ((row, task) for row, task in enumerate(tasks) if entry.name in graders.grades(task))
    while chunk := list(islice(own, CHUNK)):
        written = [_written(gold, task) for _, task in chunk]
        pairs = [(task, response) for (_, task), (response, _) in zip(chunk, written, strict=True)]
        lines = []
        outcomes = graders.grade(pairs, [entry.name])
        for (row, task), (response, fault), outcome in zip(chunk, written, outcomes, strict=True):
            graded = Outcome(0.0, error=f"{entry.name}: {fault}") if fault else outcome
            origin = {"row": row, "source": task.origin.source, "line": task.origin.line}
            prompt = task.prompt[-1].content
            lines.append(
                {"task": origin, "reward": entry.name, "prompt": prompt, "response": response, **verdict(graded)}
            )
        yield lines


def _written(gold: Callable[[Task], str], task: Task) -> tuple[str, str]:
    """A task's answer in a reward's form, and why it has none."""
    try:
        return gold(task), ""
    except (ValueError, KeyError) as error:
        return "", f"the answer {task.answer[:60]!r} has no form that it reads: {error}"


def _full(line: Record, entry: Entry) -> bool:
    """Whether an answer got the reward's best score."""
    assert entry.reward is not None and entry.reward.best is not None
    got = line["parts"].get(entry.name)
    return not line["error"] and not line["invalid"] and got is not None and got >= entry.reward.best - ROUNDING


def _complaint(line: Record, entry: Entry) -> str:
    assert entry.reward is not None and entry.reward.best is not None
    task, got = line["task"], line["error"] or line["invalid"] or f"score {line['parts'].get(entry.name)}"
    response = text.shortened(line["response"])
    return f"{task['source']}:{task['line']}: {entry.name}: {response!r} gets {got}, not {entry.reward.best:g}"
