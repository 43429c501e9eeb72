"""A prompt and its continuation, two strings without chat markup."""

from __future__ import annotations

from espalier.data.formats.common import Fields, empty_answer, first_key, missing, string
from espalier.data.formats.format import Format
from espalier.data.formats.prompt import ANSWERS, PROMPTS
from espalier.types import Completion, Origin


def read_completion(row: Fields, origin: Origin) -> Completion:
    """A Completion of two strings, which are joined as they are. The prompt may be empty. Raises RowError."""
    prompt = string(row, (one_of(row, PROMPTS),))
    key = one_of(row, ANSWERS)
    completion = string(row, (key,))
    if not completion.strip():
        raise empty_answer(key, completion)
    return Completion(prompt, completion, origin)


def one_of(row: Fields, keys: tuple[str, ...]) -> str:
    """The first of `keys` that the row has. Raises RowError if it has none of them."""
    key = first_key(row, keys)
    if key is None:
        raise missing(keys[0], row, " or ".join(keys))
    return key


# Never guessed: its rows look like those of `prompt`.
FORMAT = Format("completion", read_completion, None)
