"""Rewards of a response's words: `words` and `repetition`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from espalier.rewards.builtin.shape import words_of
from espalier.rewards.reward import Answer, Known, Reward, Setting, Settings

# -------------------------------------------------------------------------------------------------------------- words


def grade_words(answer: Answer, settings: Settings) -> float | dict[str, str]:
    """The share of required words that occur, 0 if a forbidden one does: [no forbidden] * occurring / required.

    Words are whole words or phrases, case aside; inside Chinese and Japanese text, which has no blanks, any place
    counts. They are the settings (separated by commas) and the task's facts `required` and `forbidden` (lists or such
    texts). Without required words the share is 1. An empty response is invalid.
    """
    if not answer.response.strip():
        return {"invalid": "empty"}
    required = [*listed(settings["required"]), *listed(answer.facts.get("required"))]
    forbidden = [*listed(settings["forbidden"]), *listed(answer.facts.get("forbidden"))]
    if any(occurs(word, answer.response) for word in forbidden):
        return 0.0
    return sum(occurs(word, answer.response) for word in required) / len(required) if required else 1.0


def listed(words: object) -> list[str]:
    """Words of a list, or of a text with commas between them.

    >>> listed("cat, big dog,"), listed(["a, b"]), listed(None)
    (['cat', 'big dog'], ['a, b'], [])
    """
    parts = words.split(",") if isinstance(words, str) else words
    if parts is None:
        return []
    if not isinstance(parts, Sequence):
        raise ValueError(f"got words {parts!r}; expected a list of words, or words with commas between them")
    return [str(part).strip() for part in parts if str(part).strip()]


def occurs(word: str, text: str) -> bool:
    """Whether a word or phrase occurs in a text as a whole, case aside.

    >>> occurs("cat", "A Cat."), occurs("cat", "category"), occurs("big dog", "big\\ndog"), occurs("猫", "小猫在家")
    (True, False, True, True)
    """
    return _pattern(word).search(text) is not None


@lru_cache(maxsize=4096)
def _pattern(word: str) -> re.Pattern[str]:
    inner = r"\s+".join(re.escape(part) for part in word.split())
    # ASCII word characters only: in Chinese text a boundary between words cannot be seen.
    before = r"(?<![A-Za-z0-9_À-ɏ])" if re.match(r"[A-Za-z0-9_À-ɏ]", word) else ""
    after = r"(?![A-Za-z0-9_À-ɏ])" if re.search(r"[A-Za-z0-9_À-ɏ]$", word) else ""
    return re.compile(before + inner + after, re.IGNORECASE)


_CATS = {"required": ["cat", "milk"], "forbidden": ["dog"]}

WORDS = Reward(
    "words",
    "The share of required words that occur, 0 if a forbidden one does (settings or facts `required`, `forbidden`).",
    grade_words,
    needs=("required|forbidden",),
    settings={
        "required": Setting("", "Words or phrases that must occur, separated by commas."),
        "forbidden": Setting("", "Words or phrases that must not occur, separated by commas."),
    },
    known=(
        Known("The Cat drinks milk.", 1.0, facts=_CATS),
        Known("The cat drinks water.", 0.5, facts=_CATS),
        Known("The category of milkshakes.", 0.0, facts=_CATS),
        Known("The cat drinks milk, the dog water.", 0.0, facts=_CATS),
        Known("Anything else.", 1.0, settings={"forbidden": "cat, dog"}),
        Known("", "invalid", facts=_CATS),
    ),
)

# --------------------------------------------------------------------------------------------------------- repetition


def grade_repetition(answer: Answer, settings: Settings) -> float | dict[str, str]:
    """The share of the response's n-grams that are different: distinct / all, 1 if there are fewer than n units.

    1 - seq-rep-n of 1908.04319. The units are words, case aside; a run of more than 20 characters without a blank, and
    Chinese or Japanese text, is cut into characters, so that `aaaa...` repeats itself, too; or with `unit: tokens` they
    are token ids. An empty response is invalid. A short answer of few words scores 1: use it beside other rewards.
    """
    if not answer.response.strip():
        return {"invalid": "empty"}
    units: Sequence[object] = answer.ids if settings["unit"] == "tokens" else _units(answer.response)
    n = settings["n"]
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _units(text: str) -> list[str]:
    units: list[str] = []
    for word in words_of(text.casefold()):
        units.extend(word if len(word) > 20 else [word])
    return units


def _check_repetition(settings: Settings) -> None:
    if settings["n"] < 1:
        raise ValueError(f"n is {settings['n']}; expected 1 or more")


REPETITION = Reward(
    "repetition",
    "The share of different n-grams of words: 1 without any repetition.",
    grade_repetition,
    settings={
        "n": Setting(3, "Length of the n-grams."),
        "unit": Setting("words", "What the n-grams are made of.", choices=("words", "tokens")),
    },
    check=_check_repetition,
    known=(
        Known("one two three four five", 1.0),
        Known("go on and go on and go on", 0.5, settings={"n": 3}),
        Known("a a a a a a", 0.25),
        Known("a b a b", 2 / 3, settings={"n": 2}),
        Known("x" * 102, 0.01),
        Known("Yes.", 1.0),
        Known("", "invalid"),
    ),
)
