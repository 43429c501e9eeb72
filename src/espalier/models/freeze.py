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
    """Set `requires_grad` to False where `config.freeze_layers` or `config.freeze` says so, in place.

    `freeze_layers` f > 0 freezes the lowest round(f L) of L layers, at least one (0.5 of 5 layers are 3), and every
    embedding outside the layers. Patterns are shell wildcards over parameter names, and over module names, whose
    parameters they freeze (`model.layers.0` is `model.layers.0.*`). Rows of new tokens under LoRA stay trained.

    Raises ConfigError where a pattern matches nothing, where nothing is left to train, and where new control tokens
    would sit in a frozen embedding.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    frozen: set[str] = set()
    notes: list[str] = []
    if config.freeze_layers > 0:
        path, layers = find_layers(model)
        count = max(1, int(config.freeze_layers * len(layers) + 0.5))
        below = tuple(f"{path}.{i}." for i in range(count))
        tables = [
            name for name, m in model.named_modules() if isinstance(m, nn.Embedding) and not name.startswith(path)
        ]
        frozen.update(n for n in named if n.startswith(below) or n.rpartition(".")[0] in tables)
        notes.append(f"frozen: layers 0 to {count - 1} of {len(layers)} and the embeddings ({', '.join(tables)})")
    for pattern in config.freeze:
        matched = [n for n in named if fnmatchcase(n, pattern) or fnmatchcase(n, pattern + ".*")]
        if not matched:
            parts = sorted(set(named) | {n.rpartition(".")[0] for n in named})
            near = get_close_matches(pattern, parts, n=3, cutoff=0.4) or list(named)[:3]
            raise ConfigError(
                f"freeze pattern {pattern!r} matches no parameter; the nearest names are {', '.join(near)}"
            )
        frozen.update(matched)
    frozen = {name for name in frozen if "trainable_tokens_delta" not in name}
    for name in frozen:
        named[name].requires_grad_(False)
    _check_embedding(model, config, notes, asked=bool(frozen))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("freeze_layers and freeze leave nothing to train; freeze less")
    size = {id(p): p.numel() for p in model.parameters()}
    return FreezeSummary(
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total=sum(size.values()),
        names=trained,
        notes=notes,
    )


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of a decoder's layers and its path (`model.layers`, `transformer.h`).

    Raises ConfigError where no module list has as many entries as the config says there are layers.
    """
    config = getattr(model, "config", None)
    depth = getattr(config.get_text_config() if config is not None else None, "num_hidden_layers", None)
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return path, module
    raise ConfigError(
        f"freeze_layers does not know where the layers of {type(model).__name__} are; use freeze with patterns"
    )


def _check_embedding(model: Any, config: ModelConfig, notes: list[str], *, asked: bool) -> None:
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not asked or hasattr(model, "peft_config") or table.weight.requires_grad:
        return
    if head is not None and head.weight is table.weight:
        notes.append("the head is tied to the input embedding, so it is frozen too")
    if config.add_tokens:
        raise ConfigError(
            "add_tokens needs trained embeddings, but freeze_layers or freeze holds them fixed. "
            "Freeze layers by pattern instead (freeze model.layers.0), or train with lora_rank"
        )
