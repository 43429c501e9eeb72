"""Tokens that an adapter was trained with and its base lacks, read from the tokenizer in the adapter's folder."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from espalier.errors import ModelError
from espalier.models.adapter_files import PREFIX, Adapter
from espalier.models.tokens import mean_rows


def adopt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: Adapter,
    theirs: PreTrainedTokenizerBase | None,
    *,
    template: bool = True,
) -> list[str]:
    """`adopt_tokens`, and a row of the model for each. In place; returns lines for the user.

    Rows that the base keeps spare stay as they are, others start at the mean of the known ones; the adapter's own rows
    replace them.
    """
    added, notes = adopt_tokens(tokenizer, adapter, theirs, template=template)
    if not added:
        return notes
    if max(added.values()) >= token_rows_of(model):
        grow(model, max(added.values()) + 1)
        notes += _headless(model, adapter)
    untrained = sorted(set(added.values()) - adapter.trained_rows)
    if untrained and not adapter.whole_rows:
        notes.append(
            f"of these the adapter has no trained row for {len(untrained)} (token {untrained[0]} first); they "
            "keep the base's spare row, or start at the mean of the known ones"
        )
    return notes


def _headless(model: Any, adapter: Adapter) -> list[str]:
    """A line if the head has rows of its own for new tokens and the adapter, which trains those of the embedding, lacks
    them."""
    head = model.get_output_embeddings()
    if head is None or head.weight is model.get_input_embeddings().weight or not adapter.trained_rows:
        return []
    path = next(name for name, module in model.named_modules() if module is head)
    if any(name.removeprefix(PREFIX).startswith(f"{path}.") for name in adapter.shapes):
        return []
    return [f"the adapter has the new tokens' rows of the embedding, but not of {path}, where they start at the mean"]


def adopt_tokens(
    tokenizer: PreTrainedTokenizerBase,
    adapter: Adapter,
    theirs: PreTrainedTokenizerBase | None,
    *,
    template: bool = True,
) -> tuple[dict[str, int], list[str]]:
    """Give the base's tokenizer the tokens that `theirs`, the adapter's, has beside, under the same ids; and, with
    `template`, its chat template. In place; returns the tokens and lines for the user.

    Raises ModelError if the two tokenizers are not of one family.
    """
    if theirs is None:
        return {}, []
    notes = []
    added = _add_missing(tokenizer, adapter, theirs)
    if added:
        shown = [f"{token} = {i}" for token, i in list(added.items())[:8]]
        more = f" and {len(added) - 8} more" if len(added) > 8 else ""
        notes.append(f"tokens of the adapter's tokenizer that the base lacks: {', '.join(shown)}{more}")
    # A template may be a dictionary of several.
    if template and theirs.chat_template and theirs.chat_template != tokenizer.chat_template:
        tokenizer.chat_template = theirs.chat_template
        notes.append("the chat template is that of the adapter's tokenizer, not the base's; --template chooses another")
    return added, notes


def _add_missing(
    tokenizer: PreTrainedTokenizerBase, adapter: Adapter, theirs: PreTrainedTokenizerBase
) -> dict[str, int]:
    """Add what `theirs` knows beside; returns their ids in order."""
    ours, known = tokenizer.get_vocab(), theirs.get_vocab()
    moved = [token for token, i in known.items() if ours.get(token, i) != i]
    missing = sorted((i, token) for token, i in known.items() if token not in ours)
    settings = theirs.added_tokens_decoder
    if moved or any(i not in settings for i, _ in missing):
        odd = moved[0] if moved else next(token for i, token in missing if i not in settings)
        raise ModelError(
            f"the tokenizer in the folder of adapter {adapter.path} is not the base's with tokens added: {odd!r} is "
            f"{known[odd]} there and {ours.get(odd, 'unknown')} here. Pass the model that the adapter was trained on"
        )
    for i, token in missing:
        tokenizer.add_tokens([settings[i]], special_tokens=settings[i].special)
        got = tokenizer.get_vocab()[token]
        if got != i:
            raise ModelError(
                f"adapter {adapter.path} was trained with {token!r} as token {i}, which the base's tokenizer would "
                f"make {got}. Pass the model that the adapter was trained on"
            )
    return {token: i for i, token in missing}


def refuse_unnamed_rows(tokenizer: PreTrainedTokenizerBase, adapter: Adapter) -> None:
    """Raise ModelError if the adapter trains rows of tokens that no tokenizer here names: as text they would be split
    into ordinary tokens without a word."""
    unnamed = sorted(adapter.trained_rows - set(tokenizer.get_vocab().values()))
    if unnamed:
        listed = ", ".join(str(row) for row in unnamed[:8])
        raise ModelError(
            f"adapter {adapter.path} trains token rows {listed} ({len(unnamed)} in all), which the base's tokenizer "
            "does not have, and no tokenizer in its folder names them. Pass their names in this order as --add-tokens, "
            "or copy the tokenizer that it was trained with into its folder"
        )


def token_rows_of(model: Any) -> int:
    """Rows of the embedding."""
    return int(model.get_input_embeddings().weight.shape[0])


def grow(model: PreTrainedModel, rows: int) -> None:
    """Resize embedding and head to `rows`; new rows start at the mean of the present ones. In place."""
    present = token_rows_of(model)
    # Without mean_resizing, which draws rows from the mean and covariance of the old ones.
    model.resize_token_embeddings(rows, mean_resizing=False)
    if rows > present:
        mean_rows(model, torch.arange(present), torch.arange(present, rows))


def grown(model: Any) -> tuple[int, int] | None:
    """Rows of the embedding in the source and now, if there are more now; None otherwise.

    An adapter is put on its source only after the source was resized to so many rows.
    """
    source: Any = getattr(model, "espalier_source", {})
    before = source.get("vocab_size") or (source.get("text_config") or {}).get("vocab_size")
    now = token_rows_of(model)
    if not before or now <= before:
        return None
    return int(before), int(now)


def resizing(model: Any) -> str:
    """What whoever loads the exported adapter with peft must do first; empty if nothing."""
    sizes = grown(model)
    if sizes is None:
        return ""
    return (
        f"the embedding grew from {sizes[0]} to {sizes[1]} rows: before PeftModel.from_pretrained, call "
        f"base.resize_token_embeddings({sizes[1]}, mean_resizing=False)"
    )
