"""The pad token of an exported reward model.

transformers reads a sequence-classification model at the rightmost token that is not the pad token. Where pad is also a
stop token (many tokenizers use the end-of-text token for both), a response would be read before its end.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_SPARE = (re.compile("pad", re.IGNORECASE), re.compile("unused|reserved", re.IGNORECASE))
_NEW = ("<|pad|>", "<|padding|>", "<|pad_token|>")


@dataclass(frozen=True, slots=True)
class Padding:
    """A copy of the tokenizer that pads on the right with `token`, which no response ends in; `id` is at most `rows`,
    and there the embedding needs one row more. `note` is a line for the user, empty where nothing changed."""

    tokenizer: PreTrainedTokenizerBase
    id: int
    token: str
    note: str


def choose_padding(tokenizer: PreTrainedTokenizerBase, rows: int, stop_ids: Collection[int]) -> Padding:
    """The first of these that is no stop token, not the tokenizer's end of text, and has one of the `rows` of the
    embedding: the tokenizer's pad token; its unknown token; a special token whose name says that it stands for nothing
    (pad, then unused or reserved); a new token `<|pad|>` in a row that no token uses; the begin-of-text token, which
    ends nothing; else a new token in a new row. Ordinary text is never taken: the tokenizer would split text around it
    from then on, and a response cut at a length limit may end in it.
    """
    stops = {*stop_ids, tokenizer.eos_token_id}
    own = copy.deepcopy(tokenizer)
    own.padding_side = "right"

    def fits(token: str | None) -> bool:
        number = None if token is None else tokenizer.get_vocab().get(token)
        return number is not None and number < rows and number not in stops

    added = [entry.content for _, entry in sorted(tokenizer.added_tokens_decoder.items())]
    named = [token for pattern in _SPARE for token in added if pattern.search(token)]
    before = tokenizer.pad_token
    for token in (before, tokenizer.unk_token, *named):
        if fits(token):
            return _with(own, str(token), before)
    grown = copy.deepcopy(own)
    vocabulary = tokenizer.get_vocab()
    grown.add_special_tokens({"pad_token": next(name for name in _NEW if name not in vocabulary)})
    if grown.get_vocab()[str(grown.pad_token)] >= rows and fits(tokenizer.bos_token):
        return _with(own, str(tokenizer.bos_token), before)
    return _with(grown, str(grown.pad_token), before)


def _with(tokenizer: PreTrainedTokenizerBase, token: str, before: str | None) -> Padding:
    tokenizer.pad_token = token
    number = int(tokenizer.get_vocab()[token])
    note = (
        f"the exported reward model pads with {token} = {number}: transformers reads it at the rightmost other token, "
        f"and {'it had no pad token' if before is None else f'{before}, its pad token, can end a response'}"
    )
    return Padding(tokenizer, number, token, "" if token == before else note)
