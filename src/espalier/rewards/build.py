"""From the section `rewards` of a config to graders that run."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espalier.config.fields import named_weights
from espalier.config.rollout_sections import RewardsConfig
from espalier.errors import ConfigError, nearest
from espalier.rewards.builtin import BUILTIN
from espalier.rewards.combine import Component
from espalier.rewards.graders import Decode, WorkerGraders
from espalier.rewards.grading import Entry, Grading
from espalier.rewards.pool import Pool, Spec, at, cores, memory_limit
from espalier.rewards.reward import Reward, Setting

MOST_WORKERS = 4
USER_SETTINGS = {"completions": Setting("", "how TRL's completions are given", choices=("messages", "text"))}
"""Settings of a user's function."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The rewards of a run, none of which has run yet. `added` are verifiers that tasks name and the run did not.
    `scored`: reward models score every answer beside them, or in their place."""

    entries: tuple[Entry, ...]
    specs: tuple[Spec, ...]
    timeout: float
    workers: int
    memory: int
    invalid_score: float
    max_error_share: float
    added: tuple[str, ...] = ()
    scored: bool = False

    def pins(self) -> dict[str, Any]:
        """What decides the outcomes, as JSON: names, weights, gates, settings, the sha256 of users' files, the score of
        answers that do not qualify, the deadline. A resumed run must have the same."""
        rewards = {}
        for entry, spec in zip(self.entries, self.specs, strict=True):
            component = entry.component
            pinned: dict[str, Any] = {"weight": component.weight, "settings": dict(entry.settings)}
            if component.gate:
                pinned["gate"] = True
            if spec.path:
                pinned |= {"function": spec.function, "sha256": spec.sha256}
            rewards[entry.name] = pinned
        return {"rewards": rewards, "invalid_score": self.invalid_score, "timeout": self.timeout}

    def lines(self, notes: Mapping[str, str]) -> list[str]:
        """What the start of a run says of its rewards; `notes` are the pool's."""
        lines = []
        for entry in self.entries:
            component = entry.component
            about = entry.reward.about if entry.reward is not None else notes.get(entry.name, "")
            weight = f" x {component.weight:g}" if component.weight != 1 else ""
            gate = ", gates those after it" if component.gate else ""
            added = ", added because tasks name it" if entry.name in self.added else ""
            lines.append(f"{entry.name}{weight}{gate}{added}: {about}")
        if not self.entries:
            return lines
        lines.append(
            f"graded in up to {self.workers} processes of their own, {self.timeout:g} s for an answer, "
            f"{self.memory / 2**30:.0f} GiB each"
        )
        return lines

    @property
    def grading(self) -> Grading:
        """Which of them grade which task."""
        return Grading(self.entries, frozenset(self.added), self.scored)

    def start(self, decode: Decode, stop: Iterable[int] = ()) -> WorkerGraders:
        """Graders whose first worker runs, if there is a rule to grade by. Raises EspalierError if a reward cannot be
        loaded."""
        pool = Pool(self.specs, timeout=self.timeout, workers=self.workers, memory=self.memory)
        if self.specs:
            pool.start()
        return WorkerGraders(
            self.grading,
            pool,
            decode=decode,
            stop=stop,
            invalid_score=self.invalid_score,
            max_error_share=self.max_error_share,
        )


def plan(config: RewardsConfig, catalogue: Mapping[str, Reward] = BUILTIN, *, verifiers: Iterable[str] = ()) -> Plan:
    """The rewards of a config.

    catalogue: rewards by name, all of them `BUILTIN`'s, since workers load them from there. verifiers: names that tasks
    have; one of the catalogue that the config does not list is added behind its rewards, with weight 1, for the tasks
    that name it.

    Raises ConfigError for a reward, a gate or a setting that does not exist, a name given twice, a missing file, a gate
    with no reward behind it, and if there is no reward at all. Reward models stand behind all rules.
    """
    weights = named_weights(config.reward, "reward")
    names = _names(tuple(weights), catalogue)
    given = _settings(config.reward_args, names)
    entries, specs = [], []
    for text, weight in weights.items():
        name = names[text]
        gate = text in config.gate
        if _is_file(text):
            entry, spec = _user(text, name, weight, gate, given.get(name, {}))
        elif name in catalogue:
            entry, spec = _built_in(catalogue[name], weight, gate, given.get(name, {}))
        else:
            raise ConfigError(
                f"reward: got {text!r}, expected one of {', '.join(catalogue)}, or PATH.py:FUNCTION."
                f"{nearest(text, catalogue)}",
                key="reward",
            )
        entries.append(entry)
        specs.append(spec)
    added = []
    for name in dict.fromkeys(verifiers):
        if name not in catalogue or name in names.values():
            continue
        settings = given.pop(name, {})
        try:
            entry, spec = _built_in(catalogue[name], 1.0, False, settings)
        except ConfigError:
            if settings:
                raise
            # It grades nothing without settings, so it is no task's verifier.
            continue
        added.append(name)
        entries.append(entry)
        specs.append(spec)
    for name in given:
        known = [entry.name for entry in entries]
        if name not in known:
            raise ConfigError(
                f"reward_args: {name} is not among the rewards ({', '.join(known)}).{nearest(name, known)}",
                key="reward_args",
            )
    scored = bool(config.reward_model)
    if not entries and not scored:
        raise ConfigError(
            f"reward: nothing grades; give one of {', '.join(catalogue)}, or PATH.py:FUNCTION, or a --reward-model",
            key="reward",
        )
    if entries and not scored and entries[-1].component.gate:
        raise ConfigError(
            f"gate: {entries[-1].name} is the last reward, and gates those behind it; give it before the rewards that "
            "it should gate, or drop the gate",
            key="gate",
        )
    workers = config.reward_workers or min(MOST_WORKERS, cores())
    return Plan(
        tuple(entries),
        tuple(specs),
        config.reward_timeout,
        workers,
        memory_limit(workers),
        config.invalid_score,
        config.max_error_share,
        tuple(added),
        scored,
    )


def _names(texts: Sequence[str], catalogue: Mapping[str, Reward]) -> dict[str, str]:
    """The name of each reward by the text that gives it: a user's function has its own name, with its file's before it
    if another reward is called the same."""
    short = {text: text.rpartition(":")[2] if _is_file(text) else text for text in texts}
    counts = Counter([*short.values(), *catalogue])
    names: dict[str, str] = {}
    for text, name in short.items():
        if _is_file(text) and counts[name] > 1:
            name = f"{at(text.rpartition(':')[0]).stem}.{name}"
        if name in names.values():
            raise ConfigError(f"reward: two rewards are called {name}; rename one of the functions", key="reward")
        names[text] = name
    return names


def _is_file(text: str) -> bool:
    return text.rpartition(":")[0].endswith(".py")


def _settings(texts: Iterable[str], names: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Settings by reward and key, as text. Raises ConfigError for one that has another form or is given twice."""
    settings: dict[str, dict[str, str]] = {}
    for text in texts:
        left, equals, value = text.partition("=")
        name, dot, key = left.rpartition(".")
        if not (equals and dot and name and key):
            raise ConfigError(f"reward_args: got {text!r}, expected NAME.KEY=VALUE", key="reward_args")
        of_reward = settings.setdefault(names.get(name, name), {})
        if key in of_reward:
            raise ConfigError(f"reward_args: {name}.{key} is given twice; keep one", key="reward_args")
        of_reward[key] = value
    return settings


def _built_in(reward: Reward, weight: float, gate: bool, given: Mapping[str, str]) -> tuple[Entry, Spec]:
    settings = reward.with_defaults(given)
    entry = Entry(Component(reward.name, weight, reward.best, gate), settings, reward)
    return entry, Spec(reward.name, settings)


def _user(text: str, name: str, weight: float, gate: bool, given: Mapping[str, str]) -> tuple[Entry, Spec]:
    path, _, function = text.rpartition(":")
    file = at(path)
    if not file.is_file():
        raise ConfigError(f"reward: {path} does not exist; expected PATH.py:FUNCTION", key="reward")
    _refuse_missing(file, function)
    stand_in = Reward(name, "", lambda answer, settings: None, settings=USER_SETTINGS)
    settings = stand_in.with_defaults(given)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = Entry(Component(name, weight, None, gate), settings)
    return entry, Spec(name, settings, str(file), function, digest)


def _refuse_missing(file: Path, function: str) -> None:
    """Raise ConfigError for a file that does not parse, or that nowhere mentions a name `function`. It is not run here:
    what it really has shows when a worker loads it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"reward: {file} is no Python file: {error}; expected PATH.py:FUNCTION", key="reward"
        ) from None
    defined, mentioned = [], set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.append(node.name)
        elif isinstance(node, ast.Name):
            mentioned.add(node.id)
        elif isinstance(node, ast.alias):
            mentioned.add((node.asname or node.name).partition(".")[0])
    # A star import may bring any name.
    if function not in defined and not mentioned & {function, "*"}:
        public = [name for name in defined if not name.startswith("_")]
        listed = ", ".join(public) or "none"
        raise ConfigError(
            f"reward: {file} has no function {function}; it has {listed}.{nearest(function, public)}", key="reward"
        )
