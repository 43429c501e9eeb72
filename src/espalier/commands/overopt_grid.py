"""The children of `espalier overopt`: their command lines, in which order they run, and which are finished."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from espalier import files
from espalier.assembly.rollout_run import RolloutRun
from espalier.assembly.runs import RUNS, RunConfig
from espalier.config import options
from espalier.config.overopt_section import OveroptConfig, numbers
from espalier.data.read import parse_sources
from espalier.errors import ConfigError

MEASURED = "1e-9"
"""The beta of runs without a KL penalty: far too small to matter, but it loads the reference that the KL is measured
against."""
GRID_OF_REWARD = ("model", "data", "out", "resume", "overwrite")
GRID_OF_PPO = (
    *GRID_OF_REWARD,
    *("steps", "epochs", "seed", "beta", "kl_control", "reference_model", "sync_every"),
    *("reward", "reward_model", "reward_args", "gate"),
)
"""Keys that the grid decides, so that no file may."""
OF_THE_START = ("group_size", "prompts_per_step", "right", "show", "tasks")
"""Keys of the start's answers that are not a policy's."""


@dataclass(frozen=True, slots=True)
class Job:
    """One child. argv: its command line without `espalier`. mark: the file that says of which settings it is, and
    whether it is finished. inputs: files whose content it follows from. steps: of a policy."""

    name: str
    argv: tuple[str, ...]
    folder: Path
    mark: Path
    inputs: tuple[Path, ...] = ()
    steps: int = 0

    @property
    def log(self) -> Path:
        return self.mark.with_suffix(".log")

    def settings(self) -> dict[str, Any]:
        """The command line, and the beginning of the hash of each file that it reads; the grid's folder is OUT, so that
        it can be moved."""
        out = f"{self.mark.parent.parent}/"
        argv = [f"OUT/{text.removeprefix(out)}" if text.startswith(out) else text for text in self.argv]
        inputs = {"/".join(path.parts[-2:]): _digest(path) for path in self.inputs if path.is_file()}
        return {"argv": argv, "inputs": inputs}

    @property
    def done(self) -> bool:
        """Whether it is finished. Raises ConfigError if its folder was made by other settings."""
        earlier = files.unsealed(self.mark.read_bytes()) if self.mark.is_file() else None
        if earlier is None:
            return False
        change = _change(earlier, self.settings())
        if change:
            raise ConfigError(
                f"out: {self.folder} was made by other settings ({change}); put them back, or choose another folder",
                key="out",
            )
        return bool(earlier["finished"]) and self.complete

    @property
    def complete(self) -> bool:
        """Whether what it writes last is there. A child that a signal stops saves, and its exit code is 0, too."""
        if self.argv[0] != "rollout":
            return any((self.folder / "model" / name).is_file() for name in ("config.json", "adapter_config.json"))
        figures = self.folder / "rollout.json"
        return figures.is_file() and "figures" in (files.unsealed(figures.read_bytes()) or {})

    def write(self, *, finished: bool) -> None:
        files.make_dir(self.mark.parent)
        files.write_atomic(self.mark, files.sealed({**self.settings(), "finished": finished}))


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of(path, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_of(path: Path, size: int, changed: int) -> str:
    """The beginning of a file's hash; read once for each size and time of change, since weights are large."""
    return files.sha256(path)[:16]


def _change(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first difference of two settings; empty if there is none."""
    for was, is_now in zip_longest(before["argv"], now["argv"], fillvalue="nothing"):
        if was != is_now:
            return f"{was} then, {is_now} now"
    for name, digest in now["inputs"].items():
        if before["inputs"].get(name, digest) != digest:
            return f"{name} had another content"
    return ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A policy run against a proxy. beta is that of the config, not `MEASURED`. gold: what grades its answers, if gold
    is a rule."""

    job: Job
    proxy: str
    beta: float
    seed: int
    gold: Job | None = None


@dataclass(slots=True)
class Grid:
    """All children. policy: the settings of the first cell."""

    proxies: list[Job] = field(default_factory=list)
    start: list[Job] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    policy: RunConfig | None = None

    @property
    def jobs(self) -> list[Job]:
        return [job for stage in self.stages for chain in stage for job in chain]

    @property
    def stages(self) -> list[list[tuple[Job, ...]]]:
        """Chains of children: those of a stage may run side by side, stages and the children of a chain may not."""
        cells = [(cell.job, cell.gold) if cell.gold else (cell.job,) for cell in self.cells]
        return [[(job,) for job in self.proxies], [tuple(self.start), *cells]]


def plan(config: OveroptConfig) -> Grid:
    """The children of a config. Raises ConfigError for settings of a child that it would refuse."""
    out, grid = Path(config.out), Grid()
    for size in sizes_of(config):
        folder, data = out / f"proxy-{size}", pairs_file(out, size)
        argv = ["reward", "--model", config.model, "--data", str(data), "--out", str(folder), "--resume"]
        argv += _file(config.reward)
        grid.proxies.append(
            _job(config, f"proxy of {size} rows", argv, folder, (data, *_paths(config.reward), *_weights(config)))
        )
    refuse_keys(config.reward, "reward", GRID_OF_REWARD)
    refuse_keys(config.ppo, "ppo", GRID_OF_PPO)
    _read("reward", grid.proxies[0].argv)
    proxies = [job.folder for job in grid.proxies]
    for beta in numbers(config.betas, "betas"):
        kinds: list[tuple[str, Path, list[str]]] = [(proxy.name, proxy, []) for proxy in proxies]
        if config.loophole:
            kinds.append((f"{proxies[-1].name} + {' + '.join(config.loophole)}", proxies[-1], list(config.loophole)))
        for seed in range(config.seeds):
            for name, proxy, added in kinds:
                label = f"{proxy.name}{'-loophole' * bool(added)}-beta-{beta:g}-seed-{seed}"
                grid.cells.append(_cell(config, label, proxy, added, name, beta, seed))
    grid.policy = _read("ppo", grid.cells[0].job.argv)
    _refuse_moving_beta(grid.policy)
    grid.start = _start(config, proxies, grid.policy)
    return grid


def _cell(
    config: OveroptConfig, label: str, proxy: Path, loophole: Sequence[str], name: str, beta: float, seed: int
) -> Cell:
    folder = Path(config.out) / label
    argv = ["ppo", "--model", config.model, "--data", *config.data, "--out", str(folder), "--resume"]
    argv += ["--steps", str(config.steps), "--seed", str(seed), "--beta", f"{beta:g}" if beta else MEASURED]
    argv += _rewards(config, loophole, [str(proxy)]) + _file(config.ppo)
    inputs = (*_inputs(config), *(_rules(loophole)))
    job = _job(config, label, argv, folder, inputs, config.steps)
    return Cell(job, name, beta, seed, _grading(config, folder))


def _start(config: OveroptConfig, proxies: Sequence[Path], policy: RunConfig) -> list[Job]:
    """Answers of the start, drawn and read as a policy's, and what grades them."""
    folder = Path(config.out) / "start"
    argv = ["rollout", "--model", config.model, "--data", *config.data, "--tasks", str(config.prompts)]
    argv += ["--group-size", str(config.best_of), "--out", str(folder), "--show", "0"]
    silent = [f"{entry.partition('=')[0]}=0" for entry in config.loophole]
    argv += _rewards(config, silent, [*(f"{path}=0" for path in proxies[:-1]), str(proxies[-1])])
    given, values = options.read(config.ppo) if config.ppo else {}, options.flat(policy)
    known = options.options(RolloutRun)
    for key in given:
        if key in known and key not in (*RolloutRun.refused, *OF_THE_START):
            argv += _flag(known[key].flag, values[key])
    _read("rollout", argv)
    jobs = [_job(config, "answers of the start", argv, folder, (*_inputs(config), *_rules(silent)))]
    gold = _grading(config, folder)
    return [*jobs, gold] if gold else jobs


def _flag(flag: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, tuple):
        return [flag, *map(str, value)]
    return [flag, str(value)]


def _grading(config: OveroptConfig, folder: Path) -> Job | None:
    """The gold rule on a child's stored answers; None if gold is a reward model, which reads ids and scores along."""
    if gold_folder(config):
        return None
    out = Path(config.out) / "gold" / folder.name
    argv = ["rollout", "--regrade", str(folder), "--reward", config.gold, "--out", str(out), "--show", "0"]
    # Nothing is lost: it costs no sampling, and is only started if it is not finished.
    argv.append("--overwrite")
    if config.gold_args:
        argv += ["--reward-args", *config.gold_args]
    return _job(config, f"gold of {folder.name}", argv, out, _rules([config.gold]))


def gold_folder(config: OveroptConfig) -> Path | None:
    """The folder of the gold reward, if it is a reward model."""
    path = Path(config.gold).expanduser()
    return path if path.is_dir() else None


def gold_part(config: OveroptConfig) -> str:
    """The name of a gold reward model among the parts of an answer: that of its folder, or of the run around it."""
    place = Path(config.gold).expanduser().absolute()
    return place.parent.name if place.name == "model" else place.name


def _job(
    config: OveroptConfig, name: str, argv: Sequence[str], folder: Path, inputs: tuple[Path, ...], steps: int = 0
) -> Job:
    marks, label = Path(config.out) / "children", folder.name
    if folder.parent.name == "gold":
        label = f"{label}-gold"
    return Job(name, tuple(argv), folder, marks / f"{label}.json", inputs, steps)


def _rewards(config: OveroptConfig, rules: Sequence[str], models: Sequence[str]) -> list[str]:
    """What scores a child's answers. A gold reward model scores along with weight 0, and changes no score."""
    gold = [f"{config.gold}=0"] if gold_folder(config) else []
    argv = ["--reward", *rules] if rules else []
    argv += ["--reward-model", *models, *gold]
    return [*argv, "--reward-args", *config.loophole_args] if rules and config.loophole_args else argv


def _file(path: str) -> list[str]:
    return ["--config", path] if path else []


def _paths(path: str) -> tuple[Path, ...]:
    return (Path(path).expanduser(),) if path else ()


def _inputs(config: OveroptConfig) -> tuple[Path, ...]:
    """Files that answers follow from: the tasks, the policy's weights, those of a gold reward model, the settings."""
    tasks = tuple(Path(source.path).expanduser() for source in parse_sources(config.data))
    gold = gold_folder(config)
    return (*tasks, *_weights(config), *(sorted(gold.glob("*.safetensors")) if gold else ()), *_paths(config.ppo))


def _weights(config: OveroptConfig) -> tuple[Path, ...]:
    """The weights of the start; none of a hub name, which does not change under its revision."""
    return tuple(sorted(Path(config.model).expanduser().glob("*.safetensors")))


def _rules(entries: Sequence[str]) -> tuple[Path, ...]:
    """The files of rules that are functions, PATH.py:FUNCTION or with =WEIGHT behind."""
    paths = (Path(entry.partition("=")[0].rpartition(":")[0]).expanduser() for entry in entries)
    return tuple(path for path in paths if path.suffix == ".py")


def _read(command: str, argv: Sequence[str]) -> RunConfig:
    """The config of a child. Raises ConfigError for settings that it would refuse."""
    kind = RolloutRun if command == "rollout" else RUNS[command]
    config: RunConfig = options.Parser(f"espalier {command}", "", "", kind, file=command in RUNS).read(list(argv[1:]))[
        0
    ]
    return config


def refuse_keys(path: str, key: str, decided: Collection[str]) -> None:
    """Raise ConfigError for a file with settings that the grid decides."""
    for name, value in (options.read(path) if path else {}).items():
        if name in decided:
            raise ConfigError(f"{value.place}: the grid decides {name}; leave it out of the file of --{key}", key=key)


def _refuse_moving_beta(policy: RunConfig) -> None:
    if options.flat(policy).get("kl_band") in ("adapt", "stop"):
        raise ConfigError(
            "ppo: kl_band adapt or stop changes beta or the number of steps, which the grid decides; give off or warn",
            key="ppo",
        )


def sizes_of(config: OveroptConfig) -> list[int]:
    """The sizes of the proxies, in ascending order."""
    return sorted(int(size) for size in numbers(config.sizes, "sizes"))


def pairs_file(out: Path, size: int) -> Path:
    """Where the first rows of `pairs` stand."""
    return out / f"pairs-{size}.jsonl"
