"""The check of judgements passes on what is right and fails on the fault it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from desk import Desk
from espalier.algorithms.dpo import DPO
from espalier.algorithms.kto import KTO
from espalier.algorithms.prm import PRM
from espalier.algorithms.reward import Reward
from espalier.checks.evidence import Row
from espalier.checks.judged import claims, judgements, targets_of
from espalier.checks.table import Outcome
from espalier.config.sections import PreferenceConfig, StepLabelsConfig
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.render.steplabels import relabel
from espalier.types import Message, Origin, Ranking, Response, Sample, Steps
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
QUESTION = (Message("user", "Why is it?"),)


def ranking(*responses: Response, **more: Any) -> Ranking:
    return Ranking(QUESTION, responses, origin=Origin("d", 1), **more)


def said(text: str, **more: Any) -> Response:
    return Response(Message("assistant", text), **more)


RANKED = ranking(said("a", rank=1), said("b c", rank=0), said("d", rank=1), said("e", rank=2))
SCORED = ranking(
    said("a", scores=(9.0, 1.0)), said("b", scores=(2.0, 5.0)), said("c", scores=(4.0, None)), dimensions=("x", "y")
)
LABELLED = ranking(said("a", good=True), said("b", good=False), said("c", good=True))
PAIR = ranking(said("a", rank=1), said("b", rank=0))
STEPS = Steps(QUESTION, ("one", "two", "three", "four"), (1.0, 0.5, 0.0, 1.0), False, origin=Origin("d", 1))


def outcome(
    example: Any, algorithm: Any, change: Callable[[list[Sample]], None] | None = None, flip: float = 0.0, **form: Any
) -> Outcome:
    traits, preference = algorithm.traits, form.pop("preference", PreferenceConfig())
    labels = form.pop("labels", StepLabelsConfig())
    renderer = Renderer(
        TOKENIZER, form=Form(traits.consumes, traits.wants, traits.says == "reads", preference, 0, labels)
    )
    rendered, stored = renderer.render(example), [r.sample for r in renderer.render(example)]
    if change:
        change(stored)
    found = claims([Row(example, rendered, stored)], traits, preference, labels)
    return judgements(found, [], flip)


TWO = Reward(dimensions=("x", "y"))
HEALTHY = [
    (RANKED, DPO(), {}), (RANKED, Reward(), {}), (SCORED, DPO(), {}), (SCORED, TWO, {}), (LABELLED, KTO(), {}),
    (SCORED, DPO(), {"preference": PreferenceConfig(score_weights=("x=1", "y=-2"))}), (PAIR, KTO(), {}),
    (SCORED, Reward(objective="pointwise", dimensions=("x", "y")), {}), (STEPS, PRM(), {}), (LABELLED, DPO(), {}),
    (RANKED, DPO(), {"preference": PreferenceConfig(min_gap=2.0)}), (RANKED, Reward(ties="davidson"), {}),
    (RANKED, DPO(), {"preference": PreferenceConfig(max_pairs=2)}),
]  # fmt: skip


@pytest.mark.parametrize(("example", "algorithm", "form"), HEALTHY)
def test_what_is_right_passes(example: Any, algorithm: Any, form: dict[str, Any]) -> None:
    assert outcome(example, algorithm, **form).verdict == "pass"


def reversed_beats(samples: list[Sample]) -> None:
    beats: list[list[int]] = [[] for _ in samples]
    for i, s in enumerate(samples):
        for j in s.beats:
            beats[j].append(i)
    for s, of_s in zip(samples, beats, strict=True):
        s.beats = of_s


def set_first(**fields: Any) -> Callable[[list[Sample]], None]:
    def change(samples: list[Sample]) -> None:
        for name, value in fields.items():
            setattr(samples[0], name, value)

    return change


def ties_as_wins(samples: list[Sample]) -> None:
    samples[0].beats, samples[0].ties = [*samples[0].beats, *samples[0].ties], []


def inverted(samples: list[Sample]) -> None:
    for s in samples:
        s.label = 1.0 - (s.label or 0.0)


def earlier(samples: list[Sample]) -> None:
    samples[0].reads = [len(samples[0]) - 2]


def shifted(samples: list[Sample]) -> None:
    samples[0].grades = [*samples[0].grades[1:], samples[0].grades[-1]]


def mistake_left_out(samples: list[Sample]) -> None:
    samples[0].grades = [*samples[0].grades[:2], (float("nan"),), (float("nan"),)]


@pytest.mark.parametrize(
    ("example", "algorithm", "change", "fault"),
    [
        (RANKED, DPO(), reversed_beats, "beats answer"), (RANKED, DPO(), ties_as_wins, "which is as good"),
        (RANKED, DPO(), set_first(ties=[]), "are not compared"), (RANKED, DPO(), set_first(label=-2.0), "the level"),
        (RANKED, DPO(), set_first(ties=[2, 3]), "and differ"), (LABELLED, KTO(), inverted, "has the label"),
        (PAIR, KTO(), inverted, "has the label"), (SCORED, TWO, earlier, "is read at"),
        (SCORED, TWO, set_first(grades=[(1.0, 9.0)]), "has the grade"), (STEPS, PRM(), shifted, "has the target"),
        (STEPS, PRM(), mistake_left_out, "has the target"), (STEPS, PRM(), set_first(label=1.0), "outcome"),
    ],
)  # fmt: skip
def test_what_is_not_the_rows_fails(example: Any, algorithm: Any, change: Any, fault: str) -> None:
    found = outcome(example, algorithm, change)
    assert found.verdict == "fail" and fault in found.way_out


def test_flips_are_allowed_as_often_as_they_were_asked_for() -> None:
    from espalier.checks.judged import Claim

    drawn = [Claim("pair", i % 5 != 0, "flip") for i in range(100)]
    assert judgements(drawn, [], 0.2).verdict == "pass"
    assert judgements(drawn, [], 0.0).verdict == "fail"
    assert judgements([Claim("pair", i % 2 != 0, "flip") for i in range(100)], [], 0.2).verdict == "fail"
    assert judgements([], drawn, 0.2).verdict == "fail"  # held-out judgements are never flipped
    assert judgements([Claim("tie", False)], [], 0.2).verdict == "fail"
    assert judgements([], [], 0.0).verdict == "skipped"


@pytest.mark.parametrize("neutral", ["good", "bad", "half", "ignore"])
@pytest.mark.parametrize("after", ["ignore", "bad", "keep"])
@pytest.mark.parametrize("labels", [(1.0, 0.5, 0.0, 1.0), (1.0, 1.0, None, 0.5), (None, None, None, None)])
@pytest.mark.parametrize("outcome_as", ["spread", "last"])
def test_targets_are_those_of_the_rules(neutral: Any, after: Any, labels: Any, outcome_as: Any) -> None:
    config = StepLabelsConfig(neutral=neutral, after_mistake=after, outcome=outcome_as)
    example = Steps(QUESTION, ("a", "b", "c", "d"), labels, True)
    expected = [None if x != x else x for x in targets_of(example, config)]
    assert expected == list(relabel(example, config).labels)


def test_judgements_that_are_turned_round_stop_a_run(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from espalier.data.render import ranking_samples

    was = ranking_samples.comparisons
    desk.run("check dpo", "--flip", 0.2, name="right")

    def turned(levels: Any, *more: Any) -> Any:
        return was([None if level is None else -level for level in levels], *more)

    monkeypatch.setattr(ranking_samples, "comparisons", turned)
    desk.run("check dpo", "--cache", str(desk.folder / "other"), code=2)
    assert "judgements:" in desk.err + desk.out
