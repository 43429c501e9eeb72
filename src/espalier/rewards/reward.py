"""What a reward is: a function of one answer, with what it needs of a task and what it gives on known answers.

Rewards run in worker processes (`worker`), which load this module: it imports no torch, and nothing here may.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from espalier.errors import ConfigError, nearest

if TYPE_CHECKING:
    from espalier.types import Task

Settings = Mapping[str, Any]
Given = float | bool | Mapping[str, Any] | None
"""What a reward returns: a score; None if it does not apply to this task; `{"invalid": reason}` if the answer does not
qualify; `{name: score, ...}` for several scores; `{"steps": [(end, score), ...]}` for scores of parts of the response,
where `response[:end]` is the text up to the end of a step (with `"score"` for the whole beside it, if there is one)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One response as a reward sees it.

    prompt: the last user message; empty if there is none. messages: the whole prompt, in OpenAI form (role, content).
    response: the decoded ids without the stop token; special tokens are kept.
    answer, verifier, facts, columns: as in `Task`.
    row: the task's number in the run's data. stop: why the response ended ("stop", "length").
    ids: the response's token ids, its stop token included.
    """

    prompt: str
    response: str
    answer: str = ""
    verifier: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Mapping[str, Any], ...] = ()
    row: int = 0
    stop: str = "stop"
    ids: tuple[int, ...] = ()

    def fields(self) -> dict[str, Any]:
        """What a user's function gets by name, beside prompt and response: messages, answer, verifier, every column and
        fact by its own name (a fact before a column), row, stop, ids. These own names are never hidden by the data's.

        >>> Answer("2 + 2?", "4", answer="4", columns={"level": 3}).fields()["level"]
        3
        """
        own = {
            "messages": [dict(message) for message in self.messages],
            "answer": self.answer,
            "verifier": self.verifier,
            "row": self.row,
            "stop": self.stop,
            "ids": list(self.ids),
        }
        return {**self.columns, **self.facts, **own}


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a reward, given as `--reward-args NAME.KEY=VALUE`. It has the type of `default`: float, int, bool or
    str. `choices` are the values it may have, if only some."""

    default: float | int | bool | str
    about: str
    choices: tuple[str, ...] = ()

    def read(self, text: str) -> float | int | bool | str:
        """The value that `text` says. Raises ValueError with what is expected."""
        if self.choices and text not in self.choices:
            raise ValueError(f"expected one of {', '.join(self.choices)}")
        if isinstance(self.default, bool):
            if text.lower() not in ("true", "false"):
                raise ValueError("expected true or false")
            return text.lower() == "true"
        if isinstance(self.default, str):
            return text
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        try:
            return int(text) if isinstance(self.default, int) else float(text)
        except ValueError:
            raise ValueError(f"expected {kind}") from None


@dataclass(frozen=True, slots=True)
class Known:
    """A known answer: a reward must grade `response` to such a task with `score`. `score` None: it does not apply;
    "invalid": the answer does not qualify; a mapping: a score by name."""

    response: str
    score: float | str | Mapping[str, float] | None
    answer: str = ""
    prompt: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    stop: str = "stop"


@dataclass(frozen=True, slots=True)
class Reward:
    """An entry of the catalogue.

    about: one line of help, with the formula or the rule.
    grade: the score of an answer under the settings. It may raise: that is an error of this answer, never a 0.
    needs: what of a task it needs: "answer", or names of facts; "a|b" is one of several. A setting of that name that
        differs from its default stands for it. A reward that needs nothing grades every task.
    best: the best score it gives; None if it declares none.
    gold: the response, in the form that this reward reads, that must get `best` for a task; for rewards that read
        `answer`.
    known: known answers, graded before the first step.
    settings: its settings by key.
    check: raises ValueError, with what is wrong, for settings that do not go together.
    load: what to import before the first answer, so that no deadline counts it.
    """

    name: str
    about: str
    grade: Callable[[Answer, Settings], Given]
    needs: tuple[str, ...] = ()
    best: float | None = 1.0
    gold: Callable[[Task], str] | None = None
    known: tuple[Known, ...] = ()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    check: Callable[[Settings], None] | None = None
    load: Callable[[], None] | None = None

    def with_defaults(self, given: Mapping[str, str]) -> dict[str, Any]:
        """All settings, from texts for some of them. Raises ConfigError for an unknown one and for a wrong value."""
        for key in given:
            if key not in self.settings:
                has = f"it has {', '.join(self.settings)}" if self.settings else "it has none"
                raise ConfigError(
                    f"reward_args: {self.name} has no setting {key}; {has}.{nearest(key, self.settings)}",
                    key="reward_args",
                )
        values: dict[str, Any] = {key: setting.default for key, setting in self.settings.items()}
        for key, text in given.items():
            try:
                values[key] = self.settings[key].read(text)
            except ValueError as error:
                raise ConfigError(f"reward_args: {self.name}.{key} is {text!r}; {error}", key="reward_args") from None
        if self.check is not None:
            try:
                self.check(values)
            except ValueError as error:
                raise ConfigError(f"reward_args: {self.name}: {error}", key="reward_args") from None
        return values

    def grade_any(self, answer: Answer, settings: Settings) -> Given:
        """`grade`; of a task with several accepted answers (`accepted`), the best score over them, if the reward reads
        answers. One that it cannot read is passed over while it can read another."""
        if "answer" not in self.needs:
            return self.grade(answer, settings)
        best: float | None = None
        fault: ValueError | None = None
        for text in accepted(answer):
            try:
                given = self.grade(replace(answer, answer=text), settings)
            except ValueError as error:
                fault = fault or error
                continue
            # What does not qualify does so whichever answer is right.
            if not isinstance(given, int | float):
                return given
            best = float(given) if best is None else max(best, float(given))
        if best is None and fault is not None:
            raise fault
        return best

    def write_gold(self, task: Task) -> str:
        """`gold` of the first accepted answer that has one. Raises what `gold` raises for the first of all, and
        ValueError for a reward without golds."""
        if self.gold is None:
            raise ValueError(f"{self.name} has no gold; expected a reward that writes answers in the form it reads")
        fault: ValueError | KeyError | None = None
        for text in accepted(task):
            try:
                return self.gold(replace(task, answer=text))
            except (ValueError, KeyError) as error:
                fault = fault or error
        assert fault is not None
        raise fault

    def lacks(self, task: Task, settings: Settings) -> tuple[str, ...]:
        """What of a task is missing for this reward; empty if it can grade it."""
        return tuple(need for need in self.open_needs(settings) if not _has(task, need))

    def open_needs(self, settings: Settings) -> tuple[str, ...]:
        """What it needs of a task under these settings; empty: it grades every task."""
        return tuple(need for need in self.needs if not self._set(need, settings))

    def _set(self, need: str, settings: Settings) -> bool:
        keys = [key for key in need.split("|") if key in self.settings]
        return any(settings.get(key, self.settings[key].default) != self.settings[key].default for key in keys)


def accepted(task: Answer | Task) -> tuple[str, ...]:
    """The answers of a task each of which is right: its fact `answers` if that is a list of texts that has its answer,
    else its answer alone. A list without it says something else.

    >>> accepted(Answer("", "", answer="7", facts={"answers": ["7", "seven"]})), accepted(Answer("", "", answer="7"))
    (('7', 'seven'), ('7',))
    """
    several = task.facts.get("answers")
    if isinstance(several, list | tuple) and all(isinstance(text, str) for text in several) and task.answer in several:
        return tuple(text for text in several if text.strip())
    return (task.answer,)


def _has(task: Task, need: str) -> bool:
    for name in need.split("|"):
        if name == "answer" and task.answer != "":
            return True
        if task.facts.get(name) is not None:
            return True
    return False
