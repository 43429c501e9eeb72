"""What ends a response: ids, and texts in what it decodes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.engines.protocols import SamplingParams
from espalier.errors import ConfigError

# What the decoder writes for bytes that are not yet a whole character.
_UNFINISHED = "\ufffd"


class TextWatch:
    """Decodes one response token by token and says when its text contains one of `texts`.

    Only the last tokens are decoded again: those since the text before them ended in a whole character. Special tokens
    are part of the text.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str]):
        self._tokenizer = tokenizer
        self._texts = texts
        self._tail = max(len(text) for text in texts) - 1
        self._tokens: list[int] = []
        self._done = 0  # tokens whose text is in `text`
        self._context = 0  # tokens before them from which decoding starts
        self.text = ""

    def feed(self, token: int) -> bool:
        """Take the next token. Returns whether the text contains one of the texts now."""
        self._tokens.append(token)
        # Decoding starts a few tokens back: some decoders drop the space of the first one.
        before = self._decode(self._tokens[self._context : self._done])
        whole = self._decode(self._tokens[self._context :])
        if whole.endswith(_UNFINISHED) or len(whole) <= len(before):
            return False
        start = max(0, len(self.text) - self._tail)
        self.text += whole[len(before) :]
        self._context, self._done = self._done, len(self._tokens)
        return any(self.text.find(text, start) >= 0 for text in self._texts)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def watch(tokenizer: Any, params: SamplingParams) -> TextWatch | None:
    """A watch over a response's text; None without stop strings. Raises ConfigError for an empty one, and without a
    tokenizer."""
    if not params.stop_strings:
        return None
    if tokenizer is None:
        raise ConfigError("stop_strings are given, but the sampler has no tokenizer; give it one", key="stop_strings")
    if not all(params.stop_strings):
        raise ConfigError("stop_strings: got an empty text, which every response contains", key="stop_strings")
    return TextWatch(tokenizer, params.stop_strings)
