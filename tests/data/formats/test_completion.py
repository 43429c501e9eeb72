"""Prompt and completion, each by an example that can be checked by eye."""

import pytest

from conversations import HERE, one, turns
from espalier.types import Completion, Message


@pytest.mark.parametrize("asked", ["prompt", "question", "query"])
@pytest.mark.parametrize("answered", ["completion", "answer", "response", "output"])
def test_prompt_and_completion_under_every_name(asked: str, answered: str) -> None:
    row = {asked: "1 + 1?", answered: " 2 ", "system": "Count."}
    assert turns("prompt", row) == [("system", "Count."), ("user", "1 + 1?"), ("assistant", " 2 ")]
    assert one("completion", row) == Completion("1 + 1?", " 2 ", HERE)


def test_prompt_of_message_lists() -> None:
    row = {
        "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a", "train": False}],
    }
    chat = one("prompt", row)
    assert chat.messages == (Message("system", "S"), Message("user", "q"), Message("assistant", "a", weight=0.0))


def test_completion_joins_nothing_and_may_start_empty() -> None:
    assert one("completion", {"prompt": "", "completion": "a b"}) == Completion("", "a b", HERE)
