"""The pad token of an exported reward model.

transformers reads a sequence-classification model at the rightmost token that is not the pad token. If pad is also a
stop token (many tokenizers use the end-of-text token for both), a response would be read before its end.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

# Names of special tokens that stand for nothing, the better ones first.
_SPARE = (re.compile("pad", re.IGNORECASE), re.compile("unused|reserved", re.IGNORECASE))
_NEW = ("<|pad|>", "<|padding|>", "<|pad_token|>")


@dataclass(frozen=True, slots=True)
class Padding:
    """A copy of the tokenizer that pads on the right with `token`, which no response ends in.

    `id` is at most the number of the embedding's rows; if it is that number, the embedding needs one row more. `note`
    is a line for the user, empty if nothing changed.
    """

    tokenizer: PreTrainedTokenizerBase
    id: int
    token: str
    note: str


def choose_padding(tokenizer: PreTrainedTokenizerBase, rows: int, stop_ids: Collection[int]) -> Padding:
    """The pad token is the first of these that does not end a response and has one of the `rows` of the embedding:

    - the tokenizer's pad token;
    - its unknown token;
    - a special token whose name says that it stands for nothing (pad, then unused or reserved);
    - a new token `<|pad|>` in a row that no token uses;
    - the begin-of-text token, which ends nothing;
    - else a new token in a new row.

    What ends a response are `stop_ids` and the tokenizer's end of text. Ordinary text is never taken: the tokenizer
    would split text around it from then on, and a response cut at a length limit may end in it.
    """
    stops = {*stop_ids, tokenizer.eos_token_id}
    own = copy.deepcopy(tokenizer)
    own.padding_side = "right"
    vocabulary = tokenizer.get_vocab()

    def fits(token: str | None) -> bool:
        number = vocabulary.get(token) if token is not None else None
        return number is not None and number < rows and number not in stops

    added = [entry.content for _, entry in sorted(tokenizer.added_tokens_decoder.items())]
    named: list[str] = []
    for pattern in _SPARE:
        named += [token for token in added if pattern.search(token)]
    before = tokenizer.pad_token
    for token in (before, tokenizer.unk_token, *named):
        if fits(token):
            return _with(own, str(token), before)
    # On a second copy: if the new token needs a new row, the begin-of-text token in the first one
    # is the better choice.
    grown = copy.deepcopy(own)
    grown.add_special_tokens({"pad_token": next(name for name in _NEW if name not in vocabulary)})
    if grown.get_vocab()[str(grown.pad_token)] >= rows and fits(tokenizer.bos_token):
        return _with(own, str(tokenizer.bos_token), before)
    return _with(grown, str(grown.pad_token), before)


def _with(tokenizer: PreTrainedTokenizerBase, token: str, before: str | None) -> Padding:
    """The tokenizer with `token` as its pad token, which was `before`."""
    tokenizer.pad_token = token
    number = int(tokenizer.get_vocab()[token])
    if token == before:
        return Padding(tokenizer, number, token, note="")
    reason = "it had no pad token"
    if before is not None:
        reason = f"{before}, its pad token, can end a response"
    note = (
        f"the exported reward model pads with {token} = {number}: transformers reads it at the "
        f"rightmost other token, and {reason}"
    )
    return Padding(tokenizer, number, token, note)
