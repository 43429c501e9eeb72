"""Adapters of every kind that peft merges, against base and adapter as peft runs them; and those that it cannot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from adapters import LM, logprobs, lora, make_adapter, peft_logprobs, save_base
from espalier.config.sections import ModelConfig
from espalier.errors import ModelError
from espalier.models.load import Loaded
from espalier.models.merge import base_of, load_merged
from tiny import tiny_tokenizer


def merged(base: str, adapter: str) -> Loaded:
    return load_merged(ModelConfig(model=base, adapter=adapter))


KINDS: dict[str, peft.PeftConfig] = {
    "plain": lora(),
    "patterns": lora(use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
    "dora": lora(use_dora=True),
    "bias": lora(bias="all"),
    "embedding": lora(target_modules=["q_proj", "embed_tokens"]),
    "head": lora(target_modules=["q_proj", "lm_head"]),
    "embedding and head": lora(target_modules=["embed_tokens", "lm_head"]),
    "whole embedding": lora(modules_to_save=["embed_tokens"]),
    "whole head": lora(modules_to_save=["lm_head"]),
    "whole norm": lora(modules_to_save=["input_layernorm"]),
    "replicated layers": lora(layer_replication=[[0, 2], [1, 2]]),
    "token rows": lora(trainable_token_indices=[5, 6]),
    "parameters": lora(target_modules=[], target_parameters=["q_proj.weight"]),
    "pissa": lora(init_lora_weights="pissa"),
    "ia3": peft.IA3Config(task_type=LM, target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "loha": peft.LoHaConfig(task_type=LM, r=4, target_modules=["q_proj"]),
    "vera": peft.VeraConfig(task_type=LM, r=4, target_modules=["q_proj"]),
    "vblora": peft.VBLoRAConfig(
        task_type=LM, r=2, num_vectors=8, vector_length=8, topk=2, target_modules=["q_proj", "k_proj"]
    ),
    "token rows alone": peft.TrainableTokensConfig(task_type=LM, token_indices=[5, 6]),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_computes_what_base_and_adapter_compute(kind: str, tied: bool, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=tied)
    adapter = make_adapter(base, KINDS[kind], tmp_path / "adapter")
    expected = peft_logprobs(base, adapter)
    loaded = merged(base, adapter)
    assert torch.allclose(logprobs(loaded.model), expected, atol=3e-5)
    assert (expected - peft_logprobs_of_base(base)).abs().max() > 0.01
    assert f"merged adapter {adapter}" in loaded.notes[-1]


def peft_logprobs_of_base(base: str) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return logprobs(AutoModelForCausalLM.from_pretrained(base))


@pytest.mark.parametrize("tied", [False, True])
def test_a_tie_ends_only_if_one_of_both_was_adapted(tied: bool, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=tied)
    for name, settings, kept in (("e", KINDS["embedding"], False), ("t", KINDS["token rows"], True)):
        loaded = merged(base, make_adapter(base, settings, tmp_path / name, save=False))
        assert loaded.model.config.tie_word_embeddings == (tied and kept)
        assert any("no longer tied" in note for note in loaded.notes) == (tied and not kept)


@pytest.mark.parametrize("settings", [lora(), lora(target_modules=["q_proj", "lm_head"])])
def test_a_base_is_resized_to_the_rows_that_the_adapter_holds(settings: Any, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, settings, tmp_path / "adapter", rows=134)
    loaded = merged(base, adapter)
    assert loaded.model.get_input_embeddings().weight.shape[0] == 134
    assert any("from 128 to 134 rows" in note for note in loaded.notes)
    assert torch.allclose(logprobs(loaded.model), peft_logprobs(base, adapter, rows=134), atol=3e-5)


def test_token_rows_beyond_the_base_come_with_their_names(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", vocab_size=102)
    adapter = make_adapter(base, lora(trainable_token_indices=[102, 103]), tmp_path / "adapter", rows=104)
    tokenizer = tiny_tokenizer(template="{{ messages[0].content }}")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>"]})
    tokenizer.save_pretrained(adapter)
    loaded = merged(base, adapter)
    assert torch.allclose(logprobs(loaded.model), peft_logprobs(base, adapter, rows=104), atol=3e-5)
    assert loaded.tokenizer.convert_tokens_to_ids(["<|a|>", "<|b|>"]) == [102, 103]
    assert loaded.tokenizer.encode("<|b|>") == [103]
    assert loaded.tokenizer.chat_template == "{{ messages[0].content }}"


NEITHER: dict[str, tuple[peft.PeftConfig, str]] = {
    "prompt": (peft.PromptTuningConfig(task_type=LM, num_virtual_tokens=4), "type PROMPT_TUNING, which changes"),
    "prefix": (peft.PrefixTuningConfig(task_type=LM, num_virtual_tokens=4), "type PREFIX_TUNING, which changes"),
    "lora_bias": (lora(lora_bias=True), "lora_bias needs a bias in model.layers.0.self_attn.q_proj"),
    "alora": (lora(alora_invocation_tokens=[5, 6]), "acts on part of a sequence"),
    "niter": (lora(init_lora_weights="pissa_niter_2"), "random decomposition"),
}


@pytest.mark.parametrize("kind", NEITHER)
def test_what_is_no_change_of_weights_is_refused(kind: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    settings, reason = NEITHER[kind]
    adapter = make_adapter(base, settings, tmp_path / "adapter")
    with pytest.raises(ModelError, match=f"can be neither merged nor continued: .*{reason}"):
        merged(base, adapter)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter")
    for name, over in (("wide", {"hidden_size": 64}), ("deep", {"num_hidden_layers": 3})):
        other = save_base(tmp_path / name, **over)
        with pytest.raises(ModelError, match=rf"cannot be merged into {other}: .*names {base}"):
            merged(other, adapter)


def test_layers_that_are_read_without_a_call_are_not_merged(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "mamba")
    adapter = make_adapter(base, lora(target_modules=["in_proj", "dt_proj"]), tmp_path / "adapter")
    with pytest.raises(ModelError, match="nats away from base and adapter"):
        merged(base, adapter)


def test_the_base_is_the_one_that_is_here(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter")
    assert base_of(adapter, "own") == base
    shutil.rmtree(base)
    assert base_of(adapter, "own") == "own" and base_of(adapter) == base
