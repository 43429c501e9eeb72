"""Rewards of a response's form."""

import pytest

from espalier.errors import ConfigError
from espalier.rewards.builtin.shape import CODE_BLOCK, LENGTH, TAGS, code_blocks, words_of
from espalier.rewards.reward import Known
from graded import grade, reward_of


@pytest.mark.parametrize(
    ("length", "settings", "score"),
    [
        (0, {"target": 10}, 0.0),
        (5, {"target": 10}, 0.5),
        (10, {"target": 10}, 1.0),
        (15, {"target": 10}, 0.5),
        (25, {"target": 10}, 0.0),
        (12, {"target": 10, "margin": 4.0}, 0.5),
        (4, {"low": 5, "high": 8}, 0.0),
        (5, {"low": 5, "high": 8}, 1.0),
        (8, {"low": 5, "high": 8}, 1.0),
        (9, {"low": 5, "high": 8}, 0.0),
        (10, {"low": 5, "high": 8, "margin": 4.0}, 0.5),
        (10, {"high": 8, "margin": 2.0}, 0.0),
        (1000, {"low": 5}, 1.0),
    ],
)
def test_length_in_characters(length: int, settings: dict[str, int | float], score: float) -> None:
    assert grade(LENGTH, "x" * length, unit="characters", **settings) == score


def test_length_in_tokens_leaves_the_stop_token_out() -> None:
    known = Known("abc", None, settings={"low": 3, "high": 3})
    assert reward_of(LENGTH, known, ids=(5, 6, 7, 2)) == 1.0
    assert reward_of(LENGTH, Known("abc", None, settings=known.settings, stop="length"), ids=(5, 6, 7, 2)) == 0.0


def test_words_are_runs_without_blanks_and_chinese_characters() -> None:
    assert words_of("It's one, two\nthree.") == ["It's", "one,", "two", "three."]
    assert words_of("我有7个 apples") == ["我", "有", "7", "个", "apples"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "got no length"),
        ({"target": "5", "low": "3"}, "either target or low and high"),
        ({"low": "5", "high": "3"}, "low 5 above high 3"),
        ({"target": "-1"}, "negative"),
        ({"high": "3", "margin": "nan"}, "negative"),
        ({"unit": "pages", "high": "3"}, "tokens, characters, words"),
    ],
)
def test_lengths_that_do_not_go_together_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LENGTH.with_defaults(settings)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>\na\n</think>\n\n<answer>\nb\n</answer>\n", 1.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<think>a</think> b", 0.0),
        ("<think>a</think><answer>b</answer> c", 0.0),
        ("c <think>a</think><answer>b</answer>", 0.0),
        ("<think><answer>b</answer></think><answer>b</answer>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<Think>a</Think><answer>b</answer>", 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<think></think>" * 3000, 0.0),
    ],
)
def test_tags(response: str, score: float) -> None:
    assert grade(TAGS, response) == score


def test_tags_that_the_prompt_opened_and_other_names() -> None:
    assert grade(TAGS, "a</think>\n<answer>b</answer>", opened=True) == 1.0
    assert grade(TAGS, "<think>a</think>\n<answer>b</answer>", opened=True) == 0.0
    assert grade(TAGS, "<plan>a</plan>b", tags="plan", tail=True) == 1.0
    assert grade(TAGS, "<plan>a</plan>b", tags="plan") == 0.0
    with pytest.raises(ConfigError, match="expected different names"):
        TAGS.with_defaults({"tags": "a,a"})


def test_blocks_that_do_not_close_are_none() -> None:
    assert code_blocks("```python\nx = 1\n") == []
    assert code_blocks("````md\n```\nx\n```\n````") == [("md", "```\nx\n```\n")]
    assert code_blocks("~~~\nx\n~~~") == [("", "x\n")]


@pytest.mark.parametrize(
    ("response", "settings", "score"),
    [
        ("```python3\nx=1\n```", {"language": "py"}, 1.0),
        ("```\nx=1\n```", {"language": "python"}, 0.0),
        ("text ```x``` text", {}, 0.0),
        ("```python\n" + "(" * 5000 + "\n```", {"parses": True}, 0.0),
        ("```python\nx = 1\0\n```", {"parses": True}, 0.0),
        ("```python\nimport os; os.abort()\n```", {"parses": True}, 1.0),
    ],
)
def test_code_block(response: str, settings: dict[str, str | bool], score: float) -> None:
    assert grade(CODE_BLOCK, response, **settings) == score
