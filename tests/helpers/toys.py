"""Tokenizers of every make, and a view of samples, for tests of rendering."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from espalier.data.render.drafts import Rendered
from espalier.data.render.templates import apply_template
from espalier.types import Chat, Message
from tiny import tiny_tokenizer

LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def system(content: str, **more: Any) -> Message:
    return Message("system", content, **more)


def user(content: str, **more: Any) -> Message:
    return Message("user", content, **more)


def assistant(content: str, **more: Any) -> Message:
    return Message("assistant", content, **more)


def tool(content: str, **more: Any) -> Message:
    return Message("tool", content, **more)


TWO_TURNS = Chat((system("Be."), user("Hi"), assistant("Yo"), user("1+1"), assistant("2")))


# Drops the reasoning of turns before the last question, as reasoning models' templates do.
FORGETFUL = """
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.reasoning_content and loop.index0 > ns.last %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}
{{- m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# Always writes a thought, and starts turns with an empty one unless told to think.
SWITCHED = """
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' %}{{ '<think>' + (m.reasoning_content or '') + '</think>' }}{% endif %}
{{- m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' + ('<think>' if enable_thinking is defined and enable_thinking else '<think></think>') }}
{%- endif %}"""


def letters(*, template: str | None, bos: bool = False, markup: Sequence[str] = MARKUP) -> PreTrainedTokenizerFast:
    """A token for each character, the control tokens of every built-in template, and `markup` as plain added tokens."""
    tokenizer = tiny_tokenizer(bos=bos, template=None)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in LLAMA3], special_tokens=True)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in markup])
    if template in ("chatml", "llama3", "alpaca", "plain"):
        apply_template(tokenizer, template)
    else:
        tokenizer.chat_template = template
    return tokenizer


def words() -> PreTrainedTokenizerFast:
    """A word-level vocabulary that holds its control strings as words; spaces and unknown words are lost."""
    vocab = ["<unk>", "<s>", "</s>", "END", "a", "b", "x", "hello", "world", "[", "]", "USER", "ASSISTANT", ":"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocab)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", additional_special_tokens=["END"]
    )
    apply_template(tokenizer, "plain")
    return tokenizer


def merging() -> PreTrainedTokenizerFast:
    """A token for each character, and one for two line ends; ChatML."""
    pieces = ["</s>", "\n", "\n\n", *map(chr, range(32, 127))]
    core = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("\n", "\n")]))
    core.decoder = decoders.Fuse()
    return with_chatml(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>"))


def spaced(scheme: str) -> PreTrainedTokenizerFast:
    """Letters and bytes, a space being part of what follows it; `scheme` says where a text gets one in front."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127))]
    core = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="</s>")


def show(rendered: Rendered, tokenizer: Any) -> str:
    """The text of a sample with what is trained in brackets: `Hi[ there</s>]`."""
    text, inside = "", False
    for id, trained in zip(rendered.sample.tokens, rendered.sample.mask, strict=True):
        text += "⟦" * (trained and not inside) + "⟧" * (inside and not trained)
        text += tokenizer.backend_tokenizer.decode([id], skip_special_tokens=False)
        inside = trained
    return text + "⟧" * inside


# ------------------------------------------------------------------------------------------------ tokenizers of others


def gpt2(shared: Path) -> PreTrainedTokenizerFast:
    folder = shared / "data/tokenizers/gpt2"
    core = Tokenizer(models.BPE.from_file(str(folder / "gpt2_vocab.json"), str(folder / "gpt2_merges.txt")))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=end, bos_token=end, unk_token=end)
    return with_chatml(tokenizer)


def with_chatml(tokenizer: Any) -> Any:
    names = ("<|im_start|>", "<|im_end|>")
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in names], special_tokens=True)
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKUP])
    apply_template(tokenizer, "chatml")
    return tokenizer


def tiktoken(shared: Path) -> Any:
    from transformers.convert_slow_tokenizer import TikTokenConverter

    file = shared / "data/tokenizers/torchtune/tiktoken_small.model"
    core = TikTokenConverter(vocab_file=str(file), extra_special_tokens=["<|end|>"]).converted()
    return with_chatml(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>"))


def sentencepiece_bpe(shared: Path, folder: Path) -> Any:
    """The SentencePiece file as transformers loads it for Llama: merges, a space in front of the first text only."""
    shutil.copy(shared / "data/tokenizers/torchtune/m.model", folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return with_chatml(AutoTokenizer.from_pretrained(folder))


def sentencepiece_unigram(shared: Path) -> Any:
    """The same file as what it is, a unigram vocabulary in which control strings are pieces like any other."""
    pieces = sentencepiece.SentencePieceProcessor(str(shared / "data/tokenizers/torchtune/m.model"))
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.vocab_size())]
    core = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    apply_template(tokenizer, "plain")
    return tokenizer


def stories(shared: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/stories260k")
    apply_template(tokenizer, "plain")
    return tokenizer


def minimind(shared: Path) -> Any:
    return AutoTokenizer.from_pretrained(shared / "data/tokenizers/minimind")
