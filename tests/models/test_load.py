"""Reading models: what is accepted, what is refused and with which words; control tokens; frozen parameters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from espalier.config.sections import ModelConfig
from espalier.errors import ModelError
from espalier.models.load import load_model, load_tokenizer
from tiny import tiny_model, tiny_tokenizer


def saved(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **over: Any) -> Path:
    tiny_model(family, **over).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "llama-tiny", dtype=torch.bfloat16)


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def edit(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **fields}))


def config(path: Path | str, **over: Any) -> ModelConfig:
    return ModelConfig(model=str(path), **over)


# ------------------------------------------------------------------------------------------------------ accepted


def test_masters_are_the_sources_numbers_in_float32(source: Path) -> None:
    loaded = load_model(config(source))
    stored = load_file(source / "model.safetensors")
    live = dict(loaded.model.named_parameters())
    assert loaded.source_dtype == torch.bfloat16 and loaded.model.training
    assert {p.dtype for p in live.values()} == {torch.float32}
    assert stored.keys() == live.keys() and all(torch.equal(live[n], stored[n].float()) for n in stored)
    assert loaded.limit == 256 and loaded.original_limit is None and loaded.notes == []
    assert loaded.tokenizer.pad_token is None and len(loaded.tokenizer) == 102


def test_the_trained_length_of_a_stretched_model_is_told(tmp_path: Path) -> None:
    factors = [1.0] * 4
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors}
    loaded = load_model(
        config(saved(tmp_path / "phi", "phi3", original_max_position_embeddings=64, rope_parameters=rope))
    )
    assert (loaded.limit, loaded.original_limit) == (256, 64)


def test_a_model_without_a_limit_has_none(tmp_path: Path) -> None:
    assert load_model(config(saved(tmp_path / "mamba", "mamba"))).limit is None


def test_tokenizer_json_is_the_truth_even_where_the_model_type_has_a_class(tmp_path: Path) -> None:
    loaded = load_model(config(saved(tmp_path / "qwen", "qwen2")))
    text = "Hi\n you <|im_end|>"
    assert loaded.tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
    assert loaded.tokenizer.pad_token is None
    assert any("AutoTokenizer reads this tokenizer as Qwen2Tokenizer" in note for note in loaded.notes)


def test_dropouts_are_zeroed_everywhere_and_reported(tmp_path: Path) -> None:
    folder = saved(tmp_path / "gpt2", "gpt2", attn_pdrop=0.1, resid_pdrop=0.2, embd_pdrop=0.3)
    loaded = load_model(config(folder))
    x = torch.arange(5, 45)[None]
    assert torch.equal(loaded.model(x).logits, loaded.model(x).logits)  # in train mode
    assert loaded.model.config.attn_pdrop == 0.0
    assert not any(m.p for m in loaded.model.modules() if isinstance(m, torch.nn.Dropout))
    (note,) = loaded.notes
    assert "attn_pdrop 0.1 (config)" in note and "resid_dropout 0.2 (2 modules)" in note
    kept = load_model(config(folder, dropout=True))
    assert kept.notes == [] and kept.model.config.attn_pdrop == 0.1
    assert not torch.equal(kept.model(x).logits, kept.model(x).logits)


# ------------------------------------------------------------------------------------------------------- refused


def refused(path: Path | str, message: str, **over: Any) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(config(path, **over))
    assert "\n" not in str(caught.value)


def test_a_missing_directory_names_its_sibling_and_asks_no_hub(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def hub(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    refused(source.parent / "lama-tiny", "lama-tiny does not exist. Did you mean .*llama-tiny")
    refused("./nowhere", "./nowhere does not exist. Give a Hugging Face directory")
    refused(source.parent / "zzz", "zzz does not exist")
    monkeypatch.chdir(source.parent.parent)
    refused(f"{source.parent.name}/zzz", "zzz does not exist")  # looks like a hub name, but its folder is here
    monkeypatch.chdir(source.parent)
    refused("llama-tiny2", "Did you mean llama-tiny")
    refused(source / "config.json", "is a file")


def test_a_hub_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def hub(*_: Any, **__: Any) -> None:
        raise OSError("offline\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    refused(
        "organisation/model", "organisation/model is not a local directory, and the hub does not provide it: offline"
    )


def test_missing_parts(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    refused(copy, "has no tokenizer")
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(str(copy))
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    refused(copy, r"pickled weights \(.bin\) only.*Convert: python -c")
    (copy / "pytorch_model.bin").unlink()
    refused(copy, "has no weights")
    (copy / "config.json").write_text("{")
    refused(copy, "config.json is not JSON")
    (copy / "config.json").unlink()
    refused(copy, "has no config.json")
    (copy / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "the/base"}')
    refused(copy, "is an adapter, not a model. Pass --model the/base --adapter")


def test_weights_that_would_be_random_are_named(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"], weights["lm_head.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, "lacks 2 weights, .*: lm_head.weight, model.layers.1.mlp.up_proj.weight")


def test_weights_of_another_shape_are_named(copy: Path) -> None:
    edit(copy, intermediate_size=40)
    refused(copy, r"6 weights do not fit .*mlp.down_proj.weight is stored as \(32, 48\), the config expects \(32, 40\)")


def test_a_truncated_file_is_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(copy, "cannot be read")


def test_tied_weights_may_be_missing_and_extra_ones_are_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "tied", "llama", tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    save_file({**weights, "extra.weight": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(config(folder))
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert any("1 stored weights are not part of LlamaForCausalLM" in n and "extra.weight" in n for n in loaded.notes)


def test_other_kinds_of_model(copy: Path, tmp_path: Path) -> None:
    edit(copy, model_type="llamma")
    refused(copy, r"unknown architecture \(model_type 'llamma'\)")
    edit(copy, auto_map={"AutoModelForCausalLM": "m.M", "AutoConfig": "m.C"})
    refused(copy, "runs code of its own .* trust_remote_code")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertLMHeadModel(BertConfig(vocab_size=128, **sizes)).save_pretrained(tmp_path / "bert")
    t5 = T5Config(vocab_size=128, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    LlamaForSequenceClassification(tiny_model("llama").config).save_pretrained(tmp_path / "classifier")
    for name, kind in (("bert", "BertLMHeadModel"), ("t5", "T5For"), ("classifier", "LlamaForSequenceClassification")):
        tiny_tokenizer().save_pretrained(tmp_path / name)
        refused(tmp_path / name, f"is not a causal language model: got {kind}")


def test_quantised_weights_are_refused(copy: Path) -> None:
    edit(copy, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(copy, "quantised with gptq")


def test_a_vocabulary_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "small", vocab_size=100)
    refused(folder, "2 tokens beyond the embedding's 100 rows: .* = 100, .* = 101")
