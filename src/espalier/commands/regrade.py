"""`espalier rollout --regrade RUN`: other rewards on stored answers, without a model."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from espalier.assembly.rollout_run import RolloutRun
from espalier.commands import rollout_text as text
from espalier.commands.grade_text import Record, settings_of, start, tasks_of, verdict
from espalier.commands.rollout_folder import RolloutFolder
from espalier.commands.stored_tasks import contents, with_tasks_of_run
from espalier.errors import ConfigError, EspalierError
from espalier.files import sha256
from espalier.loop.metrics import read_lines
from espalier.loop.progress import Progress
from espalier.outcomes import Outcome
from espalier.rewards.graders import WorkerGraders
from espalier.types import Task
from espalier.workbench.bootstrap import Resampling
from espalier.workbench.rollouts import answer_of, summary

CHUNK = 256
"""Answers that are graded and written at a time."""


def regrade(config: RolloutRun) -> None:
    """Grade stored answers anew; print their figures, and how many have another score than before."""
    console = Progress(0)
    path = _stored(Path(config.survey.regrade).expanduser())
    out = Path(config.survey.out)
    if path.resolve().parent == out.resolve():
        raise ConfigError(f"out: {out} holds the answers that are read; choose another folder", key="out")
    config, lines = with_tasks_of_run(config, path.parent)
    for line in lines:
        console.note(line)
    tasks = {(task.origin.source, task.origin.line): task for task in tasks_of(config, console)}
    plan, graders = start(config, list(tasks.values()), console)
    folder = RolloutFolder(out)
    try:
        follows = {"settings": settings_of(config), "rewards": plan.pins(), "answers": sha256(path)}
        follows["data files"] = contents(config)
        sizes = _sizes(sum(1 for _ in read_lines(path)))
        done = folder.open(follows, sizes, overwrite=config.survey.overwrite)
        graded = sum(sizes[:done])
        stored = islice(read_lines(path), graded, None)
        shown = console.reading("answers graded")
        while chunk := list(islice(stored, CHUNK)):
            folder.add(_regraded(graders, chunk, tasks, path))
            graded += len(chunk)
            shown(path.name, graded)
        best = graders.best
    finally:
        graders.close()
    changed, compared = _changes(path, folder)
    figures = summary(map(answer_of, folder.lines()), config.survey.right or best, Resampling(config.survey.seed))
    figures |= {"changed": changed, "compared": compared}
    folder.finish(figures)
    text.show_answers(console, folder.lines(), config.survey.show)
    text.show(console, figures)
    console.note(f"{changed:,} of {compared:,} answers have another score than in {path}")


def _stored(place: Path) -> Path:
    path = place / "samples.jsonl" if place.is_dir() else place
    if not path.is_file():
        raise ConfigError(f"regrade: {path} is no file; expected a run's folder or its samples.jsonl", key="regrade")
    return path


def _sizes(lines: int) -> list[int]:
    """Lines of each chunk."""
    return [min(CHUNK, lines - begin) for begin in range(0, lines, CHUNK)]


def _regraded(
    graders: WorkerGraders, chunk: list[Record], tasks: dict[tuple[str, int], Task], path: Path
) -> list[Record]:
    """The lines with what the rewards say now, and without the advantages that training computed."""
    for number, record in enumerate(chunk):
        try:
            origin, response, ids = record["task"], record["response"], record["ids"]
            task = tasks[origin["source"], origin["line"]]
            graders.submit_text((number, 0, 0), task, response, row=origin["row"], stop=record["stop"], ids=ids)
        except KeyError as error:
            raise EspalierError(
                f"{path}: the answer to {record.get('task')} has no task in the data, or lacks an entry ({error}); "
                "give the data that the run had, under the same names"
            ) from None
    outcomes: dict[int, Outcome] = {}
    while graders.busy:
        for (number, _, _), outcome in graders.finished(wait=True):
            outcomes[number] = outcome
    lines = []
    for number, record in enumerate(chunk):
        kept = {name: value for name, value in record.items() if name != "advantages"}
        lines.append({**kept, "advantage": None, **verdict(outcomes[number])})
    return lines


def _changes(path: Path, folder: RolloutFolder) -> tuple[int, int]:
    """How many answers have another score than before, of those with a score both times."""
    changed = compared = 0
    for old, new in zip(read_lines(path), folder.lines(), strict=True):
        if old["score"] is not None and new["score"] is not None:
            compared += 1
            changed += old["score"] != new["score"]
    return changed, compared
