"""Two numbered answers: which one the verdict prefers."""

from typing import Any

import pytest

from conversations import one
from espalier.data.formats import sniff
from espalier.data.formats.compared import read_compared
from espalier.errors import RowError
from espalier.types import Origin

ONE = {"prompt": "Why?", "response_1": "first", "response_2": "second"}
ZERO = {"prompt": "Why?", "response_0": "first", "response_1": "second"}
ARENA = {"prompt": '["Why?"]', "response_a": '["first"]', "response_b": '["second"]'}


@pytest.mark.parametrize(
    ("row", "ranks"),
    [
        (ONE | {"preference_strength": -2}, [0, 1]),
        (ONE | {"preference_strength": 1}, [1, 0]),
        (ONE | {"preference_strength": 0}, [0, 0]),
        ({"context": [{"role": "user", "content": "Why?"}], "response1": "first", "response2": "second",
          "overall_preference": 3}, [1, 0]),
        ({"instruction": "Why?", "output_1": "first", "output_2": "second", "preference": 1.02}, [0, 1]),
        ({"instruction": "Why?", "output_1": "first", "output_2": "second", "preference": 1.98}, [1, 0]),
        (ZERO | {"better_response_id": 1}, [1, 0]),
        (ZERO | {"better_response_id": 0}, [0, 1]),
        (ARENA | {"winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0}, [0, 1]),
        (ARENA | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1}, [0, 0]),
        (ARENA | {"winner": "model_b"}, [1, 0]),
    ],
)  # fmt: skip
def test_the_verdict_decides_the_ranks(row: dict[str, Any], ranks: list[int]) -> None:
    assert sniff(row) == sniff(row, "ranking") == "compared"
    read = one("compared", row)
    assert [(r.message.content, r.rank) for r in read.responses] == list(zip(["first", "second"], ranks, strict=True))
    assert [m.content for m in read.prompt] == ["Why?"]


@pytest.mark.parametrize(
    "row",
    [
        ONE | {"preference": 0},
        ZERO | {"better_response_id": 2},
        ARENA | {"winner_model_a": 0, "winner_model_b": 0, "winner_tie": 0},
        ARENA | {"prompt": '["Why?", "And?"]', "winner": "model_a"},
        ARENA | {"winner": "nobody"},
    ],
)
def test_a_verdict_outside_its_scale_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        one("compared", row)


def test_numbered_answers_without_a_known_verdict_are_not_guessed() -> None:
    assert sniff(ONE | {"label": 1}, "ranking") is None


def test_a_verdict_written_with_a_capital_is_the_same() -> None:
    sides = {"prompt": "Q", "response_0": "a", "response_1": "b"}
    for row in ({**sides, "Better_response_id": 1}, {**sides, "better_response_id": 1}):
        ranking = read_compared(row, Origin())
        assert [response.rank for response in ranking.responses] == [1, 0]
    with pytest.raises(RowError, match="winner"):
        read_compared({"prompt": "Q", "response_a": "a", "response_b": "b", "winner": ["model_a"]}, Origin())
