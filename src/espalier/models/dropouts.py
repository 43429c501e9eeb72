"""Everything by which a model adds noise in train mode, set to 0."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import torch

# Dropouts under their usual names, skipped layers, and the jitter of some routers: of attributes
# and config fields.
NOISE_NAMES = re.compile(r"dropout|pdrop|layerdrop|jitter")
# Config fields of heads that a causal LM does not have.
_OTHER_TASKS = ("classifier_", "summary_")


def zero_dropouts(model: torch.nn.Module) -> list[str]:
    """Set everything that adds noise in train mode to 0, on modules and on configs; returns what was above 0.

    Covers nn.Dropout modules and float attributes or config fields named *dropout*, *pdrop*, *layerdrop* or *jitter*,
    so that `train()` can stay on (gradient checkpointing needs it) and two forwards agree.

    >>> zero_dropouts(gpt2)   # with attn_pdrop 0.1 in its config
    ['attn_pdrop 0.1 (config)', 'attn_dropout 0.1 (2 modules)']
    """
    fields: set[tuple[str, float]] = set()
    for config in _configs(model):
        for name, value in list(vars(config).items()):
            if _is_noise(name, value) and not name.startswith(_OTHER_TASKS):
                setattr(config, name, 0.0)
                fields.add((name, float(value)))
    counts: Counter[tuple[str, float]] = Counter()
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
            counts[_name(path), module.p] += 1
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if _is_noise(name, value):
                setattr(module, name, 0.0)
                counts[name, float(value)] += 1
    lines = [f"{name} {value:g} (config)" for name, value in sorted(fields)]
    return lines + [f"{name} {value:g} ({count} modules)" for (name, value), count in sorted(counts.items())]


def _configs(model: torch.nn.Module) -> list[Any]:
    """The configs of a model's modules and those that are nested in them, each once: layers read theirs at any time."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            configs[id(config)] = config
    for config in list(configs.values()):
        for name in getattr(config, "sub_configs", {}):
            nested = getattr(config, name, None)
            if nested is not None:
                configs[id(nested)] = nested
    return list(configs.values())


def _name(path: str) -> str:
    """What to call a dropout module: the part of its path that names the noise, else its last part."""
    for part in path.split("."):
        if NOISE_NAMES.search(part):
            return part
    return path.rpartition(".")[2]


def _is_noise(name: str, value: Any) -> bool:
    """Whether an attribute or a field is a strength of noise above 0."""
    if not NOISE_NAMES.search(name) or isinstance(value, bool):
        return False
    return isinstance(value, (int, float)) and value > 0
