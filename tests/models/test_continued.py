"""Adapters that others trained: continued exactly, or refused before anything is trained, with the way out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from adapters import LM, X, logprobs, lora, make_adapter, peft_logprobs, save_base, shaken
from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError, EspalierError, ModelError
from espalier.models.adapters import add_adapter, merged_state
from espalier.models.dropouts import zero_dropouts
from espalier.models.export import export
from espalier.models.load import Loaded, load_model
from espalier.models.prepare import prepare
from espalier.models.tokens import add_control_tokens
from tiny import tiny_model, tiny_tokenizer


def continued(base: str, adapter: str, **over: Any) -> Loaded:
    config = ModelConfig(model=base, adapter=adapter, **over)
    loaded = load_model(config)
    prepare(loaded, config)
    return loaded


def exported(loaded: Loaded) -> torch.Tensor:
    """Log-probabilities of the weights that an export would write."""
    plain = AutoModelForCausalLM.from_config(loaded.model.config)
    plain.load_state_dict(dict(merged_state(loaded.model)), strict=False)
    return logprobs(plain)


CONTINUED: dict[str, peft.PeftConfig] = {
    "plain": lora(),
    "patterns": lora(use_rslora=True, rank_pattern={"q_proj": 2}, alpha_pattern={"v_proj": 3}),
    "dora": lora(use_dora=True),
    "layers": lora(layers_to_transform=[1]),
    "token rows": lora(trainable_token_indices=[5, 6]),
    "gaussian": lora(init_lora_weights="gaussian"),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", CONTINUED)
def test_it_starts_where_peft_left_it_and_exports_what_it_computes(kind: str, tied: bool, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", tie_word_embeddings=tied)
    adapter = make_adapter(base, CONTINUED[kind], tmp_path / "adapter")
    expected = peft_logprobs(base, adapter)
    loaded = continued(base, adapter)
    assert torch.equal(logprobs(loaded.model), expected)
    assert torch.allclose(exported(loaded), expected, atol=3e-5)
    shaken(loaded.model)  # as training would
    assert torch.allclose(exported(loaded), logprobs(loaded.model), atol=5e-5)


def test_the_magnitudes_of_dora_are_merged_in_gpt2s_orientation(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "gpt2")
    adapter = make_adapter(base, lora(target_modules=["c_attn", "c_proj"], use_dora=True), tmp_path / "adapter")
    loaded = continued(base, adapter)
    assert torch.allclose(exported(loaded), peft_logprobs(base, adapter), atol=3e-5)
    assert "DoRA rank 4" in "".join(loaded.notes)


REFUSED: dict[str, tuple[peft.PeftConfig, str]] = {
    "embedding": (lora(target_modules=["q_proj", "embed_tokens"]), "adapts model.embed_tokens"),
    "head": (lora(target_modules=["q_proj", "lm_head"]), "adapts lm_head"),
    "whole": (lora(modules_to_save=["lm_head"]), "uses modules_to_save"),
    "bias": (lora(bias="lora_only"), "uses bias"),
    "replication": (lora(layer_replication=[[0, 2], [1, 2]]), "uses layer_replication"),
    "parameters": (lora(target_modules=[], target_parameters=["q_proj.weight"]), "uses target_parameters"),
    "pissa": (lora(init_lora_weights="pissa"), "was started with pissa"),
    "ia3": (peft.IA3Config(task_type=LM, target_modules=["k_proj"], feedforward_modules=[]), "is of the type IA3"),
    "loha": (peft.LoHaConfig(task_type=LM, r=2, target_modules=["q_proj"]), "is of the type LOHA"),
}


@pytest.mark.parametrize("save", ["auto", False])
@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_with_the_command_that_merges_it(kind: str, save: Any, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    settings, reason = REFUSED[kind]
    adapter = make_adapter(base, settings, tmp_path / "adapter", save=save)
    with pytest.raises(ModelError, match=rf"{reason}.*espalier export --model {base} --adapter {adapter} --out DIR"):
        continued(base, adapter)


def test_a_resized_embedding_is_refused_with_its_rows(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter", rows=134)
    with pytest.raises(ModelError, match="holds lm_head whole, with 134 rows, which cannot be continued"):
        continued(base, adapter)


def test_what_cannot_be_merged_either_is_not_sent_there(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, peft.PromptTuningConfig(task_type=LM, num_virtual_tokens=4), tmp_path / "adapter")
    with pytest.raises(ModelError, match="can be neither merged nor continued: it is of the type PROMPT_TUNING"):
        continued(base, adapter)


# ----------------------------------------------------------------------------------------------------------- vocabulary


def grown_adapter(folder: Path, base: str, rows: int) -> str:
    """An adapter that trains <|a|> and <|b|>, with its tokenizer."""
    indices = {"embed_tokens": [102, 103], "lm_head": [102, 103]}
    adapter = make_adapter(base, lora(trainable_token_indices=indices), folder, rows=rows, save=False)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|b|>"]})
    tokenizer.save_pretrained(adapter)
    return adapter


@pytest.mark.parametrize("size", [102, 128])  # with spare rows, an omission would not even fail
@pytest.mark.parametrize("given", [(), ("<|a|>", "<|b|>")])
def test_its_tokens_are_read_from_its_own_tokenizer(size: int, given: tuple[str, ...], tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", vocab_size=size)
    rows = 104 if size < 104 else 0
    adapter = grown_adapter(tmp_path / "adapter", base, rows)
    loaded = continued(base, adapter, add_tokens=given)
    assert loaded.tokenizer.encode("<|b|>x<|a|>") == [103, *tiny_tokenizer().encode("x"), 102]
    assert torch.equal(logprobs(loaded.model), peft_logprobs(base, adapter, rows=rows))
    assert any("tokens of the adapter's tokenizer that the base lacks: <|a|> = 102" in note for note in loaded.notes)


def test_rows_that_no_tokenizer_names_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(trainable_token_indices=[102, 103]), tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"trains token rows 102, 103 \(2 in all\).*names in this order as --add-tok"):
        continued(base, adapter)
    assert continued(base, adapter, add_tokens=("<|a|>", "<|b|>")).tokenizer.encode("<|b|>") == [103]


def test_the_model_that_was_given_is_the_base_of_what_is_exported(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    folder = make_adapter(base, lora(), tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    elsewhere = {**json.loads(settings.read_text()), "base_model_name_or_path": "/of/another/machine", "revision": "x"}
    settings.write_text(json.dumps(elsewhere))
    loaded = continued(base, folder)
    out = tmp_path / "out"
    export(loaded.model, loaded.tokenizer, out, source_dtype=torch.float32, adapter_only=True)
    written = json.loads((out / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == base and written["revision"] is None
    assert "another/machine" not in (out / "README.md").read_text()


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter")
    tokenizer = tiny_tokenizer()
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = core["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(json.dumps(core)), unk_token="<unk>", eos_token="</s>"
    )
    other.save_pretrained(adapter)
    with pytest.raises(ModelError, match="is not the base's with tokens added"):
        continued(base, adapter)


def test_the_template_that_it_was_trained_with_is_used_and_said(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter")
    tiny_tokenizer(template="{{ messages[0].content }}").save_pretrained(adapter)
    loaded = continued(base, adapter)
    assert loaded.tokenizer.chat_template == "{{ messages[0].content }}"
    assert any("the chat template is that of the adapter's tokenizer" in note for note in loaded.notes)
    assert continued(base, adapter, template="chatml").tokenizer.chat_template != "{{ messages[0].content }}"


# --------------------------------------------------------------------------------------------------------------- files


def options(**over: Any) -> ModelConfig:
    return ModelConfig(model="m", **{"lora_rank": 0 if "adapter" in over else 4, **over})


def test_an_adapter_is_continued_where_it_stopped(tmp_path: Path) -> None:
    def fresh(**over: Any) -> tuple[Any, Any]:
        model, tokenizer = tiny_model("llama", vocab_size=102), tiny_tokenizer()
        add_adapter(model, options(**over), add_control_tokens(model, tokenizer, ["<|a|>", "<|b|>"]))
        return model, tokenizer

    model, tokenizer = fresh(lora_alpha=3.0, rslora=True)
    shaken(model)
    folder = tmp_path / "adapter"
    export(model, tokenizer, folder, source_dtype=torch.bfloat16, adapter_only=True)
    assert {p.name for p in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"}
    again, _ = fresh(adapter=str(folder))
    assert torch.equal(again(X).logits, model(X).logits)
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    # peft alone reads it too, on a base resized to the tokenizer
    base = tiny_model("llama", vocab_size=102)
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    assert torch.equal(peft.PeftModel.from_pretrained(base, str(folder)).train()(X).logits, model(X).logits)

    with pytest.raises(ModelError, match=r"does not fit m: .* tensors are in one of the two only"):
        add_adapter(tiny_model("llama", num_hidden_layers=3, vocab_size=104), options(adapter=str(folder)))
    with pytest.raises(ModelError, match=r"is \(2, 32\), the model takes \(2, 64\)"):
        wide = tiny_model("llama", hidden_size=64, vocab_size=104)
        add_adapter(wide, options(adapter=str(folder)))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"has no adapter_model.safetensors"):
        fresh(adapter=str(folder))


def test_its_own_dropout_is_not_taken_over(tmp_path: Path) -> None:
    adapter = make_adapter(save_base(tmp_path / "base"), lora(lora_dropout=0.5), tmp_path / "adapter")
    model = tiny_model("llama")
    add_adapter(model, options(adapter=adapter))
    assert zero_dropouts(model) == []


def test_new_tokens_that_it_does_not_train_are_refused(tmp_path: Path) -> None:
    adapter = make_adapter(save_base(tmp_path / "base"), lora(), tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"add_tokens are tokens \[102\]"):
        add_adapter(tiny_model("llama"), options(adapter=adapter), [102])


BROKEN: dict[str, Any] = {
    "[1]": "holds a list",
    "null": "holds a NoneType",
    "{": "is not JSON",
    "{}": "has no peft_type",
    '{"peft_type": 3}': "has no peft_type",
    '{"peft_type": "NEXT"}': "'NEXT', which the installed peft does not know",
    '{"peft_type": "LORA", "r": 1000000000}': "r is 1000000000, but no tensor",
    '{"peft_type": "LORA", "r": "4"}': "expected a positive number",
    '{"peft_type": "LORA", "r": 4, "rank_pattern": {"q_proj": 99999999}}': "rank_pattern q_proj is 99999999",
    '{"peft_type": "LORA", "r": 4, "trainable_token_indices": {"a": "b"}}': "expected token ids",
    '{"peft_type": "LORA", "r": 4, "target_modules": ["nowhere"]}': "nowhere",
    '{"peft_type": "LORA", "r": 4, "megatron_config": {"a": 1}, "megatron_core": "os"}': "names a module to import",
}


@pytest.mark.parametrize("text", [*BROKEN, "[" * 100_000])
def test_a_broken_config_is_one_line(text: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(text)
    with pytest.raises(EspalierError, match=BROKEN.get(text, "is not JSON")) as caught:
        continued(base, adapter)
    assert len(str(caught.value)) < 500


def test_a_whole_model_and_an_adapter_are_told_apart(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = make_adapter(base, lora(), tmp_path / "adapter")
    with pytest.raises(ModelError, match=f"has no adapter_config.json; it holds a whole model. Pass --model {base}"):
        continued(base, base)
    with pytest.raises(ModelError, match=f"is an adapter, not a model. Pass --model {base} --adapter {adapter}, or m"):
        load_model(ModelConfig(model=adapter))
    for file in Path(adapter).iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="holds a model and an adapter"):
        load_model(ModelConfig(model=base))
