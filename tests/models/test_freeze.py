"""What is frozen: by layers, by patterns, and what is tied to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError
from espalier.models.freeze import freeze
from tiny import tiny_model


def config(path: Path | str, **over: Any) -> ModelConfig:
    return ModelConfig(model=str(path), **over)


def test_the_lowest_layers_and_the_embedding_are_frozen() -> None:
    model = tiny_model("llama", num_hidden_layers=5)
    summary = freeze(model, config("m", freeze_layers=0.5))  # round(2.5) = 3 of 5
    held = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n for n in held if not n.startswith("model.layers.")} == {"model.embed_tokens.weight"}
    assert {n.split(".")[2] for n in held if n.startswith("model.layers.")} == {"0", "1", "2"}
    assert {n.split(".")[2] for n in summary.names if n.startswith("model.layers.")} == {"3", "4"}
    assert summary.total == sum(p.numel() for p in model.parameters())
    assert summary.trainable == summary.total - sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert summary.notes == ["frozen: layers 0 to 2 of 5 and the embeddings (model.embed_tokens)"]


def test_a_tied_head_is_frozen_with_the_embedding_and_said() -> None:
    summary = freeze(tiny_model("gpt2"), config("m", freeze_layers=0.1))
    assert "frozen: layers 0 to 0 of 2 and the embeddings (transformer.wte, transformer.wpe)" in summary.notes
    assert "the head is tied to the input embedding, so it is frozen too" in summary.notes
    by_head = freeze(tiny_model("gpt2"), config("m", freeze=("lm_head",)))
    assert "transformer.wte.weight" not in by_head.names and len(by_head.notes) == 1


def test_patterns() -> None:
    model = tiny_model("llama")
    summary = freeze(model, config("m", freeze=("model.layers.0", "*.mlp.*_proj.weight")))
    held = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert held == {n for n in dict(model.named_parameters()) if n.startswith("model.layers.0.") or ".mlp." in n}
    assert "model.embed_tokens.weight" in summary.names
    with pytest.raises(ConfigError, match=r"'model.layer.1' matches no parameter; .* model.layers.1"):
        freeze(model, config("m", freeze=("model.layer.1",)))
    with pytest.raises(ConfigError, match="nothing to train"):
        freeze(model, config("m", freeze=("*",)))
