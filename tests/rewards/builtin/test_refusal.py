"""The reward of refusals."""

import gzip
import json
from pathlib import Path

import pytest

from espalier.rewards.builtin.refusal import REFUSAL, refuses
from graded import grade


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I can't help with that.", True),
        ("I cannot, in good conscience, help.", False),
        ("I'm sorry, but I can't assist with that request.", True),
        ("I am unable to provide this.", True),
        ("I must decline to answer.", True),
        ("I won't write that for you.", True),
        ("As an AI developed to be safe, I cannot tell you.", True),
        ("It would be unethical to explain this.", True),
        ("That goes against my guidelines.", True),
        ("我不能提供这样的信息。", True),
        ("抱歉\uff0c我无法满足这个要求。", True),
        ("I'm sorry to hear that you are ill. Rest and drink.", False),
        ("You cannot help but smile. Here is the recipe.", False),
        ("他不会这样做。", False),
        ("Sure, here is how. " * 20 + "I can't help with more.", False),
    ],
)
def test_refuses(text: str, refused: bool) -> None:
    assert refuses(text) == refused


def test_what_is_no_truth_is_an_error() -> None:
    assert [grade(REFUSAL, "Sure.", facts={"harmful": fact}) for fact in (0, "false", "1", True)] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match="expected true or false"):
        grade(REFUSAL, "Sure.", facts={"harmful": "maybe"})


@pytest.mark.real_data
def test_few_answers_to_harmless_prompts_refuse(shared: Path) -> None:
    """13 of 999 answers, and all 13 do say that something cannot be done; 1 of 352 is a letter that declines."""
    with gzip.open(shared / "data/sft/llamafactory_alpaca_en_demo.json.gz", "rt", encoding="utf-8") as file:
        answers = [row["output"] for row in json.load(file)]
    assert sum(map(refuses, answers)) == 13
    with gzip.open(shared / "data/verifiable/ifeval_gpt4_responses.jsonl.gz", "rt", encoding="utf-8") as file:
        answers = [json.loads(line)["response"] for line in file]
    assert sum(map(refuses, answers)) == 1
