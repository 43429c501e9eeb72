"""The reward of multiple choice: `choice`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from espalier.rewards.builtin.answers import boxed, marked, phrased
from espalier.rewards.reward import Answer, Known, Reward, Settings
from espalier.types import Task

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

# A letter at the start of a place: (B), B), B., **B**, \text{B}, "option B"; not the first letter of a word.
_MARKUP = " \t\n*_\"'`$"
_LETTER = re.compile(
    r"(?:\\(?:text|textbf|mathrm|mathbf)\s?\{\s?)?(?:(?:[Oo]ption|[Cc]hoice|选项|选)\s?)?"
    r"[*_\"'`]{0,3}(?:[(\[]\s?(?P<inside>[A-Za-z])\s?[)\]]|(?P<bare>[A-Z])(?![A-Za-z0-9'_]))"
)
_SENTENCE = re.compile(
    r"\s+(?!(?:or|and|because|since)\b)[a-z]"
)  # "A dog ..." and "I think ..." begin with words, not with letters of choices


def grade_choice(answer: Answer, settings: Settings) -> float | dict[str, str]:
    r"""1 if the response chooses the task's choice, else 0.

    The choice is read from the last `\boxed{}`, else from what follows the last "answer is" or "answer:", else from the
    last `####`, else from the first line of the response, else from its last line: a letter (`B`, `(B)`, `B) Paris`,
    `option B`; in brackets also a small one), or the text of a choice, case and final full stop aside. The first letter
    counts if there are several. A response that chooses nothing, or a letter beyond the choices, is invalid. The task's
    answer is a letter or the text of a choice; `choices` in its facts are the texts, A first.
    """
    choices = _choices(answer.facts.get("choices"))
    for place in _places(answer.response):
        letter = chosen(place, choices)
        if letter is not None:
            return float(letter == right_letter(answer.answer, choices))
    return {"invalid": "no choice"}


def chosen(place: str, choices: Sequence[str]) -> str | None:
    """The letter that a place for an answer names, or whose text it is; None if it names none of the choices.

    >>> [chosen(text, ["Rome", "Paris"]) for text in ("(b)", "B) Paris.", "paris", "C", "Beautiful", "A city")]
    ['B', 'B', 'B', None, None, None]
    """
    texts = [_plain(text) for text in choices]
    if _plain(place) in texts:
        return LETTERS[texts.index(_plain(place))]
    place = place.lstrip(_MARKUP)
    match = _LETTER.match(place)
    if match is None:
        return None
    letter = (match["inside"] or match["bare"]).upper()
    if match["bare"] in ("A", "I") and _SENTENCE.match(place, match.end()):
        return None
    return letter if letter in LETTERS[: len(choices) or len(LETTERS)] else None


def right_letter(answer: str, choices: Sequence[str]) -> str:
    """The letter of a task's answer. Raises ValueError if it is neither a letter of the choices nor one of them."""
    text = answer.strip()
    bare = text.strip("()[]. ").upper()
    if len(bare) == 1 and bare in LETTERS[: len(choices) or len(LETTERS)]:
        return bare
    letter = chosen(text, choices)
    if letter is None:
        raise ValueError(f"the task's answer {text[:60]!r} is no letter and none of its {len(choices)} choices")
    return letter


def gold_choice(task: Task) -> str:
    """`The answer is (B).`"""
    return f"The answer is ({right_letter(task.answer, _choices(task.facts.get('choices')))})."


def _places(response: str) -> list[str]:
    places = [place for place in (boxed(response), phrased(response), marked(response)) if place]
    lines = [line.strip() for line in response.splitlines() if line.strip()]
    return [*places, *lines[:1], *lines[-1:]]


def _choices(fact: object) -> list[str]:
    """The texts of the choices, without the letters that they may begin with; empty if the task has none."""
    texts = [str(text) for text in fact] if isinstance(fact, (list, tuple)) else []
    lettered = [re.match(rf"\(?{letter}[).:]\s*", text) for letter, text in zip(LETTERS, texts, strict=False)]
    if texts and all(lettered):
        return [text[match.end() :] for text, match in zip(texts, lettered, strict=True) if match]
    return texts


def _plain(text: str) -> str:
    return " ".join(text.strip().strip("*_\"'`$").removesuffix(".").casefold().split())


_CITIES = {"choices": ["Rome", "Paris", "Bern"]}

CHOICE = Reward(
    "choice",
    "1 if the response chooses the task's choice, by letter or by text.",
    grade_choice,
    needs=("answer",),
    gold=gold_choice,
    known=(
        Known("B", 1.0, answer="B", facts=_CITIES),
        Known("The answer is (b).", 1.0, answer="B", facts=_CITIES),
        Known("It is France's capital.\n\nAnswer: **B) Paris**", 1.0, answer="B", facts=_CITIES),
        Known(r"\boxed{\text{B}}", 1.0, answer="Paris", facts=_CITIES),
        Known("paris.", 1.0, answer="B", facts=_CITIES),
        Known("A is Rome, so the answer is B.", 1.0, answer="B", facts=_CITIES),
        Known("The answer is A or B.", 0.0, answer="B", facts=_CITIES),
        Known("A", 0.0, answer="B", facts=_CITIES),
        Known("A city in France.", "invalid", answer="A", facts=_CITIES),
        Known("D", "invalid", answer="B", facts=_CITIES),
        Known("D", 1.0, answer="D"),
        Known("", "invalid", answer="B", facts=_CITIES),
    ),
)
