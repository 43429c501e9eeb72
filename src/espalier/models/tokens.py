"""New control tokens: rows of the embedding and the head that start at the mean of the known ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from espalier.errors import ConfigError


def add_control_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, names: Sequence[str], markup: Collection[str] = ()
) -> list[int]:
    """Add tokens `names` to both, in place; returns their ids in order. Known names keep their id and row.

    They are special, so that no content ever becomes one, but for those that are `markup` (`<think>`), which answers
    may hold (see `data.render.templates.markup_of`).

    A new token's input row, output row and output bias are the mean of the rows of the tokens known before, in
    float32: such a token starts with a logit near the average one, while a random row could start anywhere. The
    matrices grow only if the ids do not fit into rows the model keeps spare.

    Raises ConfigError if a name is empty, or is ordinary text of the vocabulary: making that a token of its own would
    change how existing text is split; and if the model has a LoRA adapter already.
    """
    vocabulary = tokenizer.get_vocab()
    new = _new(tokenizer, names)
    known = torch.tensor(sorted(set(vocabulary.values())))
    if new and hasattr(model, "peft_config"):
        raise ConfigError("add_tokens must come before a LoRA adapter is put on the model")
    add_to_tokenizer(tokenizer, names, markup)
    vocabulary = tokenizer.get_vocab()
    if new:
        ids = [int(vocabulary[name]) for name in new]
        rows = _tables(model)[0].shape[0]
        if max(ids) >= rows:
            # Without mean_resizing, which draws rows from the mean and covariance of the old ones.
            model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
        mean_rows(model, known, torch.tensor(ids))
    return [vocabulary[name] for name in names]


def add_to_tokenizer(tokenizer: PreTrainedTokenizerBase, names: Sequence[str], markup: Collection[str] = ()) -> None:
    """The tokenizer's part of `add_control_tokens`."""
    for name in _new(tokenizer, names):
        special = name not in markup
        tokenizer.add_tokens([AddedToken(name, special=special, normalized=False)], special_tokens=special)


def _new(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> list[str]:
    """The names that the tokenizer lacks. Raises ConfigError for one that cannot be added."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    special = added | set(tokenizer.all_special_tokens)
    vocabulary = tokenizer.get_vocab()
    for name in names:
        if not name.strip():
            raise ConfigError(f"add_tokens got {name!r}; expected the text of a control token, such as <|im_end|>")
        if name in vocabulary and name not in special:
            raise ConfigError(
                f"add_tokens got {name!r}, which is ordinary text (token {vocabulary[name]}) in "
                "this tokenizer. Choose a name that no text contains, such as <|name|>"
            )
    return [name for name in dict.fromkeys(names) if name not in vocabulary]


def mean_rows(model: Any, known: torch.Tensor, rows: torch.Tensor) -> None:
    """Set `rows` of embedding, head and its bias to the mean of the rows `known`, in float32. In place."""
    for table in _tables(model):
        mean = table.data[known.to(table.device)].float().mean(0)
        table.data[rows.to(table.device)] = mean.to(table.dtype)


def _tables(model: Any) -> list[torch.Tensor]:
    """Every parameter with a row for each token, tied ones once."""
    tables: list[torch.Tensor] = [model.get_input_embeddings().weight]
    head = model.get_output_embeddings()
    if head is None:
        return tables
    # A tied head's weight is the embedding itself, and its new rows are set once.
    if head.weight is not tables[0]:
        tables.append(head.weight)
    if getattr(head, "bias", None) is not None:
        tables.append(head.bias)
    return tables
