"""What of a text could become a control string: the places that a seal must break."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# The sealed beginning of a control string is this long, or one character short of the whole.
_STEM = 3
# So many characters at the end of a template's constant string may begin a control string.
_LITERAL = 40


def initials(texts: Iterable[str]) -> list[str]:
    """First characters of `texts`, in both cases."""
    firsts: set[str] = set()
    for text in texts:
        if text:
            firsts.update((text[0], text[0].lower(), text[0].upper()))
    # The upper case of a few characters is two ("ß"): such a text never begins with it.
    return sorted(first for first in firsts if len(first) == 1)


def risky(texts: Sequence[str], allowed: Sequence[str]) -> re.Pattern[str]:
    """Matches the first character of each of `texts`, of its stem anywhere and of any beginning of it at the end.

    The stem is sealed too because templates cut and join content: what one takes out of the middle must leave no whole
    control string. Those that begin like a word have no stem, or every such word would be sealed. Case does not
    matter, templates may change it. Strings in `allowed` are left alone, unless one of `texts` stands there.
    """
    if not texts:
        return re.compile(r"(?!)")
    stems: set[str] = set()
    tails: set[str] = set()
    for text in texts:
        size = len(text) if text[0].isalnum() else max(1, min(_STEM, len(text) - 1))
        stems.add(text[:size])
        if size < len(text):
            tails.update(text[:k] for k in range(1, size))
    stem = "|".join(filter(None, (_ahead(stems), _ahead(tails, r"\s*\Z"))))
    if allowed:
        longest = "|".join(map(re.escape, sorted(allowed, key=len, reverse=True)))
        stem = f"{_ahead(texts)}|(?!{longest})(?:{stem})"
    return re.compile(stem, re.IGNORECASE)


def _ahead(words: Iterable[str], end: str = "") -> str:
    """A pattern of the first character of each word, if the rest of it and `end` follow."""
    split = sorted({(word[0].lower(), word[1:].lower()) for word in words})
    return "|".join(f"{re.escape(first)}(?={re.escape(rest)}{end})" for first, rest in split)


def rests(texts: Sequence[str], literals: Iterable[str]) -> set[str]:
    """What completes a control string after a literal that ends in the beginning of one: `'<|' + role + '|>'`."""
    ends = {literal[-k:] for literal in literals for k in range(1, min(_LITERAL, len(literal)) + 1)}
    return {text[k:] for text in texts for k in range(1, len(text)) if text[:k] in ends}
