"""The config of `espalier rollout`: that of a run which answers tasks and trains nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import TYPE_CHECKING, ClassVar

from espalier.algorithms.traits import Algorithm, Traits
from espalier.assembly.runs import RunConfig
from espalier.config.data_sections import DataConfig
from espalier.config.data_source import SourceList
from espalier.config.fields import section
from espalier.config.rollout_sections import SurveyConfig
from espalier.config.sections import LoopConfig, ModelConfig
from espalier.errors import ConfigError

if TYPE_CHECKING:
    from espalier.types import Batch, Outputs, Term


@section
class Untrained(Algorithm):
    """Answers tasks, and learns nothing from them."""

    @property
    def traits(self) -> Traits:
        return Traits(consumes="task")

    def loss(self, outputs: Outputs, batch: Batch) -> Mapping[str, Term]:  # type: ignore[override]
        """No terms."""
        return {}


@section
class AnsweringModel(ModelConfig):
    """The model that answers."""

    model: str = ""
    """Hugging Face directory or hub name; not needed with grade_answers or regrade."""


@section
class TaskFiles(DataConfig):
    """What is read, how, and what is held out."""

    data: SourceList = ()
    """The tasks: files or hub datasets, each PATH or PATH:FORMAT; with regrade, empty takes the data of that run."""


@section
class RolloutRun(RunConfig):
    """Answer tasks and grade the answers, before anybody trains."""

    model: AnsweringModel
    data: TaskFiles = field(default_factory=TaskFiles)
    survey: SurveyConfig = field(default_factory=lambda: SurveyConfig(out="-"))
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(out="-"))
    algorithm: Untrained = field(default_factory=Untrained)

    command: ClassVar[str] = "rollout"
    about: ClassVar[str] = "Answer tasks with a model and grade the answers, before anybody trains."
    sections: ClassVar[tuple[str, ...]] = ("model", "data", "turns", "survey", "rollout", "rewards")
    refused: ClassVar[tuple[str, ...]] = (
        *("alpaca_prompt", "keep_wrong", "replay", "replay_fraction", "eval_data", "eval_fraction"),
        *("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "rslora", "qlora", "export", "freeze_layers"),
        *("freeze", "dropout", "router_loss", "add_tokens", "max_waves", "eval_samples"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        sampled = not (self.survey.grade_answers or self.survey.regrade)
        if sampled and not self.model.model:
            raise ConfigError("model is missing: the one that answers. Give --model", key="model")
        if not self.data.data and not self.survey.regrade:
            raise ConfigError("data is missing: the tasks to answer. Give --data", key="data")
        if self.rewards.reward_model and not sampled:
            raise ConfigError(
                "reward_model: regrade and grade_answers grade text without a model, and a reward model reads the ids "
                "of prompt and answer; drop it, or answer the tasks anew",
                key="reward_model",
            )
        object.__setattr__(self, "loop", LoopConfig(out=self.survey.out, seed=self.survey.seed))
