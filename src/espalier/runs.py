"""The config of each command that trains: the sections that all of them share, and those of its algorithm."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, ClassVar

from espalier.algorithms.prm import PRM
from espalier.algorithms.sft import SFT
from espalier.config import (
    DataConfig,
    LoopConfig,
    ModelConfig,
    OptimConfig,
    PreferenceConfig,
    ReferenceConfig,
    StepLabelsConfig,
)
from espalier.errors import ConfigError
from espalier.fields import section

if TYPE_CHECKING:
    from espalier.algorithms.traits import Algorithm


@section
class RunConfig:
    """What every run has; a command adds its algorithm as `algorithm`, and further sections."""

    model: ModelConfig
    data: DataConfig
    loop: LoopConfig
    optim: OptimConfig = field(default_factory=OptimConfig)

    command: ClassVar[str]

    if TYPE_CHECKING:

        @property
        def algorithm(self) -> Algorithm: ...

    def __post_init__(self) -> None:
        held_out = self.data.eval_data or self.data.eval_fraction
        if self.loop.eval_every and not held_out:
            raise ConfigError("eval_every is given, but nothing is held out; give eval_data or eval_fraction")
        if self.data.alpaca_prompt and self.data.format not in ("auto", "alpaca"):
            raise ConfigError(f"alpaca_prompt is on, but format is {self.data.format}; it applies to Alpaca rows only")
        if self.data.replay and not hasattr(self.algorithm, "replay_coef"):
            raise ConfigError("replay is given, but this algorithm has no term for it; train it with `espalier sft`")


@section
class SFTRun(RunConfig):
    """Supervised fine-tuning."""

    command: ClassVar[str] = "sft"
    algorithm: SFT = field(default_factory=SFT)


@section
class PRMRun(RunConfig):
    """Process reward model: which step of a solution is the bad one."""

    command: ClassVar[str] = "prm"
    algorithm: PRM = field(default_factory=PRM)
    labels: StepLabelsConfig = field(default_factory=StepLabelsConfig)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-5))


RUNS: dict[str, type[RunConfig]] = {run.command: run for run in (SFTRun,)}
"""The config class of each command that trains."""


def preference_of(config: RunConfig) -> PreferenceConfig:
    """How a run reads judgements; the defaults where its command has no such section."""
    found: PreferenceConfig = getattr(config, "preference", None) or PreferenceConfig()
    return found


def reference_of(config: RunConfig) -> ReferenceConfig | None:
    """The reference of a run whose command has one."""
    found: ReferenceConfig | None = getattr(config, "reference", None)
    return found


def labels_of(config: RunConfig) -> StepLabelsConfig:
    """What step labels count as in a run; the defaults where its command has no such section."""
    found: StepLabelsConfig = getattr(config, "labels", None) or StepLabelsConfig()
    return found
