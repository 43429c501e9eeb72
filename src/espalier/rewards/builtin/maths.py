r"""The reward that compares mathematical expressions: `math`, with the library math-verify.

math-verify parses LaTeX with sympy and may take long; it stops itself by a signal, which works in the main thread of a
process only. So this reward runs in worker processes. It is imported when the first answer is graded.
"""

from __future__ import annotations

import re
from typing import Any

from espalier.errors import ConfigError
from espalier.rewards.builtin.answers import boxed, marked, phrased
from espalier.rewards.reward import Answer, Known, Reward, Settings
from espalier.types import Task

SECONDS = 3  # for parsing one answer, and for comparing two

_SPACES = re.compile(r"\\[,!;: ]|\s|\\left(?![a-z])|\\right(?![a-z])|\$")
_FORMULA = re.compile(r"\$+([^$]+)\$|\\\((.+?)\\\)")
_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")


def grade_math(answer: Answer, settings: Settings) -> float | dict[str, str]:
    r"""1 if the final expression of the response equals the task's, as math-verify compares them (gold first), else 0.

    The expression is the content of the last `\boxed{}`, else what follows the last "answer is", else the rest of the
    line behind the last `####`; a response without any of them, or with an empty one, is invalid. Equal are expressions
    with the same simplified value (`\frac{14}{3}`, `14/3`, `4\frac{2}{3}`), sets and tuples with equal members, and
    texts character by character; units, degrees, and the base of a number (`52_8`) do not count if one side leaves them
    out. `pi` is read as `\pi`. The task's answer is an expression, or a worked solution that holds it in such a form.

    Raises TimeoutError if math-verify takes more than 3 seconds for one of the two, or for comparing them.
    """
    given = final_expression(answer.response)
    if not given:
        return {"invalid": r"no \boxed{}, no 'answer is'"}
    right = right_expression(answer.answer)
    if _squeezed(given) == _squeezed(right):
        return 1.0
    return float(_equal(right, given))


def gold_math(task: Task) -> str:
    r"""`\boxed{Y}`."""
    return rf"\boxed{{{right_expression(task.answer)}}}"


def final_expression(response: str) -> str | None:
    """The expression a response ends on, empty if its place is; None if it has none of the forms.

    Behind "answer is" it is the first formula in `$...$` or `\\(...\\)` if there is one, else the rest of the sentence.

    >>> final_expression("The answer is $5$ since $4 < 5$."), final_expression("The answer is 5. Bye.")
    ('5', '5')
    """
    place = boxed(response)
    if place is None:
        place = phrased(response)
        if place is not None:
            formula = _FORMULA.search(place)
            place = formula[1] or formula[2] if formula else re.split(r"\.\s", place)[0]
    if place is None:
        place = marked(response)
    return None if place is None else place.lstrip("* ").rstrip("*. ")


def right_expression(answer: str) -> str:
    """The expression of a task's answer: the content of its box or of its `####` line if there is one, else all."""
    for place in (boxed(answer), marked(answer)):
        if place is not None:
            return place
    return answer.strip()


def _squeezed(expression: str) -> str:
    return _SPACES.sub("", expression).replace("dfrac", "frac").replace("tfrac", "frac")


def _equal(right: str, given: str) -> bool:
    """Whether math-verify holds them to be equal."""
    library = _library()
    try:
        expressions = [_parsed(library, text) for text in (right, given)]
        return bool(library.verify(*expressions, timeout_seconds=SECONDS, raise_on_error=True))
    except library.errors.TimeoutException:
        raise TimeoutError(f"math-verify took more than {SECONDS} s") from None


def _parsed(library: Any, expression: str) -> list[Any]:
    """An expression as math-verify reads it: at most one value, and the text; empty if it reads nothing."""
    text = rf"\boxed{{{_PI.sub(lambda _: chr(92) + 'pi', expression)}}}"
    values: list[Any] = library.parse(text, parsing_timeout=SECONDS, raise_on_error=True)
    return values


def _library() -> Any:
    """math_verify. Raises ConfigError if it is not installed."""
    try:
        import math_verify
        import math_verify.errors
    except ImportError:
        raise ConfigError(
            'reward math needs math-verify, which is not installed; run: pip install "espalier[math]"'
        ) from None
    return math_verify


def _load() -> None:
    _equal("1", r"\frac{2}{2}")


MATH = Reward(
    "math",
    r"1 if the expression in the last \boxed{} equals the task's, compared by math-verify.",
    grade_math,
    needs=("answer",),
    gold=gold_math,
    load=_load,
    known=(
        Known(r"So it is \boxed{\frac{14}{3}}.", 1.0, answer=r"\frac{14}{3}"),
        Known(r"\boxed{14/3}", 1.0, answer=r"\dfrac{14}{3}"),
        Known(r"\boxed{3\sqrt{13}}", 1.0, answer=r"\sqrt{117}"),
        Known(r"\boxed{(3, \frac{\pi}{2})}", 1.0, answer=r"\left( 3, \frac{\pi}{2} \right)"),
        Known(r"\boxed{(x+1)^2}", 1.0, answer="x^2+2x+1"),
        Known("The answer is $90$.", 1.0, answer=r"90^\circ"),
        Known(r"\boxed{Evelyn}", 1.0, answer=r"\text{Evelyn}"),
        Known(r"\boxed{14/3}, or \boxed{5}", 0.0, answer=r"\frac{14}{3}"),
        Known(r"\boxed{[3, 5)}", 0.0, answer="(3, 5)"),
        Known(r"\boxed{x = -5}", 0.0, answer="5"),
        Known(r"\boxed{}", "invalid", answer="5"),
        Known("5", "invalid", answer="5"),
        Known("", "invalid", answer="5"),
    ),
)
