"""What errors say, and the words that they suggest."""

from __future__ import annotations

import doctest

import pytest

from espalier import errors
from espalier.errors import RowError, nearest


def test_worked_examples() -> None:
    failed, tried = doctest.testmod(errors)
    assert failed == 0 and tried >= 2


@pytest.mark.parametrize(
    ("word", "known", "suggested"),
    [
        ("usr", ("system", "user", "assistant"), " Did you mean user?"),
        ("User", ("user",), " Did you mean user?"),
        (" SYTEM ", ("system", "user"), " Did you mean system?"),
        ("samples-per-step", ("samples_per_step",), " Did you mean samples_per_step?"),
        ("good-answer", ("Good-Answers",), " Did you mean Good-Answers?"),  # as it is known, not as it is compared
        (5, ("5x", "seven"), " Did you mean 5x?"),
        ("robot", ("user", "assistant"), ""),
        ("user", (), ""),
        ("", ("user",), ""),
    ],
)
def test_the_nearest_known_word_is_suggested(word: object, known: tuple[str, ...], suggested: str) -> None:
    assert nearest(word, known) == suggested


def test_a_row_error_says_what_where_got_expected_and_the_way_out() -> None:
    error = RowError("unknown role", field="role", got="'usr'", expected="user", fix=nearest("usr", ["user"]))
    assert str(error.at("a.jsonl:3")) == (
        "a.jsonl:3: unknown role; field role; got 'usr'; expected user. Did you mean user?"
    )
    assert error.at("a.jsonl:3").at("b.jsonl:4").where == "a.jsonl:3"
