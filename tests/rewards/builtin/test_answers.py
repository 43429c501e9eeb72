"""Where an answer stands, and which number it is."""

from fractions import Fraction

import pytest

from espalier.rewards.builtin import answers


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"\boxed{5}", "5"),
        (r"first \boxed{4}, then \boxed{5}.", "5"),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (r"\boxed{\left\{ x : \{x\} > 0 \right\}}", r"\left\{ x : \{x\} > 0 \right\}"),
        (r"\boxed{\text{a}\}}", r"\text{a}\}"),
        (r"\fbox{7}", "7"),
        (r"\boxed {8}", "8"),
        (r"\boxed{5} and \boxed{6", "5"),
        (r"\boxed{\frac{1}{2}", None),
        (r"} { \boxed{\boxed{3}}", "3"),
        (r"\boxed{" * 20_000, None),
        (r"\boxed{}", ""),
        ("boxed{5}", None),
        ("", None),
    ],
)
def test_boxed(text: str, content: str | None) -> None:
    assert answers.boxed(text) == content


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("The answer is (B).", "(B)."),
        ("the final answer is: **42**", "42**"),
        ("Answer: 42", "42"),
        ("**Answer:** 42", "42"),
        ("ANSWER = 42", "42"),
        ("答案是42。", "42。"),
        ("答案\uff1a42", "42"),
        ("The answer is 41. No, the answer is 42.", "42."),
        ("Answer:\n\n42", "42"),
        ("my answers are many", None),
        ("The answer is", None),
        ("", None),
    ],
)
def test_phrased(text: str, rest: str | None) -> None:
    assert answers.phrased(text) == rest


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,234", ["1234"]),
        ("1,234,567.50", ["2469135/2"]),
        ("1,23", ["1", "23"]),
        ("1,2345", ["1", "2345"]),
        ("10{,}080", ["10080"]),
        (r"10,\!080", ["10080"]),
        (r"1\,234\,567", ["1234567"]),
        ("$18.00.", ["18"]),
        (r"\$18", ["18"]),
        ("-$5 and $-6", ["-5", "-6"]),
        ("\u22127", ["-7"]),
        ("x=-7", ["-7"]),
        ("(-7)", ["-7"]),
        ("10-7", ["10", "7"]),
        ("10 - 7", ["10", "7"]),
        ("5-10 apples", ["5", "10"]),
        ("a-1", ["1"]),
        ("3/4", ["3/4"]),
        ("3/4.", ["3/4"]),
        ("-3/4", ["-3/4"]),
        ("3/0", []),
        ("1 1/2 cups", ["3/2"]),
        ("1½", ["3/2"]),
        (r"\frac{3}{4}", ["3/4"]),
        (r"-\dfrac{3}{4}", ["-3/4"]),
        (r"\frac34", ["3/4"]),
        (r"1\frac{4}{5}", ["9/5"]),
        ("50%", ["50"]),
        (r"50\%", ["50"]),
        (r"90^\circ", ["90"]),
        (r"15\text{ cm}^2", ["15"]),
        (r"864 \mbox{ inches}^2", ["864"]),
        (".5", ["1/2"]),
        ("1.2.3", ["6/5"]),
        ("1e3", ["1000"]),
        (r"1.2 \times 10^{3}", ["1200"]),
        ("5 \u00d7 10^-1", ["1/2"]),
        ("2e", ["2"]),
        ("x_1 H2O v2", []),
        ("有5个", ["5"]),
        ("\uff11\uff12", ["12"]),
        (r"3\times5", ["3", "5"]),
        ("007", ["7"]),
        ("1e9999", []),
        ("12.34e9999", []),
        ("9" * 401, []),
        ("seven", []),
        ("", []),
    ],
)
def test_numbers(text: str, values: list[str]) -> None:
    assert [str(value) for value in answers.numbers(text)] == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"3 or 4, so \boxed{5}. Check: 6", "5"),
        ("3+4=7\n#### 7\nThat took 2 steps.", "7"),
        ("The answer is 7, since 3+4=7 and 8 is more.", "7"),
        ("It is 3. The answer is clear.", "3"),
        (r"\boxed{none} 4", "4"),
        (r"\boxed{x = -2}", "-2"),
        ("Step 1: add. It makes 12.", "12"),
        ("nothing", None),
    ],
)
def test_final_number(text: str, value: str | None) -> None:
    final = answers.final_number(text)
    assert final == (None if value is None else Fraction(value))
