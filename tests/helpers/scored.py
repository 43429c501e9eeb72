"""Reward models on disk whose scores a person can work out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from espalier.config.sections import ModelConfig
from espalier.models import heads
from espalier.models.export import export
from espalier.models.load import load_model
from tiny import tiny_model, tiny_tokenizer


def reward_model(
    folder: Path,
    bias: Sequence[float] = (0.7,),
    *,
    names: tuple[str, ...] = (),
    weight: float = 0.0,
    tokenizer: Any = None,
    kind: Any = "response",
) -> str:
    """A reward model that gives `bias` to every answer, or, with a `weight`, that and as much of a random head."""
    base = folder.parent / f"{folder.name}-base"
    tokenizer = tokenizer or tiny_tokenizer()
    model = tiny_model("llama")
    model.resize_token_embeddings(max(len(tokenizer), model.config.vocab_size))
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    loaded = load_model(ModelConfig(model=str(base)), head=True)
    heads.attach(loaded.model, len(bias), seed=1, names=names, kind=kind)
    with torch.no_grad():
        loaded.model.score.weight.mul_(weight)  # type: ignore[union-attr, operator]
    heads.set_calibration(loaded.model, heads.Calibration(tuple(bias), (1.0,) * len(bias)))
    export(loaded.model, tokenizer, folder, source_dtype=torch.float32, stop_ids=[2, 4])
    return str(folder)
