r"""Where an answer stands in a response, and which number it is.

An answer is looked for in these places; the first that holds one counts, and of several in the same form the last:

    boxed    the last `\boxed{...}`, braces balanced
    marked   the rest of the line after the last `####`
    phrase   what follows the last "answer is", "answer:" or its Chinese form, to the end of the line
    last     the last number of the text, for numbers only
"""

from __future__ import annotations

import re
from fractions import Fraction

LONGEST = 400  # digits of a number that is read; a longer one is no answer and would cost time

# A box opens, a character that is escaped (a brace, mostly), a brace.
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\.|[{}]", re.DOTALL)
_MARK = re.compile(r"####([^\n]*)")
_PHRASE = re.compile(r"\b(?:answer|result)[*_]*\s*(?:is\b|[:=])|答案\s*(?:是|为|:)", re.I)

_REST = re.compile(r"[ \t\r\n*_:]*+([^\n]*)")

# Full-width characters, the minus sign and the fraction slash stand for ASCII ones.
_ASCII = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {0x2212: "-", 0x2044: "/"}
_VULGAR = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅛": "1/8"}
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"(?<![A-Za-z])\\[dt]?frac\s*(?:\{\s*(-?[0-9]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))")
_POWER = re.compile(r"(?<=[0-9]) ?(?:\u00d7|\\times|\\cdot|\*)\s*10\s*\^\s*\{?\s*(-?[0-9]{1,3})\s*\}?")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z}\s])\^\s*\{?[0-9]\}?")  # the 2 of m^2 is no answer

_START = r"(?<![A-Za-z0-9_])(?<![0-9]\.)"
_SIGN = r"(?:(?<![A-Za-z0-9_)\]}%.])-(?=[$€£¥.0-9]))?"
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])|[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})(?:[$€£¥]\s?(?P<sign2>-?))?{_START}"
    rf"(?:(?P<whole>[0-9]+)\s+(?P<num>[0-9]+)\s?/\s?(?P<den>[0-9]+)"
    rf"|(?P<top>[0-9]+)\s?/\s?(?P<bottom>[0-9]+)(?!/|\.?[0-9])"
    rf"|(?P<plain>(?>{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+))"
    r"(?:[eE](?P<exp>[+-]?[0-9]{1,3})(?![0-9A-Za-z])|(?![eE][+-]?[0-9])))"
)


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces close; None without one.

    >>> boxed(r"so \boxed{1} or \boxed{\frac{1}{2}}."), boxed(r"\boxed{\{1, 2\}}"), boxed(r"\boxed{7")
    ('\\frac{1}{2}', '\\{1, 2\\}', None)
    """
    content, latest = None, -1
    opened: list[int] = []  # places behind boxes whose braces are open, -1 for other braces
    for token in _BRACES.finditer(text):
        if token["box"]:
            opened.append(token.end())
        elif token[0] == "{":
            opened.append(-1)
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start > latest:
                content, latest = text[start : token.start()].strip(), start
    return content


def marked(text: str) -> str | None:
    """The rest of the line after the last `####`; None without one, or if nothing stands there.

    >>> marked("3+4=7\\n#### 7 eggs"), marked("#### 1\\n#### 1,200"), marked("#### "), marked("It is 7.")
    ('7 eggs', '1,200', None, None)
    """
    marks = _MARK.findall(text)
    return marks[-1].strip() or None if marks else None


def phrased(text: str) -> str | None:
    """What follows the last "answer is", "answer:" or its like, to the end of that line or of the next if it is empty.

    >>> phrased("The answer is (B)."), phrased("**Answer:**\\n\\n42 km"), phrased("An answer is not there")
    ('(B).', '42 km', 'not there')
    """
    text = text.translate(_ASCII)
    for phrase in reversed(list(_PHRASE.finditer(text))):
        rest = _REST.match(text, phrase.end())
        if rest is not None and rest[1].strip():
            return rest[1].strip()
    return None


def numbers(text: str) -> list[Fraction]:
    r"""The numbers of a text, in order: integers, decimals, `3/4`, `1 1/2`, `\frac{3}{4}`, `1.2e3`, `1.2 \times 10^3`.

    Commas between groups of three digits are dropped, and so are the signs of units: $, %, degrees. A minus counts if
    it touches the number and no number, letter or bracket touches it: in `10-5` and `10 - 5` it is an operation. Digits
    inside names (`x_1`, `H2O`) and numbers of more than 400 digits are none.

    >>> [str(n) for n in numbers(r"$1,234.50, -3/4, 10-5, x_1 = .5, 1\frac{4}{5}, 50\%, 1,2")]
    ['2469/2', '-3/4', '10', '5', '1/2', '9/5', '50', '1', '2']
    """
    values = []
    for match in _NUMBER.finditer(_plain(text)):
        value = _value(match)
        if value is not None:
            values.append(value)
    return values


def number(text: str) -> Fraction | None:
    """The number that a place for an answer holds: the first one after the last `=`; None without one.

    >>> [str(number(text)) for text in ("7 eggs", "x = 3", "3+4=7", "-$5", "none")]
    ['7', '3', '7', '-5', 'None']
    """
    values = numbers(text.rpartition("=")[2]) or numbers(text)
    return values[0] if values else None


def final_number(text: str) -> Fraction | None:
    """The number a response ends on: the one in its last box, behind its last mark, behind its last phrase, or else the
    last of the text; None without a number.

    >>> [str(final_number(text)) for text in (r"\\boxed{5} of 9", "#### 7 of 8", "The answer is 3, not 4.", "2 or 6")]
    ['5', '7', '3', '6']
    """
    for place in (boxed(text), marked(text), phrased(text)):
        value = number(place) if place is not None else None
        if value is not None:
            return value
    values = numbers(text)
    return values[-1] if values else None


def _plain(text: str) -> str:
    """The text with LaTeX around numbers taken away."""
    text = text.translate(_ASCII)
    for sign, fraction in _VULGAR.items():
        text = text.replace(sign, f" {fraction}")
    text = text.replace("{,}", ",").replace("\\!", "").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"(?<=[0-9])(?:\\,|\\;|\\ )(?=[0-9]{3})", "", text).replace("\\,", " ")
    text = _UNIT_POWER.sub("", _WRAPPED.sub(r" \1 ", text)) if "^" in text else _WRAPPED.sub(r" \1 ", text)
    text = _FRACTION.sub(_slashed, text)
    text = _POWER.sub(r"e\1 ", text)
    return re.sub(r"\\[A-Za-z]+", " ", text)


def _slashed(fraction: re.Match[str]) -> str:
    r"""`\frac{a}{b}` as `a/b`; a blank keeps it from a whole number before it."""
    top, bottom = fraction[1] or fraction[2], fraction[3] or fraction[4]
    before = fraction.string[: fraction.start()][-1:]
    return f"{' ' if before.isdigit() else ''}{top}/{bottom}"


def _value(match: re.Match[str]) -> Fraction | None:
    """The value of a number as `_NUMBER` splits it; None if it is none."""
    if len(match[0]) > LONGEST:
        return None
    if match["whole"] is not None:
        den = int(match["den"])
        value = int(match["whole"]) + Fraction(int(match["num"]), den) if den else None
    elif match["top"] is not None:
        bottom = int(match["bottom"])
        value = Fraction(int(match["top"]), bottom) if bottom else None
    else:
        value = Fraction(match["plain"].replace(",", "")) * Fraction(10) ** int(match["exp"] or 0)
    if value is None:
        return None
    return -value if match["sign"] or match["sign2"] else value
