"""The reward that compares texts."""

import pytest

from espalier.rewards.builtin.equal import EXACT
from graded import grade


@pytest.mark.parametrize(
    ("response", "right", "settings", "score"),
    [
        ("Paris", "Paris ", {}, 1.0),
        ("Paris.", "Paris", {}, 0.0),
        ("a  b", "a b", {}, 0.0),
        ("a  b", "a b", {"squeeze": True}, 1.0),
        ("STRASSE", "straße", {"ignore_case": True}, 1.0),
        ("I think\nParis", "Paris", {"part": "last_line"}, 1.0),
        ("Paris\nI think", "Paris", {"part": "last_line"}, 0.0),
        ("\n\n", "Paris", {"part": "last_line"}, 0.0),
        ("Not Paris", "Paris", {"part": "contains"}, 1.0),
        ("pari s", "paris", {"part": "contains"}, 0.0),
    ],
)
def test_exact(response: str, right: str, settings: dict[str, bool | str], score: float) -> None:
    assert grade(EXACT, response, right, **settings) == score
