"""Random models of a few thousand parameters and a tokenizer to go with them, for tests of every kind.

`tiny_model("gemma2")` has each kind of layer its family knows (sliding and full attention, with and without RoPE,
linear and full attention), grouped-query attention where the family has it, and weights large enough that a wrong mask
or position shows in the outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers import decoders as token_decoders
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 128
WINDOW = 8  # tokens a sliding-window layer sees, itself included

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "mistral": {"sliding_window": WINDOW, "head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 5.0,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": WINDOW,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "tie_word_embeddings": True,
    },
    "phi3": {"original_max_position_embeddings": 256, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "olmo2": {},
    "smollm3": {"no_rope_layers": [1, 0], "tie_word_embeddings": True},
    "granite": {
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.4,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
        "head_dim": 8,
    },
    "gpt_neox": {"hidden_dropout": 0.0, "num_key_value_heads": None},
    "gpt2": {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "initializer_range": 0.2,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": True,
    },
    "mamba": {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "state_size": 8,
        "num_hidden_layers": 2,
        "initializer_range": 0.2,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen3_next": {
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
    "lfm2": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "conv"],
        "block_auto_adjust_ff_dim": False,
        "tie_word_embeddings": True,
    },
}
STATEFUL = ("mamba", "qwen3_next", "lfm2")
ATTENTION = tuple(name for name in _FAMILIES if name not in STATEFUL)


def tiny_config(family: str, **over: Any) -> PreTrainedConfig:
    """The configuration of a tiny model of `family` (a transformers model type), `over` replacing its fields."""
    fields = dict(_FAMILIES[family])
    if family not in ("gpt2", "mamba"):
        fields = {**_COMMON, **fields}
    fields = {name: value for name, value in {**fields, **over}.items() if value is not None or name == "pad_token_id"}
    return AutoConfig.for_model(family, **fields)


def tiny_model(family: str = "llama", *, seed: int = 0, **over: Any) -> PreTrainedModel:
    """A random float32 model of `family` in train mode; the same arguments give the same weights.

    Norms and biases, which start as ones and zeros, are moved off those values so that one left out is noticed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **over), dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(".bias") or "norm" in name or ".ln_" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")


def tiny_tokenizer(*, bos: bool = False, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, newline and tab; ids 0-4 are `SPECIAL`, eos is `</s>`; no pad token.

    With `bos`, encoding puts `<s>` in front, as Llama's tokenizer does.
    """
    letters = [*SPECIAL, "\n", "\t", *(chr(code) for code in range(32, 127))]
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(letters)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = token_decoders.Fuse()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer
