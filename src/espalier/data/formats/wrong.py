"""Answers that a row itself calls wrong: not to be learned from as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from espalier.data.columns.watched import peek
from espalier.data.formats.chats import CHATS
from espalier.data.formats.common import Fields, has_any

VERDICTS = (
    *("correct", "is_correct", "correctness", "final_answer_correct", "solved", "is_solved", "verified", "is_safe"),
    *("label", "kto_tag", "is_valid", "solution_is_valid", "passed"),
)
"""Columns that say whether the answer of a row is right."""
ENDINGS = frozenset(
    (
        *("correct", "correctness", "right", "valid", "verified", "verify", "passed", "pass", "solved", "success"),
        *("successful", "accepted", "safe", "desirable", "grade", "verdict"),
    )
)
"""Last words of further columns that say so, with false or a word; their numbers may be anything."""
JUDGED = frozenset(
    (
        *("answer", "answers", "response", "responses", "reply", "solution", "solutions", "output", "outputs"),
        *("completion", "completions", "generation", "generations", "prediction", "pred", "attempt", "rollout"),
        *("trajectory", "assistant", "result", "results", "final", "code", "proof", "reasoning", "rationale", "cot"),
        *("step", "steps", "judge", "judges", "judged", "judgement", "judgment", "grader", "graded", "verifier"),
        *("verify", "checker", "evaluator", "evaluation", "eval", "math", "test", "tests", "model", "llm", "gpt"),
        *("reward", "rm", "execution", "exec", "compile", "correctness", "exact", "match"),
    )
)
"""Words of an answer or a judge, one of which stands before such a last word."""
OTHER_THINGS = frozenset(
    (
        *("prompt", "prompts", "question", "questions", "query", "problem", "instruction", "input", "user", "author"),
        *("email", "mail", "phone", "account", "identity", "age", "license", "licence", "terms", "consent", "payment"),
        *("source", "link", "url", "annotator", "worker", "customer", "owner"),
    )
)
"""Words of what is not the answer: a verdict on them says nothing of it."""
_FILLERS = ("is", "are", "was", "were", "not", "as", "all", "the", "has", "been")
ONE_ANSWER = (*(form.name for form in CHATS if form.name != "text"), "completion", "labels")
"""Formats of one answer, which its row may call wrong."""
CLASSES = ("label", "correctness")
"""Those whose numbers may mean something else: a class, a grade."""
BAD = ("false", "no", "bad", "wrong", "incorrect", "-", "negative", "undesirable", "unsafe", "fail", "failed")
SKIPPED = "answers skipped that their rows call wrong; --keep-wrong trains them"


class Verdicts:
    """What the rows of a source say of their answers. What a 0 under one of CLASSES means is decided by all rows
    (`rows()`), once, at the first one that has it."""

    def __init__(self, rows: Callable[[], Iterable[Any]]) -> None:
        self._rows = rows
        self._graded: frozenset[str] | None = None

    def of(self, row: Any) -> str | None:
        """As `verdict`."""
        key = verdict(row)
        if key not in CLASSES or isinstance(peek(row, key), bool | str):
            return key
        if self._graded is None:
            self._graded = graded(self._rows())
        return verdict(row, self._graded)


def verdict(row: Fields, graded: frozenset[str] = frozenset()) -> str | None:
    """Which column calls the answer of a row wrong: one of VERDICTS with false, 0 or a word such as "no", or another
    one that `is_ending` with false or a word; None if none does.

    Numbers under the names in `graded` are no verdicts.

    >>> verdict({"prompt": "1 + 1?", "response": "3", "is_correct": False}), verdict({"correct": 1})
    ('is_correct', None)
    """
    if not isinstance(row, dict):
        return None
    names = [*(VERDICTS if has_any(row, VERDICTS) else ()), *filter(is_ending, row)]
    for key in names:
        value = peek(row, key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        numbers = key in VERDICTS and key not in graded
        if value is not None and _is_bad(value, numbers=numbers):
            # Looked up, so that it counts as read.
            row.get(key)
            return str(key)
    return None


@lru_cache(1024)
def is_ending(key: str) -> bool:
    """Whether a column's name ends in one of ENDINGS, alone or behind a word of JUDGED, and names no other thing.

    >>> is_ending("math_verify"), is_ending("final_answer_is_valid"), is_ending("verdict"), is_ending("email_verified")
    (True, True, True, False)
    """
    *before, last = key.lower().replace("-", "_").replace(" ", "_").split("_")
    if last not in ENDINGS:
        return False
    stems = [word.rstrip("0123456789") for word in before]
    words = [stem for stem in stems if stem and stem not in _FILLERS]
    return not words or (words[-1] in JUDGED and OTHER_THINGS.isdisjoint(words))


def _is_bad(value: Any, *, numbers: bool) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in BAD
    if isinstance(value, bool):
        return not value
    return numbers and isinstance(value, int | float) and value == 0


def graded(rows: Iterable[Any]) -> frozenset[str]:
    """Which of CLASSES hold other numbers than 0 and 1 in some row."""
    names = set()
    for row in rows:
        for key in CLASSES:
            value = peek(row, key) if isinstance(row, dict) else None
            if isinstance(value, int | float) and value not in (0, 1):
                names.add(key)
    return frozenset(names)
