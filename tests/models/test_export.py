"""Exports: transformers alone loads them and computes the same bits; nothing of the training leaks into them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from espalier.config.sections import ModelConfig
from espalier.errors import ConfigError
from espalier.models.adapters import merged_state
from espalier.models.export import export
from espalier.models.load import Loaded, load_model
from espalier.models.prepare import prepare
from tiny import TEMPLATE, tiny_model, tiny_tokenizer

X = torch.arange(5, 45)[None]


def trained(
    tmp_path: Path, family: str, dtype: torch.dtype, model: dict[str, Any] | None = None, **over: Any
) -> Loaded:
    """A model that was read from disk and whose trained weights have moved."""
    tiny_model(family, **(model or {})).to(dtype).save_pretrained(tmp_path / "source")
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    config = ModelConfig(model=str(tmp_path / "source"), **over)
    loaded = load_model(config)
    prepare(loaded, config)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return loaded


def cast(model: Any, dtype: torch.dtype) -> Any:
    """The in-memory model, merged, its weights (not its rotary buffers) cast to the dtype."""
    state = {name: tensor.clone() for name, tensor in merged_state(model)}
    with torch.random.fork_rng():
        plain = type(model)(copy.deepcopy(model.config))
    plain.load_state_dict(state, strict=False)
    plain.tie_weights()
    for parameter in plain.parameters():
        parameter.data = parameter.data.to(dtype)
    return plain.eval()


CASES = [
    ("llama", {}, {}),
    ("llama", {"tie_word_embeddings": True}, {}),
    ("gpt2", {}, {}),
    ("qwen3_moe", {}, {}),
    ("llama", {"vocab_size": 102}, {"lora_rank": 4, "add_tokens": ("<|new|>",)}),
    ("llama", {"vocab_size": 102, "tie_word_embeddings": True}, {"lora_rank": 4, "add_tokens": ("<|new|>",)}),
    ("gpt2", {"vocab_size": 102}, {"lora_rank": 4, "rslora": True, "add_tokens": ("<|new|>",)}),
]


@pytest.mark.parametrize(("family", "model", "over"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_model_gives_the_same_bits(
    tmp_path: Path, family: str, model: dict[str, Any], over: dict[str, Any], dtype: torch.dtype
) -> None:
    loaded = trained(tmp_path, family, dtype, model, **over)
    assert loaded.source_dtype == dtype
    export(loaded.model, loaded.tokenizer, tmp_path / "out", source_dtype=loaded.source_dtype, stop_ids=[2, 4])
    fresh, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and fresh.dtype == dtype
    assert torch.equal(fresh.eval()(X).logits, cast(loaded.model, dtype)(X).logits)
    assert not torch.equal(
        fresh(X).logits, tiny_model(family, **{**model, "vocab_size": fresh.config.vocab_size})(X).logits
    )
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    source = set(load_file(tmp_path / "source" / "model.safetensors"))
    assert names == source  # the experts one by one again, no tied head, nothing of peft


def test_a_fresh_process_with_transformers_alone(tmp_path: Path) -> None:
    loaded = trained(tmp_path, "llama", torch.bfloat16, {"vocab_size": 102}, lora_rank=4, add_tokens=("<|new|>",))
    out = tmp_path / "out"
    export(loaded.model, loaded.tokenizer, out, source_dtype=torch.bfloat16, stop_ids=[4])
    script = (
        "import sys, torch; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T\n"
        "m = M.from_pretrained(sys.argv[1]).eval(); t = T.from_pretrained(sys.argv[1])\n"
        "hi = [{'role': 'user', 'content': 'Hi'}]\n"
        "ids = t(t.apply_chat_template(hi, tokenize=False, add_generation_prompt=True) + '<|new|>').input_ids\n"
        "torch.save({'logits': m(torch.arange(5, 45)[None]).logits, 'ids': ids}, sys.argv[2])\n"
        "assert 'espalier' not in sys.modules and 'peft' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(out), str(tmp_path / "got.pt")], check=True, capture_output=True)
    got = torch.load(tmp_path / "got.pt", weights_only=True)
    assert torch.equal(got["logits"], cast(loaded.model, torch.bfloat16)(X).logits)
    assert got["ids"] == loaded.tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<|new|>").input_ids
    assert got["ids"][-1] == 102


def test_nothing_of_the_training_leaks(tmp_path: Path) -> None:
    dropouts = {"attn_pdrop": 0.1, "resid_pdrop": 0.2, "embd_pdrop": 0.3}
    loaded = trained(tmp_path, "gpt2", torch.float32, dropouts, lora_rank=2)
    AttentionInterface.register("espalier-test", lambda *_, **__: None)
    loaded.model.set_attn_implementation("espalier-test")
    loaded.model.config.use_cache = False
    loaded.model.generation_config = GenerationConfig(
        temperature=0.3
    )  # which save_pretrained refuses without do_sample
    out = tmp_path / "out"
    export(loaded.model, loaded.tokenizer, out, source_dtype=torch.bfloat16, stop_ids=[4, 2, 4])
    source, config = (json.loads((p / "config.json").read_text()) for p in (tmp_path / "source", out))
    changed = {k for k in source.keys() | config.keys() if source.get(k) != config.get(k)}
    assert (
        changed == {"dtype"} and config["dtype"] == "bfloat16" and config["attn_pdrop"] == 0.1 and config["use_cache"]
    )
    text = "".join(p.read_text() for p in out.glob("*.json"))
    assert not any(word in text for word in ("espalier", "lora", "peft"))
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [4, 2] and generation["temperature"] == 0.3
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    assert loaded.model.config.attn_pdrop == 0.0 and loaded.model.config._attn_implementation == "espalier-test"
    assert loaded.model.config.dtype != torch.bfloat16 and not loaded.model.config.use_cache


def test_the_sources_stop_ids_stay_where_none_are_given(tmp_path: Path) -> None:
    loaded = trained(tmp_path, "llama", torch.float32)
    export(loaded.model, loaded.tokenizer, tmp_path / "out", source_dtype=torch.float32)
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2


@pytest.mark.parametrize(("source", "expected"), [(None, [4]), (2, [4, 2]), ([2, 4], [4, 2])])
def test_a_single_stop_id_joins_those_of_the_source(source: Any, expected: list[int], tmp_path: Path) -> None:
    loaded = trained(tmp_path, "llama", torch.float32)
    loaded.model.generation_config = GenerationConfig(eos_token_id=source)
    export(loaded.model, loaded.tokenizer, tmp_path / "out", source_dtype=torch.float32, stop_ids=[4])
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == expected


def test_large_models_are_sharded(tmp_path: Path) -> None:
    loaded = trained(tmp_path, "llama", torch.float32)
    out = tmp_path / "out"
    export(loaded.model, loaded.tokenizer, out, source_dtype=torch.float32, shard_size="30KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 3 and not (out / "model.safetensors").exists()
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out).eval()(X).logits, loaded.model.eval()(X).logits)


def test_an_export_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = trained(tmp_path, "llama", torch.float32)
    out = tmp_path / "run" / "model"

    def write() -> None:
        export(loaded.model, loaded.tokenizer, out, source_dtype=torch.float32)

    write()
    first = (out / "model.safetensors").read_bytes()
    (out / "mine.txt").write_text("put there by a user")
    loaded.model.lm_head.weight.data += 1
    with monkeypatch.context() as broken:
        broken.setattr(
            type(loaded.tokenizer), "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
        )
        with pytest.raises(OSError, match="disk full"):
            write()
    assert (out / "model.safetensors").read_bytes() == first
    write()
    assert (out / "model.safetensors").read_bytes() != first and (out / "mine.txt").exists()
    assert [p.name for p in out.parent.iterdir()] == ["model"]
    export(loaded.model, loaded.tokenizer, tmp_path / "silent", source_dtype=torch.float32, write=False)
    assert not (tmp_path / "silent").exists()


def test_what_is_not_an_export_is_not_overwritten(tmp_path: Path) -> None:
    loaded = trained(tmp_path, "llama", torch.float32)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="mine exists and holds no model"):
        export(loaded.model, loaded.tokenizer, tmp_path / "mine", source_dtype=torch.float32)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    with pytest.raises(ConfigError, match="needs LoRA training"):
        export(loaded.model, loaded.tokenizer, tmp_path / "out", source_dtype=torch.float32, adapter_only=True)
