"""Options about judgements reach what is trained, or are refused with the way out; what a run prints of them is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from desk import Desk, saved
from espalier.errors import ConfigError
from espalier.options import build
from espalier.runs import RUNS, RunConfig


def config(command: str, **given: Any) -> RunConfig:
    return build(RUNS[command], {"model": "m", "data": ["d"], "out": "o", **given})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("model"))


@pytest.fixture
def desk(model: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.setenv("COLUMNS", "300")
    return Desk(tmp_path, model, capsys)


# ------------------------------------------------------------------------------------------------------------- refused

CHOICES: list[dict[str, Any]] = [{"min_gap": 0.5}, {"max_pairs": 2}, {"flip": 0.1}]
OTHERS: list[dict[str, Any]] = [{"judged_by": "scores"}, {"score_weights": ["a=1"]}]


@pytest.mark.parametrize("given", CHOICES, ids=str)
@pytest.mark.parametrize(
    ("command", "orders"),
    [
        ("dpo", {"variant": "plackett_luce"}),
        ("dpo", {"variant": ["sigmoid", "plackett_luce=0.5"]}),
        ("reward", {"objective": "plackett_luce"}),
    ],
    ids=str,
)
def test_whole_orders_are_not_chosen_among(command: str, orders: dict[str, Any], given: dict[str, Any]) -> None:
    (key,) = given
    with pytest.raises(ConfigError, match=f"^{key} is given, but plackett_luce learns from whole orders.*drop it") as e:
        config(command, **orders, **given)
    assert e.value.key == key
    config(command, **orders, judged_by="scores", score_weights=["a=1"])
    config(command, **given)


@pytest.mark.parametrize("given", [*CHOICES, *OTHERS], ids=str)
def test_grades_are_not_chosen_among(given: dict[str, Any]) -> None:
    (key,) = given
    with pytest.raises(ConfigError, match=f"^{key} is given, but pointwise learns from the grades of answers"):
        config("reward", objective="pointwise", **given)
    config("reward", pointwise_coef=1, **given)


@pytest.mark.parametrize("command", ["kto", "bco"])
def test_answers_that_stand_alone_have_no_pairs_to_cap(command: str) -> None:
    with pytest.raises(ConfigError, match=f"^max_pairs is given, but {command} learns from answers.*one by one"):
        config(command, max_pairs=1)
    for given in (*(c for c in CHOICES if "max_pairs" not in c), *OTHERS):
        config(command, **given)


@pytest.mark.parametrize(
    ("unread", "read", "why"),
    [
        ({"tie_share": 0.2}, {"ties": "davidson"}, "tie_share is given, but ties is none"),
        ({"grade_low": 0}, {"pointwise_coef": 1}, "grade_low and grade_high are ends of a scale that nothing learns"),
        ({"grade_high": 5}, {"objective": "pointwise"}, "give objective pointwise or pointwise_coef, or drop them"),
    ],
    ids=str,
)
def test_what_no_term_of_a_reward_model_reads(unread: dict[str, Any], read: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config("reward", **unread)
    config("reward", **unread, **read)


def test_a_refused_choice_is_named_where_it_was_given(desk: Desk) -> None:
    desk.run("dpo", "--variant", "plackett_luce", "--flip", 0.1, code=2)
    assert "--flip is given, but plackett_luce learns from whole orders" in desk.err
