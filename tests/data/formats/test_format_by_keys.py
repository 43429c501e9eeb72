"""What the fields of a row mean: every format by an example that can be checked by eye."""

from typing import Any

import pytest

from conversations import turns
from espalier.data.formats import ALL, FILES, FOLDERS, FORMATS, KNOWN, sniff, vote

# ----------------------------------------------------------------------------------------------------------- sniffing


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"instruction": "a", "output": "b", "text": "all of it"}, "alpaca"),
        ({"instruction": "a", "context": "", "response": "b"}, "alpaca"),
        ({"instruction": "a", "instances": [{"input": "", "output": "b"}]}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "a"}]}, "sharegpt"),
        ({"messages": [{"from": "human", "value": "a"}]}, "sharegpt"),
        ({"messages": [{"role": "user", "content": "a"}], "prompt": "a"}, "messages"),
        ({"conversations": [{"role": "user", "content": "a"}]}, "messages"),
        ({"conversation": [{"role": "user", "content": "a"}]}, "messages"),
        ({"question": "a", "answer": "b"}, "prompt"),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": []}, "prompt"),
        ({"query": "a", "response": "b"}, "prompt"),
        ({"text": "a"}, "text"),
        ({"chapter": "1", "paragraphs": ["a"]}, "text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "pairs"),
        ({"instruction": "a"}, None),
        ([{"role": "user", "content": "a"}], None),
    ],
)
def test_sniff_goes_by_keys(row: Any, expected: str | None) -> None:
    assert sniff(row) == expected


def test_most_rows_win_and_the_earlier_one_of_equals() -> None:
    text, pair = {"text": "a"}, {"prompt": "a", "answer": "b"}
    assert vote([text, pair, pair]) == "prompt"
    assert vote([{"id": 1}, text, pair]) == "text"
    assert vote([{"id": 1}]) is None


# -------------------------------------------------------------------------------------------- prompt, completion, text


def test_nothing_is_filled_in() -> None:
    row = {"instruction": "Who are you?", "input": "", "output": "I am {{name}} by {{author}}."}
    assert turns("alpaca", row)[1] == ("assistant", "I am {{name}} by {{author}}.")


def test_formats_by_name() -> None:
    chats = {"alpaca", "sharegpt", "messages", "prompt", "completion", "text", "transcript"}
    judgements = {"pairs", "compared", "hh", "judge", "ranked", "scores", "labels", "tree", "steps", "prm800k"}
    tasks = {"task", "gsm8k", "math", "choice", "ifeval"}
    assert set(FORMATS) == chats | judgements | tasks
    assert set(FILES) == {"nodes"} and set(FOLDERS) == {"reviews"}
    assert set(KNOWN) == {*FORMATS, *FILES, *FOLDERS} and len(KNOWN) == len(ALL)
