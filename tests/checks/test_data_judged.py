"""The checks before a run, on judged examples: they pass on what is right and fail on the fault they are there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from espalier.checks import data
from espalier.checks.evidence import Row
from espalier.checks.table import Outcome
from espalier.data.render.form import Form
from espalier.data.render.renderer import Renderer
from espalier.data.store.stats import StoreStats
from espalier.types import Example, Message, Origin, Ranking, Response, Sample, Steps, Tree, TreeNode
from tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
QUESTION = (Message("system", "Be brief"), Message("user", "Why is it?"))


def answer(text: str, **more: Any) -> Response:
    return Response(Message("assistant", text), **more)


RANKING = Ranking(
    QUESTION, (answer("Because", rank=0), answer("No idea", rank=1), answer("", rank=2)), origin=Origin("d", 1)
)
STEPS = Steps(QUESTION, ("one two", "then three", "done"), (1.0, 1.0, 0.0), False, origin=Origin("d", 1))
TREE = Tree(
    tuple(
        TreeNode(Message(role, text), parent)  # type: ignore[arg-type]
        for role, text, parent in (
            ("user", "Why?", -1), ("assistant", "So", 0), ("user", "But", 1), ("assistant", "Yet", 2),
            ("assistant", "Hm", 2), ("user", "Anyone", 1),
        )
    ),
    origin=Origin("d", 1),
)  # fmt: skip
CASES: list[tuple[Example, Form]] = [
    (RANKING, Form("ranking", reads=True)),
    (STEPS, Form("steps", reads=True)),
    (TREE, Form()),
]


def verdict(example: Example, form: Form, change: Callable[[list[Sample]], None] | None = None) -> Outcome:
    renderer = Renderer(TOKENIZER, form=form)

    def render(e: Example) -> Any:
        group = renderer.render(e)
        if change:
            change([r.sample for r in group])
        return group

    return data.mask([Row(example, render(example), [])], TOKENIZER.decode, "assistant")


def everything(samples: list[Sample]) -> None:
    for s in samples:
        s.mask = [True] * len(s)


def flipped(samples: list[Sample]) -> None:
    for s in samples:
        s.mask = [not m for m in s.mask]


@pytest.mark.parametrize(("example", "form"), CASES)
def test_the_mask_check(example: Example, form: Form) -> None:
    good = verdict(example, form)
    assert good.verdict == "pass" and not good.value.startswith("0 of 0")
    for fault in (everything, flipped):
        assert verdict(example, form, fault).verdict == "fail"
    for train_on in ("last", "all"):
        r = Renderer(TOKENIZER, train_on=train_on)  # type: ignore[arg-type]
        assert data.mask([Row(TREE, r.render(TREE), [])], TOKENIZER.decode, train_on).verdict == "pass"


def test_the_mask_check_sees_exchanged_responses() -> None:
    def exchange(samples: list[Sample]) -> None:
        samples[0].tokens, samples[1].tokens = samples[1].tokens, samples[0].tokens

    found = verdict(RANKING, CASES[0][1], exchange)
    assert found.verdict == "fail" and "d:1: 'Because' is not trained" in found.way_out


@pytest.mark.parametrize("by", [-1, 1])
def test_the_mask_check_sees_reads_that_are_off_by_one(by: int) -> None:
    def shift(samples: list[Sample]) -> None:
        samples[0].reads = [read + by for read in samples[0].reads]

    found = verdict(STEPS, CASES[1][1], shift)
    assert found.verdict == "fail" and "is read at another place than its end" in found.way_out


@pytest.mark.parametrize("name", ["label", "beats", "ties", "reads", "grades"])
def test_the_template_check_sees_judgements_that_differ(name: str) -> None:
    renderer = Renderer(TOKENIZER, form=CASES[0][1])
    stored = [r.sample for r in renderer.render(RANKING, 7)]
    row = Row(RANKING, renderer.render(RANKING), stored)
    assert data.template([row], renderer.render).verdict == "pass"
    setattr(stored[0], name, 5.0 if name == "label" else [(1.0,)] if name == "grades" else [])
    if name == "ties":
        stored[0].ties = [1]
    assert data.template([row], renderer.render).verdict == "fail"


@pytest.mark.parametrize(("name", "value"), [("mask", True), ("weights", 0.5), ("stop", "length")])
def test_the_template_check_sees_that_something_else_is_trained(name: str, value: Any) -> None:
    """Such as the tokens of an earlier run that trained other turns."""
    renderer = Renderer(TOKENIZER, form=CASES[0][1])
    stored = [r.sample for r in renderer.render(RANKING, 7)]
    row = Row(RANKING, renderer.render(RANKING), stored)
    setattr(stored[0], name, value if name == "stop" else [value] * len(stored[0]))
    assert data.template([row], renderer.render).verdict == "fail"


@pytest.mark.parametrize(("example", "form"), CASES)
def test_trained_and_stop_count_judged_examples(example: Example, form: Form) -> None:
    renderer, stats = Renderer(TOKENIZER, form=form), StoreStats()
    group = renderer.render(example)
    stats.keep(group, renderer.stop_ids, None)
    assert data.stop([stats]).verdict == "pass" and stats.whole == len(group)
    trained = sum(sum(r.sample.mask) for r in group)
    assert f"d: assistant {trained}" in data.trained([("d", stats)]).value
    ended = StoreStats()
    for r in group:
        last = max(i for i, trained in enumerate(r.sample.mask) if trained)
        r.sample.tokens[last] = 7
    ended.keep(group, renderer.stop_ids, None)
    assert data.stop([ended]).verdict == "fail"


def test_what_is_cut_says_nothing_of_the_mask_and_does_not_hide_its_siblings() -> None:
    def cut(places: tuple[int, ...]) -> Callable[[list[Sample]], None]:
        def change(samples: list[Sample]) -> None:
            everything(samples)
            for place in places:
                samples[place].stop = "length"

        return change

    assert verdict(RANKING, Form("ranking"), cut((0,))).verdict == "fail"
    for example, form, places in (
        (RANKING, Form("ranking"), (0, 1)),
        (STEPS, Form("steps"), (0,)),
        (TREE, Form(), (0,)),
    ):
        found = verdict(example, form, cut(places))
        assert found.verdict == "skipped" and found.value == "no whole answer among the first rows"
