"""Config sections of commands that answer tasks: how answers are drawn, and how they are graded."""

from __future__ import annotations

from espalier.config.data_source import SourceList
from espalier.config.fields import (
    Count,
    CountOrZero,
    Fraction,
    Name,
    Names,
    NotNegative,
    Number,
    Positive,
    Seed,
    named_weights,
    section,
)
from espalier.config.sampling import SamplingConfig
from espalier.errors import ConfigError


@section
class _PromptsConfig:
    """What a step answers."""

    prompts_per_step: CountOrZero = 32
    """Prompts of a step; 0 takes all of them."""
    group_size: Count = 8
    """Answers to each prompt."""


# Keys stand in the order of the bases from the last one on, then its own.
@section
class RolloutConfig(SamplingConfig, _PromptsConfig):
    """How answers to tasks are drawn."""

    sampler_rows: CountOrZero = 0
    """Answers drawn at the same time; 0 takes 256, or all of the largest step or evaluation if they are fewer."""
    sampler_tokens: CountOrZero = 0
    """Tokens whose keys and values are held at the same time; 0 takes what sampler_rows answers and their prompts need,
    within a quarter of the free memory."""
    max_waves: Count = 8
    """Waves in which groups that teach nothing are replaced by other prompts, before the step trains on what it has."""
    eval_samples: CountOrZero = 0
    """Answers to each held-out task, drawn at temperature; 0 takes the greedy one."""


@section
class RewardsConfig:
    """How answers are graded."""

    reward: Names = ()
    """Rewards, each NAME, NAME=WEIGHT or PATH.py:FUNCTION=WEIGHT. A task that names a verifier is graded by that one,
    and by those that need nothing of a task."""
    gate: Names = ()
    """Rewards among them that gate those behind them in the list: these count 0 without full marks at the gate."""
    invalid_score: Number = 0.0
    """Score of an answer that does not qualify."""
    reward_timeout: Positive = 10.0
    """Seconds after which a grader is stopped, which is an error."""
    reward_workers: CountOrZero = 0
    """Worker processes that grade; 0 takes one for each core, at most 4."""
    max_error_share: Fraction = 0.05
    """Share of grading errors among the last 200 answers above which the run stops."""
    reward_args: Names = ()
    """Settings of rewards, as NAME.KEY=VALUE (length.target=200)."""
    reward_model: Names = ()
    """Trained reward models that score the answers, each PATH or PATH=WEIGHT: the folder of a run of `espalier reward`,
    or a sequence-classification model with the policy's tokenizer. They are added to the rewards, or grade alone."""
    reward_dimensions: Names = ()
    """What the dimensions of reward models that have several count, each DIMENSION=WEIGHT; the others count 0."""

    def __post_init__(self) -> None:
        names = [entry.split("=")[0] for entry in self.reward]
        for gate in self.gate:
            if gate not in names:
                raise ConfigError(f"gate: {gate} is not among the rewards; give it as reward, too", key="gate")
        named_weights(self.reward_model, "reward_model")
        named_weights(self.reward_dimensions, "reward_dimensions", bare=False)
        if self.reward_dimensions and not self.reward_model:
            raise ConfigError(
                "reward_dimensions is given, but no reward_model has dimensions; give one, or drop it",
                key="reward_dimensions",
            )


@section
class ConversationsConfig:
    """Conversations that are trained beside the answers."""

    sft_data: SourceList = ()
    """Conversations to train on in every step beside the answers that are kept, each PATH, PATH:FORMAT or
    PATH=PROPORTION, read and rendered as sft does it."""
    sft_per_step: CountOrZero = 0
    """Conversations of a step; 0 takes as many as the step has prompts."""

    def __post_init__(self) -> None:
        if self.sft_per_step and not self.sft_data:
            raise ConfigError(
                f"sft_per_step: got {self.sft_per_step}, but there is no sft_data to take them from; give sft_data, or "
                "drop it",
                key="sft_per_step",
            )


@section
class SurveyConfig:
    """What is answered, and where the answers go."""

    out: Name
    """Folder for samples.jsonl and rollout.json. A command that was killed goes on where it stopped if it is given once
    more."""
    tasks: CountOrZero = 0
    """Tasks to answer, chosen by seed; 0 takes all."""
    seed: Seed = 0
    """Seed of the sampler and of the choice of tasks."""
    right: NotNegative = 0.0
    """Score from which an answer counts as right; 0 takes the best score that the rewards declare."""
    show: CountOrZero = 2
    """Answers to print of the best, and of the worst."""
    grade_answers: bool = False
    """Grade the data's own answers, in the form that each reward reads, without a model."""
    regrade: str = ""
    """Grade the answers in this run's samples.jsonl (or this file) with other rewards, and sample nothing; their tasks
    are read from the run's data, unless data is given."""
    overwrite: bool = False
    """Remove earlier rollouts from `out`."""

    def __post_init__(self) -> None:
        if self.grade_answers and self.regrade:
            raise ConfigError("grade_answers and regrade are both given, and grade different answers; drop one")
