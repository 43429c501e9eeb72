"""Reward models on disk: transformers alone says our scores, for right-padded rows, and we read them back exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
)

from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError, ModelError
from espalier.forest.pack import pack, totals
from espalier.models import heads
from espalier.models.heads import Calibration, ScalarHead
from espalier.models.load import load_model, read_limit
from espalier.models.policy import Policy
from espalier.models.prepare import prepare
from reward_models import groups, ours, source, theirs, trained, write
from samples import sample
from tiny import tiny_model, tiny_tokenizer

FAMILIES = ("llama", "qwen2", "qwen3_moe", "mistral", "gemma2", "gemma3_text", "phi3", "olmo2", "gpt2", "gpt_neox")


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_alone_says_our_scores_where_pad_was_eos(tmp_path: Path, family: str) -> None:
    loaded = trained(source(tmp_path / "base", family))
    said = ours(loaded.model)
    torch.testing.assert_close(said.mean(0), torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(said.std(0, correction=0), torch.ones(2), rtol=0, atol=1e-5)
    out = write(loaded, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (name,) = config["architectures"]
    assert name.endswith("ForSequenceClassification") and AutoConfig.from_pretrained(out).num_labels == 2
    assert config["problem_type"] == "regression" and config["espalier_head"] == "response"
    assert config["pad_token_id"] == AutoTokenizer.from_pretrained(out).pad_token_id not in (None, 2)
    assert not (out / "generation_config.json").exists()
    # Experts add up their products in another order, and the calibration scales what that rounds.
    torch.testing.assert_close(theirs(out), said, rtol=0, atol=2e-5 if family == "qwen3_moe" else 1e-5)
    again = load_model(ModelConfig(model=str(out)), head=True)
    assert again.model.get_output_embeddings() is None
    assert torch.equal(again.model.score.weight, heads.folded(loaded.model, loaded.model.score.weight))
    bias = heads.calibration_of(loaded.model).bias
    assert heads.scalar_head(again.model) == ScalarHead(2, (), "response", Calibration(bias, (1.0, 1.0)))
    torch.testing.assert_close(ours(again.model), said, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    "over", [{"lora_rank": 4}, {"lora_rank": 4, "add_tokens": ("<|new|>",)}, {"freeze_layers": 0.5}]
)
def test_adapters_are_merged_under_the_head(tmp_path: Path, over: dict[str, Any]) -> None:
    loaded = trained(source(tmp_path / "base", vocab_size=102), **over)
    out = write(loaded, tmp_path / "out")
    torch.testing.assert_close(theirs(out), ours(loaded.model), rtol=0, atol=1e-5)
    assert not any("lora" in name for name in load_file(out / "model.safetensors"))
    assert "lm_head.weight" not in load_file(out / "model.safetensors")


def test_an_adapter_alone_is_refused_before_training(tmp_path: Path) -> None:
    folder = source(tmp_path / "base")
    config = ModelConfig(model=str(folder), lora_rank=4, export="adapter")
    loaded = load_model(config, head=True)
    heads.attach(loaded.model, 1, seed=0)
    with pytest.raises(ConfigError, match=r"leaves out the scalar head.*use export merged"):
        prepare(loaded, config)
    with pytest.raises(ConfigError, match="use export merged"):
        write(trained(folder, lora_rank=4), tmp_path / "out", adapter_only=True)
    assert not (tmp_path / "out").exists()


def test_a_bfloat16_model_keeps_a_float32_head(tmp_path: Path) -> None:
    folder = source(tmp_path / "base")
    tiny_model("llama").bfloat16().save_pretrained(folder)
    loaded = trained(folder)
    out = write(loaded, tmp_path / "out")
    stored = load_file(out / "model.safetensors")
    assert {n for n, t in stored.items() if t.dtype == torch.float32} == {"score.weight"}
    again = load_model(ModelConfig(model=str(out)), head=True)
    assert again.source_dtype == torch.bfloat16
    assert torch.equal(again.model.score.weight, heads.folded(loaded.model, loaded.model.score.weight))
    torch.testing.assert_close(theirs(out, dtype=torch.float32), ours(again.model), rtol=0, atol=2e-5)
    assert AutoModelForSequenceClassification.from_pretrained(out).dtype == torch.bfloat16


def test_names_and_kind_come_back_and_a_second_export_is_the_first(tmp_path: Path) -> None:
    loaded = trained(source(tmp_path / "base"), names=("helpful", "harmless"), kind="steps")
    first = write(loaded, tmp_path / "first")
    config = json.loads((first / "config.json").read_text())
    assert config["id2label"] == {"0": "helpful", "1": "harmless"} and config["espalier_head"] == "steps"
    again = load_model(ModelConfig(model=str(first)), head=True)
    head = heads.scalar_head(again.model)
    assert head is not None and head.names == ("helpful", "harmless") and head.kind == "steps"
    second = write(again, tmp_path / "second")
    assert (first / "config.json").read_bytes() == (second / "config.json").read_bytes()
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_a_process_reward_model_reads_every_step_when_loaded(tmp_path: Path) -> None:
    loaded = trained(source(tmp_path / "base"), 1, kind="steps")
    again = load_model(ModelConfig(model=str(write(loaded, tmp_path / "out"))), head=True)
    group = [sample([5, 6], [7, 8, 9, 2], reads=[2, 3, 5])]
    said = [
        heads.calibration_of(m).apply(
            Policy(m, "forest", says="reads")(pack([group], totals([group]), says="reads"))["scores_RK"]
        )
        for m in (loaded.model, again.model)
    ]
    assert said[0].shape == (3, 1)
    torch.testing.assert_close(said[0], said[1], rtol=0, atol=2e-6)


def test_a_classifier_of_others_is_read_with_its_own_labels(tmp_path: Path) -> None:
    config = tiny_model("llama").config
    config.num_labels = 3
    config.id2label = {0: "bad", 1: "fair", 2: "good"}
    torch.manual_seed(0)
    other = LlamaForSequenceClassification(config).eval()
    other.save_pretrained(tmp_path / "other")
    tiny_tokenizer().save_pretrained(tmp_path / "other")
    loaded = load_model(ModelConfig(model=str(tmp_path / "other")), head=True)
    assert heads.scalar_head(loaded.model) == ScalarHead(3, ("bad", "fair", "good"), "response", heads.identity(3))
    want = torch.cat([other(input_ids=torch.tensor([s.tokens])).logits for s in groups()[0]])
    torch.testing.assert_close(ours(loaded.model), want.detach(), rtol=0, atol=2e-5)
    assert read_limit(str(tmp_path / "other")) == 256


def test_a_reward_model_is_no_causal_model_and_says_what_reads_it(tmp_path: Path) -> None:
    out = write(trained(source(tmp_path / "base")), tmp_path / "out")
    with pytest.raises(ModelError, match=r"got LlamaForSequenceClassification.*espalier reward --eval-only"):
        load_model(ModelConfig(model=str(out)))
    plain = load_model(ModelConfig(model=str(tmp_path / "base")), head=True)
    assert heads.scalar_head(plain.model) is None and plain.model.get_output_embeddings() is not None
    with pytest.raises(ModelError, match="has a scalar head of 2"):
        heads.attach(load_model(ModelConfig(model=str(out)), head=True).model, 2, seed=0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"espalier_reward_bias": [0.0]}, r"espalier_reward_bias \[0\.0\]"),
        ({"espalier_head": "turns"}, "response or steps"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "num_labels 3"),
    ],
)
def test_a_head_that_does_not_fit_its_config_is_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    out = write(trained(source(tmp_path / "base")), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=why):
        load_model(ModelConfig(model=str(out)), head=True)


def test_a_family_that_cannot_be_exported_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    folder = source(tmp_path / "base", "granite")
    load_model(ModelConfig(model=str(folder)))
    with pytest.raises(ModelError, match=r"GraniteForCausalLM.*cannot be a reward model"):
        load_model(ModelConfig(model=str(folder)), head=True)
