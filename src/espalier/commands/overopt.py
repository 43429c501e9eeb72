"""`espalier overopt`: how far a policy can be optimised against proxy rewards before a gold reward falls."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from espalier import files
from espalier.commands.overopt_grid import Grid, gold_folder, gold_part, pairs_file, plan, sizes_of
from espalier.commands.overopt_work import Processes, Runner, work
from espalier.config import options
from espalier.config.overopt_section import OveroptConfig
from espalier.errors import ConfigError, EspalierError
from espalier.loop.progress import Progress

if TYPE_CHECKING:
    from espalier.workbench.overopt import Run


def run(config: OveroptConfig) -> None:
    """Print the plan, run what is missing of it, write overopt.json and overopt.html."""
    measure(config, Processes())


def measure(config: OveroptConfig, runner: Runner) -> None:
    """The command with `runner` for the children."""
    console = Progress(0)
    grid = plan(config)
    for line in budget(config, grid, _rows(config)):
        console.note(line)
    _refuse_verifiers(grid, console)
    if config.plan:
        return
    out = Path(config.out)
    files.make_dir(out)
    for size in sizes_of(config):
        _write_pairs(config, out, size)
    work(grid, runner, console.note, config.jobs)
    finish(config, grid, console)


def budget(config: OveroptConfig, grid: Grid, rows: int) -> Iterator[str]:
    """What the grid costs, and what of it is done. Raises ConfigError if `pairs` has fewer than the largest size."""
    sizes = sizes_of(config)
    if rows < sizes[-1]:
        raise ConfigError(f"sizes: got {sizes[-1]:,}, but {config.pairs} has {rows:,} rows; give fewer", key="sizes")
    policy = options.flat(grid.policy)
    count, each = len(grid.cells), policy["prompts_per_step"] * policy["group_size"]
    step = f"{each:,} answers a step" if each else "answers to all tasks in a step"
    total = f", {count * config.steps * each:,} answers" if each else ""
    done = sum(job.done for job in grid.jobs)
    yield f"{len(grid.jobs)} children, {done} done, {config.jobs} at a time; time is estimated after the first policy"
    yield f"{len(sizes)} proxies of {', '.join(f'{size:,}' for size in sizes)} rows, {sum(sizes):,} in all"
    start = config.prompts * config.best_of
    yield f"start: {config.prompts:,} prompts x {config.best_of:,} = {start:,} answers"
    yield f"{count} policies of {config.steps:,} steps, {count * config.steps:,} in all; {step}{total}"


def _refuse_verifiers(grid: Grid, console: Progress) -> None:
    """Raise ConfigError for tasks that name a rule: it would train the policy beside the proxy."""
    from espalier.commands.grade_text import tasks_of
    from espalier.rewards.builtin import BUILTIN

    assert grid.policy is not None
    for task in tasks_of(grid.policy, console):
        if task.verifier in BUILTIN:
            raise ConfigError(
                f"data: {task.origin} names the verifier {task.verifier}, which would train the policy beside the "
                "proxy; expected tasks without one. Leave that column out (its rule can be --gold)",
                key="data",
            )


def finish(config: OveroptConfig, grid: Grid, console: Progress) -> None:
    """Write overopt.json and overopt.html from what the children wrote, and print the verdicts."""
    from espalier.workbench.bootstrap import Resampling
    from espalier.workbench.overopt import report, table
    from espalier.workbench.overopt_page import page

    runs, equal = _start_runs(config, grid)
    runs += _policy_runs(config, grid, {run.proxy: run for run in runs})
    result = report(runs, equal, Resampling(resamples=config.resamples))
    for cell in result["cells"]:
        for place in (cell["highest_gold"], *cell["at_peak"]):
            place["checkpoint"] = _checkpoint(place)
    out = Path(config.out)
    files.write_atomic(out / "overopt.json", files.json_text(result))
    files.write_atomic(out / "overopt.html", page(result))
    console.table("over-optimisation", *table(result))
    for entry in (*result["cells"], *result["frontiers"]):
        console.note(f"{entry['name']}: {entry['verdict']}")
    console.note(f"written to {out / 'overopt.json'} and {out / 'overopt.html'}")


def _checkpoint(place: dict[str, Any]) -> str:
    """The checkpoint of a policy that is nearest to a step; empty if none is kept, and of best-of-n."""
    folder = Path(place["run"], "checkpoints")
    kept = [path for path in folder.glob("step-*") if place["run"] and path.name[5:].isdigit()]
    return str(min(kept, key=lambda path: abs(int(path.name[5:]) - place["at"]))) if kept else ""


def _start_runs(config: OveroptConfig, grid: Grid) -> tuple[list[Run], dict[str, dict[str, float]]]:
    """Best-of-n by each proxy; and by proxy the shares of equal scores and of equal answers."""
    from espalier.workbench.overopt import Run
    from espalier.workbench.overopt_points import Prompt, of_best, powers, prompt_of, records, ties

    weights = {name: float(weight or 1) for name, _, weight in (entry.partition("=") for entry in config.loophole)}
    proxies = {job.folder.name: {job.folder.name: 1.0} for job in grid.proxies}
    if weights:
        last = grid.proxies[-1].folder.name
        proxies[f"{last} + {' + '.join(config.loophole)}"] = {last: 1.0, **weights}
    groups: dict[str, dict[Prompt, list[tuple[float, float]]]] = {name: {} for name in proxies}
    texts: dict[Prompt, list[tuple[int, ...]]] = {}
    folder, left_out = grid.start[0].folder, 0
    for line, gold in zip(records(folder / "samples.jsonl"), _golds(config, folder), strict=True):
        if line["error"] or line["invalid"] or gold is None:
            left_out += 1
            continue
        texts.setdefault(prompt_of(line), []).append(tuple(line["ids"]))
        for name, parts in proxies.items():
            # A rule that does not apply to a task has no part in its score.
            score = sum(weight * line["parts"].get(part, 0.0) for part, weight in parts.items())
            groups[name].setdefault(prompt_of(line), []).append((score, gold))
    runs, equal = [], {}
    for name, answers in groups.items():
        points = of_best(answers, powers(config.best_of))
        scores = [[score for score, _ in of_prompt] for of_prompt in answers.values()]
        equal[name] = {"scores": ties(scores), "answers": ties(texts.values())}
        runs.append(Run(name, None, 0, tuple(points), points[0], left_out))
    return runs, equal


def _policy_runs(config: OveroptConfig, grid: Grid, starts: dict[str, Run]) -> list[Run]:
    from espalier.workbench.overopt import Run
    from espalier.workbench.overopt_points import of_run, records, scored

    runs = []
    for cell in grid.cells:
        folder = cell.job.folder
        answers = list(scored(records(folder / "samples.jsonl"), _golds(config, folder)))
        points = of_run(answers, config.every)
        if not points:
            raise EspalierError(
                f"{folder}: none of {len(answers):,} answers has a proxy score, a gold score and a KL; see the errors "
                f"in its samples.jsonl, and in that of {Path(config.out) / 'gold' / folder.name}"
            )
        left_out = sum(answer is None for _, answer in answers)
        runs.append(
            Run(cell.proxy, cell.beta, cell.seed, tuple(points), starts[cell.proxy].start, left_out, str(folder))
        )
    return runs


def _golds(config: OveroptConfig, folder: Path) -> Iterator[float | None]:
    """What gold says of each answer of a child, in order."""
    from espalier.workbench.overopt_points import records, regraded

    lines = records(folder / "samples.jsonl")
    if gold_folder(config):
        name = gold_part(config)
        return (line["parts"].get(name) for line in lines)
    return regraded(lines, records(Path(config.out) / "gold" / folder.name / "samples.jsonl"))


def _rows(config: OveroptConfig) -> int:
    path = Path(config.pairs).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"pairs: {config.pairs} does not exist; expected a local .jsonl of judged answers", key="pairs"
        )
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _write_pairs(config: OveroptConfig, out: Path, size: int) -> None:
    """The first rows of `pairs`."""
    with Path(config.pairs).expanduser().open(encoding="utf-8") as lines:
        files.write_atomic(pairs_file(out, size), "".join(islice((line for line in lines if line.strip()), size)))
