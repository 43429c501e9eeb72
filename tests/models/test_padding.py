"""The pad token of a reward model: one that ends no response."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    GenerationConfig,
)

from espalier.config.sections import ModelConfig
from espalier.models.export import padding_of
from espalier.models.load import load_model
from espalier.models.padding import choose_padding
from reward_models import ours, source, theirs, trained, write
from tiny import tiny_tokenizer


def test_a_pad_token_that_ends_responses_would_change_the_scores(tmp_path: Path) -> None:
    """What the choice of the pad token is for: with pad == eos, transformers reads these rows before their end."""
    loaded = trained(source(tmp_path / "base"))
    out = write(loaded, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "pad_token_id": 2}))
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(out)
    wrong = (theirs(out) - ours(loaded.model)).abs().amax(1) > 1e-3
    assert wrong.tolist() == [True, False, True, True]


def test_the_pad_token_is_one_that_ends_no_response() -> None:
    """Ids: <unk> 0, <s> 1, </s> 2, <|im_start|> 3, <|im_end|> 4; 102 tokens in all."""

    def chosen(
        rows: int = 102, stops: tuple[int, ...] = (2,), pad: str | None = "</s>", **names: Any
    ) -> tuple[str, int]:
        tokenizer = tiny_tokenizer()
        tokenizer.pad_token = pad
        tokenizer.add_special_tokens(names.pop("add", {}))
        for name, value in names.items():
            setattr(tokenizer, name, value)
        before = tokenizer.pad_token
        found = choose_padding(tokenizer, rows, stops)
        assert tokenizer.pad_token == before and found.tokenizer.padding_side == "right"
        assert found.tokenizer.pad_token_id == found.id and found.id not in (*stops, tokenizer.eos_token_id)
        assert bool(found.note) == (found.token != before)
        return found.token, found.id

    reserved = {"additional_special_tokens": ["<|reserved_0|>", "<|fill_pad|>"]}
    assert chosen(pad="<|im_start|>") == ("<|im_start|>", 3)
    assert chosen(pad="<|im_end|>", stops=(4,)) == ("<unk>", 0)  # a stop token beside the end of text
    assert chosen() == ("<unk>", 0)
    assert chosen(stops=(4,)) == ("<unk>", 0)  # the end of text is none, where no run stops at it, too
    assert chosen(rows=104, unk_token=None, add=reserved) == ("<|fill_pad|>", 103)
    assert chosen(rows=103, unk_token=None, add=reserved) == ("<|reserved_0|>", 102)
    assert chosen(rows=128, unk_token=None) == ("<|pad|>", 102)
    assert chosen(unk_token=None) == ("<s>", 1)
    assert chosen(unk_token="</s>", bos_token="</s>") == ("<|pad|>", 102)  # as GPT-2, whose rows are full


def test_a_new_pad_token_gets_a_row_where_there_is_none(tmp_path: Path) -> None:
    loaded = trained(source(tmp_path / "base", "gpt2", vocab_size=102))
    loaded.tokenizer.unk_token = loaded.tokenizer.bos_token = "</s>"
    out = write(loaded, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == 103 and config["pad_token_id"] == 102
    assert not load_file(out / "model.safetensors")["transformer.wte.weight"][102].any()
    torch.testing.assert_close(theirs(out), ours(loaded.model), rtol=0, atol=1e-5)
    again = load_model(ModelConfig(model=str(out)), head=True)
    torch.testing.assert_close(ours(again.model), ours(loaded.model), rtol=0, atol=2e-6)
    text = "pad </s> and <unk>"
    assert AutoTokenizer.from_pretrained(out).encode(text) == tiny_tokenizer().encode(text)


def test_what_the_source_ends_generations_with_is_no_pad_token(tmp_path: Path) -> None:
    folder = source(tmp_path / "base", pad="<|im_start|>")
    GenerationConfig(eos_token_id=[2, 3]).save_pretrained(folder)
    loaded = trained(folder)
    note = padding_of(loaded.model, loaded.tokenizer, [2]).note
    assert "pads with <unk> = 0" in note and "<|im_start|>, its pad token, can end a response" in note
    assert json.loads((write(loaded, tmp_path / "out") / "config.json").read_text())["pad_token_id"] == 0
