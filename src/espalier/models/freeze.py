"""Which parameters are trained: the lowest layers or name patterns can be held fixed."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FreezeSummary:
    """Numbers of parameters (tied ones once), the names that are trained, and lines for the user."""

    trainable: int
    total: int
    names: list[str]
    notes: list[str] = field(default_factory=list)


def freeze(model: PreTrainedModel, config: ModelConfig) -> FreezeSummary:
    """Set `requires_grad` to False for what `config.freeze_layers` and `config.freeze` name, in place.

    `freeze_layers` f > 0 freezes the lowest round(f L) of L layers, at least one (0.5 of 5 layers are 3), and every
    embedding outside the layers. Patterns are shell wildcards over parameter names, and over module names, whose
    parameters they freeze (`model.layers.0` is `model.layers.0.*`). Rows of new tokens under LoRA stay trained.

    Raises ConfigError if a pattern matches nothing, if nothing is left to train, and if new control tokens would sit in
    a frozen embedding.
    """
    # Tied parameters under each of their names, so that a pattern finds them under any.
    named = dict(model.named_parameters(remove_duplicate=False))
    frozen: set[str] = set()
    notes: list[str] = []
    if config.freeze_layers > 0:
        names, note = _lowest(model, config.freeze_layers, named)
        frozen.update(names)
        notes.append(note)
    for pattern in config.freeze:
        frozen.update(_matches(pattern, named))
    frozen = {name for name in frozen if "trainable_tokens_delta" not in name}
    for name in frozen:
        named[name].requires_grad_(False)
    if frozen:
        _check_embedding(model, config, notes)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("freeze_layers and freeze leave nothing to train; freeze less")
    parameters = list(model.parameters())
    return FreezeSummary(
        trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        total=sum(parameter.numel() for parameter in parameters),
        names=trained,
        notes=notes,
    )


def _lowest(model: nn.Module, share: float, named: dict[str, nn.Parameter]) -> tuple[list[str], str]:
    """Names of the parameters of the lowest layers and of all embeddings outside the layers, and a line about them."""
    path, layers = find_layers(model)
    # Half up, because round() would send 2.5 layers to 2.
    count = max(1, int(share * len(layers) + 0.5))
    below = tuple(f"{path}.{i}." for i in range(count))
    tables = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and not name.startswith(path):
            tables.append(name)
    lowest = [name for name in named if name.startswith(below) or name.rpartition(".")[0] in tables]
    return lowest, f"frozen: layers 0 to {count - 1} of {len(layers)} and the embeddings ({', '.join(tables)})"


def _matches(pattern: str, named: dict[str, nn.Parameter]) -> list[str]:
    """Names of the parameters that a pattern matches, or whose module it matches. Raises ConfigError for none."""
    matches = [name for name in named if fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")]
    if not matches:
        modules = {name.rpartition(".")[0] for name in named}
        near = get_close_matches(pattern, sorted(set(named) | modules), n=3, cutoff=0.4) or list(named)[:3]
        raise ConfigError(f"freeze pattern {pattern!r} matches no parameter; the nearest names are {', '.join(near)}")
    return matches


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of a decoder's layers and its path (`model.layers`, `transformer.h`).

    Raises ConfigError if no module list has as many entries as the config says there are layers.
    """
    config: Any = getattr(model, "config", None)
    depth = None
    if config is not None:
        depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return path, module
    raise ConfigError(
        f"freeze_layers does not know where the layers of {type(model).__name__} are; use freeze with patterns"
    )


def _check_embedding(model: Any, config: ModelConfig, notes: list[str]) -> None:
    """Add a line if the head is frozen with the embedding; raise ConfigError if new tokens need what is frozen."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    # Under LoRA the embedding is frozen anyway, and the rows of new tokens are trained beside it.
    if hasattr(model, "peft_config") or table.weight.requires_grad:
        return
    if head is not None and head.weight is table.weight:
        notes.append("the head is tied to the input embedding, so it is frozen too")
    if config.add_tokens:
        raise ConfigError(
            "add_tokens needs trained embeddings, but freeze_layers or freeze holds them fixed. "
            "Freeze layers by pattern instead (freeze model.layers.0), or train with lora_rank"
        )
