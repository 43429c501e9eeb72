"""IFEval's instructions, each on answers that follow it and that do not."""

from typing import Any

import pytest

from espalier.rewards.builtin.instructions import INSTRUCTIONS, follows, sentences, variants, words

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["cat", "dog"]}, ["Cat and dogs"], ["cat"]),
    ("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at least"}, ["banal"], ["cat"]),
    ("keywords:frequency", {"keyword": "cat ", "frequency": 2, "relation": "less than"}, ["Cat"], ["cat, cat"]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, ["category"], ["The Cat."]),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 2, "let_relation": "at least"}, ["Eve"], ["Ed"]),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 1, "let_relation": "less than"}, ["a"], ["a!"]),
    ("language:response_language", {"language": "zh"}, ["她今天不去上学"], ["She goes to school today."]),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["He ran. She left."],
        ["Dr. A went."],
    ),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, ["one two"], ["it's one"]),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["a\n***\nb", "***\na\n***\nb"],
        ["a", "a\n***\n***\nb", "a\n\nb"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Now"},
        ["a\n\nNow, b", "a\n\n'now' b"],
        ["a\n\nthen", "now", "a\n\nnow\n\nc"],
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, ["[a] [b c]"], ["[a]", "[a"]),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, ["Bye\nP. S. More", "p.s. x"], ["PS: more"]),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, ["p.p.s. x", "P.P.S x"], ["P.S. more"]),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, ["* a\n* b", "- a\n* b"], ["* a", "** a\n* b"]),
    ("detectable_format:constrained_response", {}, ["My answer is no."], ["My answer is no", "no"]),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* *b c*", "**a** *b*"],
        ["**a**", "* *"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Section", "num_sections": 2},
        ["Section 1\na\nSection 2\nb"],
        ["Section 1\na", "SECTION 1 SECTION 2", "Section one Section two"],
    ),
    ("detectable_format:json_format", {}, ['{"a": 1}', "```json\n[1]\n```"], ["{a: 1}", 'Here: {"a": 1}']),
    ("detectable_format:title", {}, ["<<A poem>>\ntext"], ["<A poem>", "<< >>", "<<a\nb>>"]),
    ("combination:two_responses", {}, ["a\n******\nb"], ["a ****** a", "a", "a ****** b ****** c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Why? "}, ["why? Because"], ["Because. Why?"]),
    (
        "startend:end_checker",
        {"end_phrase": "Any questions?"},
        ["So. any questions?", '"Any questions?"'],
        ["Any questions? No."],
    ),
    ("startend:quotation", {}, ['"a"', ' "a b" '], ['"', '"a" b', "'a'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA is in THE-USA"],
        ["NASA is in Usa", "NASA 12"],
    ),
    ("change_case:english_capital", {}, ["THE BOY WALKS HIS DOG TODAY.", "A"], ["THE BOY WALKS his DOG.", "12"]),
    (
        "change_case:english_lowercase",
        {},
        ["the boy walks his dog today."],
        ["The boy walks.", "der junge geht heute mit dem hund in den park."],
    ),
    ("punctuation:no_comma", {}, ["a; b"], ["a, b"]),
]


@pytest.mark.parametrize(("instruction", "args", "good", "bad"), CASES)
def test_follows(instruction: str, args: dict[str, Any], good: list[str], bad: list[str]) -> None:
    assert [follows(instruction, text, args) for text in good] == [True] * len(good)
    assert [follows(instruction, text, args) for text in [*bad, "", " \n"]] == [False] * (len(bad) + 2)


def test_all_25_are_there_and_tried() -> None:
    assert len(INSTRUCTIONS) == 25 == len({case[0] for case in CASES})


def test_what_is_unknown_or_missing_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected one of keywords:existence"):
        follows("keywords:none", "a", {})
    with pytest.raises(ValueError, match="has no num_bullets in its kwargs"):
        follows("detectable_format:number_bullet_lists", "a", {"num_bullets": None})
    with pytest.raises(ValueError, match="'more than'"):
        follows("length_constraints:number_words", "a", {"num_words": 3, "relation": "more than"})


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three?", 3),
        ("One... two.", 1),
        ('He said "Stop!" Then he left.', 2),
        ("It costs 3.50 dollars, i.e. little.", 1),
        ("J. R. Smith of the U.S. Army came at 5 p.m. today.", 1),
        ("1. Eggs\n2. Milk", 1),
        ("no capitals. none here.", 2),
        ("Really?! Yes.", 2),
        ("A title\n\nA text.", 1),
        ("", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert sentences(text) == count


def test_words_are_those_of_the_papers_program() -> None:
    assert words("It's a well-known fact_1.") == 6


def test_eight_variants_leave_out_lines_and_asterisks() -> None:
    assert variants("a\n*b*\nc") == ("a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b")
