"""The reward of IFEval's verifiable instructions: `ifeval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from espalier.rewards.builtin.instructions import follows, variants
from espalier.rewards.builtin.language import detect
from espalier.rewards.reward import Answer, Known, Reward, Setting, Settings


def grade_ifeval(answer: Answer, settings: Settings) -> float:
    """Whether the response follows all of the task's instructions (1 or 0), or with `score: share` the share of them.

    The instructions are IFEval's 25 (2311.07911, `instructions`): the task's facts `instruction_id_list` and `kwargs`,
    one object of arguments for each. Strict grading takes the response as it is; loose grading takes an instruction as
    followed if the response without its first line, its last line, its asterisks, or without several of these follows
    it. An empty response follows nothing.
    """
    followed = [any(follows(name, text, args) for text in _texts(answer, settings)) for name, args in _facts(answer)]
    return float(all(followed)) if settings["score"] == "all" else sum(followed) / len(followed)


def _texts(answer: Answer, settings: Settings) -> Sequence[str]:
    return variants(answer.response) if settings["mode"] == "loose" else (answer.response,)


def _facts(answer: Answer) -> list[tuple[str, Mapping[str, Any]]]:
    """Instructions with their arguments. Raises ValueError if there are none, or not one object each."""
    names, kwargs = answer.facts["instruction_id_list"], answer.facts["kwargs"]
    if not names or len(names) != len(kwargs):
        raise ValueError(
            f"got {len(names)} instructions with {len(kwargs)} kwargs; expected one each, and at least one"
        )
    return list(zip(names, kwargs, strict=True))


def _load() -> None:
    detect("This is an English sentence.")


def _given(**instructions: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of a known answer; `__` in a name stands for the colon."""
    return {
        "instruction_id_list": [name.replace("__", ":") for name in instructions],
        "kwargs": list(instructions.values()),
    }


_BOTH = _given(punctuation__no_comma={}, keywords__existence={"keywords": ["cat"]})

IFEVAL = Reward(
    "ifeval",
    "1 if the response follows all of IFEval's instructions of the task, strict or loose.",
    grade_ifeval,
    needs=("instruction_id_list", "kwargs"),
    settings={
        "mode": Setting("strict", "Whether first and last line and asterisks count.", choices=("strict", "loose")),
        "score": Setting("all", "1 if all are followed, or the share that is.", choices=("all", "share")),
    },
    load=_load,
    known=(
        Known("A cat sleeps.", 1.0, facts=_BOTH),
        Known("Well, a cat sleeps.", 0.0, facts=_BOTH),
        Known("Well, a cat sleeps.", 0.5, facts=_BOTH, settings={"score": "share"}),
        Known("Sure, here it is:\nA cat sleeps.", 0.0, facts=_BOTH),
        Known("Sure, here it is:\nA cat sleeps.", 1.0, facts=_BOTH, settings={"mode": "loose"}),
        Known("This is an English sentence.", 1.0, facts=_given(language__response_language={"language": "en"})),
        Known("THIS IS AN ENGLISH SENTENCE.", 1.0, facts=_given(change_case__english_capital={})),
        Known("Das ist ein deutscher Satz.", 0.0, facts=_given(language__response_language={"language": "en"})),
        Known("", 0.0, facts=_BOTH),
    ),
)
