"""New control tokens: rows of the embedding and the head that start at the mean of the known ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from espalier.errors import ConfigError


def add_control_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> list[int]:
    """Add special tokens `names` to both, in place; returns their ids in order. Known names keep their id and row.

    A new token's input row, output row and output bias are the mean of the rows of the tokens known before, in
    float32: such a token starts with a logit near the average one, where a random row could start anywhere. The
    matrices grow only where the ids do not fit into rows the model keeps spare.

    Raises ConfigError where a name is empty, or is ordinary text of the vocabulary: making that special would change
    how existing text is split.
    """
    special = set(tokenizer.all_special_tokens) | {t.content for t in tokenizer.added_tokens_decoder.values()}
    vocabulary = tokenizer.get_vocab()
    for name in names:
        if not name.strip():
            raise ConfigError(f"add_tokens got {name!r}; expected the text of a control token, such as <|im_end|>")
        if name in vocabulary and name not in special:
            raise ConfigError(
                f"add_tokens got {name!r}, which is ordinary text (token {vocabulary[name]}) in this tokenizer. "
                "Choose a name that no text contains, such as <|name|>"
            )
    known = torch.tensor(sorted(set(vocabulary.values())))
    new = [name for name in dict.fromkeys(names) if name not in vocabulary]
    if new:
        if hasattr(model, "peft_config"):
            raise ConfigError("add_tokens must come before a LoRA adapter is put on the model")
        tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in new], special_tokens=True)
        ids = [int(tokenizer.get_vocab()[name]) for name in new]
        rows = _tables(model)[0].shape[0]
        if max(ids) >= rows:
            model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        for table in _tables(model):
            known = known.to(table.device)
            table.data[torch.tensor(ids, device=table.device)] = table.data[known].float().mean(0).to(table.dtype)
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[name] for name in names]


def _tables(model: Any) -> list[torch.Tensor]:
    """Every parameter with a row for each token, tied ones once."""
    found: list[torch.Tensor] = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is not None:
        found += [head.weight] + ([head.bias] if getattr(head, "bias", None) is not None else [])
    return list({id(table): table for table in found}.values())
