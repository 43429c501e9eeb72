"""In which form a run reads its examples, and which judgements it takes from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from espalier.config.sections import PreferenceConfig, StepLabelsConfig, TurnsConfig
from espalier.types import Consumes, Task, Wants


def _nothing(task: Task) -> str:
    return ""


def _named(task: Task) -> tuple[str, ...]:
    return (task.verifier,) if task.verifier else ()


@dataclass(frozen=True, slots=True)
class TaskForm:
    """What a run asks of tasks, beyond a prompt.

    max_tokens: the longest answer. A prompt that leaves no room for it below the longest sample is refused.
    needs(task): why nobody can grade it, in words that are the same for all such tasks; empty if somebody can.
    graders(task): the names of the rewards that grade it, by which tasks are counted.
    key: what decides the answers of both, such as the rewards and their settings: tokens are cached under it.
    """

    max_tokens: int = 0
    needs: Callable[[Task], str] = _nothing
    graders: Callable[[Task], tuple[str, ...]] = _named
    key: str = ""


# Names and values of these fields, and of the sections inside, enter `Renderer.fingerprint`:
# another name or another default makes a different token store of every cached one.
@dataclass(frozen=True, slots=True)
class Form:
    """Everything beside tokenizer and length that decides what samples an example becomes.

    consumes: chats, rankings, steps or tasks. wants: what a ranking must offer, or its row is refused (see
    `algorithms.traits.Traits`). reads: samples are read by a scalar head, at the end of a text (what the template
    writes behind a response belongs to it) or at the end of each step. preference: which comparisons are kept. seed: of
    what is drawn (capped pairs, flips). labels: what step labels count as. unread: a token that is not read at the end
    of a text, None if all are: the pad token of a model that others trained. turns: what becomes of
    turns, and what the chat template is given. tasks: what is asked of tasks, None of other examples.
    """

    consumes: Consumes = "chat"
    wants: Wants = "pairs"
    reads: bool = False
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    seed: int = 0
    labels: StepLabelsConfig = field(default_factory=StepLabelsConfig)
    unread: int | None = None
    turns: TurnsConfig = field(default_factory=TurnsConfig)
    tasks: TaskForm | None = None

    def settings(self) -> dict[str, Any]:
        """What decides samples, as JSON."""
        settings = {name: value for name, value in asdict(replace(self, tasks=None)).items() if name != "tasks"}
        if self.tasks is not None:
            settings["tasks"] = [self.tasks.max_tokens, self.tasks.key]
        return settings


CHATS = Form()
