"""The config of each command that trains: the sections that all of them share, and those of its algorithm."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, ClassVar

from espalier.algorithms.bco import BCO
from espalier.algorithms.cpo import CPO
from espalier.algorithms.dpo import DPO
from espalier.algorithms.kto import KTO
from espalier.algorithms.orpo import ORPO
from espalier.algorithms.prm import PRM
from espalier.algorithms.reward import Reward
from espalier.algorithms.sft import SFT
from espalier.algorithms.simpo import SimPO
from espalier.algorithms.traits import Mates
from espalier.config.fields import Positive, infos, section
from espalier.config.sections import (
    DataConfig,
    JudgeConfig,
    LoopConfig,
    ModelConfig,
    OptimConfig,
    PreferenceConfig,
    ReferenceConfig,
    StepLabelsConfig,
)
from espalier.errors import ConfigError

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
    about: ClassVar[str]
    refused: ClassVar[tuple[str, ...]] = ("replay", "replay_fraction", "alpaca_prompt")
    """Keys that its sections share with other commands, and that it has no use for."""

    if TYPE_CHECKING:

        @property
        def algorithm(self) -> Algorithm: ...

    def __post_init__(self) -> None:
        held_out = self.data.eval_data or self.data.eval_fraction
        if self.loop.eval_every and not held_out:
            raise ConfigError("eval_every is given, but nothing is held out; give eval_data or eval_fraction")
        if self.data.alpaca_prompt and self.data.format not in ("auto", "alpaca"):
            raise ConfigError(f"alpaca_prompt is on, but format is {self.data.format}; it applies to Alpaca rows only")
        check_judgements(preference_of(self), self.algorithm)
        if key := next((key for key in given(self) if key in self.refused), ""):
            raise ConfigError(f"{key} is given, but `espalier {self.command}` has no use for it; drop it", key=key)
        if self.data.eval_fraction and preference_of(self).flip:
            raise ConfigError("flip would turn held-out judgements around, too; hold files out with eval_data")
        if (reference := reference_of(self)) is not None:
            check_reference(reference, self.algorithm)
        if (judge := judge_of(self)).eval_only and held_out:
            raise ConfigError("eval_only judges all of data, and nothing is trained; drop eval_data and eval_fraction")
        if judge.eval_only and self.loop.resume:
            raise ConfigError("eval_only is on, and there is nothing to resume; drop resume")


# ---------------------------------------------------------------------------------- learning rates that papers start at


@section
class HeadOptim(OptimConfig):
    """How gradients become updates."""

    lr: Positive = 1e-5
    """Peak learning rate."""


@section
class PreferenceOptim(OptimConfig):
    """How gradients become updates."""

    lr: Positive = 1e-6
    """Peak learning rate."""


@section
class LikelihoodOptim(OptimConfig):
    """How gradients become updates."""

    lr: Positive = 8e-6
    """Peak learning rate."""


# ------------------------------------------------------------------------------------------------------------- commands


@section
class SFTRun(RunConfig):
    """Fine-tune a model on instruction data."""

    command: ClassVar[str] = "sft"
    about: ClassVar[str] = "Fine-tune a model on instruction data."
    refused: ClassVar[tuple[str, ...]] = ()
    algorithm: SFT = field(default_factory=SFT)


@section
class RewardRun(RunConfig):
    """Train a reward model on ranked or scored answers, and judge it."""

    command: ClassVar[str] = "reward"
    about: ClassVar[str] = "Train a reward model on ranked or scored answers, and judge it."
    refused: ClassVar[tuple[str, ...]] = (*RunConfig.refused, "outcome_model")
    optim: HeadOptim = field(default_factory=HeadOptim)
    algorithm: Reward = field(default_factory=Reward)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@section
class PRMRun(RunConfig):
    """Train a process reward model on labelled steps."""

    command: ClassVar[str] = "prm"
    about: ClassVar[str] = "Train a process reward model on labelled steps."
    optim: HeadOptim = field(default_factory=HeadOptim)
    algorithm: PRM = field(default_factory=PRM)
    labels: StepLabelsConfig = field(default_factory=StepLabelsConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@section
class DPORun(RunConfig):
    """Learn from pairs and ranked lists against a reference."""

    command: ClassVar[str] = "dpo"
    about: ClassVar[str] = "Learn from pairs and ranked lists against a reference."
    optim: PreferenceOptim = field(default_factory=PreferenceOptim)
    algorithm: DPO = field(default_factory=DPO)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)


@section
class SimPORun(RunConfig):
    """Learn from pairs by mean log-probabilities, without a reference."""

    command: ClassVar[str] = "simpo"
    about: ClassVar[str] = "Learn from pairs by mean log-probabilities, without a reference."
    optim: PreferenceOptim = field(default_factory=PreferenceOptim)
    algorithm: SimPO = field(default_factory=SimPO)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)


@section
class ORPORun(RunConfig):
    """Learn from pairs by odds ratios beside likelihood, without a reference."""

    command: ClassVar[str] = "orpo"
    about: ClassVar[str] = "Learn from pairs by odds ratios beside likelihood, without a reference."
    optim: LikelihoodOptim = field(default_factory=LikelihoodOptim)
    algorithm: ORPO = field(default_factory=ORPO)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)


@section
class CPORun(RunConfig):
    """Learn from pairs beside likelihood, without a reference."""

    command: ClassVar[str] = "cpo"
    about: ClassVar[str] = "Learn from pairs beside likelihood, without a reference."
    optim: PreferenceOptim = field(default_factory=PreferenceOptim)
    algorithm: CPO = field(default_factory=CPO)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)


@section
class KTORun(RunConfig):
    """Learn from answers that are labelled good or bad."""

    command: ClassVar[str] = "kto"
    about: ClassVar[str] = "Learn from answers that are labelled good or bad."
    refused: ClassVar[tuple[str, ...]] = (*RunConfig.refused, "max_pairs")
    optim: PreferenceOptim = field(default_factory=PreferenceOptim)
    algorithm: KTO = field(default_factory=KTO)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)


@section
class BCORun(RunConfig):
    """Learn from good and bad answers by a binary classifier."""

    command: ClassVar[str] = "bco"
    about: ClassVar[str] = "Learn from good and bad answers by a binary classifier."
    refused: ClassVar[tuple[str, ...]] = (*RunConfig.refused, "max_pairs")
    optim: PreferenceOptim = field(default_factory=PreferenceOptim)
    algorithm: BCO = field(default_factory=BCO)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)


def given(config: RunConfig, *sections: str) -> list[str]:
    """Keys of these sections (of all, where none is named) that are not at their defaults."""
    found = []
    for name in sections or infos(type(config)):
        part = getattr(config, name)
        for key, info in infos(type(part)).items():
            if not info.is_required() and getattr(part, key) != info.get_default(call_default_factory=True):
                found.append(key)
    return found


JUDGING_READS = {
    *("out", "seed", "tokens_per_microbatch", "deterministic", "overwrite", "compile"),
    *("objective", "dimensions", "pointwise_coef", "grade_low", "grade_high"),
}
"""Keys of the loop and of algorithms that say something where a scoring model is judged and nothing is trained."""


def unread_in_judging(config: RunConfig) -> list[str]:
    """Keys that are given, and that say something about training alone; none where something is trained."""
    if not judge_of(config).eval_only:
        return []
    return [key for key in given(config, "optim", "loop", "algorithm") if key not in JUDGING_READS]


RUNS: dict[str, type[RunConfig]] = {
    run.command: run for run in (SFTRun, RewardRun, PRMRun, DPORun, SimPORun, ORPORun, CPORun, KTORun, BCORun)
}
"""The config class of each command that trains."""


def check_judgements(how: PreferenceConfig, algorithm: Algorithm) -> None:
    """Raise ConfigError for a choice among judgements that no loss of the algorithm would see."""
    wants, kept = algorithm.traits.wants, {"min_gap": how.min_gap, "max_pairs": how.max_pairs, "flip": how.flip}
    if wants == "grades":
        why = "pointwise learns from the grades of answers, one by one"
        unread: dict[str, object] = {**kept, "judged_by": how.judged_by != "auto", "score_weights": how.score_weights}
    elif algorithm.traits.orders:
        why, unread = "plackett_luce learns from whole orders", {**kept}
    elif wants == "labels":
        why = f"{type(algorithm).__name__.lower()} learns from answers that are good or bad, one by one"
        unread = {"max_pairs": how.max_pairs}
    else:
        return
    for key, given in unread.items():
        if given:
            raise ConfigError(f"{key} is given, but {why}, which it does not change; drop it", key=key)


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


def judge_of(config: RunConfig) -> JudgeConfig:
    """How a run's scores are judged; the defaults where its command has no such section."""
    found: JudgeConfig = getattr(config, "judge", None) or JudgeConfig()
    return found


def check_reference(config: ReferenceConfig, algorithm: Algorithm) -> None:
    """Raise ConfigError where the algorithm cannot be held against the reference that was asked for."""
    traits = algorithm.traits
    name = type(algorithm).__name__
    asked = "reference_model" if config.reference_model else "reference" if config.reference == "precomputed" else ""
    if asked and "ref_logprobs" not in traits.needs:
        raise ConfigError(f"{asked} is given, but {name} as set uses no reference; drop {asked}", key=asked)
    if config.reference == "precomputed" and traits.sync_every:
        raise ConfigError(
            f"reference is precomputed, but the reference moves every {traits.sync_every} steps, and what was computed "
            "before the first step would be wrong after that; set reference: memory, or let it stay where it is",
            key="reference",
        )
    if config.reference == "precomputed" and isinstance(algorithm, Mates):
        raise ConfigError(
            f"reference is precomputed, but {name} builds samples across the groups of each step, which are in no "
            "table; set reference: memory",
            key="reference",
        )
    if config.reference_model and traits.sync_every:
        raise ConfigError(
            f"reference_model is given, but the reference moves towards the policy every {traits.sync_every} steps, so "
            "it must be the policy as it starts; drop reference_model, or let the reference stay where it is",
            key="reference_model",
        )
