"""Reward models on disk, as they are after training, and what they and transformers say."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from espalier.config.sections import ModelConfig
from espalier.forest.pack import pack, totals
from espalier.models import heads
from espalier.models.export import export
from espalier.models.layout import choose
from espalier.models.load import Loaded, load_model
from espalier.models.policy import Policy
from espalier.models.prepare import prepare
from samples import Groups, sample
from tiny import tiny_model, tiny_tokenizer

ANSWERS = [[7, 8, 2], [9], [2, 10, 11, 2, 12, 13, 2], [14, 15, 16, 2, 2]]  # 2 is </s>: at the end, inside, twice


def groups() -> Groups:
    prompt = [5, 6, 30, 31, 32, 2, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44]
    made = [[sample(prompt, answer) for answer in ANSWERS]]
    for s in made[0]:
        s.reads = [len(s.tokens) - 1]
    return made


def source(folder: Path, family: str = "llama", *, pad: str | None = "</s>", **over: Any) -> Path:
    """A base model on disk whose pad token is its end of text, unless said otherwise."""
    model = tiny_model(family, **over)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = pad
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def trained(
    folder: Path, dimensions: int = 2, *, names: tuple[str, ...] = (), kind: Any = "response", **over: Any
) -> Loaded:
    """A reward model as it is after training: every trained weight has moved, and it is calibrated."""
    config = ModelConfig(model=str(folder), **over)
    loaded = load_model(config, head=True)
    heads.attach(loaded.model, dimensions, seed=1, names=names, kind=kind)
    prepare(loaded, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    heads.set_calibration(loaded.model, heads.calibrate(ours(loaded.model), scale=True))
    return loaded


def ours(model: Any) -> Tensor:
    """Calibrated scores of `groups()` through a Policy."""
    model = copy.deepcopy(model)
    chosen, _ = choose(model, "auto")
    said = Policy(model, chosen, says="reads")(pack(groups(), totals(groups()), says="reads"))["scores_RK"]
    return heads.calibration_of(model).apply(said.detach())


def theirs(folder: Path, *, dtype: Any = "auto") -> Tensor:
    """What transformers alone says of the same rows, padded on the right by the exported tokenizer, plus the bias."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenizer.pad({"input_ids": [s.tokens for s in groups()[0]]}, return_tensors="pt")
    assert rows["attention_mask"][:, 0].all() and not rows["attention_mask"][:, -1].all()
    with torch.no_grad():
        logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    return logits + torch.tensor(model.config.espalier_reward_bias)


def write(loaded: Loaded, folder: Path, **over: Any) -> Path:
    export(loaded.model, loaded.tokenizer, folder, source_dtype=loaded.source_dtype, stop_ids=[2], **over)
    return folder
