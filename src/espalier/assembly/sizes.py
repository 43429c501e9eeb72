"""Bytes that models need, roughly."""

from __future__ import annotations

from typing import Any

import torch

from espalier.assembly.model import Model


def estimate(model: Model, tokens: int, *, ranks: int, checkpointing: bool) -> dict[str, int]:
    """Bytes a rank needs, roughly: weights, gradients, optimizer, and the activations of one forward of `tokens`.

    Activations of a layer count 2 x 9 hidden and 2 x 3 intermediate widths a token in the compute dtype (inputs of the
    matrices, norms, attention, gates); checkpointing keeps one hidden width a layer and recomputes one layer.
    """
    config: Any = model.loaded.model.config.get_text_config()
    size = model.compute.itemsize
    masters = 0 if model.compute == torch.float32 else 4 * model.frozen.trainable
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    layers = config.num_hidden_layers
    layer = (18 * hidden + 6 * inner) * size
    activations = layers * layer
    if checkpointing:
        activations = layers * hidden * size + layer
    return {
        "weights": (model.frozen.total * size + masters) // ranks,
        "gradients": 4 * model.frozen.trainable // ranks,
        "optimizer": 8 * model.frozen.trainable // ranks,
        "activations": tokens * activations,
    }


def learner_bytes(model: Model, *, ranks: int) -> int:
    """Bytes of another learner that trains a model of this size, such as a critic: weights, gradients, optimizer. Its
    forwards come after the policy's, and need no more than those."""
    need = estimate(model, 0, ranks=ranks, checkpointing=False)
    return need["weights"] + need["gradients"] + need["optimizer"]


def frozen_bytes(model: Model, *, ranks: int) -> int:
    """Bytes of a model that is not trained, such as a reward model: its weights in the compute dtype."""
    return model.frozen.total * model.compute.itemsize // ranks
