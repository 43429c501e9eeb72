"""Rewards of a response's words."""

import pytest

from espalier.rewards.builtin.words import REPETITION, WORDS, occurs
from espalier.rewards.reward import Known
from graded import grade, reward_of


@pytest.mark.parametrize(
    ("word", "text", "there"),
    [
        ("cat", "The cat.", True),
        ("cat", "CAT", True),
        ("cat", "concatenate", False),
        ("cat", "cats", False),
        ("cat", "cat's", True),
        ("big dog", "a big\n dog", True),
        ("C++", "in C++ or C", True),
        ("é", "café", False),
        ("猫", "小猫在家", True),
        ("a.b", "axb", False),
    ],
)
def test_a_word_occurs_as_a_whole(word: str, text: str, there: bool) -> None:
    assert occurs(word, text) == there


def test_words_of_settings_and_facts_are_joined() -> None:
    facts = {"required": ["cat"], "forbidden": "dog"}
    assert grade(WORDS, "a cat", facts=facts, required="milk") == 0.5
    assert grade(WORDS, "a cat drinks milk", facts=facts, required="milk") == 1.0
    assert grade(WORDS, "a cat drinks milk", facts=facts, forbidden="drinks") == 0.0
    with pytest.raises(ValueError, match="expected a list of words"):
        grade(WORDS, "a cat", facts={"required": 5})


def test_words_are_needed_from_the_task_unless_the_settings_give_some() -> None:
    assert WORDS.open_needs(WORDS.with_defaults({})) == ("required|forbidden",)
    assert WORDS.open_needs(WORDS.with_defaults({"forbidden": "dog"})) == ()


def test_repetition_counts_different_ngrams() -> None:
    assert grade(REPETITION, "a b c a b c a b c") == 3 / 7
    assert grade(REPETITION, "a b c d e f") == 1.0
    assert grade(REPETITION, "The cat. the CAT.", n=2) == 2 / 3
    assert grade(REPETITION, "哈" * 12) == 0.1
    assert reward_of(REPETITION, Known("x", None, settings={"unit": "tokens", "n": 2}), ids=(5, 5, 5, 2)) == 2 / 3
