"""Options about judgements reach what is trained, or are refused with the way out; what a run prints of them is so."""

from __future__ import annotations

import math
import operator
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import torch

from desk import PAIRS, Desk, write
from espalier.algorithms.dpo import DPO
from espalier.assembly.runs import RUNS, RunConfig, unread_in_judging
from espalier.checks.firstloss import expected_first_loss
from espalier.config.options import Parser, build, options
from espalier.config.sections import PreferenceConfig
from espalier.data.formats.reviews import read_reviews
from espalier.data.render.rankings import comparisons, levels
from espalier.errors import ConfigError
from espalier.forest.microbatches import Packing, forward_size
from espalier.losses.lists import plackett_luce
from espalier.ties import settled
from espalier.types import Message, Ranking, Response
from espalier.workbench.from_groups import compared_by_grades
from espalier.workbench.records import HeldOutGroup, JudgedResponse
from preferences import pair_groups


def config(command: str, **given: Any) -> RunConfig:
    return build(RUNS[command], {"model": "m", "data": ["d"], "out": "o", **given})


# ---------------------------------------------------------------------------------------------------------------- ties

UP, DOWN = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)  # 0.1 + 0.2 + 0.3 == 0.6000000000000001, 0.3 + 0.2 + 0.1 == 0.6
MANY = (1.1, 1.1, 1.2)


def added(numbers: tuple[float, ...]) -> float:
    """From left to right; `sum` corrects rounding from Python 3.12 on."""
    return reduce(operator.add, numbers)


def scored(*scores: tuple[float, ...], names: tuple[str, ...] = ("a", "b", "c")) -> Ranking:
    said = [Response(Message("assistant", f"answer {i}"), scores=given) for i, given in enumerate(scores)]
    return Ranking((Message("user", "which"),), tuple(said), names)


@pytest.mark.parametrize("weights", [{}, {"a": 1.0, "b": 3.0, "c": 1.0}, {"a": 0.7, "b": 0.7, "c": 0.7}], ids=str)
def test_the_order_of_dimensions_makes_no_preference(weights: dict[str, float]) -> None:
    assert added(UP) != added(DOWN)
    up, down, more = levels(scored(UP, DOWN, (0.3, 0.2, 0.1001)), weights)
    assert up == down and more is not None and up is not None and more > up + 1e-6
    found = comparisons([up, down], PreferenceConfig(), key=0, seed=0)
    assert found.beats == [[], []] and found.ties == [[1], []]


def test_levels_that_differ_by_rounding_are_one_level() -> None:
    drift = [1e12 + 0.5, 1e12, 1.0 + 1e-10, 1.0, None, 1.0 + 1e-6, -1e12, -1e12 - 0.5]
    assert settled(drift) == [1e12, 1e12, 1.0, 1.0, None, 1.0 + 1e-6, -1e12 - 0.5, -1e12 - 0.5]
    assert comparisons(drift[2:4], PreferenceConfig(), key=0, seed=0).ties == [[1], []]
    low, high = comparisons([1.0, 1.0 + 1e-6], PreferenceConfig(), key=0, seed=0).beats
    assert (low, high) == ([], [0])


def test_a_gap_is_not_below_itself_by_rounding() -> None:
    assert 0.3 - 0.2 < 0.1
    assert comparisons([0.3, 0.2], PreferenceConfig(min_gap=0.1), key=0, seed=0).beats == [[1], []]
    assert comparisons([0.3, 0.2], PreferenceConfig(min_gap=0.101), key=0, seed=0).dropped == {"gap below min_gap": 1}


def test_a_whole_order_has_the_same_ties() -> None:
    """Two answers that tie cost ln 2 whatever their strengths."""
    strengths, group = torch.tensor([2.0, 0.5], dtype=torch.float64), torch.tensor([0, 0])
    labels = torch.tensor([added(UP), added(DOWN)], dtype=torch.float64)
    assert labels[0] != labels[1]
    assert plackett_luce(strengths, labels, group).item() == pytest.approx(math.log(2), abs=1e-12)
    apart = torch.tensor([0.600001, 0.6], dtype=torch.float64)
    assert plackett_luce(strengths, apart, group).item() == pytest.approx(math.log1p(math.exp(-1.5)), abs=1e-12)


def test_grades_that_are_judged_have_the_same_ties() -> None:
    said = [JudgedResponse(score=0.0, length=1, grades=grades) for grades in (UP, DOWN, (0.3, 0.3, 0.3))]
    found = compared_by_grades(HeldOutGroup("data", 1, said, [], []), [1.0, 1.0, 1.0])
    assert found.pairs == [(2, 0), (2, 1)] and found.ties == [(0, 1)]


def test_the_order_of_reviews_makes_no_preference(tmp_path: Path) -> None:
    texts = [{"answer_id": name, "question_id": 1, "text": name} for name in ("x", "y")]
    reviews = [{"answer1_id": "x", "answer2_id": "y", "score": list(two)} for two in zip(MANY, MANY[::-1], strict=True)]
    write(tmp_path / "question.jsonl", [{"question_id": 1, "text": "which"}])
    write(tmp_path / "answer.jsonl", texts)
    write(tmp_path / "review.jsonl", reviews)
    assert added(MANY) != added(MANY[::-1])
    (found,) = read_reviews(str(tmp_path), "reviews")
    assert isinstance(found, Ranking)
    assert found.responses[0].scores == found.responses[1].scores


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
        (
            {"grade_low": 0},
            {"pointwise_coef": 1},
            "grade_low and grade_high are the ends of a scale that nothing learns",
        ),
        ({"grade_high": 5}, {"objective": "pointwise"}, "give objective pointwise or pointwise_coef, or drop them"),
    ],
    ids=str,
)
def test_what_no_term_of_a_reward_model_reads(unread: dict[str, Any], read: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        config("reward", **unread)
    config("reward", **unread, **read)


@pytest.mark.parametrize("command", RUNS)
def test_help_leaves_out_what_is_refused_whatever_its_value(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    values = {"replay": "r", "replay_fraction": 0.5, "alpaca_prompt": True, "outcome_model": "m", "max_pairs": 1}
    values |= {"samples_per_step": 8, "tokens_per_step": 8, "keep_wrong": True, "max_waves": 4}
    with pytest.raises(SystemExit):
        Parser(command, "", "", RUNS[command]).read(["--help"])
    text = capsys.readouterr().out
    for key, option in options(RUNS[command]).items():
        refused = key in RUNS[command].refused
        flag = f"--[no-]{option.flag[2:]} " if option.info.annotation is bool else f"{option.flag} "
        assert (flag in text) != refused, key
        if refused:
            with pytest.raises(ConfigError, match=f"^{key} is given, but .*; drop it"):
                config(command, **{key: values[key]})
    assert ("--replay " in text) == (command == "sft") == ("--alpaca-prompt" in text.replace("[no-]", ""))


def test_a_refused_choice_is_named_where_it_was_given(desk: Desk) -> None:
    desk.run("dpo", "--variant", "plackett_luce", "--flip", 0.1, code=2)
    assert "--flip is given, but plackett_luce learns from whole orders" in desk.err


# --------------------------------------------------------------------------------------------------------- its own beta

STILL, LED = (-5.0, -8.0, -5.0, -8.0, 2.0, 4.0), (-4.0, -8.0, -5.0, -8.0, 2.0, 4.0)  # a lead of 1, of 1/2 a token


@pytest.mark.parametrize(
    ("variant", "beta", "strength"),
    [
        ("sigmoid", 0, 0.1), ("ipo", 0, 0.1), ("sigmoid_norm", 0, 5.0), ("sigmoid_norm=0.5", 0, 5.0),
        (["sigmoid_norm", "hinge"], 0, 0.1), ("sigmoid_norm", 0.2, 0.2), ("sigmoid", 2, 2.0),
    ],
    ids=str,
)  # fmt: skip
def test_beta_is_the_papers_of_the_variant_where_none_is_given(variant: Any, beta: float, strength: float) -> None:
    algorithm = config("dpo", variant=variant, beta=beta).algorithm
    assert isinstance(algorithm, DPO) and algorithm.strength == strength


def test_first_losses_at_the_papers_defaults() -> None:
    """IPO sums, with tau 0.1: (0 - 5)^2, and (1 - 5)^2 with a lead of 1. A lead of 1/2 a token counts 5/2."""
    assert expected_first_loss(DPO(variant=("ipo",)), [STILL]) == pytest.approx(25)
    assert expected_first_loss(DPO(variant=("ipo",)), [LED]) == pytest.approx(16)
    assert expected_first_loss(DPO(variant=("ipo",), ipo_average=True), [LED]) == pytest.approx(4.5**2)
    lead = expected_first_loss(DPO(variant=("sigmoid_norm",)), [LED])
    assert lead == pytest.approx(math.log1p(math.exp(-2.5)))


# ------------------------------------------------------------------------------------------------------------- printed

LABELS = [{"prompt": f"is {i} even", "response": "yes" if i % 4 else "no", "label": i % 2 == 0} for i in range(8)]
SCORED = [{"prompt": f"name {i}", "responses": [f"best {i}", f"bad {i}"], "scores": [3, 1]} for i in range(8)]
CLOSE = {"prompt": "name it", "responses": ["this one", "that one"], "scores": [3, 2.75]}
MARKS = [{"many": 3, "few": 1}, {"many": 1, "few": 2}]
NAMED = [{"prompt": f"say {i}", "responses": [f"a{i}", f"b{i} too"], "scores": MARKS} for i in range(8)]
SHORT = ("--samples-per-step", 8, "--steps", 1)


def test_kto_says_where_min_gap_touches_nothing(desk: Desk) -> None:
    desk.run("kto", "--min-gap", 0.5, *SHORT, data=desk.rows("labels", LABELS), name="labels")
    assert "min_gap changes no row" in desk.out and "judgements:" not in desk.out
    desk.run("kto", "--min-gap", 0.5, *SHORT, data=desk.rows("scored", SCORED), name="scored")
    assert "judgements: those less than 0.5 apart are left out" in desk.out and "touches no row" not in desk.out


def test_two_levels_that_are_too_close_are_no_labels(desk: Desk) -> None:
    data = desk.rows("close", [*SCORED, CLOSE])
    desk.run("bco", "--min-gap", 0.5, *SHORT, data=data, code=2)
    assert "got none; left out: gap below min_gap (2); expected labels, or responses on exactly two levels" in desk.err
    assert "not judged" not in desk.err
    run = desk.run("bco", "--min-gap", 0.5, "--on-bad-row", "skip", *SHORT, data=data, name="skipped")
    assert len(run.rejected) == 1 and "close.jsonl:9: " in str(run.rejected)
    desk.run("bco", "--min-gap", 0.25, *SHORT, data=data, name="kept")


def test_score_weights_are_said_to_apply_to_named_scores_alone(desk: Desk) -> None:
    for name, command in (("pairs", "dpo"), ("scores", "kto")):
        data = desk.pairs if name == "pairs" else desk.rows(name, SCORED)
        desk.run(command, "--score-weights", "many=1", *SHORT, data=data, name=name)
        assert "score_weights change no row" in desk.out and "score dimensions weigh" not in desk.out
    desk.run("kto", "--score-weights", "many=1", *SHORT, data=desk.rows("named", NAMED), name="named")
    assert "judgements: score dimensions weigh many=1" in desk.out and "touch no row" not in desk.out


def test_a_group_above_the_budget_is_announced_with_its_memory(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group of two long answers and their prompt, against twelve short ones."""
    long = {"prompt": "7+7?", "chosen": "14 " * 40, "rejected": "15 " * 40}
    data = desk.rows("long", [*PAIRS, long])
    desk.run("check dpo", "--tokens-per-microbatch", 4096, data=data)
    assert "never cut" not in desk.out and "of at most 4,096" in desk.out
    asked: list[int] = []
    monkeypatch.setattr(
        "espalier.assembly.memory.estimate", lambda *given, **how: asked.append(given[1]) or {"activations": 0}
    )
    desk.run("check dpo", "--tokens-per-microbatch", 64, "--steps", 1, data=data)
    (said,) = re.findall(r"a group is never cut: the largest one has (\d+) tokens and runs alone", desk.out)
    assert asked == [int(said)] and 64 < int(said) < 1000


def test_tokens_of_a_forward() -> None:
    """A prompt of 20, answers of 6 and 9, whose last tokens nothing reads: 20 + 5 + 8, 25 + 28, and 4 * 28 padded."""
    (group,) = pair_groups(1)
    assert forward_size([group], Packing(whole=True)) == 33 and forward_size([group], Packing(share=False)) == 53
    assert forward_size([group, group], Packing(padded=True)) == 112


def test_what_means_nothing_in_this_run_is_said(desk: Desk) -> None:
    desk.run("check dpo", "--sync-every", 50, "--steps", 3)
    assert "the reference never moves: sync_every is 50, and there are 3 steps" in desk.out
    desk.run("check dpo", "--sync-every", 3, "--steps", 3, "--variant", "sigmoid_norm", "hinge")
    assert "never moves" not in desk.out and "beta 0.1 for all variants; sigmoid_norm alone would have 5" in desk.out
    desk.run("check dpo", "--variant", "sigmoid_norm", "--steps", 1)
    assert "beta 5 " in desk.out
    desk.run("check reward", "--dimensions", "a", "b", "--steps", 1)
    assert "of dimensions a, b only the total is trained: no response has a score in them" in desk.out


def test_judging_says_which_flags_it_does_not_read() -> None:
    flags = {"lr": 1e-3, "warmup": 0.5, "steps": 7, "centering": 0.1, "tokens_per_microbatch": 64, "dimensions": ["a"]}
    assert unread_in_judging(config("reward", eval_only=True, **flags)) == ["lr", "warmup", "steps", "centering"]
    assert unread_in_judging(config("reward", **flags)) == unread_in_judging(config("reward", eval_only=True)) == []


def test_a_run_that_only_judges_prints_them_once(desk: Desk) -> None:
    desk.run("reward", "--steps", 1, name="trained")
    desk.model = str(desk.folder / "trained" / "model")
    desk.run("reward", "--eval-only", "--steps", 3, name="judged")
    assert desk.out.count("eval_only trains nothing; not used:") == 1
