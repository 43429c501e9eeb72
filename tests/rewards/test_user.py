"""Users' functions in three forms: which form a function has, and what it is called with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from espalier.errors import ConfigError
from espalier.rewards.results import Result
from espalier.rewards.reward import Answer
from espalier.rewards.user import UserFunction, recognised

ANSWER = Answer(
    prompt="2 + 2?",
    response="It is 4",
    answer="4",
    verifier="exact",
    facts={"tests": [1]},
    columns={"level": 3},
    messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}),
    row=7,
    stop="stop",
    ids=(5, 6, 2),
)
OTHER = Answer(prompt="3 + 3?", response="6", answer="6", columns={"topic": "sums"}, row=8, stop="length", ids=(9,))


def of(function: Callable[..., Any], source: str = "", **settings: str) -> UserFunction:
    return recognised(function, source, settings)


def test_our_own_form_gets_the_task_by_name() -> None:
    calls: list[dict[str, Any]] = []

    def reward(prompt: str, response: str, **task: Any) -> float:
        calls.append({"prompt": prompt, "response": response, **task})
        return 0.5

    function = of(reward)
    assert (function.form, function.batched, function.is_async) == ("own", False, False)
    assert function.results(function.calls([ANSWER]), 1) == [Result({"": 0.5})]
    assert calls == [
        {
            "prompt": "2 + 2?",
            "response": "It is 4",
            "answer": "4",
            "verifier": "exact",
            "tests": [1],
            "level": 3,
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}],
            "row": 7,
            "stop": "stop",
            "ids": [5, 6, 2],
        }
    ]


def test_a_function_gets_what_it_has_parameters_for() -> None:
    def reward(response: str, level: int, depth: int = 2) -> float:
        return len(response) + 10 * level + 100 * depth

    assert of(reward).calls([ANSWER]) == 7 + 30 + 200
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'level'"):
        of(reward).calls([OTHER])


def test_a_batched_function_gets_lists() -> None:
    def reward(prompt: list[str], response: list[str], level: list[int | None], **task: Any) -> list[float | None]:
        assert (level, task["topic"], task["answer"]) == ([3, None], [None, "sums"], ["4", "6"])
        return [float(len(text)) for text in response[:1]] + [None]

    reward.batched = True  # type: ignore[attr-defined]
    function = of(reward)
    assert function.results(function.calls([ANSWER, OTHER]), 2) == [Result({"": 7.0}), Result()]
    with pytest.raises(ValueError, match="returned 2 entries for 3 answers"):
        function.results([1.0, 2.0], 3)
    with pytest.raises(TypeError, match="returned float; expected a list with one entry for each"):
        function.results(1.0, 3)


def test_an_async_function_is_awaited() -> None:
    async def reward(prompt: str, response: str) -> float:
        return float(len(response))

    function = of(reward)
    assert function.is_async and function.note == "one call for each answer, async"
    assert asyncio.run(function.calls([ANSWER])) == 7.0


def test_trls_form_is_recognised_by_its_parameters() -> None:
    calls: list[dict[str, Any]] = []

    def brevity(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        calls.append({"prompts": prompts, "completions": completions, **kwargs})
        return [1.0] * len(completions)

    function = of(brevity, "def brevity(): return len(c)")
    assert (function.form, function.batched) == ("trl", True)
    assert function.note.startswith(
        "TRL's form, by its parameters (prompts, completions); prompts and completions as te"
    )
    assert function.results(function.calls([ANSWER, OTHER]), 2) == [Result({"": 1.0})] * 2
    assert calls[0]["prompts"] == ["2 + 2?", "3 + 3?"] and calls[0]["completions"] == ["It is 4", "6"]
    assert calls[0]["completion_ids"] == [[5, 6, 2], [9]] and calls[0]["level"] == [3, None]
    assert calls[0]["answer"] == ["4", "6"]


@pytest.mark.parametrize(
    ("source", "settings", "completion"),
    [
        ('c[0]["content"]', {}, [{"role": "assistant", "content": "It is 4"}]),
        ("len(c)  # content", {}, "It is 4"),
        ("len(c)", {"completions": "messages"}, [{"role": "assistant", "content": "It is 4"}]),
        ('c[0]["content"]', {"completions": "text"}, "It is 4"),
    ],
)
def test_trls_completions_are_messages_if_the_file_reads_their_content(
    source: str, settings: dict[str, str], completion: Any
) -> None:
    def reward(completions: Any) -> Any:
        return completions

    assert of(reward, source, **settings).calls([ANSWER]) == [completion]


def test_verls_form_is_recognised_by_its_parameters() -> None:
    def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> Any:
        return {"score": 1.0, "acc": 0.5, "pred": f"{data_source}|{solution_str}|{ground_truth}|{extra_info['level']}"}

    function = of(compute_score)
    value = function.calls([ANSWER])
    assert function.form == "verl" and value["pred"] == "exact|It is 4|4|3"
    assert function.results(value, 1) == [Result({"": 1.0}, {"acc": 0.5})]


def test_verls_own_columns_come_first() -> None:
    columns = {
        "data_source": "gsm8k",
        "reward_model": {"style": "rule", "ground_truth": "12"},
        "extra_info": {"index": 3, "level": "high"},
    }

    def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any) -> Any:
        return [data_source, ground_truth, extra_info["index"], extra_info["level"], extra_info["row"]]

    answer = Answer("q", "r", columns={**columns, "level": 1}, row=4)
    assert of(compute_score).calls([answer]) == ["gsm8k", "12", 3, "high", 4]


def test_other_parameters_are_refused() -> None:
    def reward(question: str, reply: str) -> float:
        return 0.0

    with pytest.raises(
        ConfigError, match=r"its parameters are \(question, reply\); expected \(prompt, response, \*\*ta"
    ):
        of(reward)

    def own(prompt: str, response: str) -> float:
        return 0.0

    with pytest.raises(ConfigError, match="completions is for functions in TRL's form"):
        of(own, completions="text")
