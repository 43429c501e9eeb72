"""LoRA: what is trained, the merge against the formula and against peft, adapters in and out."""

from __future__ import annotations

import importlib.util
from typing import Any

import peft
import pytest
import torch

from adapters import shaken
from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError
from espalier.models.adapters import add_adapter, has_adapter, merged_state, quantization
from espalier.models.tokens import add_control_tokens
from tiny import tiny_model, tiny_tokenizer

X = torch.tensor([[5, 6, 7, 102, 9, 10, 103, 12, 13, 14, 15, 16]])


def lora(**over: Any) -> ModelConfig:
    return ModelConfig(model="m", **{"lora_rank": 0 if "adapter" in over else 4, **over})


def merged_model(model: Any, family: str, **over: Any) -> Any:
    """A model without adapters that holds the merged weights."""
    rows = model.config.vocab_size
    plain = tiny_model(family, seed=9, **{**over, "vocab_size": rows})
    missing, unexpected = plain.load_state_dict(dict(merged_state(model)), strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    return plain


def test_only_the_adapter_is_trained_and_it_starts_at_nothing() -> None:
    model, before = tiny_model("llama"), tiny_model("llama")
    assert not has_adapter(model)
    (note,) = add_adapter(model, lora())
    assert has_adapter(model) and type(model).__name__ == "LlamaForCausalLM"
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in n and p.dtype == torch.float32 for n, p in trained.items())
    wrapped = {n.split(".lora_")[0].split(".")[-1] for n in trained}
    assert wrapped == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # not lm_head
    # rank x (in + out) of q, o: 32 + 32; k, v: 32 + 16; gate, up, down: 32 + 48; 2 layers
    assert sum(p.numel() for p in trained.values()) == 4 * 2 * (2 * 64 + 2 * 48 + 3 * 80)
    assert note.startswith("LoRA rank 4, scale 4, 3,712 parameters on down_proj, gate_proj")
    assert torch.equal(model(X).logits, before(X).logits)


def test_an_adapter_is_a_function_of_the_seed() -> None:
    def start(seed: int) -> torch.Tensor:
        model = tiny_model("llama")
        torch.rand(seed + 3)  # whatever was drawn before
        add_adapter(model, lora(), seed=seed)
        return model.model.layers[1].mlp.up_proj.lora_A.default.weight

    assert torch.equal(start(5), start(5)) and not torch.equal(start(5), start(6))


@pytest.mark.parametrize("rslora", [False, True])
def test_the_merge_is_w_plus_scaled_b_a(rslora: bool) -> None:
    model = tiny_model("llama")
    base = {n: p.detach().clone() for n, p in model.named_parameters()}
    add_adapter(model, lora(lora_targets=("q_proj",), lora_alpha=6.0, rslora=rslora))
    shaken(model)
    live = {n: p.detach().clone() for n, p in model.named_parameters()}
    merged = dict(merged_state(model))
    scale = 6.0 / 2.0 if rslora else 6.0 / 4.0  # alpha / sqrt(4), alpha / 4
    assert merged.keys() == base.keys()
    for name, weight in base.items():
        if "q_proj" in name:
            layer = model.get_submodule(name.removesuffix(".weight"))
            delta = scale * layer.lora_B.default.weight @ layer.lora_A.default.weight
            assert delta.abs().max() > 0.01
            weight = weight + delta
        assert torch.allclose(merged[name], weight, atol=1e-6)
    assert all(torch.equal(p, live[n]) for n, p in model.named_parameters())  # untouched


FAMILIES = [
    ("llama", False),
    ("llama", True),
    ("gpt2", True),
    ("gemma3_text", True),
    ("qwen3_next", False),
    ("mamba", True),
]


@pytest.mark.parametrize(("family", "tied"), FAMILIES)
def test_the_merge_computes_what_the_live_model_computes(family: str, tied: bool) -> None:
    over = {"tie_word_embeddings": tied}
    model, tokenizer = tiny_model(family, vocab_size=102, **over), tiny_tokenizer()
    ids = add_control_tokens(model, tokenizer, ["<|a|>", "<|b|>"])
    add_adapter(model, lora(), ids)
    before = model(X).logits
    shaken(model)
    tolerance = 1e-3 if family == "qwen3_next" else 5e-5
    live = model.eval()(X).logits
    assert (live - before).abs().max() > 0.1
    assert torch.allclose(merged_model(model, family, **over).eval()(X).logits, live, atol=tolerance)


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_are_trained_and_no_other_row(tied: bool) -> None:
    model, tokenizer = tiny_model("llama", vocab_size=102, tie_word_embeddings=tied), tiny_tokenizer()
    ids = add_control_tokens(model, tokenizer, ["<|a|>", "<|b|>"])
    old = model.get_input_embeddings().weight.detach().clone()
    add_adapter(model, lora(), ids)
    deltas = {n: p for n, p in model.named_parameters() if "trainable_tokens_delta" in n}
    assert len(deltas) == (1 if tied else 2) and all(p.shape == (2, 32) for p in deltas.values())
    model(X).logits.log_softmax(-1)[0, :, 103].sum().backward()
    assert all(p.grad is not None and p.grad.abs().min(1).values.gt(0).all() for p in deltas.values())
    shaken(model)
    merged = dict(merged_state(model))
    assert ("lm_head.weight" in merged) != tied
    for name in ["model.embed_tokens.weight"] + ["lm_head.weight"] * (not tied):
        prefix = name.removesuffix(".weight")
        assert torch.equal(merged[name][102:], deltas[f"{prefix}.token_adapter.trainable_tokens_delta.default"])
    assert torch.equal(merged["model.embed_tokens.weight"][:102], old[:102])


def test_a_merge_equals_pefts_own_bit_for_bit() -> None:
    model = tiny_model("gpt2")
    add_adapter(model, lora())
    shaken(model)
    ours = {n: t.clone() for n, t in merged_state(model)}
    for name, module in list(model.named_modules()):
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
            assert torch.equal(ours[f"{name}.weight"], module.base_layer.weight)


def test_options_that_need_each_other() -> None:
    model = tiny_model("llama")
    assert add_adapter(model, ModelConfig(model="m")) == [] and all(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match=r"'q_prj', which names no linear layer; there are q_proj"):
        add_adapter(model, lora(lora_targets=("q_prj",)))
    with pytest.raises(ConfigError, match="'lm_head', the head"):
        add_adapter(model, lora(lora_targets=("lm_head",)))
    with pytest.raises(ConfigError, match="'dt_proj', but mamba reads its weight without calling the layer"):
        add_adapter(tiny_model("mamba"), lora(lora_targets=("dt_proj",)))
    add_adapter(model, lora())
    with pytest.raises(ConfigError, match="has a LoRA adapter already"):
        add_adapter(model, lora())
    with pytest.raises(ConfigError, match="must come before a LoRA adapter"):
        add_control_tokens(model, tiny_tokenizer(), ["<|a|>"])


def test_experts_are_left_out_and_said() -> None:
    notes = add_adapter(tiny_model("qwen3_moe"), lora())
    assert notes[0].startswith("LoRA leaves 4 stacked expert weights out") and "k_proj, o_proj, q_proj" in notes[1]


def test_qlora_is_refused_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert quantization(lora(), cpu) is None
    with pytest.raises(ConfigError, match="qlora needs CUDA, got device cpu"):
        quantization(lora(qlora=True), cpu)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'espalier\[qlora\]'"):
        quantization(lora(qlora=True), cuda)
