"""Which reward models score a run's answers, by what names and weights; no weight of a model is read."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from espalier.assembly.runs import RunConfig
from espalier.config.fields import named_weights
from espalier.config.rollout_sections import RewardsConfig
from espalier.errors import ConfigError, ModelError, nearest
from espalier.rewards import build
from espalier.rewards.builtin import BUILTIN

FIGURES = ("std", "cut")
"""Names that `reward_NAME` has in metrics.jsonl for something else."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A reward model of a run. name: by which its score is logged. folder: of config.json and the weights. dimensions:
    of its head, each with its weight in the model's score, which has `weight` in the answer's."""

    name: str
    path: str
    weight: float
    folder: Path
    dimensions: dict[str, float]

    def pins(self) -> dict[str, float]:
        """The weights, by what they weigh."""
        weights = {f"{self.name} weight": self.weight}
        if len(self.dimensions) > 1:
            weights |= {f"{self.name}.{name} weight": weight for name, weight in self.dimensions.items()}
        return weights

    def line(self) -> str:
        """The model and its weights in words."""
        text = self.name if self.weight == 1 else f"{self.name} x {self.weight:g}"
        if len(self.dimensions) > 1:
            counted = [f"{name} x {weight:g}" for name, weight in self.dimensions.items()]
            text += f" ({', '.join(counted)})"
        return text


def names_of(config: RewardsConfig, plan: build.Plan) -> dict[str, str]:
    """The name of each reward model by its path: that of its folder, or of the run around a folder `model`; with a
    number if something else is called so."""
    taken = {*FIGURES, *BUILTIN, *(entry.name for entry in plan.entries)}
    names = {}
    for path in named_weights(config.reward_model, "reward_model"):
        place = Path(path).expanduser().absolute()
        name = base = place.parent.name if place.name == "model" and place.parent.name else place.name
        number = 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        taken.add(name)
        names[path] = name
    return names


def choices_of(config: RunConfig) -> tuple[Choice, ...]:
    """The reward models of a config, in its order.

    Raises ConfigError for a folder that holds no reward model, dimensions without weights, and weights of dimensions
    that no model has.
    """
    from espalier.models.reward_folder import read_reward_folder

    rewards = config.rewards
    if not rewards.reward_model:
        return ()
    weights = named_weights(rewards.reward_dimensions, "reward_dimensions", bare=False)
    names = names_of(rewards, build.plan(rewards, BUILTIN, verifiers=BUILTIN))
    choices = []
    for path, weight in named_weights(rewards.reward_model, "reward_model").items():
        try:
            reward_model = read_reward_folder(path, trust_remote_code=config.model.trust_remote_code)
        except ModelError as error:
            raise ConfigError(f"reward_model: {error}", key="reward_model") from error
        dimensions = dict.fromkeys(reward_model.dimensions, 1.0)
        if len(dimensions) > 1:
            dimensions = {name: weights.get(name, 0.0) for name in reward_model.dimensions}
        if not weights.keys() & dimensions.keys() and len(dimensions) > 1:
            raise ConfigError(
                f"reward_model: {path} has the dimensions {', '.join(dimensions)}, and nothing says what they count; "
                f"give --reward-dimensions DIMENSION=WEIGHT, such as {next(iter(dimensions))}=1",
                key="reward_model",
            )
        choices.append(Choice(names[path], path, weight, reward_model.folder, dimensions))
    _refuse_unknown(weights, [name for choice in choices if len(choice.dimensions) > 1 for name in choice.dimensions])
    return tuple(choices)


def _refuse_unknown(names: Collection[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"reward_dimensions: no reward model has several dimensions of which one is {name!r}; they are "
                f"{', '.join(dict.fromkeys(known)) or 'none'}.{nearest(name, known)}",
                key="reward_dimensions",
            )
