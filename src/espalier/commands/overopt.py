"""`espalier overopt`: how far a policy can be optimised against proxy rewards before a gold reward falls."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from espalier import files
from espalier.config.overopt_section import OveroptConfig, numbers
from espalier.errors import ConfigError, EspalierError
from espalier.loop.progress import Progress

if TYPE_CHECKING:
    from espalier.workbench.overopt import Run

MEASURED = "1e-9"
"""The beta of runs without a KL penalty: far too small to matter, but it loads the reference that the KL is measured
against."""
Launch = Callable[[Sequence[str], Path], int]
"""Runs a command line of espalier with its output in a file; returns the exit code."""


@dataclass(frozen=True, slots=True)
class Job:
    """One child: its name, command line without `espalier`, folder, and the file there that says it is finished."""

    name: str
    argv: tuple[str, ...]
    folder: Path
    finished: str
    steps: int = 0

    @property
    def done(self) -> bool:
        return (self.folder / self.finished).exists()


@dataclass(frozen=True, slots=True)
class Cell:
    """A policy run against a proxy. beta is that of the config, not `MEASURED`."""

    job: Job
    proxy: str
    beta: float
    seed: int


@dataclass(slots=True)
class Grid:
    """All children in order: proxies, the start's answers, policies."""

    proxies: list[Job] = field(default_factory=list)
    start: Job | None = None
    cells: list[Cell] = field(default_factory=list)

    @property
    def jobs(self) -> list[Job]:
        return [*self.proxies, *([self.start] if self.start else []), *(cell.job for cell in self.cells)]


def run(config: OveroptConfig) -> None:
    """Print the plan, run what is missing of it, write overopt.json and overopt.html."""
    out, console = Path(config.out), Progress(0)
    rows = _rows(config)
    grid = plan(config)
    for line in budget(config, grid, rows):
        console.note(line)
    if config.plan:
        return
    files.make_dir(out)
    for size in _sizes(config):
        _write_pairs(config, out, size)
    work(grid.jobs, launch, console.note)
    finish(config, grid, console.note)


def plan(config: OveroptConfig) -> Grid:
    """The children of a config."""
    out, grid = Path(config.out), Grid()
    further = ["--config", config.reward] if config.reward else []
    for size in _sizes(config):
        folder = out / f"proxy-{size}"
        argv = ["reward", "--model", config.model, "--data", str(_pairs(out, size)), "--out", str(folder), "--resume"]
        grid.proxies.append(Job(f"proxy of {size} rows", (*argv, *further), folder, "model/config.json"))
    proxies = [job.folder for job in grid.proxies]
    rules, models = _gold(config)
    silent = [f"{entry.partition('=')[0]}=0" for entry in config.loophole]
    argv = ["rollout", "--model", config.model, "--data", *config.data, "--tasks", str(config.prompts)]
    argv += ["--group-size", str(config.best_of), "--out", str(out / "start"), "--show", "0"]
    argv += _rewards([*rules, *silent], [*(f"{path}=0" for path in proxies[:-1]), str(proxies[-1]), *models])
    argv += _arguments(config, silent)
    grid.start = Job("answers of the start", tuple(argv), out / "start", "overopt-done")
    ppo = ["--config", config.ppo] if config.ppo else []
    for beta in numbers(config.betas, "betas"):
        kinds: list[tuple[str, Path, list[str]]] = [(proxy.name, proxy, []) for proxy in proxies]
        if config.loophole:
            kinds.append((f"{proxies[-1].name} + {' + '.join(config.loophole)}", proxies[-1], list(config.loophole)))
        for seed in range(config.seeds):
            for name, proxy, added in kinds:
                label = f"{proxy.name}{'-loophole' * bool(added)}-beta-{beta:g}-seed-{seed}"
                folder = out / label
                argv = ["ppo", "--model", config.model, "--data", *config.data, "--out", str(folder), "--resume"]
                argv += ["--steps", str(config.steps), "--seed", str(seed), "--beta", f"{beta:g}" if beta else MEASURED]
                argv += _rewards([*rules, *added], [str(proxy), *models]) + _arguments(config, added) + ppo
                job = Job(label, tuple(argv), folder, "model/config.json", config.steps)
                grid.cells.append(Cell(job, name, beta, seed))
    return grid


def _gold(config: OveroptConfig) -> tuple[list[str], list[str]]:
    """The gold reward as a rule or as a reward model, of weight 0."""
    model = Path(config.gold).expanduser().is_dir()
    return ([], [f"{config.gold}=0"]) if model else ([f"{config.gold}=0"], [])


def _rewards(rules: Sequence[str], models: Sequence[str]) -> list[str]:
    return [*(["--reward", *rules] if rules else []), "--reward-model", *models]


def _arguments(config: OveroptConfig, rules: Sequence[str]) -> list[str]:
    return ["--reward-args", *config.loophole_args] if rules and config.loophole_args else []


def budget(config: OveroptConfig, grid: Grid, rows: int) -> Iterator[str]:
    """What the grid costs, and what of it is done. Raises ConfigError if `pairs` has fewer than the largest size."""
    largest = max(_sizes(config))
    if rows < largest:
        raise ConfigError(f"sizes: got {largest:,}, but {config.pairs} has {rows:,} rows; give fewer", key="sizes")
    done = sum(job.done for job in grid.jobs)
    yield (
        f"{len(grid.jobs)} children, {done} done: {len(grid.proxies)} proxies of {', '.join(config.sizes)} rows, "
        f"{config.prompts:,} x {config.best_of:,} answers of the start, {len(grid.cells)} policies of {config.steps:,} "
        "steps"
    )


def work(jobs: Sequence[Job], start: Launch, note: Callable[[str], None]) -> None:
    """Run the children that are not done, one after the other. Raises EspalierError for one that fails."""
    took: list[tuple[int, float]] = []
    for number, job in enumerate(jobs, 1):
        if job.done:
            continue
        began = time.monotonic()
        note(f"{number} of {len(jobs)}: {job.name}")
        log = job.folder.with_name(f"{job.folder.name}.log")
        code = start(job.argv, log)
        if code:
            raise EspalierError(f"{job.name} ended with exit code {code}; {log} says why. Repair it, then start again")
        if not job.done:
            files.write_atomic(job.folder / job.finished, "")
        if job.steps:
            took.append((job.steps, time.monotonic() - began))
            left = sum(other.steps for other in jobs[number:] if not other.done)
            seconds = left * sum(s for _, s in took) / sum(steps for steps, _ in took)
            note(f"{job.name} took {took[-1][1] / 60:.1f} minutes; about {seconds / 60:.0f} are left")


def launch(argv: Sequence[str], log: Path) -> int:
    """`Launch` as a process of this interpreter."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "espalier", *argv], stdout=output, stderr=subprocess.STDOUT, env=os.environ
        )
        try:
            return child.wait()
        except BaseException:
            # The child saves its last step on the same signal; it is not left behind.
            child.terminate()
            child.wait()
            raise


def finish(config: OveroptConfig, grid: Grid, note: Callable[[str], None]) -> None:
    """Write overopt.json and overopt.html from what the children wrote, and print the verdicts."""
    from espalier.workbench.bootstrap import Resampling
    from espalier.workbench.overopt import page, report

    runs, equal = _start_runs(config, grid)
    starts = {run.proxy: (run.start_proxy, run.start_gold) for run in runs}
    runs += _policy_runs(config, grid, starts)
    result = report(runs, equal, Resampling(resamples=config.resamples))
    out = Path(config.out)
    files.write_atomic(out / "overopt.json", files.json_text(result))
    files.write_atomic(out / "overopt.html", page(result))
    for cell in result["cells"]:
        best = cell["highest_gold"]
        note(f"{cell['name']}: {cell['verdict']}; highest gold {best['gold']:.4g} at {best['at']}, d {best['d']:.2f}")
    for entry in result["frontiers"]:
        note(f"{entry['proxy']}, beta {entry['beta']:g}: {entry['verdict']}")
    note(f"written to {out / 'overopt.json'} and {out / 'overopt.html'}")


def _start_runs(config: OveroptConfig, grid: Grid) -> tuple[list[Run], dict[str, float]]:
    """Best-of-n by each proxy, and the share of equal scores of each."""
    from espalier.workbench.overopt import Run
    from espalier.workbench.overopt_points import of_best, powers, records, ties

    assert grid.start is not None
    weights = {name: float(weight or 1) for name, _, weight in (entry.partition("=") for entry in config.loophole)}
    gold = gold_name(config)
    proxies = {job.folder.name: {job.folder.name: 1.0} for job in grid.proxies}
    if weights:
        last = grid.proxies[-1].folder.name
        proxies[f"{last} + {' + '.join(config.loophole)}"] = {last: 1.0, **weights}
    groups: dict[str, dict[int, list[tuple[float, float]]]] = {name: {} for name in proxies}
    for line in records(grid.start.folder / "samples.jsonl"):
        if line["error"]:
            continue
        for name, parts in proxies.items():
            score = sum(weight * line["parts"][part] for part, weight in parts.items())
            groups[name].setdefault(line["task"]["row"], []).append((score, line["parts"][gold]))
    runs, equal = [], {}
    for name, answers in groups.items():
        points = of_best(answers, powers(config.best_of))
        scores = {prompt: [score for score, _ in of_prompt] for prompt, of_prompt in answers.items()}
        equal[name] = ties(scores)
        first = points[0]
        runs.append(Run(name, None, 0, tuple(points), first.mean("proxy"), first.mean("gold")))
    return runs, equal


def _policy_runs(config: OveroptConfig, grid: Grid, starts: dict[str, tuple[float, float]]) -> list[Run]:
    from espalier.workbench.overopt import Run
    from espalier.workbench.overopt_points import of_run, records, scored

    runs, gold = [], gold_name(config)
    for cell in grid.cells:
        lines = scored(records(cell.job.folder / "samples.jsonl"), gold)
        points = of_run(lines, config.every)
        runs.append(Run(cell.proxy, cell.beta, cell.seed, tuple(points), *starts[cell.proxy]))
    return runs


def gold_name(config: OveroptConfig) -> str:
    """The name of the gold reward among the parts of an answer."""
    if Path(config.gold).expanduser().is_dir():
        place = Path(config.gold).expanduser().absolute()
        return place.parent.name if place.name == "model" else place.name
    return config.gold.rpartition(":")[2]


def _sizes(config: OveroptConfig) -> list[int]:
    return sorted(int(size) for size in numbers(config.sizes, "sizes"))


def _rows(config: OveroptConfig) -> int:
    path = Path(config.pairs).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"pairs: {config.pairs} does not exist; expected a local .jsonl of judged answers", key="pairs"
        )
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def _pairs(out: Path, size: int) -> Path:
    return out / f"pairs-{size}.jsonl"


def _write_pairs(config: OveroptConfig, out: Path, size: int) -> None:
    """The first rows of `pairs`."""
    with Path(config.pairs).expanduser().open(encoding="utf-8") as lines:
        files.write_atomic(_pairs(out, size), "".join(islice((line for line in lines if line.strip()), size)))
