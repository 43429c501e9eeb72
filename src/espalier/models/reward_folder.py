"""A reward model on disk, by its config alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espalier.errors import ModelError
from espalier.models import heads
from espalier.models.load import locate, read_config

_EXPECTED = "expected a reward model, as `espalier reward` trains it"


@dataclass(frozen=True, slots=True)
class RewardFolder:
    """The folder that holds config.json and the weights, and the names of the head's dimensions: 0, 1, ... if they are
    nameless."""

    folder: Path
    dimensions: tuple[str, ...]


def reward_model_folder(path: str) -> Path:
    """The folder of a reward model: `path`, or `model/` in it if it is a run's."""
    folder = locate(path)
    inside = folder / "model"
    return inside if inside.is_dir() and not (folder / "config.json").is_file() else folder


def read_reward_folder(path: str, *, trust_remote_code: bool = False) -> RewardFolder:
    """What the config of a reward model says. Raises ModelError if it is missing, a language model, or a process
    reward model."""
    folder = reward_model_folder(path)
    config = read_config(path, folder, trust_remote_code, head=True)
    declared = [str(name) for name in config.architectures or ()]
    if not any(name.endswith("ForSequenceClassification") for name in declared):
        raise ModelError(f"{path} is {', '.join(declared) or 'a model'} without a scalar head; {_EXPECTED}")
    if getattr(config, "espalier_head", "response") == "steps":
        raise ModelError(f"{path} is a process reward model, which scores the steps of a solution; {_EXPECTED}")
    names = heads.labels_of(config) or tuple(map(str, range(config.num_labels)))
    return RewardFolder(folder, names)
