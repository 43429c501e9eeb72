"""New control tokens: where they start, what they need, and what cannot become one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from espalier.config.sections import ModelConfig
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.render.templates import markup_of
from espalier.errors import ConfigError
from espalier.models.load import load_model
from espalier.models.prepare import prepare
from espalier.models.tokens import add_control_tokens, add_to_tokenizer
from espalier.types import Chat, Completion, Message, Ranking, Response
from tiny import TEMPLATE, tiny_model, tiny_tokenizer


def saved(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **over: Any) -> Path:
    tiny_model(family, **over).to(dtype).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "llama-tiny", dtype=torch.bfloat16)


def config(path: Path | str, **over: Any) -> ModelConfig:
    return ModelConfig(model=str(path), **over)


@pytest.mark.parametrize(("family", "tied"), [("llama", False), ("llama", True), ("gpt2", True), ("gemma3_text", True)])
def test_control_tokens_start_at_the_mean(family: str, tied: bool) -> None:
    model, tokenizer = tiny_model(family, vocab_size=103, tie_word_embeddings=tied), tiny_tokenizer()
    before = model.get_input_embeddings().weight.detach().clone()
    head = model.get_output_embeddings().weight.detach().clone()
    x = torch.arange(5, 45)[None]
    logits = model(x).logits
    assert add_control_tokens(model, tokenizer, ["<|a|>", "<|im_end|>", "<|b|>"]) == [102, 4, 103]
    after, head_after = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert after.shape == (104, 32) and model.config.vocab_size == 104 and (head_after is after) == tied
    for row in (102, 103):  # 102 was a spare row, 103 is new; the tokenizer knew 102 tokens
        assert torch.allclose(after[row], before[:102].mean(0)) and torch.allclose(head_after[row], head[:102].mean(0))
    assert torch.equal(after[:102], before[:102])
    assert torch.equal(model(x).logits[..., :102], logits[..., :102])
    assert tokenizer("<|b|>a<|a|>").input_ids == [103, 72, 102]
    assert tokenizer.decode([103, 72], skip_special_tokens=True) == "a"
    assert add_control_tokens(model, tokenizer, ["<|a|>", "<|b|>"]) == [102, 103]
    assert model.get_input_embeddings().weight is after


def test_ordinary_text_cannot_become_a_control_token() -> None:
    with pytest.raises(ConfigError, match="'a', which is ordinary text"):
        add_control_tokens(tiny_model(), tiny_tokenizer(), ["a"])
    with pytest.raises(ConfigError, match="expected the text of a control token"):
        add_control_tokens(tiny_model(), tiny_tokenizer(), [" "])


def test_new_tokens_need_a_trained_embedding(source: Path) -> None:
    asked = config(source, add_tokens=("<|new|>",), freeze_layers=0.5)
    with pytest.raises(ConfigError, match="add_tokens needs trained embeddings"):
        prepare(load_model(asked), asked)
    lora = config(source, add_tokens=("<|new|>",), freeze_layers=0.5, lora_rank=2)
    names = prepare(load_model(lora), lora).names
    assert any("trainable_tokens_delta" in n for n in names) and not any("layers.0." in n for n in names)


THINK = ("<think>", "</think>")
ANSWER = "<think>hm</think>2"


def test_added_tokens_are_used_where_answers_hold_them(tmp_path: Path) -> None:
    """The trained ids are those that the exported tokenizer makes of the same text, in chats and in judged answers."""
    tokenizer = tiny_tokenizer()
    add_to_tokenizer(tokenizer, THINK, markup_of(tokenizer, THINK))
    tokenizer.save_pretrained(tmp_path)
    exported = type(tokenizer).from_pretrained(tmp_path)
    expected = exported(ANSWER + "<|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(expected) == 6
    asked, answer = Message("user", "Say <think>"), Message("assistant", ANSWER)
    ranking = Ranking((asked,), (Response(answer, 0), Response(Message("assistant", "3"), 1)))
    for renderer, example in (
        (Renderer(tokenizer), Chat((asked, answer))),
        (Renderer(tokenizer, form=Form("ranking")), ranking),
    ):
        group = renderer.render(example)
        sample = group[0].sample
        assert [t for t, trained in zip(sample.tokens, sample.mask, strict=True) if trained] == expected
        assert sample.tokens.count(expected[0]) == 1  # not the question's
        assert group.controls == {"prompts hold <think>": 1}
    assert exported.decode(expected, skip_special_tokens=True) == ANSWER
    completion = Renderer(tokenizer).render(Completion("Q", ANSWER))
    assert completion.controls == {f"completions hold {name}": 1 for name in THINK}


def test_tokens_that_a_template_writes_around_turns_never_come_from_content() -> None:
    template = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|stop|>' }}{% endfor %}"
    names = ("<|user|>", "<|assistant|>", "<|stop|>", "<think>")
    tokenizer = tiny_tokenizer(template=template + "{% if add_generation_prompt %}<|assistant|><think>{% endif %}")
    add_to_tokenizer(tokenizer, names, markup_of(tokenizer, names))
    special = {t.content: t.special for t in tokenizer.added_tokens_decoder.values()}
    assert [special[name] for name in names] == [True, True, True, False]
    # A template that cannot be asked, and none.
    for template in ("{{ raise_exception('no') }}", None):
        tokenizer = tiny_tokenizer(template=template)
        add_to_tokenizer(tokenizer, THINK, markup_of(tokenizer, THINK))
        assert all(t.special for t in tokenizer.added_tokens_decoder.values())
    tokenizer = tiny_tokenizer(template=TEMPLATE)
    names = ("<|eot_id|>", "<think>")
    add_to_tokenizer(tokenizer, names, markup_of(tokenizer, names, "llama3"))
    special = {t.content: t.special for t in tokenizer.added_tokens_decoder.values()}
    assert special["<|eot_id|>"] and not special["<think>"]
