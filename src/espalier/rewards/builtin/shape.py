"""Rewards of a response's form: `length`, `tags` and `code_block`."""

from __future__ import annotations

import ast
import math
import re

from espalier.rewards.reward import Answer, Known, Reward, Setting, Settings

# ------------------------------------------------------------------------------------------------------------- length


def grade_length(answer: Answer, settings: Settings) -> float:
    """1 inside a window of lengths, falling to 0 at `margin` outside it: max(0, 1 - d / margin).

    d is the distance of the response's length n to the window: low - n below it, n - high above it, 0 inside. `target`
    is the window of one length, with itself as margin unless one is given: n = 0 and n = 2 target score 0. Without a
    margin a window scores 1 inside and 0 outside. The unit is tokens (the stop token does not count), characters, or
    words (runs of anything but blanks; a Chinese or Japanese character is a word).
    """
    n = measure(answer, settings["unit"])
    target, margin = settings["target"], settings["margin"]
    low, high = (target, target) if target else (settings["low"], settings["high"] or math.inf)
    margin = margin or target
    distance = max(low - n, n - high, 0)
    if distance == 0:
        return 1.0
    return max(0.0, 1 - distance / margin) if margin else 0.0


def measure(answer: Answer, unit: str) -> int:
    """The length of a response in tokens, characters or words.

    >>> measure(Answer("", "Two words, 三个字"), "words"), measure(Answer("", "abc"), "characters")
    (5, 3)
    >>> measure(Answer("", "abc", ids=(5, 6, 2), stop="stop"), "tokens")
    2
    """
    if unit == "tokens":
        return len(answer.ids) - (1 if answer.stop == "stop" and answer.ids else 0)
    if unit == "characters":
        return len(answer.response)
    return len(words_of(answer.response))


_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


def words_of(text: str) -> list[str]:
    """Runs of anything but blanks; a Chinese or Japanese character is one by itself."""
    return _WORD.findall(text)


def _check_length(settings: Settings) -> None:
    low, high, target = settings["low"], settings["high"], settings["target"]
    if min(low, high, target) < 0 or not 0 <= settings["margin"] < math.inf:
        raise ValueError("got a negative number; expected lengths of 0 or more")
    if target and (low or high):
        raise ValueError("got target and a window; expected either target or low and high")
    if not target and not low and not high:
        raise ValueError("got no length; give target, or low, high or both, as in length.target=200")
    if high and low > high:
        raise ValueError(f"got low {low} above high {high}; expected low <= high")


LENGTH = Reward(
    "length",
    "1 inside a window of lengths (low, high) or at a target, falling to 0 at `margin` outside it.",
    grade_length,
    settings={
        "unit": Setting("tokens", "What is counted.", choices=("tokens", "characters", "words")),
        "target": Setting(0, "The length wanted; 0 takes the window."),
        "low": Setting(0, "The least length of the window."),
        "high": Setting(0, "The greatest length of the window; 0 sets no limit."),
        "margin": Setting(0.0, "Distance from the window at which the score is 0; 0 takes the target, or none."),
    },
    check=_check_length,
    known=(
        Known("one two three", 1.0, settings={"unit": "words", "target": 3}),
        Known("one two three", 0.75, settings={"unit": "words", "target": 4}),
        Known("one two three", 0.0, settings={"unit": "words", "target": 1}),
        Known("one two three", 0.5, settings={"unit": "words", "target": 2}),
        Known("abc", 1.0, settings={"unit": "characters", "low": 3, "high": 5}),
        Known("ab", 0.0, settings={"unit": "characters", "low": 3, "high": 5}),
        Known("abcdefg", 0.5, settings={"unit": "characters", "low": 3, "high": 5, "margin": 4.0}),
        Known("a" * 900, 1.0, settings={"unit": "characters", "low": 3}),
        Known("", 0.0, settings={"unit": "words", "target": 4}),
    ),
)

# --------------------------------------------------------------------------------------------------------------- tags


def grade_tags(answer: Answer, settings: Settings) -> float:
    """1 if the response is `<think>...</think><answer>...</answer>`, else 0.

    Each tag opens and closes exactly once, in this order, with something between, and only blanks stand outside. With
    `opened` the prompt has opened the first tag, so that the response starts inside it. With `tail` the last part
    is text behind the last tag (`<think>...</think> The answer is 7.`), which must not be empty.
    """
    names = _names(settings)
    response = answer.response
    if settings["opened"]:
        response = f"<{names[0]}>{response}"
    for name in names:
        if response.count(f"<{name}>") != 1 or response.count(f"</{name}>") != 1:
            return 0.0
    pattern = r"\s*".join(rf"<{re.escape(name)}>(.*?)</{re.escape(name)}>" for name in names)
    parts = re.fullmatch(rf"\s*{pattern}(.*)", response, re.DOTALL)
    if parts is None:
        return 0.0
    *contents, tail = [part.strip() for part in parts.groups()]
    return float(all(contents) and bool(tail) == settings["tail"])


def _names(settings: Settings) -> list[str]:
    return [name.strip() for name in settings["tags"].split(",")]


def _check_tags(settings: Settings) -> None:
    names = _names(settings)
    if not all(re.fullmatch(r"[\w|:-]+", name) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"tags is {settings['tags']!r}; expected different names, as in tags=think,answer")


TAGS = Reward(
    "tags",
    "1 if the response is <think>...</think><answer>...</answer>, each once, filled, and nothing outside.",
    grade_tags,
    settings={
        "tags": Setting("think,answer", "The tags, in order."),
        "opened": Setting(False, "Whether the prompt has opened the first tag."),
        "tail": Setting(False, "Whether text must follow the last tag, in place of none."),
    },
    check=_check_tags,
    known=(
        Known("<think>3+4=7</think>\n<answer>7</answer>", 1.0),
        Known("<think>3+4=7</think> So: <answer>7</answer>", 0.0),
        Known("<answer>7</answer><think>3+4=7</think>", 0.0),
        Known("<think></think><answer></answer>", 0.0),
        Known("<think>a</think><answer>7</answer><answer>8</answer>", 0.0),
        Known("<think>a <think>b</think><answer>7</answer>", 0.0),
        Known("<think>3+4=7</think><answer>7", 0.0),
        Known("3+4=7</think><answer>7</answer>", 1.0, settings={"opened": True}),
        Known("<think>3+4=7</think> It is 7.", 1.0, settings={"tags": "think", "tail": True}),
        Known("<think>3+4=7</think>", 0.0, settings={"tags": "think", "tail": True}),
        Known("", 0.0),
    ),
)

# --------------------------------------------------------------------------------------------------------- code blocks

_FENCE = re.compile(
    r"^(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n]*\n(?P<code>.*?)^(?P=fence)[`~]*[ \t]*$", re.M | re.S
)
_ALIASES = {"py": "python", "python3": "python", "js": "javascript", "ts": "typescript", "sh": "bash", "c++": "cpp"}


def code_blocks(text: str) -> list[tuple[str, str]]:
    """The fenced blocks of a text that are closed: (language in lower case, empty if none is named; code).

    >>> code_blocks("Look:\\n```py\\nx = 1\\n```\\n")
    [('python', 'x = 1\\n')]
    """
    blocks = []
    for match in _FENCE.finditer(text):
        language = match["language"].lower()
        blocks.append((_ALIASES.get(language, language), match["code"]))
    return blocks


def grade_code_block(answer: Answer, settings: Settings) -> float:
    """1 if the response has exactly one fenced block that is closed and not empty, else 0.

    With `language` the fence must name it (py, python and python3 are the same). With `parses` the code must be Python
    by its grammar; it is not run. With `several` there may be more than one block: the last one counts.
    """
    blocks = code_blocks(answer.response)
    if not blocks or (len(blocks) > 1 and not settings["several"]):
        return 0.0
    language, code = blocks[-1]
    wanted = settings["language"].lower()
    if not code.strip() or (wanted and language != _ALIASES.get(wanted, wanted)):
        return 0.0
    if settings["parses"]:
        try:
            tree = ast.parse(code)
        except (
            SyntaxError,
            ValueError,
            RecursionError,
            MemoryError,
        ):  # each of them is a way in which it does not parse
            return 0.0
        return float(bool(tree.body))
    return 1.0


CODE_BLOCK = Reward(
    "code_block",
    "1 if the response has exactly one closed, filled ``` block; with settings, of one language, and parsing.",
    grade_code_block,
    settings={
        "language": Setting("", "The language that the fence must name; empty takes any."),
        "parses": Setting(False, "Whether the code must be Python by its grammar; nothing is run."),
        "several": Setting(False, "Whether other blocks may stand before it."),
    },
    known=(
        Known("Here:\n```python\nprint(1)\n```\n", 1.0),
        Known("```\nx\n```", 1.0),
        Known("```py\nx = 1\n```", 1.0, settings={"language": "python", "parses": True}),
        Known("```python\nx = = 1\n```", 0.0, settings={"parses": True}),
        Known("```python\n# nothing\n```", 0.0, settings={"parses": True}),
        Known("```bash\nls\n```", 0.0, settings={"language": "python"}),
        Known("```python\nx = 1\n", 0.0),
        Known("```python\n\n```", 0.0),
        Known("```\na\n```\n```\nb\n```", 0.0),
        Known("```\na\n```\n```\nb\n```", 1.0, settings={"several": True}),
        Known("print(1)", 0.0),
        Known("", 0.0),
    ),
)
