"""Adapters that peft itself makes and saves on tiny models, and what they compute, by peft alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

from tiny import tiny_model, tiny_tokenizer

X = torch.tensor([[5, 6, 7, 102, 9, 10, 103, 12, 13, 14, 15, 16]])
LM = "CAUSAL_LM"


def save_base(folder: Path, family: str = "llama", **over: Any) -> str:
    """A tiny model with its tokenizer, saved."""
    tiny_model(family, **over).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def lora(**over: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, "task_type": LM, "target_modules": ["q_proj", "v_proj"], **over})


def make_adapter(base: str, settings: peft.PeftConfig, folder: Path, *, rows: int = 0, save: Any = "auto") -> str:
    """An adapter whose every trained number was moved, as peft saves it. rows: the base is resized to so many first;
    save: peft's `save_embedding_layers`."""
    model = _base(base, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, settings)
        generator = torch.Generator().manual_seed(1)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
        wrapped.save_pretrained(folder, save_embedding_layers=save)
    return str(folder)


def peft_logprobs(base: str, adapter: str, *, rows: int = 0, ids: torch.Tensor = X) -> torch.Tensor:
    """Log-probabilities of base and adapter, by transformers and peft alone."""
    model = _base(base, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logprobs(peft.PeftModel.from_pretrained(model, adapter), ids)


def logprobs(model: Any, ids: torch.Tensor = X) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=ids).logits
    return logits.float().log_softmax(-1)


def written_logprobs(folder: Path | str, ids: torch.Tensor = X) -> torch.Tensor:
    """Log-probabilities of a written model, by transformers alone."""
    return logprobs(AutoModelForCausalLM.from_pretrained(folder), ids)


def _base(base: str, rows: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config._name_or_path = base
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Every trained parameter moved, so that an adapter that is left out shows."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1
    return model
