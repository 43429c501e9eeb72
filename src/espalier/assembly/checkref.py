"""tmp"""

from __future__ import annotations

from typing import Any

from espalier.algorithms.traits import Mates
from espalier.config.sections import ReferenceConfig
from espalier.errors import ConfigError


def check_reference(config: ReferenceConfig, algorithm: Any) -> None:
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
